"""What `--data` names: the first kind of source that recognises it opens it.

A kind is a file that ends in its `KIND`, and a line in `_KINDS`.
"""

from __future__ import annotations

import importlib

from fewstep.data.kind import SourceKind, SourceRequest
from fewstep.data.sources.base import Source

_KINDS = (
    "fewstep.data.worlds.scenes",
    "fewstep.data.sources.picture_files",
)
"""In the order in which they are asked; a kind is imported only here, so that training knows none of them."""


def list_kinds() -> list[SourceKind]:
    """Returns every kind of source."""
    return [importlib.import_module(module).KIND for module in _KINDS]


def open_pictures(asked: SourceRequest) -> Source:
    """Opens what `asked.data` names. Raises UserError where no kind knows it, or nothing in it can be used."""
    return next(kind for kind in list_kinds() if kind.recognises(asked.data)).open(asked)
