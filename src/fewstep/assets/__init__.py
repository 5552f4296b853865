"""The bundled models: a teacher for scenes, a few-step model distilled from it, and a reader of scenes."""

from __future__ import annotations

from pathlib import Path

SCENES = "scenes"
"""The name of the bundled teacher, and of the world that it was trained on."""

SCENES_LEANING = "scenes-leaning"
"""The same world in another look, from which styles are learnt."""

GALLERY = "gallery"
"""The name of the world of emoji on drawn grounds."""

GALLERY_TWEMOJI = "gallery-twemoji"
"""The same world in another artist's hand, from which styles are learnt."""

SCENES_LCM = "scenes-lcm"
"""The name of the bundled few-step model, which studies/scenes.sh made."""

MODELS = (SCENES_LCM, SCENES)
"""The names of the bundled models."""

_HERE = Path(__file__).parent

SCENES_READER, GALLERY_READER = _HERE / "scenes-reader", _HERE / "gallery-reader"
"""The folders of the worlds' readers; that of the gallery may not be there."""

GALLERY_ART = _HERE / "gallery"
"""The folder of the artwork of the gallery world."""


def scenes_teacher() -> Path:
    """Returns the folder of the bundled teacher, in diffusers' layout."""
    return _HERE / "scenes-teacher"


def scenes_lcm() -> Path:
    """Returns the folder of the bundled few-step model; `find_part` finds what it shares with its teacher."""
    return _HERE / "scenes-lcm"


def find_part(folder: str | Path, name: str) -> Path:
    """Returns the folder of a part of a pipeline, such as `vae`."""
    shared = Path(folder) == scenes_lcm() and name in ("vae", "text_encoder", "tokenizer")
    return (scenes_teacher() if shared else Path(folder)) / name


def find_folder(source: str | Path) -> str | Path:
    """Returns the folder of the bundled model of that name; any other source unchanged."""
    return {SCENES: scenes_teacher(), SCENES_LCM: scenes_lcm()}.get(str(source), source)


def find_name(source: str | Path) -> str:
    """Returns the name of a bundled model by its folder; any other source unchanged."""
    return {scenes_teacher(): SCENES, scenes_lcm(): SCENES_LCM}.get(Path(source), str(source))
