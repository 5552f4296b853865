"""What the package ships: the scenes teacher, a few-step model of it, and the reader of their pictures."""

from __future__ import annotations

from pathlib import Path

SCENES = "scenes"
"""The name by which users ask for the bundled teacher and its world."""

SCENES_LEANING = "scenes-leaning"
"""The same world in another look, for styles to be learnt from."""

SCENES_LCM = "scenes-lcm"
"""The few-step model that studies/scenes.sh gave."""

MODELS = (SCENES_LCM, SCENES)
"""What is bundled, by name."""

_HERE = Path(__file__).parent


def scenes_teacher() -> Path:
    """Folder of the bundled teacher, in diffusers' layout."""
    return _HERE / "scenes-teacher"


def scenes_lcm() -> Path:
    """Folder of the bundled few-step model; `find_part` finds what it shares with its teacher."""
    return _HERE / "scenes-lcm"


def find_part(folder: str | Path, name: str) -> Path:
    """Where the part of that name is of the pipeline in `folder`."""
    shared = Path(folder) == scenes_lcm() and name in ("vae", "text_encoder", "tokenizer")
    return (scenes_teacher() if shared else Path(folder)) / name


def find_folder(source: str | Path) -> str | Path:
    """The folder of the bundled model of that name; any other source as it is."""
    return {SCENES: scenes_teacher(), SCENES_LCM: scenes_lcm()}.get(str(source), source)


def find_name(source: str | Path) -> str:
    """The name by which users ask for it, of a bundled model; any other source as it is."""
    return {scenes_teacher(): SCENES, scenes_lcm(): SCENES_LCM}.get(Path(source), str(source))


def scenes_reader() -> Path:
    """Folder of the bundled reader."""
    return _HERE / "scenes-reader"
