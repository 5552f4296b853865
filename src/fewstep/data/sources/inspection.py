"""Looks at the files of a local folder by their headers, in threads, and keeps what it saw for the next start."""

from __future__ import annotations

import functools
import stat
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL.JpegImagePlugin import JpegImageFile
from PIL.WebPImagePlugin import WebPImageFile
from rich.console import Console
from rich.progress import track

from fewstep.data.sources.base import DroppedError
from fewstep.data.sources.decoding import decode, find_reader, find_upright_size
from fewstep.data.sources.filters import Reason
from fewstep.data.sources.fitting import MAX_BYTES, PictureLimits
from fewstep.data.sources.folder_files import LocalFiles, read_local
from fewstep.data.sources.remote import hash_name
from fewstep.files import write_whole
from fewstep.roots import open_regular

K = TypeVar("K")
T = TypeVar("T")

VERSION = "3"
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
     ("width", pa.int64()), ("height", pa.int64()), ("text", pa.string())]
)  # fmt: skip


class View(NamedTuple):
    """What a file of this size and time turned out to be: a picture, or the text of a caption."""

    size: int = 0
    """Counts the bytes."""
    mtime: int = 0
    """Is the time of the last change, in ns."""
    reason: str = ""
    """Says why it cannot be used, whatever the limits are."""
    width: int = 0
    """Is that of the upright picture, as the height is."""
    height: int = 0
    text: str = ""


@dataclass(frozen=True)
class Views:
    """Holds what is known of many files, in columns `[n]`: 200,000 objects would cost more than stat."""

    size: NDArray[np.int64]
    mtime: NDArray[np.int64]
    reason: NDArray[np.object_]
    width: NDArray[np.int64]
    height: NDArray[np.int64]
    text: NDArray[np.object_]

    @classmethod
    def gather(cls, views: Sequence[View]) -> Views:
        columns = zip(*views, strict=True) if views else ((),) * len(View._fields)
        return cls(*(np.array(column, kind) for column, kind in zip(columns, _KINDS, strict=True)))

    def columns(self) -> tuple[NDArray[Any], ...]:
        return self.size, self.mtime, self.reason, self.width, self.height, self.text

    def take(self, rows: NDArray[np.intp]) -> Views:
        return Views(*(column[rows] for column in self.columns()))

    def __add__(self, other: Views) -> Views:
        return Views(*map(np.concatenate, zip(self.columns(), other.columns(), strict=True)))

    def refuse(self, limits: PictureLimits) -> list[str]:
        """Returns why each is not a picture within the limits, empty where it is one."""
        fits = (self.size <= limits.max_bytes) & limits.allow(self.width, self.height)
        reasons: list[str] = np.where(fits | (self.reason != ""), self.reason, Reason.TOO_LARGE).tolist()
        return reasons


_KINDS = (np.int64, np.int64, np.object_, np.int64, np.int64, np.object_)
_NOTHING = Views.gather([View(size=-2)])
"""A row that no file is like."""


def in_threads(look: Callable[[K], T], names: Sequence[K], title: str) -> list[T]:
    """Calls `look` for every name in threads, with a bar on a terminal, and returns the results in order."""
    chunks = [names[start : start + _CHUNK] for start in range(0, len(names), _CHUNK)]
    console = Console(stderr=True)
    with ThreadPoolExecutor(_THREADS) as pool:
        work = pool.map(lambda chunk: [look(name) for name in chunk], chunks)
        done = track(work, title, len(chunks), console=console, disable=not (console.is_terminal and len(chunks) > 4))
        return [each for chunk in done for each in chunk]


class KeptViews:
    """What is known of the files of a folder: kept in one file, by path, size and time of change."""

    def __init__(self, files: LocalFiles, cache: Path, fields: Sequence[str]) -> None:
        """`fields` are those that hold captions, since of JSON no others are kept."""
        self._files = files
        self._file = cache / "folders" / f"{hash_name(VERSION, str(files.root.resolve()), *fields)}.parquet"
        names, known = _load(self._file)
        self._rows = dict(zip(names, range(len(names)), strict=True))
        self._known = known + _NOTHING  # which row −1 then is
        self._seen: list[tuple[Sequence[str], Views]] = []
        self._new = Views.gather([])

    def look_all(self, names: Sequence[str], look: Callable[[str, int], View], what: str) -> Views:
        """Returns what `look` gives for each file, given its name and its size; or gave, if it is still the same."""
        stamps = [_stamp(self._files, name) for name in names]
        sizes, times, reasons = zip(*stamps, strict=True) if stamps else ((),) * 3
        found = self._known.take(np.array([self._rows.get(name, -1) for name in names], np.intp))
        fresh = np.flatnonzero((found.size != np.array(sizes, np.int64)) | (found.mtime != np.array(times, np.int64)))

        def look_at(place: int) -> View:
            size, mtime, reason = sizes[place], times[place], reasons[place]
            return View(size, mtime, reason) if reason else look(names[place], size)._replace(size=size, mtime=mtime)

        new = Views.gather(in_threads(look_at, fresh.tolist(), f"looking at {len(fresh)} {what}"))
        for column, values in zip(found.columns(), new.columns(), strict=True):
            column[fresh] = values
        self._seen.append((names, found))
        self._new += new
        return found

    def save(self) -> None:
        """Keeps what was seen, where that is new. Where it cannot be kept, the next start looks anew."""
        settled = time.time_ns() - _UNSETTLED_NS
        count = sum(int(_may_keep(views, settled).sum()) for _, views in self._seen)
        if count == len(self._rows) and not _may_keep(self._new, settled).any():
            return
        names = np.array([name for seen, _ in self._seen for name in seen], np.object_)
        views = functools.reduce(Views.__add__, (views for _, views in self._seen))
        rows = np.flatnonzero(_may_keep(views, settled))
        columns = (names[rows], *views.take(rows).columns())
        arrays = [pa.array(column, field.type) for column, field in zip(columns, _SCHEMA, strict=True)]
        try:
            with write_whole(self._file) as draft:
                pq.write_table(pa.table(arrays, schema=_SCHEMA), draft, compression="zstd")
        except OSError:
            return


def _may_keep(views: Views, settled: int) -> NDArray[np.bool_]:
    """Tells of which files size and time say what they are."""
    return (views.size >= 0) & (views.mtime < settled)


def _load(file: Path) -> tuple[list[str], Views]:
    try:
        table = pq.read_table(file, schema=_SCHEMA)
        if not any(column.null_count for column in table.columns):
            names, *columns = (column.to_numpy() for column in table.columns)
            return names.tolist(), Views(*(map(np.asarray, columns, _KINDS)))
    except (OSError, pa.ArrowException, ValueError):
        pass
    return [], Views.gather([])


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
