"""What may be read where a folder was named: the regular files in it, after links are followed."""

from __future__ import annotations

import bisect
import errno
import functools
import os
import re
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import BinaryIO, Literal

EntryKind = Literal["file", "folder", "unsearched"]
CACHED = re.compile(r"(models|datasets|spaces)--.+")
"""Matches what the Hub's cache calls the folder of a repository."""


class OutsideError(Exception):
    """Raised for a name that leads out of its folder."""

    def __init__(self, *, linked: bool) -> None:
        super().__init__("leads out of the folder")
        self.linked = linked
        """Whether it is a link that does."""


@dataclass(frozen=True)
class Root:
    """A folder on this machine, out of which nothing in it leads."""

    folder: str
    follow_links: bool = False
    """Whether links may lead out of it."""

    def resolve(self, name: str) -> str:
        """Returns the path of what has this name in the folder, without links in it.

        Links between snapshots and blobs of the Hub's cache are inside. Raises OutsideError.
        """
        if leaves_folder(name):
            raise OutsideError(linked=False)
        path = os.path.join(self._homes[0], name)
        if self.follow_links or "\0" in path or not self._has_link(name):  # no file can have a NUL in its name
            return path
        real = os.path.realpath(path)
        if not any(real == home or real.startswith(os.path.join(home, "")) for home in self._homes):
            raise OutsideError(linked=True)
        return real

    def walk(self, skip: Callable[[str], bool] = lambda _: False) -> Iterator[tuple[str, EntryKind]]:
        """Yields the names of everything in the folder and below, with what it is, unless `skip` is true of its last
        part. Folders are searched once, and linked ones after all others, only where links are followed."""
        waiting, linked, seen = [""], list[str](), set[tuple[int, int]]()
        while waiting or linked:
            below = waiting.pop() if waiting else linked.pop(0)
            try:
                status = os.stat(os.path.join(self.folder, below))
                if (status.st_dev, status.st_ino) in seen:
                    yield below, "unsearched"
                    continue
                seen.add((status.st_dev, status.st_ino))
                with os.scandir(os.path.join(self.folder, below)) as found:
                    entries = [entry for entry in found if not skip(entry.name)]
            except OSError:
                yield below or ".", "unsearched"
                continue
            for entry in entries:
                name = f"{below}/{entry.name}" if below else entry.name
                if not _is_folder(entry):
                    yield name, "file"
                    continue
                yield name, "folder"
                if not entry.is_symlink():
                    waiting.append(name)
                elif self.follow_links:
                    bisect.insort(linked, name)
                else:
                    yield name, "unsearched"

    def _has_link(self, name: str) -> bool:
        path = self._homes[0]
        for part in name.replace(os.sep, "/").split("/"):  # a tenth of the time that realpath takes
            path = os.path.join(path, part)
            if os.path.islink(path):
                return True
        return False

    @functools.cached_property
    def _homes(self) -> tuple[str, ...]:
        """Returns the folders in which real paths may lie."""
        real = PurePath(os.path.realpath(self.folder))
        homes = [str(real)]
        for place in (real, *real.parents):
            repository = place.parent.parent
            blobs = repository / "blobs"
            if place.parent.name == "snapshots" and CACHED.fullmatch(repository.name) and not os.path.islink(blobs):
                homes.append(str(blobs))
        return tuple(homes)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself
        return False


def leaves_folder(name: str) -> bool:
    """Tells whether a name may lead out of its folder, by the rules of any operating system, or is a URL."""
    parts = name.replace("\\", "/").split("/")
    return name[:1] in ("/", "\\") or name[1:2] == ":" or ".." in parts or "://" in name


def open_regular(path: str | Path) -> BinaryIO:
    """Opens a regular file for reading. Raises OSError for anything else: a pipe would block, a device never end."""
    try:
        _check_regular(os.stat(path))
        file: BinaryIO = open(path, "rb", opener=_open_at_once)  # noqa: SIM115  # the caller closes it
    except ValueError as error:
        raise OSError(errno.EINVAL, "no file can have this name") from error
    try:
        _check_regular(os.fstat(file.fileno()))
    except OSError:
        file.close()
        raise
    return file


def _check_regular(status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "not a regular file")


def _open_at_once(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))  # what became a pipe meanwhile
