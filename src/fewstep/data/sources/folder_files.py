"""The files of a folder, local or remote, by their paths in it, with forward slashes."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from fewstep.data.sources.base import DroppedError, Reason, Tally
from fewstep.data.sources.decoding import OTHER_SUFFIXES, SUFFIXES
from fewstep.data.sources.urls import is_not_found, list_files, read_bytes
from fewstep.errors import UserError


@dataclass(frozen=True)
class LocalFiles:
    """A local folder; links to files are followed, links to folders are only counted."""

    root: Path

    @property
    def name(self) -> str:
        return self.root.resolve().name

    def list_pictures(self, tally: Tally) -> list[str]:
        """Lists all pictures in the folder and below, sorted by code points; `tally` counts the other entries."""
        files: list[str] = []
        dropped: list[tuple[Reason, str]] = []

        def drop_folder(error: OSError) -> None:
            dropped.append((Reason.NOT_SEARCHED, Path(error.filename).relative_to(self.root).as_posix()))

        for folder, subfolders, names in os.walk(self.root, onerror=drop_folder):
            below = Path(folder).relative_to(self.root)
            linked = [name for name in subfolders if os.path.islink(os.path.join(folder, name))]
            dropped += [(Reason.NOT_SEARCHED, (below / name).as_posix()) for name in linked]
            for name in names:
                suffix = os.path.splitext(name)[1].lower()
                if suffix in SUFFIXES:
                    files.append((below / name).as_posix())
                elif suffix in OTHER_SUFFIXES:
                    dropped.append((Reason.UNSUPPORTED, (below / name).as_posix()))
        for reason, name in sorted(dropped):  # the operating system lists in any order
            tally.drop(reason, name)
        return sorted(files)

    def has(self, name: str) -> bool:
        return os.path.lexists(self.root / name)

    def read(self, name: str, most: int) -> bytes:
        return read_local(self.root / name, most)


def read_local(path: Path | str, most: int) -> bytes:
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


FolderFiles = LocalFiles | RemoteFiles
