"""What the package ships: the scenes teacher and the reader of its pictures."""

from __future__ import annotations

from pathlib import Path

SCENES = "scenes"
"""The name by which users ask for the bundled teacher and its world."""

SCENES_LEANING = "scenes-leaning"
"""The same world in another look, for styles to be learnt from."""

_HERE = Path(__file__).parent


def scenes_teacher() -> Path:
    """Folder of the bundled teacher, in diffusers' layout."""
    return _HERE / "scenes-teacher"


def scenes_reader() -> Path:
    """Folder of the bundled reader."""
    return _HERE / "scenes-reader"
