"""The registry of kinds of source: the first kind that recognises the value of `--data` opens it.

To add a kind, write one file that ends with `KIND = SourceKind(...)` (data/kind.py) and add one line to `_KINDS`,
above the files of pictures, which recognise anything. `open` returns a `Source` (data/sources/base.py); training,
`fewstep prepare` and evaluation then take its pictures like any others. worlds/scenes.py is a short example, and
tests/data/test_opening.py adds another.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator

from fewstep.data.kind import SourceKind, SourceRequest
from fewstep.data.sources.base import Source

_KINDS = (
    "fewstep.data.worlds.scenes",
    "fewstep.data.worlds.gallery_kind",
    "fewstep.data.sources.picture_files",
)
"""Modules, in the order in which they are asked. Only this file imports them, so the rest of the package knows none."""


def each_kind() -> Iterator[SourceKind]:
    """Yields the kinds of source in the order of the registry, each imported when its turn comes."""
    return (importlib.import_module(module).KIND for module in _KINDS)


def check_pictures(data: str) -> None:
    """Raises UserError where `--data` names nothing that is there, before anything that takes time."""
    next(kind for kind in each_kind() if kind.recognises(data)).check(data)


def open_pictures(request: SourceRequest) -> Source:
    """Opens what `request.data` names. Raises UserError where that does not exist or holds nothing that can be used."""
    return next(kind for kind in each_kind() if kind.recognises(request.data)).open(request)
