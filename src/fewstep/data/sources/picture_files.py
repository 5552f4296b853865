"""The kind of source for a user's own pictures: a folder of pictures, tar shards or parquet files (docs/data.md)."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from fewstep import assets
from fewstep.data.kind import SourceKind, SourceRequest
from fewstep.data.shards.formats import TarShards, arrow_shards, parquet_shards
from fewstep.data.shards.manifest import MANIFEST, is_prepared
from fewstep.data.shards.source import open_shards
from fewstep.data.sources import captions, urls
from fewstep.data.sources.base import DroppedError, Source
from fewstep.data.sources.decoding import OTHER_SUFFIXES, SUFFIXES
from fewstep.data.sources.filters import Reason
from fewstep.data.sources.fitting import PictureLimits
from fewstep.data.sources.folder import list_folder, open_folder
from fewstep.data.sources.folder_files import METADATA, WANTED, FolderFiles, Listing, is_hidden
from fewstep.data.sources.places import Place
from fewstep.data.sources.remote import CacheSettings
from fewstep.data.sources.selection import Selection
from fewstep.data.worlds.scene import LOOKS
from fewstep.errors import UserError, find_nearest

_SHARDS = (".tar", ".parquet", ".arrow")
_COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
_URL_OR_PATTERN = frozenset(":{*?[")
"""Characters that do not occur in a mistyped name of a world."""
Listed = dict[str, tuple[FolderFiles, Listing]]
_GIVE = f"give a folder of pictures ({', '.join(SUFFIXES)}), .tar shards, or .parquet or .arrow files"


def open_picture_files(
    data: str | Sequence[str], selection: Selection | None = None, cache: CacheSettings | None = None
) -> Source:
    """Opens a folder of pictures, or `.tar` or `.parquet` files: one, several, a folder of them, or a pattern.

    Paths and fsspec URLs may contain `{00000..00123}`, `{a,b}` and `*`. All files must be of one kind. Raises UserError
    where no picture can be used.
    """
    selection, cache = selection or Selection(), cache or CacheSettings()
    found: list[str] = []
    finder = _Finder(selection.follow_links)
    for pattern in [data] if isinstance(data, str) else data:
        places = urls.expand_braces(pattern)
        if places == [pattern]:
            _check_exists(pattern)
        found += [file for place in places for file in finder.find(place)]
    tars, tables, arrows = ([file for file in found if _find_suffix(file) == suffix] for suffix in _SHARDS)
    folders = [file for file in found if _find_suffix(file) not in _SHARDS]
    if tars:
        own = {TarShards().sidecar_url(tar) for tar in tars}
        tables = [table for table in tables if table not in own]
    if not found and (linked := finder.left_out.get(Reason.LINKED_OUTSIDE)):
        raise UserError(
            f"{urls.redact(linked[0])} is a link out of its folder, as all of {len(linked)} files are; name what they "
            "lead to, or follow them with --follow-links"
        )
    if not found or sum(map(bool, (tars, tables, arrows, folders))) > 1 or len(folders) > 1:
        named = zip((tars, tables, arrows, folders), (*_SHARDS, "folders of pictures"), strict=True)
        kinds = [(len(files), kind) for files, kind in named]
        counts = ", ".join(f"{count} {kind}" for count, kind in kinds if count) or "nothing"
        raise UserError(f"data is {counts}; one source is of one kind, and of one folder where it is pictures")
    if folders:
        return open_folder(_to_place(folders[0]), selection, cache, finder.listed.get(folders[0]))
    kind = TarShards() if tars else (parquet_shards if tables else arrow_shards)(follow_links=selection.follow_links)
    return open_shards(tars or tables or arrows, kind, selection, cache, left_out=finder.left_out)


def _find_suffix(url: str) -> str:
    return PurePosixPath(urls.strip_query(url)).suffix.lower()


def _to_place(folder: str) -> Path | str:
    return folder if urls.is_remote(folder) else Path(urls.local_path(folder))


@dataclass(frozen=True)
class _Finder:
    """Finds the files that paths and URLs lead to."""

    follow_links: bool
    listed: Listed = field(default_factory=dict)
    """What was listed meanwhile."""
    left_out: dict[str, list[str]] = field(default_factory=dict)
    """What was found beside the files, by the reasons why it is not read."""

    def find(self, place: str) -> list[str]:
        """Returns the shards that one path or URL leads to, or the path itself if it is a folder of pictures."""
        if urls.strip_query(place).lower().endswith(_COMPRESSED):
            raise UserError(
                f"{urls.redact(place)} is compressed, so that pictures in it cannot be read one by one; unpack it to a "
                ".tar"
            )
        path = urls.local_path(place)
        here = not urls.is_remote(place)
        if _find_suffix(place) in _SHARDS and not (here and os.path.isdir(path)) and not _is_pattern(place):
            return [place]
        if _is_pattern(place):
            return self._match(place)
        if here and not os.path.isdir(path):
            raise UserError(f"data {urls.redact(place)} is neither a folder nor a .tar or .parquet file; {_GIVE}")
        return self._find_in_folder(place)

    def _match(self, pattern: str) -> list[str]:
        matched = urls.expand_wildcards(pattern)
        if not matched:
            raise UserError(f"no file matches {urls.redact(pattern)}; {_GIVE}")
        folder = urls.split_pattern(urls.local_path(pattern))[0]
        if urls.is_remote(pattern):
            names = {file: file.partition("://")[2].lstrip("/") for file in matched}
            shown = [file for file in matched if not is_hidden(PurePosixPath(urls.strip_query(file)).name)]
        else:
            names = {file: os.path.relpath(file, folder) for file in matched}
            shown = [file for file in matched if not is_hidden(names[file])]
        shards = [file for file in shown if _find_suffix(file) in _SHARDS]
        return self._keep_inside(folder, [names[file] for file in shards], shards) if shards else shown

    def _find_in_folder(self, folder: str) -> list[str]:
        self.listed[folder] = list_folder(_to_place(folder), follow_links=self.follow_links)
        listing = self.listed[folder][1]
        endings = listing.by_ending.keys()
        if not endings and urls.is_remote(folder):
            raise UserError(
                f"nothing lies behind {urls.redact(folder)}, and a URL may be mistyped: looked for {MANIFEST}, which "
                f"`fewstep prepare --out` writes, and for any file that is listed below it; {_GIVE}"
            )
        pictures = not endings.isdisjoint((*SUFFIXES, *OTHER_SUFFIXES))
        metadata = listing.find_metadata()
        captioned = bool(metadata) or not endings.isdisjoint(captions.SUFFIXES[:2])
        if ".tar" in endings and pictures and captioned:
            raise UserError(
                f"{urls.redact(folder)} has captioned pictures and .tar files in it; name the files you mean"
            )
        if (pictures or METADATA[0] in metadata) and (captioned or endings.isdisjoint(_SHARDS)):
            return [folder]
        for suffix in _SHARDS:
            if suffix in endings:
                names = listing.by_ending[suffix]
                for reason, others in ((Reason.OUTSIDE, listing.outside), (Reason.NOT_SEARCHED, listing.unsearched)):
                    self.left_out.setdefault(reason, []).extend(others)
                return self._keep_inside(folder, names, [f"{folder.rstrip('/')}/{name}" for name in names])
        seen = f", but {listing.describe_endings()}" if endings else ""
        raise UserError(
            f"{urls.redact(folder)} is a folder with neither pictures nor .tar nor .parquet in it{seen}; "
            f"expected {WANTED}"
        )

    def _keep_inside(self, folder: str, names: Sequence[str], files: Sequence[str]) -> list[str]:
        """Returns the files whose names lie in the folder; keeps account of the others."""
        place, inside = Place(folder, self.follow_links), []
        for name, file in zip(names, files, strict=True):
            try:
                place.resolve(name)
                inside.append(file)
            except DroppedError as dropped:
                self.left_out.setdefault(dropped.reason, []).append(urls.redact(file))
        return inside


def _check_exists(place: str) -> None:
    """Raises UserError where a path that is no pattern is neither file nor folder; of many shards one may be
    missing."""
    if urls.is_remote(place) or _is_pattern(place):
        return
    path = urls.local_path(place)
    if not os.path.exists(path):
        raise UserError(f"data {urls.redact(place)} does not exist; {_GIVE}")
    if not (os.path.isfile(path) or os.path.isdir(path)):
        raise UserError(f"data {urls.redact(place)} is a pipe, a socket or a device; {_GIVE}")


def _is_pattern(place: str) -> bool:
    if not urls.is_remote(place):
        return any(mark in place for mark in "*?[") and not os.path.exists(urls.local_path(place))
    return "*" in urls.strip_query(place)


def check_named(data: str) -> None:
    """Raises UserError where a path that is no pattern does not exist, as a misspelt world's name does not."""
    if not (Path(data).exists() or _URL_OR_PATTERN.intersection(data)):
        worlds = (*LOOKS, assets.GALLERY, assets.GALLERY_TWEMOJI)
        close = find_nearest(data, worlds, 0.6)
        hint = f"; did you mean {close}?" if close else f"; known worlds are {', '.join(worlds)}"
        raise UserError(f"data folder {data} does not exist{hint}")


def open_own_pictures(request: SourceRequest) -> Source:
    """Opens the pictures and prints how many are used and dropped. Raises UserError where none can be used."""
    data = request.data
    check_named(data)
    if is_prepared(data):
        raise UserError(f"{data} holds latents, but pictures are needed here; give those that it was prepared from")
    selection = dataclasses.replace(request.selection, limits=PictureLimits(side=request.resolution))
    source = open_picture_files(data, selection, CacheSettings(budget=request.cache_bytes))
    print(source.report.format_report(), flush=True)
    return source


KIND = SourceKind(recognises=lambda _: True, open=open_own_pictures, check=check_named)
