"""Where shards are kept: a folder of this machine, or any URL that fsspec writes to, as a bucket.

Every file appears under its name whole or not at all, and is the same whoever writes it, so that one who writes what
another has written meanwhile does no harm.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from fewstep.errors import UserError
from fewstep.files import SafetensorsHeader, name_draft, read_safetensors_header, remove_abandoned, write_whole

ADVICE = "delete it and prepare it again"
_URL = re.compile(r"((?:[a-z0-9+.-]+::)*[a-z][a-z0-9+.-]+):/+(.*)", re.DOTALL)
"""Matches a scheme of two letters or more, since one is a drive; `Path` leaves one of the slashes behind it."""
_MOST_HEADER = 2**26


class Store(Protocol):
    """Takes files, and gives them back."""

    def __contains__(self, name: str) -> bool: ...

    def list_names(self) -> list[str]:
        """Lists the files, sorted."""
        ...

    def read(self, name: str) -> bytes:
        """Reads a file whole. Raises FileNotFoundError where it is not there."""
        ...

    def read_header(self, name: str) -> SafetensorsHeader:
        """Reads the header of a safetensors file. Raises UserError where it is damaged."""
        ...

    def write(self, name: str, content: bytes) -> None:
        """Writes a file, which is there for good when this returns."""
        ...

    def clean(self) -> None:
        """Removes what writers of this machine have left half written."""
        ...


class FolderStore:
    """Is a folder, whose files are drafts until they are renamed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __str__(self) -> str:
        return str(self.folder)

    def __contains__(self, name: str) -> bool:
        return (self.folder / name).exists()

    def list_names(self) -> list[str]:
        return sorted(path.name for path in self.folder.glob("*"))

    def read(self, name: str) -> bytes:
        return (self.folder / name).read_bytes()

    def read_header(self, name: str) -> SafetensorsHeader:
        return read_safetensors_header(self.folder / name, advice=ADVICE)

    def write(self, name: str, content: bytes) -> None:
        with write_whole(self.folder / name, durable=True) as draft:
            draft.write_bytes(content)

    def clean(self) -> None:
        remove_abandoned(self.folder)

    @contextlib.contextmanager
    def mark(self) -> Iterator[str]:
        """Puts a file there while this lasts, and yields its name, by which other machines know that they see the
        folder."""
        made = [each for each in (self.folder, *self.folder.parents) if not each.exists()]
        self.folder.mkdir(parents=True, exist_ok=True)
        file = name_draft(self.folder / "seen")
        file.touch()
        try:
            yield file.name
        finally:
            file.unlink(missing_ok=True)
            for each in made:
                with contextlib.suppress(OSError):
                    each.rmdir()


class UrlStore:
    """Is a place behind a URL, whose files are there once their transaction ends: in a bucket, when an upload is whole.

    Errors of the network are tried again, and then are UserErrors.
    """

    def __init__(self, url: str) -> None:
        """Raises UserError where fsspec cannot open the URL."""
        from fewstep.data.sources.urls import open_filesystem, redact  # slow, and of no use to folders

        self.url = url
        self._fs, self._path = open_filesystem(url)
        self._said = redact(url)

    def __reduce__(self) -> tuple[type[UrlStore], tuple[str]]:
        return type(self), (self.url,)

    def __str__(self) -> str:
        return self._said

    def __contains__(self, name: str) -> bool:
        self._fs.invalidate_cache()  # of listings, which others make old
        return bool(self._do(lambda: self._fs.exists(self._at(name))))

    def list_names(self) -> list[str]:
        self._fs.invalidate_cache()
        try:
            found = self._do(lambda: self._fs.ls(self._path, detail=False))
        except FileNotFoundError:
            return []
        return sorted(str(each).rstrip("/").rpartition("/")[2] for each in found)

    def read(self, name: str) -> bytes:
        return bytes(self._do(lambda: self._fs.cat_file(self._at(name))))

    def read_header(self, name: str) -> SafetensorsHeader:
        def read(start: int, end: int) -> bytes:
            return bytes(self._do(lambda: self._fs.cat_file(self._at(name), start=start, end=end)))

        try:
            length = int.from_bytes(read(0, 8), "little")
            if not 2 <= length <= _MOST_HEADER:
                raise ValueError(f"its header has {length:,} bytes")
            held = json.loads(read(8, 8 + length))
            metadata = held.pop("__metadata__", {})
            return SafetensorsHeader({key: tuple(each["shape"]) for key, each in held.items()}, dict(metadata))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{self}/{name} is damaged or cannot be read ({error}); {ADVICE}") from error

    def write(self, name: str, content: bytes) -> None:
        def write() -> None:
            self._fs.makedirs(self._path, exist_ok=True)  # of no meaning in a bucket
            with self._fs.transaction, self._fs.open(self._at(name), "wb") as file:
                file.write(content)

        self._do(write, "written")

    def clean(self) -> None:
        """Leaves it to the place, which keeps no half of a file."""

    def _at(self, name: str) -> str:
        path, mark, query = self._path.partition("?") if "://" in self._path else (self._path, "", "")
        return f"{path.rstrip('/')}/{name}{mark}{query}"

    def _do(self, action: Any, verb: str = "read") -> Any:
        from fewstep.data.sources.urls import retry

        return retry(self.url, action, verb)


def find_url(out: str | Path) -> str:
    """Returns the URL that was given as a path, with the slash that `Path` takes from it; nothing for a folder."""
    match = _URL.fullmatch(str(out))
    if not match or match[1] in ("file", "local"):
        return ""
    return f"{match[1]}://{match[2]}"


def open_store(out: str | Path) -> FolderStore | UrlStore:
    """Opens a folder or a URL. Raises UserError where fsspec does not know it."""
    if url := find_url(out):
        return UrlStore(url)
    return FolderStore(find_local(out))


def find_local(out: str | Path) -> Path:
    """Returns the folder that was given, also as a URL of this machine."""
    plain = re.sub(r"^(file|local)://(?!/)", "", str(out))
    return Path(re.sub(r"^(file|local):/+", "/", plain))
