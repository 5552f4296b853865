"""The files of a folder, local or remote, by their paths in it, with forward slashes."""

from __future__ import annotations

import functools
import os
import posixpath
import stat
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from fewstep.data.sources import captions
from fewstep.data.sources.base import DroppedError, Tally, escape_line
from fewstep.data.sources.decoding import OTHER_SUFFIXES, SUFFIXES
from fewstep.data.sources.filters import Reason
from fewstep.data.sources.places import Place
from fewstep.data.sources.urls import is_not_found, list_files, local_path, read_bytes, strip_query
from fewstep.errors import UserError
from fewstep.roots import Root, open_regular

METADATA = ("metadata.jsonl", "metadata.csv")
"""Names of the files that describe the pictures in their folder and below, the first of them that is there."""
WANTED = (
    f"pictures ({', '.join(SUFFIXES)}) in it or in the folders below, each with a caption in a {captions.SUFFIXES[0]} "
    f"file of the same name ({', '.join(captions.SUFFIXES[1:])} are read too) or in a {' or '.join(METADATA)} with "
    "file_name and text in every line"
)
_SYSTEM = frozenset(
    ("thumbs.db", "desktop.ini", "__macosx", "@eadir", "#recycle", "@recycle", "$recycle.bin",
     "system volume information", "lost+found", "__pycache__")
)  # fmt: skip
_COUNTED = frozenset((*SUFFIXES, *OTHER_SUFFIXES, ".tar", ".parquet", ".arrow"))
"""Endings of what is counted where a server's page links to it elsewhere; all else may be its decoration."""


def is_hidden(path: str) -> bool:
    """Tells whether a path in a folder or tar names what systems and tools leave beside data: hidden files and folders,
    AppleDouble twins, thumbnails, bins."""
    return any(map(_is_hidden_part, path.replace("\\", "/").split("/")))


def _is_hidden_part(name: str) -> bool:
    return (name.startswith(".") and name.strip(".") != "") or name.lower() in _SYSTEM


@dataclass(frozen=True)
class Listing:
    """What lies in a folder and below."""

    by_ending: Mapping[str, Sequence[str]]
    """Paths by their ending in lower case, sorted by code points; with folders that are called as files of captions or
    metadata are."""
    unsearched: Sequence[str] = ()
    """Folders that were not searched, sorted."""
    outside: Sequence[str] = ()
    """What a server lists in the folder and which is not, sorted."""

    @functools.cached_property
    def pictures(self) -> tuple[str, ...]:
        """Returns the pictures, sorted by code points."""
        return tuple(sorted(self._list(SUFFIXES)))

    @functools.cached_property
    def unsupported(self) -> tuple[str, ...]:
        """Pictures of other formats, sorted by code points."""
        return tuple(sorted(self._list(OTHER_SUFFIXES)))

    def count_left_out(self, tally: Tally) -> None:
        """Counts folders that were not searched, what lies elsewhere, and pictures of other formats."""
        for reason, names in (
            (Reason.NOT_SEARCHED, self.unsearched), (Reason.OUTSIDE, self.outside),
            (Reason.UNSUPPORTED, self.unsupported),
        ):  # fmt: skip
            for name in names:
                tally.drop(reason, name)

    def find_texts(self, suffixes: Sequence[str]) -> dict[str, str]:
        """Returns the files of captions by their names without the ending, of several the first of `suffixes`."""
        texts: dict[str, str] = {}
        for suffix in suffixes:
            for name in self.by_ending.get(suffix, ()):
                texts.setdefault(name[: -len(suffix)], name)
        return texts

    def find_metadata(self) -> list[str]:
        """Returns the files of metadata, outer folders first, one of a folder."""
        places: dict[str, list[str]] = {}
        for name in self._list([posixpath.splitext(base)[1] for base in METADATA]):
            folder, base = posixpath.split(name)
            if base.lower() in METADATA:
                places.setdefault(folder, []).append(base)
        ordered = sorted(places, key=lambda folder: (folder.count("/") + bool(folder), folder))
        return [
            posixpath.join(folder, min(places[folder], key=lambda base: METADATA.index(base.lower())))
            for folder in ordered
        ]

    def describe_endings(self) -> str:
        """Returns the endings of files with their counts, the most frequent first, or `no files`."""
        counts = sorted(((len(names), ending) for ending, names in self.by_ending.items()), reverse=True)[:8]
        return ", ".join(f"{escape_line(ending or 'none')} ({count})" for count, ending in counts) or "no files"

    def _list(self, endings: Iterable[str]) -> list[str]:
        return [name for ending in endings for name in self.by_ending.get(ending, ())]


def _list_by_ending(names: Iterable[str], unsearched: Iterable[str] = (), outside: Iterable[str] = ()) -> Listing:
    """Sorts files by their endings."""
    by_ending: defaultdict[str, list[str]] = defaultdict(list)
    for name in sorted(names):  # the operating system lists in any order
        base = name[name.rfind("/") + 1 :]
        ending = base[base.rfind(".") :] if "." in base and base[0] != "." else posixpath.splitext(base)[1]
        by_ending[ending.lower()].append(name)
    return Listing(by_ending, sorted(unsearched), sorted(outside))


@dataclass(frozen=True)
class LocalFiles:
    """A local folder; links out of it, and to folders in it, are followed only where the place says so."""

    place: Place

    @functools.cached_property
    def root(self) -> Path:
        return Path(local_path(self.place.where))

    @functools.cached_property
    def _roots(self) -> tuple[str, ...]:
        return os.path.abspath(self.root), str(self.root.resolve())

    @functools.cached_property
    def _start(self) -> str:
        return os.path.join(self.root, "")

    @property
    def name(self) -> str:
        return self.root.resolve().name

    def shorten(self, name: str, below: str) -> str:
        """Returns an absolute path of this computer to what lies in the folder `below` in this one as a path that
        begins there, and any other as it is."""
        if os.path.isabs(name):
            for root in self._roots:
                start = os.path.join(root, below, "")
                if name.startswith(start):
                    return name.removeprefix(start)
        return name

    def list_all(self) -> Listing:
        """Lists the folder and those below."""
        found: list[str] = []
        unsearched: list[str] = []
        for name, kind in Root(str(self.root), self.place.follow_links).walk(_is_hidden_part):
            if kind == "unsearched":
                unsearched.append(name)
            elif kind == "file" or name.lower().endswith((*captions.SUFFIXES[:2], *METADATA)):
                found.append(name)
        return _list_by_ending(found, unsearched)

    def stat(self, name: str) -> os.stat_result:
        """Returns the status of a file that was listed. Raises DroppedError where it is a link out of the folder, and
        OSError."""
        status = os.lstat(self._start + name)  # where folders that were searched are no links
        return os.stat(self.place.resolve(name)) if stat.S_ISLNK(status.st_mode) else status

    def read(self, name: str, most: int) -> bytes:
        return read_local(self.place.resolve(name), most)


def read_local(path: str, most: int) -> bytes:
    """Reads the first `most` bytes of a regular file. Raises DroppedError."""
    try:
        with open_regular(path) as file:
            return file.read(min(most, os.fstat(file.fileno()).st_size + 1))
    except OSError as error:
        raise DroppedError(Reason.UNREADABLE) from error


class RemoteFiles:
    """A folder behind an fsspec URL, which is listed once."""

    def __init__(self, place: Place) -> None:
        self._place = place
        inside: list[str] = []
        outside: list[str] = []
        for name in list_files(place.where):
            if not is_hidden(name):
                (inside if self._holds(name) else outside).append(name)
        elsewhere = [name for name in outside if posixpath.splitext(name)[1].lower() in _COUNTED]
        self._listing = _list_by_ending(inside, outside=elsewhere)

    def _holds(self, name: str) -> bool:
        try:
            self._place.resolve(name)
        except DroppedError:
            return False
        return True

    @property
    def name(self) -> str:
        return PurePosixPath(strip_query(self._place.where).rstrip("/")).name

    def shorten(self, name: str, below: str) -> str:  # noqa: ARG002  # a server's folders have no paths of this computer
        return name

    def list_all(self) -> Listing:
        return self._listing

    def read(self, name: str, most: int) -> bytes:
        try:
            return read_bytes(self._place.resolve(name), most)
        except UserError:
            raise
        except Exception as error:
            if not is_not_found(error):
                raise
            raise DroppedError(Reason.UNREADABLE, name) from error


FolderFiles = LocalFiles | RemoteFiles


def open_files(place: Path | str, *, follow_links: bool = False) -> FolderFiles:
    """Opens the folder at a path or an fsspec URL. Raises UserError where a path is none."""
    if not isinstance(place, Path):
        return RemoteFiles(Place(place))
    if not os.path.isdir(place):
        trouble = "is not a folder" if os.path.exists(place) else "does not exist"
        raise UserError(f"data folder {escape_line(place)} {trouble}; give a folder with {WANTED}")
    return LocalFiles(Place(str(place), follow_links))
