"""Looks at the files of a local folder by their headers, in threads, and keeps what it saw for the next start."""

from __future__ import annotations

import functools
import stat
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO, NamedTuple, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
from PIL.JpegImagePlugin import JpegImageFile
from PIL.WebPImagePlugin import WebPImageFile
from rich.console import Console
from rich.progress import track

from fewstep.data.sources.base import DroppedError, Reason
from fewstep.data.sources.decoding import decode, find_reader, find_upright_size
from fewstep.data.sources.fitting import MAX_BYTES, PictureLimits
from fewstep.data.sources.folder_files import LocalFiles, read_local
from fewstep.data.sources.remote import hash_name
from fewstep.files import write_whole
from fewstep.roots import open_regular

T = TypeVar("T")

VERSION = "2"
"""Part of the name of every file of views; increase it when what is seen changes."""
_JPEG_END, _PNG_END = b"\xff\xd9", b"IEND\xaeB`\x82"
_TAIL = 4096
"""Last bytes of a file, in which the end of a whole JPEG or PNG stands."""
_THREADS = 8
_CHUNK = 128
_UNSETTLED_NS = 2 * 10**9
"""A file younger than this may change again without another time."""
_Stamp = tuple[int, int, str]
"""Size and time of a file, and why it cannot be used."""
_SCHEMA = pa.schema(
    [("name", pa.string()), ("size", pa.int64()), ("mtime", pa.int64()), ("reason", pa.string()),
     ("width", pa.int32()), ("height", pa.int32()), ("text", pa.string())]
)  # fmt: skip


class View(NamedTuple):
    """What a file of this size and time turned out to be: a picture, or the text of a caption."""

    size: int = 0
    """Bytes."""
    mtime: int = 0
    """Time of the last change, in ns."""
    reason: str = ""
    """Why it cannot be used, whatever the limits are."""
    width: int = 0
    """Of the upright picture, as its height is."""
    height: int = 0
    text: str = ""

    def check(self, limits: PictureLimits) -> None:
        """Raises DroppedError where this is not a picture within the limits."""
        if self.reason:
            raise DroppedError(self.reason)
        if self.size > limits.max_bytes or not limits.allows(self.width, self.height):
            raise DroppedError(Reason.TOO_LARGE)


def in_threads(look: Callable[[str], T], names: Sequence[str], title: str) -> list[T]:
    """Calls `look` for every name in threads, with a bar on a terminal, and returns the results in order."""
    chunks = [names[start : start + _CHUNK] for start in range(0, len(names), _CHUNK)]
    console = Console(stderr=True)
    with ThreadPoolExecutor(_THREADS) as pool:
        work = pool.map(lambda chunk: [look(name) for name in chunk], chunks)
        done = track(work, title, len(chunks), console=console, disable=not (console.is_terminal and len(chunks) > 4))
        return [each for chunk in done for each in chunk]


class Views:
    """What is known of the files of a folder: kept in one file, by path, size and time of change."""

    def __init__(self, files: LocalFiles, cache: Path, fields: Sequence[str]) -> None:
        """`fields` are those that hold captions, since of JSON no others are kept."""
        self._files = files
        self._file = cache / "folders" / f"{hash_name(VERSION, str(files.root.resolve()), *fields)}.parquet"
        self._known = _load(self._file)
        self._seen: dict[str, View] = {}
        self._has_new = False

    def look_all(self, names: Sequence[str], look: Callable[[str, int], View], what: str) -> dict[str, View]:
        """Returns what `look` gives for each file, given its name and its size; or gave, if it is still the same."""
        found: dict[str, View] = {}
        new: dict[str, _Stamp] = {}
        known = self._known
        for name in names:
            stamp = _stamp(self._files, name)
            view = known.get(name)
            if view is not None and view[0] == stamp[0] and view[1] == stamp[1]:
                found[name] = view
            else:
                new[name] = stamp

        def look_at(name: str) -> View:
            size, mtime, reason = new[name]
            return View(size, mtime, reason) if reason else look(name, size)._replace(size=size, mtime=mtime)

        found.update(zip(new, in_threads(look_at, list(new), f"looking at {len(new)} {what}"), strict=True))
        self._seen |= found
        self._has_new = self._has_new or bool(new)
        return found

    def save(self) -> None:
        """Keeps what was seen, where that is new. Where it cannot be kept, the next start looks anew."""
        if not self._has_new and len(self._seen) == len(self._known):
            return
        settled = time.time_ns() - _UNSETTLED_NS
        rows = {name: view for name, view in self._seen.items() if view.size >= 0 and view.mtime < settled}
        if rows == self._known:
            return
        columns = zip(*((name, *view) for name, view in rows.items()), strict=True)
        arrays = (
            [pa.array(column, field.type) for column, field in zip(columns, _SCHEMA, strict=True)] if rows else None
        )
        table = pa.table(arrays, schema=_SCHEMA) if arrays else _SCHEMA.empty_table()
        try:
            with write_whole(self._file) as draft:
                pq.write_table(table, draft, compression="zstd")
        except OSError:
            return


def _load(file: Path) -> dict[str, View]:
    try:
        table = pq.read_table(file, schema=_SCHEMA)
        if any(column.null_count for column in table.columns):
            return {}
        names, *columns = (column.to_numpy().tolist() for column in table.columns)
    except (OSError, pa.ArrowException, ValueError):
        return {}
    views: Iterable[View] = map(functools.partial(tuple.__new__, View), zip(*columns, strict=True))
    return dict(zip(names, views, strict=True))


def _stamp(files: LocalFiles, name: str) -> _Stamp:
    """Returns size and time of a regular file that may be read; else why it cannot be used, and −1 as its size."""
    try:
        status = files.stat(name)
    except DroppedError as dropped:
        return -1, 0, dropped.reason
    except (OSError, ValueError):
        return -1, 0, Reason.UNREADABLE
    return (status.st_size, status.st_mtime_ns, "") if stat.S_ISREG(status.st_mode) else (-1, 0, Reason.UNREADABLE)


def look_at_picture(path: str, size: int) -> View:
    """Reads the header and the end of a picture; what is odd there is decoded."""
    try:
        with open_regular(path) as file:
            sides = _read_size(file, size)
        if sides is None:
            sides = decode(read_local(path, MAX_BYTES + 1)).size
    except OSError:
        return View(reason=Reason.UNREADABLE)
    except DroppedError as dropped:
        return View(reason=dropped.reason)
    return View(width=sides[0], height=sides[1])


def _read_size(file: BinaryIO, size: int) -> tuple[int, int] | None:
    """Reads width and height from the header of a file of `size` bytes; None where only decoding can tell what it is.

    So it is where the header is odd, and where the end is not that of a whole picture.
    """
    start = file.read(16)
    try:
        reader = find_reader(start)
        file.seek(max(0, size - _TAIL))
        end = file.read(_TAIL)
        if reader is WebPImageFile:
            whole = int.from_bytes(start[4:8], "little") + 8 <= size
        else:
            whole = (_JPEG_END if reader is JpegImageFile else _PNG_END) in end
        file.seek(0)
        with reader(file) as image:
            return find_upright_size(image) if whole else None
    except Exception:  # as in decode
        return None
