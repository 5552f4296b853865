"""What tells a place that `fewstep prepare` filled, and what it holds."""

from __future__ import annotations

import re
from pathlib import Path

from fewstep.data.shards.store import FolderStore, find_url, open_store
from fewstep.documents import parse_json

MANIFEST = "prepared.json"
TRAJECTORIES = "trajectories"
"""The kind of what a folder holds, where it is not latents."""
_FILE = re.compile(r"[*?{\[]|\.[a-z0-9]{2,7}(\?.*)?$", re.IGNORECASE)
"""Matches what a URL has that names files, not a folder."""


def is_prepared(data: str | Path) -> bool:
    """Tells whether a folder, or what a URL leads to, holds latents, all of them or not."""
    if (url := find_url(data)) and _FILE.search(url.rpartition("/")[2]):
        return False
    store = open_store(data)
    if MANIFEST in store:
        return True
    return isinstance(store, FolderStore) and next(store.folder.glob("*-*-*.safetensors"), None) is not None


def read_kind(data: str | Path) -> str:
    """Returns what it holds, by its list of shards; `latents` where that does not say."""
    try:
        return str(parse_json(open_store(data).read(MANIFEST))["made_of"].get("kind", "latents"))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return "latents"  # whose reader says what is wrong with it
