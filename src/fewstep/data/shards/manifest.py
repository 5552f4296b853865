"""What tells a place that `fewstep prepare` filled, and what it holds."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Any

from fewstep.documents import load_json, parse_json

MANIFEST = "prepared.json"
TRAJECTORIES = "trajectories"
"""The kind of what a folder holds, where it is not latents."""
_URL = re.compile(r"(?:[a-z0-9+.-]+::)*[a-z][a-z0-9+.-]+:/")  # one letter is a drive
_FILES = re.compile(
    r"[*?{\[]|\.(tar|tgz|gz|zip|parquet|arrow|jsonl?|csv|txt|png|jpe?g|webp)$", re.IGNORECASE
)  # no folder


def is_prepared(data: str | Path) -> bool:
    """Tells whether a folder, or what a URL leads to, holds latents; of a folder, all of them or not."""
    if not _URL.match(str(data)):
        return (Path(data) / MANIFEST).exists() or next(Path(data).glob("*-*-*.safetensors"), None) is not None
    return not _FILES.search(str(data).partition("?")[0]) and MANIFEST in _open_store(data)


def read_kind(data: str | Path) -> str:
    """Returns what it holds, by its list of shards; `latents` where that does not say."""
    try:
        far = _URL.match(str(data))
        held = parse_json(_open_store(data).read(MANIFEST)) if far else load_json(Path(data) / MANIFEST)
        return str(held["made_of"].get("kind", "latents"))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return "latents"  # whose reader says what is wrong with it


def _open_store(data: str | Path) -> Any:  # for which alone fsspec is imported
    return importlib.import_module("fewstep.data.shards.store").open_store(data)
