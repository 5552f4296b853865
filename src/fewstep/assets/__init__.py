"""The bundled models: a teacher, a few-step model and a reader for each of two worlds."""

from __future__ import annotations

from pathlib import Path

SCENES = "scenes"
"""The name of the bundled teacher, and of the world that it was trained on."""

SCENES_LEANING = "scenes-leaning"
"""The same world in another look, from which styles are learnt."""

GALLERY = "gallery"
"""The name of the world of emoji on drawn grounds, and of the bundled teacher of it."""

GALLERY_TWEMOJI = "gallery-twemoji"
"""The same world in another artist's hand, from which styles are learnt."""

SCENES_LCM = "scenes-lcm"
"""The name of the bundled few-step model, which studies/scenes.sh made."""

GALLERY_LCM = "gallery-lcm"
"""The name of the bundled LCM-LoRA of the gallery's teacher, which studies/gallery_bundle.py made."""

_HERE = Path(__file__).parent

MODELS = {
    SCENES_LCM: _HERE / "scenes-lcm",
    SCENES: _HERE / "scenes-teacher",
    GALLERY_LCM: _HERE / "gallery-lcm",
    GALLERY: _HERE / "gallery-teacher",
}
"""The folders of the bundled models by their names."""

FEW_STEP = {SCENES: SCENES_LCM, GALLERY: GALLERY_LCM}
"""The bundled few-step models by the teachers that they were distilled from."""


def scenes_teacher() -> Path:
    """Returns the folder of the bundled teacher, in diffusers' layout."""
    return MODELS[SCENES]


def scenes_lcm() -> Path:
    """Returns the folder of the bundled few-step model; `find_part` finds what it shares with its teacher."""
    return MODELS[SCENES_LCM]


def find_part(folder: str | Path, name: str) -> Path:
    """Returns the folder of a part of a pipeline, such as `vae`."""
    shared = Path(folder) == scenes_lcm() and name in ("vae", "text_encoder", "tokenizer")
    return (scenes_teacher() if shared else Path(folder)) / name


def find_folder(source: str | Path) -> str | Path:
    """Returns the folder of the bundled model of that name; any other source unchanged."""
    return MODELS.get(str(source), source)


def find_name(source: str | Path) -> str:
    """Returns the name of a bundled model by its folder; any other source unchanged."""
    return {folder: name for name, folder in MODELS.items()}.get(Path(source), str(source))


def gallery_teacher() -> Path:
    """Returns the folder of the gallery's teacher, in diffusers' layout."""
    return MODELS[GALLERY]


def scenes_reader() -> Path:
    """Returns the folder of the bundled reader of scenes."""
    return _HERE / "scenes-reader"


def gallery_reader() -> Path:
    """Returns the folder of the bundled reader of the gallery."""
    return _HERE / "gallery-reader"


def gallery() -> Path:
    """Returns the folder of the artwork of the gallery world."""
    return _HERE / "gallery"
