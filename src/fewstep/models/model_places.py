"""Where a model is, in a run's folder or a copy in the Hub's cache, and what people call it by its place."""

from __future__ import annotations

import os
import re
from pathlib import Path, PurePath

from fewstep.errors import UserError
from fewstep.files import has_suffix
from fewstep.models.model_files import INDEX
from fewstep.roots import CACHED


def find_exported(source: str | Path) -> str | Path:
    """Returns the model of a run folder, or of a copy in the Hub's cache, and anything else as it is. Raises UserError
    as `find_snapshot` does."""
    if (snapshot := find_snapshot(Path(source))) != Path(source):
        return snapshot
    exported = Path(source) / "model"
    return exported if exported.is_dir() and not (Path(source) / INDEX).exists() else source


def find_snapshot(folder: Path) -> Path:
    """Returns the newest files of a repository's copy in the Hub's cache, and any other folder as it is. Raises
    UserError where such a copy names none of its own."""
    snapshots, newest = folder / "snapshots", folder / "refs" / "main"
    if not snapshots.is_dir() or not (CACHED.fullmatch(folder.name) or newest.parent.is_dir()):
        return folder
    said = f"{folder} is a copy in the Hub's cache, and "
    advice = "fetch the model again, or give the folder in snapshots/ that is meant"
    if not os.path.lexists(newest):  # as where files were copied, or of another branch
        held = sorted(place.name for place in snapshots.iterdir() if place.is_dir())
        if len(held) == 1:
            return snapshots / held[0]
        which = f"has {', '.join(held)} in snapshots/" if held else "its snapshots/ are empty"
        raise UserError(f"{said}{which}, of which no refs/main names the newest; {advice}")
    try:
        revision = newest.read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        revision = ""
    place = snapshots / revision
    if not re.fullmatch(r"[\w-]+", revision) or not place.is_dir():
        raise UserError(f"{said}its refs/main names no folder in snapshots/; {advice}")
    return place


def drop_commit(path: PurePath) -> PurePath:
    """Returns a path with a repository's name where the Hub's cache has a folder for it, and one for a commit."""
    parts = list(path.parts)
    for place, part in enumerate(parts):
        if CACHED.fullmatch(part):
            until = place + (3 if parts[place + 1 : place + 2] == ["snapshots"] else 1)
            return PurePath(*parts[:place], part.rpartition("--")[2], *parts[until:])
    return path


def name_model(source: str | Path) -> str:
    """Returns what people call a model: its file without its end, its folder, or its repository."""
    place = drop_commit(Path(source))
    return place.stem if has_suffix(Path(place)) else place.name
