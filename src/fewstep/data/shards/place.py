"""Where prepared shards are read from: a folder, or a URL, whose files are kept in the cache of shards as they are
read."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from fewstep.data.shards.store import ADVICE, find_local, find_url
from fewstep.data.sources.remote import CacheSettings, Shard, ShardCache
from fewstep.errors import UserError
from fewstep.roots import OutsideError, Root, leaves_folder


class ShardPlace(Protocol):
    """Opens files by name. As text it is what messages call it."""

    def open(self, name: str) -> contextlib.AbstractContextManager[Path]:
        """Yields a path at which the file can be opened meanwhile. Raises UserError where the name leads elsewhere, and
        FileNotFoundError where nothing is there."""
        ...


class FolderPlace:
    """Is a folder, out of which no name leads, nor a link, unless links are followed."""

    def __init__(self, folder: Path, *, follow_links: bool = False) -> None:
        self._folder, self._root = folder, Root(str(folder), follow_links)

    def __str__(self) -> str:
        return str(self._folder)

    @contextlib.contextmanager
    def open(self, name: str) -> Iterator[Path]:
        try:
            self._root.resolve(name)
        except OutsideError as error:
            advice = "follow it with --follow-links" if error.linked else ADVICE
            raise _name_elsewhere(self, name, advice) from error
        yield self._folder / name


class UrlPlace:
    """Is behind a URL: a file is fetched when it is first read."""

    def __init__(self, url: str, cache: CacheSettings) -> None:
        from fewstep.data.sources.urls import redact  # slow, and of no use to folders

        self._url, self._cache, self._said = url, ShardCache(cache), redact(url)

    def __str__(self) -> str:
        return self._said

    @contextlib.contextmanager
    def open(self, name: str) -> Iterator[Path]:
        from fewstep.data.sources.urls import find_versions

        if leaves_folder(name):
            raise _name_elsewhere(self, name, ADVICE)
        path, mark, query = self._url.partition("?")
        url = f"{path.rstrip('/')}/{name}{mark}{query}"
        version = find_versions([url]).get(url)
        if version is None:
            raise FileNotFoundError(f"{self}/{name} is not there")
        with self._cache.open(Shard(url, version)) as file:
            yield Path(file.name)


def _name_elsewhere(place: ShardPlace, name: str, advice: str) -> UserError:
    return UserError(f"{place} names {name[:100]!a}, which leads out of it; {advice}")


def open_place(data: str | Path, *, follow_links: bool = False, cache: CacheSettings | None = None) -> ShardPlace:
    """Opens a folder, or a URL with files of it in `cache`. Raises UserError where fsspec does not know the URL."""
    if url := find_url(data):
        return UrlPlace(url, cache or CacheSettings())
    return FolderPlace(find_local(data), follow_links=follow_links)
