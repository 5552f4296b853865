"""The one place where a path that data name becomes one that is read."""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from urllib.parse import unquote

from fewstep.data.sources import urls
from fewstep.data.sources.base import DroppedError
from fewstep.data.sources.filters import Reason
from fewstep.roots import OutsideError, Root, leaves_folder

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_MOST_ESCAPES = 4
"""How often a server might decode a name; one that is still escaped then is refused."""


@dataclass(frozen=True)
class Place:
    """A folder of data, on this machine or behind a URL."""

    where: str
    """A path or an fsspec URL, which may have a query."""
    follow_links: bool = False
    """Whether links may lead out of it."""

    @functools.cached_property
    def remote(self) -> bool:
        return urls.is_remote(self.where)

    def resolve(self, name: str) -> str:
        """Returns the path or URL at which the file of this name in the folder is read: of a folder, a list, a table.

        Raises DroppedError where it lies outside, or a link leads there.
        """
        if self.remote:
            return self._resolve_url(name)
        try:
            return self._root.resolve(name)
        except OutsideError as error:
            raise DroppedError(Reason.LINKED_OUTSIDE if error.linked else Reason.OUTSIDE, name) from error

    @functools.cached_property
    def _root(self) -> Root:
        return Root(urls.local_path(self.where), self.follow_links)

    def _resolve_url(self, name: str) -> str:
        plain = name
        for _ in range(_MOST_ESCAPES):
            if leaves_folder(plain) or "::" in plain or _CONTROL.search(plain):  # fsspec joins file systems by ::
                raise DroppedError(Reason.OUTSIDE, name)
            plain, before = unquote(plain), plain
            if plain == before:
                break
        else:
            raise DroppedError(Reason.OUTSIDE, name)
        if urls.is_web(self.where):  # where these begin a query or a fragment
            name = name.replace("?", "%3F").replace("#", "%23")
        folder = urls.strip_query(self.where)
        return f"{folder.rstrip('/')}/{name}{self.where[len(folder) :]}"
