"""The files of a folder, local or remote, by their paths in it, with forward slashes."""

from __future__ import annotations

import os
import posixpath
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from fewstep.data.sources import captions
from fewstep.data.sources.base import DroppedError, Reason, Tally, escape_line
from fewstep.data.sources.decoding import OTHER_SUFFIXES, SUFFIXES
from fewstep.data.sources.urls import is_not_found, list_files, read_bytes
from fewstep.errors import UserError

METADATA = ("metadata.jsonl", "metadata.csv")
"""Names of the files that describe the pictures in their folder and below, the first of them that is there."""
_SYSTEM = frozenset(
    ("thumbs.db", "desktop.ini", "__macosx", "@eadir", "#recycle", "@recycle", "$recycle.bin",
     "system volume information", "lost+found", "__pycache__")
)  # fmt: skip


def is_hidden(path: str) -> bool:
    """Tells whether a path in a folder or tar names what systems and tools leave beside data: hidden files and folders,
    AppleDouble twins, thumbnails, bins."""
    return any(
        (part[:1] == "." and part.strip(".") != "") or part.lower() in _SYSTEM
        for part in path.replace("\\", "/").split("/")
    )


def list_endings(names: Iterable[str]) -> str:
    """Returns the endings of files with their counts, the most frequent first, or `no files`."""
    counts = Counter(posixpath.splitext(name)[1].lower() or "none" for name in names)
    return ", ".join(f"{escape_line(ending)} ({count})" for ending, count in counts.most_common(8)) or "no files"


@dataclass(frozen=True)
class Listing:
    """What lies in a folder and below."""

    pictures: tuple[str, ...]
    """Sorted by code points."""
    others: tuple[str, ...]
    """All else, with folders whose names are those of files of captions or metadata."""

    def find_texts(self, suffixes: Sequence[str]) -> dict[str, str]:
        """Returns the files of captions by their names without the ending, of several the first of `suffixes`."""
        texts: dict[str, str] = {}
        by_suffix: dict[str, list[tuple[str, str]]] = {suffix: [] for suffix in suffixes}
        for name in self.others:
            stem, suffix = posixpath.splitext(name)
            if (suffix := suffix.lower()) in by_suffix:
                by_suffix[suffix].append((stem, name))
        for found in by_suffix.values():
            for stem, name in found:
                texts.setdefault(stem, name)
        return texts

    def find_metadata(self) -> list[str]:
        """Returns the files of metadata, outer folders first, one of a folder."""
        places: dict[str, list[str]] = {}
        for name in self.others:
            folder, base = posixpath.split(name)
            if base in METADATA:
                places.setdefault(folder, []).append(base)
        ordered = sorted(places, key=lambda folder: (folder.count("/") + bool(folder), folder))
        return [posixpath.join(folder, min(places[folder], key=METADATA.index)) for folder in ordered]


def _sort_out(names: Iterable[str]) -> Listing:
    pictures: list[str] = []
    others: list[str] = []
    for name in names:
        (pictures if posixpath.splitext(name)[1].lower() in SUFFIXES else others).append(name)
    return Listing(tuple(sorted(pictures)), tuple(sorted(others)))


def _count_unsupported(listing: Listing, tally: Tally) -> None:
    for name in listing.others:
        if posixpath.splitext(name)[1].lower() in OTHER_SUFFIXES:
            tally.drop(Reason.UNSUPPORTED, name)


@dataclass(frozen=True)
class LocalFiles:
    """A local folder; links to files are followed, links to folders are only counted."""

    root: Path

    @property
    def name(self) -> str:
        return self.root.resolve().name

    def list_all(self, tally: Tally) -> Listing:
        """Lists the folder and those below; `tally` counts what is not searched, and pictures of other formats."""
        found: list[str] = []
        refused: list[OSError] = []
        unsearched: list[str] = []
        start = len(os.path.join(self.root, ""))

        def place(path: str) -> str:
            return path[start:].replace(os.sep, "/") or "."

        for folder, subfolders, names in os.walk(self.root, onerror=refused.append):
            below = place(folder) + "/" if len(folder) > start else ""
            subfolders[:] = [name for name in subfolders if not is_hidden(name)]
            unsearched += [below + name for name in subfolders if os.path.islink(os.path.join(folder, name))]
            found += [below + name for name in names if not is_hidden(name)]
            found += [below + name for name in subfolders if name.lower().endswith((*captions.SUFFIXES[:2], *METADATA))]
        for name in sorted(
            [*unsearched, *(place(error.filename) for error in refused)]
        ):  # the operating system lists in any order
            tally.drop(Reason.NOT_SEARCHED, name)
        listing = _sort_out(found)
        _count_unsupported(listing, tally)
        return listing

    def read(self, name: str, most: int) -> bytes:
        return read_local(os.path.join(self.root, name), most)


def read_local(path: str, most: int) -> bytes:
    """Reads the first `most` bytes of a regular file, linked or not. Raises DroppedError."""
    if not os.path.isfile(path):  # a pipe would block forever
        raise DroppedError(Reason.UNREADABLE)
    try:
        with Path(path).open("rb") as file:
            return file.read(min(most, os.fstat(file.fileno()).st_size + 1))
    except OSError as error:
        raise DroppedError(Reason.UNREADABLE) from error


class RemoteFiles:
    """A folder behind an fsspec URL, which is listed once."""

    def __init__(self, url: str) -> None:
        self._url = url.rstrip("/")
        self._listing = _sort_out(name for name in list_files(url) if not is_hidden(name))

    @property
    def name(self) -> str:
        return PurePosixPath(self._url).name

    def list_all(self, tally: Tally) -> Listing:
        """Returns the listing; `tally` counts pictures of other formats."""
        _count_unsupported(self._listing, tally)
        return self._listing

    def read(self, name: str, most: int) -> bytes:
        try:
            return read_bytes(f"{self._url}/{name}", most)
        except UserError:
            raise
        except Exception as error:
            if not is_not_found(error):
                raise
            raise DroppedError(Reason.UNREADABLE, name) from error


FolderFiles = LocalFiles | RemoteFiles
