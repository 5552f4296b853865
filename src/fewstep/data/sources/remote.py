"""Opens shards: local ones in place, remote ones through a cache on disk of limited size."""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from filelock import FileLock

from fewstep.data.sources import urls
from fewstep.data.sources.base import DroppedError
from fewstep.data.sources.filters import Reason
from fewstep.errors import UserError
from fewstep.files import DRAFT_MARK, write_whole
from fewstep.roots import open_regular

GIB = 1 << 30
_TRIES = 5
_ABANDONED = 3600.0
"""Seconds without a write after which the process of a download is presumed dead."""


def default_cache_folder() -> Path:
    """Returns `$FEWSTEP_CACHE`, or else `fewstep` in the user's cache folder."""
    given = os.environ.get("FEWSTEP_CACHE")
    return Path(given) if given else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fewstep"


@dataclass(frozen=True, kw_only=True)
class CacheSettings:
    """Where copies of remote shards, and the indexes of all shards, are kept."""

    folder: Path = field(default_factory=default_cache_folder)
    budget: int = 100 * GIB
    """Most bytes of remote shards on disk; the least recently used are deleted first. Indexes, about 1 MB for 10,000
    pictures, are not counted."""


@dataclass(frozen=True)
class Shard:
    """A file of pictures, in the version that was found."""

    url: str
    version: urls.FileVersion


class ShardCache:
    """Opens shards. Several processes may share the folder: files in it are always complete, and an open file stays
    readable when another process deletes it."""

    def __init__(self, settings: CacheSettings) -> None:
        self._folder, self._locks, self._budget = settings.folder / "shards", settings.folder / "locks", settings.budget
        self._in_use: Counter[str] = Counter()
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[type[ShardCache], tuple[CacheSettings]]:
        return type(self), (CacheSettings(folder=self._folder.parent, budget=self._budget),)

    @contextmanager
    def open(self, shard: Shard) -> Iterator[BinaryIO]:
        """Opens a shard for reading.

        Raises DroppedError without a key where it is missing or has changed, UserError where the network fails.
        """
        if not urls.is_remote(shard.url):
            with _open_local(Path(urls.local_path(shard.url)), shard.version) as file:
                yield file
            return
        path = self._folder / _name_copy(shard)
        with self._lock:
            self._in_use[path.name] += 1
        try:
            with self._open_cached(shard, path) as file:
                yield file
        finally:
            with self._lock:
                self._in_use[path.name] -= 1

    def _open_cached(self, shard: Shard, path: Path) -> BinaryIO:
        for _ in range(_TRIES):
            with suppress(FileNotFoundError):
                file = path.open("rb")
                if shard.version.size in (-1, os.fstat(file.fileno()).st_size):
                    with suppress(OSError):
                        os.utime(path)
                    return file
                file.close()  # left incomplete by a machine that crashed
                path.unlink(missing_ok=True)
            self._fetch(shard, path)
        raise UserError(
            f"{urls.redact(shard.url)} was deleted from {self._folder} by another process after each download; "
            "allow the cache of shards more bytes"
        )

    def _fetch(self, shard: Shard, path: Path) -> None:
        if shard.version.size > self._budget:
            raise UserError(
                f"{urls.redact(shard.url)} has {shard.version.size:,} bytes and the cache of shards at most "
                f"{self._budget:,}; allow it more"
            )
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._locks.mkdir(exist_ok=True)
            with FileLock(self._locks / path.name):  # one thread of one process downloads it, the others wait
                if not path.exists():
                    self._fill(shard, path)
        except OSError as error:
            raise UserError(
                f"{urls.redact(shard.url)} cannot be kept in {self._folder} ({error.strerror or error}); "
                "make room there, or name another cache folder"
            ) from error

    def _fill(self, shard: Shard, path: Path) -> None:
        self._make_room(max(0, shard.version.size))
        with write_whole(path) as draft:
            _download(shard, draft)
        self._make_room(0)  # the size may not have been known

    def _make_room(self, needed: int) -> None:
        kept: list[tuple[float, int, Path]] = []
        for entry in os.scandir(self._folder):
            try:
                status = entry.stat()
            except OSError:  # another process deleted it
                continue
            if DRAFT_MARK in entry.name and time.time() - status.st_mtime > _ABANDONED:
                Path(entry.path).unlink(missing_ok=True)
            else:
                kept.append((status.st_mtime, status.st_size, Path(entry.path)))
        total = sum(size for _, size, _ in kept) + needed
        for _, size, path in sorted(kept):
            if total <= self._budget:
                return
            with self._lock:
                if self._in_use[path.name] or DRAFT_MARK in path.name:
                    continue
                path.unlink(missing_ok=True)
            total -= size


def _open_local(path: Path, version: urls.FileVersion) -> BinaryIO:
    try:
        file = open_regular(path)
    except OSError as error:
        raise DroppedError(Reason.MISSING_SHARD) from error
    if urls.read_local_version(os.fstat(file.fileno())) != version:
        file.close()
        raise DroppedError(Reason.CHANGED_SHARD)
    return file


def _download(shard: Shard, target: Path) -> None:
    try:
        urls.download(shard.url, str(target))
    except OSError as error:
        if not urls.is_not_found(error):
            raise
        raise DroppedError(Reason.MISSING_SHARD) from error
    # Checked after the download, so that other content never gets this name.
    now = urls.find_versions([shard.url]).get(shard.url)
    if now != shard.version or shard.version.size not in (-1, target.stat().st_size):
        raise DroppedError(Reason.MISSING_SHARD if now is None else Reason.CHANGED_SHARD)


def _name_copy(shard: Shard) -> str:
    """Names the copy of a shard; safetensors are only read under a name of theirs."""
    suffix = ".safetensors" if urls.strip_query(shard.url).endswith(".safetensors") else ""
    return hash_name(shard.url, shard.version.tag) + suffix


def hash_name(*parts: str) -> str:
    """Returns a file name that is unique to these parts."""
    return hashlib.blake2b("\0".join(parts).encode("utf-8", "surrogateescape"), digest_size=16).hexdigest()
