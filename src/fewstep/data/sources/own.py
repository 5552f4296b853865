"""Captioned pictures of one's own, in folders or shards, as a kind of source (docs/data.md)."""

from __future__ import annotations

import dataclasses
import difflib
from pathlib import Path

from fewstep.data.kind import Asked, SourceKind
from fewstep.data.shards.prepared import is_prepared
from fewstep.data.sources.base import Source
from fewstep.data.sources.decoding import Limits
from fewstep.data.sources.opening import open_source
from fewstep.data.sources.remote import CacheSettings
from fewstep.data.worlds.scene import LOOKS
from fewstep.errors import UserError

_NOT_A_NAME = frozenset(":{*?[")  # of a folder: a URL or a pattern


def open_own(asked: Asked) -> Source:
    """Opens them and prints what was used and what was dropped. Raises UserError where there is nothing to use."""
    data = asked.data
    if not (Path(data).exists() or _NOT_A_NAME.intersection(data)):
        close = difflib.get_close_matches(data, LOOKS, n=1)
        hint = f"; did you mean {close[0]}?" if close else f"; known worlds are {' and '.join(LOOKS)}"
        raise UserError(f"data folder {data} does not exist{hint}")
    if is_prepared(Path(data)):
        raise UserError(f"{data} holds latents, and pictures are needed here; give those that it was prepared from")
    picking = dataclasses.replace(asked.picking, limits=Limits(side=asked.resolution))
    source = open_source(data, picking, CacheSettings(budget=asked.cache_bytes))
    print("\n".join([source.report.line(), *source.report.examples()]), flush=True)
    return source


KIND = SourceKind(recognises=lambda _: True, open=open_own)
