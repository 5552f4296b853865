"""What `--data` names, found out from what is there: a folder of pictures, tar shards or parquet files."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from fewstep.data.shards.formats import ParquetShards, ShardFormat, TarShards
from fewstep.data.shards.source import open_shards
from fewstep.data.sources.base import Source
from fewstep.data.sources.decoding import OTHER_SUFFIXES, SUFFIXES
from fewstep.data.sources.folder import METADATA, WANTED, open_folder
from fewstep.data.sources.picking import Picking
from fewstep.data.sources.places import expand, file_part, find_files, is_remote, local_path, match, readable
from fewstep.data.sources.remote import CacheSettings
from fewstep.errors import UserError

_SHARDS = (".tar", ".parquet")
_COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
_GIVE = f"give a folder of pictures ({', '.join(SUFFIXES)}), .tar shards, or .parquet files"


def open_source(
    data: str | Sequence[str], picking: Picking | None = None, cache: CacheSettings | None = None
) -> Source:
    """The pictures of a folder, or of `.tar` or `.parquet` files: one, several, a folder of them, or a pattern.

    Paths and fsspec URLs may have `{00000..00123}`, `{a,b}` and `*` in them. All must be of one kind. Raises
    UserError, in one line, when there is nothing to train on.
    """
    picking, cache = picking or Picking(), cache or CacheSettings()
    found: list[str] = []
    for pattern in [data] if isinstance(data, str) else data:
        places = expand(pattern)
        if places == [pattern]:
            _check_there(pattern)
        found += [file for place in places for file in _find(place)]
    tars, tables = ([file for file in found if _suffix(file) == suffix] for suffix in _SHARDS)
    folders = [file for file in found if _suffix(file) not in _SHARDS]
    if tars:
        own = {TarShards().beside(tar) for tar in tars}
        tables = [table for table in tables if table not in own]
    if not found or sum(map(bool, (tars, tables, folders))) > 1 or len(folders) > 1:
        kinds = [(len(tars), ".tar"), (len(tables), ".parquet"), (len(folders), "folder of pictures")]
        counts = ", ".join(f"{count} {kind}" for count, kind in kinds if count) or "nothing"
        raise UserError(f"data is {counts}; one source is of one kind, and of one folder where it is pictures")
    if folders:
        return open_folder(folders[0] if is_remote(folders[0]) else Path(local_path(folders[0])), picking)
    kind: ShardFormat = TarShards() if tars else ParquetShards()
    return open_shards(tars or tables, kind, picking, cache)


def _suffix(url: str) -> str:
    return PurePosixPath(file_part(url)).suffix.lower()


def _find(place: str) -> list[str]:
    """Shards, or the place itself where it is a folder of pictures."""
    if file_part(place).lower().endswith(_COMPRESSED):
        raise UserError(
            f"{readable(place)} is compressed, and no picture in it can be reached alone; unpack it to a .tar"
        )
    path = local_path(place)
    here = not is_remote(place)
    if _suffix(place) in _SHARDS and not (here and os.path.isdir(path)) and not _is_pattern(place):
        return [place]
    if _is_pattern(place):
        matched = match(place)
        if not matched:
            raise UserError(f"no file matches {readable(place)}; {_GIVE}")
        return [file for file in matched if _suffix(file) in _SHARDS] or matched
    if here and not os.path.isdir(path):
        raise UserError(f"data {readable(place)} is neither a folder nor a {' or '.join(_SHARDS)} file; {_GIVE}")
    return _find_in(place)


def _check_there(place: str) -> None:
    """Of many shards one may be missing; what was named alone may not."""
    if not (is_remote(place) or _is_pattern(place) or os.path.exists(local_path(place))):
        raise UserError(f"data {readable(place)} does not exist; {_GIVE}")


def _is_pattern(place: str) -> bool:
    if not is_remote(place):
        return any(mark in place for mark in "*?[") and not os.path.exists(local_path(place))
    return "*" in file_part(place)


def _find_in(folder: str) -> list[str]:
    names = find_files(folder) if is_remote(folder) else _walk(local_path(folder))
    suffixes = {PurePosixPath(name).suffix.lower() for name in names}
    pictures = not suffixes.isdisjoint((*SUFFIXES, *OTHER_SUFFIXES))
    shards = not suffixes.isdisjoint(_SHARDS)
    captioned = ".txt" in suffixes or METADATA in names
    if ".tar" in suffixes and pictures and captioned:
        raise UserError(f"{readable(folder)} has captioned pictures and .tar files in it; name the files you mean")
    if (pictures or METADATA in names) and (captioned or not shards):
        return [folder]
    for suffix in _SHARDS:
        if suffix in suffixes:
            inside = sorted(name for name in names if PurePosixPath(name).suffix.lower() == suffix)
            return [f"{folder.rstrip('/')}/{name}" for name in inside]
    raise UserError(
        f"{readable(folder)} is a folder with neither pictures nor .tar nor .parquet in it; wanted are {WANTED}"
    )


def _walk(folder: str) -> list[str]:
    return [
        (Path(below).relative_to(folder) / name).as_posix() for below, _, names in os.walk(folder) for name in names
    ]
