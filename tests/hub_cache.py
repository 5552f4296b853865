"""A model's folder as the Hub's cache has it: files called by hashes, and links to them in a folder for each commit."""

from __future__ import annotations

import shutil
from pathlib import Path


def put_in_cache(model: Path, root: Path, name: str = "models--org--name", *, newest: str | None = "abc") -> Path:
    """Copies a model into a cache in `root`, and returns the folder of its repository, which says what is newest."""
    repository = root / name
    snapshot = Path(shutil.copytree(model, repository / "snapshots" / "abc"))
    blobs = repository / "blobs"
    blobs.mkdir()
    for i, file in enumerate(sorted(each for each in snapshot.rglob("*") if each.is_file())):
        file.rename(blobs / str(i))
        file.symlink_to(blobs / str(i))
    if newest is not None:
        (repository / "refs").mkdir()
        (repository / "refs" / "main").write_text(newest)
    return repository
