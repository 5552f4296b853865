"""What tells a folder that `fewstep prepare` filled, and what it holds."""

from __future__ import annotations

from pathlib import Path

from fewstep.documents import load_json

MANIFEST = "prepared.json"
TRAJECTORIES = "trajectories"
"""The kind of what a folder holds, where it is not latents."""


def is_prepared(folder: Path) -> bool:
    """Tells whether a folder holds latents, all of them or not."""
    return (folder / MANIFEST).exists() or next(folder.glob("*-*-*.safetensors"), None) is not None


def read_kind(folder: Path) -> str:
    """Returns what the folder holds, by its list of shards; `latents` where that does not say."""
    try:
        return str(load_json(folder / MANIFEST)["made_of"].get("kind", "latents"))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return "latents"  # whose reader says what is wrong with it
