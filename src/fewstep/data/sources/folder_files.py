"""The files of a folder, here or elsewhere: which pictures it has, and the bytes of one."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Protocol

from fewstep.data.sources.base import DroppedError, Reason, Tally, escape_line
from fewstep.data.sources.decoding import OTHER_SUFFIXES, SUFFIXES
from fewstep.data.sources.urls import is_not_found, list_files, read_bytes
from fewstep.errors import UserError


class FolderFiles(Protocol):
    """Names are relative to the folder, with forward slashes."""

    @property
    def name(self) -> str: ...

    def list_pictures(self, tally: Tally) -> list[str]:
        """All pictures in it and below, sorted by code points; what else is counted goes into `tally`."""
        ...

    def has(self, name: str) -> bool: ...

    def read(self, name: str, most: int) -> bytes:
        """The first `most` bytes. Raises DroppedError."""
        ...


@dataclass(frozen=True)
class LocalFiles:
    """Linked files are read; linked folders are not searched, but counted."""

    root: Path

    @property
    def name(self) -> str:
        return self.root.resolve().name

    def list_pictures(self, tally: Tally) -> list[str]:
        files: list[str] = []
        dropped: list[tuple[Reason, str]] = []

        def not_listed(error: OSError) -> None:
            dropped.append((Reason.NOT_SEARCHED, Path(error.filename).relative_to(self.root).as_posix()))

        for folder, subfolders, names in os.walk(self.root, onerror=not_listed):
            below = Path(folder).relative_to(self.root)
            linked = [name for name in subfolders if os.path.islink(os.path.join(folder, name))]
            dropped += [(Reason.NOT_SEARCHED, (below / name).as_posix()) for name in linked]
            for name in names:
                suffix = os.path.splitext(name)[1].lower()
                if suffix in SUFFIXES:
                    files.append((below / name).as_posix())
                elif suffix in OTHER_SUFFIXES:
                    dropped.append((Reason.UNSUPPORTED, (below / name).as_posix()))
        for reason, name in sorted(dropped):  # the operating system lists in no order of its own
            tally.drop(reason, name)
        return sorted(files)

    def has(self, name: str) -> bool:
        return os.path.lexists(self.root / name)

    def read(self, name: str, most: int) -> bytes:
        return read_local(self.root / name, most)


def read_local(path: Path | str, most: int) -> bytes:
    """The first `most` bytes of a plain file, linked or not. Raises DroppedError."""
    if not os.path.isfile(path):  # a pipe would block for ever
        raise DroppedError(Reason.UNREADABLE)
    try:
        with Path(path).open("rb") as file:
            return file.read(min(most, os.fstat(file.fileno()).st_size + 1))
    except OSError as error:
        raise DroppedError(Reason.UNREADABLE) from error


class RemoteFiles:
    """A folder behind an fsspec URL, listed once."""

    def __init__(self, url: str) -> None:
        self._url = url.rstrip("/")
        self._names = frozenset(list_files(url))

    @property
    def name(self) -> str:
        return PurePosixPath(self._url).name

    def list_pictures(self, tally: Tally) -> list[str]:
        for name in sorted(self._names):
            if PurePosixPath(name).suffix.lower() in OTHER_SUFFIXES:
                tally.drop(Reason.UNSUPPORTED, name)
        return sorted(name for name in self._names if PurePosixPath(name).suffix.lower() in SUFFIXES)

    def has(self, name: str) -> bool:
        return name in self._names

    def read(self, name: str, most: int) -> bytes:
        try:
            return read_bytes(f"{self._url}/{name}", most)
        except UserError:
            raise
        except Exception as error:
            if not is_not_found(error):
                raise
            raise DroppedError(Reason.UNREADABLE, name) from error


def local_files(path: Path, wanted: str) -> LocalFiles:
    """Raises UserError for what is no folder, with what is `wanted` in it."""
    if not os.path.isdir(path):
        trouble = "is not a folder" if os.path.exists(path) else "does not exist"
        raise UserError(f"data folder {escape_line(path)} {trouble}; give a folder with {wanted}")
    return LocalFiles(path)
