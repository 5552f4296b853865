"""How good the bundled teacher and its reader are: the gates they had to pass, and a contact sheet to judge by eye.

    python studies/teacher.py --out docs/teacher        # about eight minutes on two cores

Figures (docs/teacher/scores.json): reader 100 % on real pictures, 99.75 % on reconstructions; teacher
97.4 %, FD 10.4, on 1,000 prompts at guidance_scale 1.5; 94.8 % at 3 and 90.8 % at 5 on 250.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from PIL import Image

from fewstep import assets
from fewstep.data.pictures import to_images, to_pixels
from fewstep.data.worlds.scene import Scene
from fewstep.data.worlds.scenes import Scenes
from fewstep.evaluate.cell import TEACHER_STEPS, Cell, painter_of
from fewstep.evaluate.grid import labelled_grid
from fewstep.evaluate.reader import load_reader, read
from fewstep.evaluate.roster import make_scenes_roster
from fewstep.evaluate.scenes_bench import make_scenes_bench
from fewstep.evaluate.scoring import score
from fewstep.models.loading import load_latent_model

SHEET_COLUMNS = 10


@dataclass(frozen=True, kw_only=True)
class Study:
    out: Path = Path("docs/teacher")
    """Folder for scores.json and contact-sheet.png."""
    n: int = 1000
    """Fresh prompts at the main guidance scale; a quarter as many at the others."""
    guidance_scale: float = 1.5
    """The main guidance scale (ω + 1)."""
    others: tuple[float, ...] = (3.0, 5.0)
    """Further guidance scales."""


def describe(scene: Scene | None) -> str:
    """What the reader saw, for the sheet."""
    if scene is None:
        return "unreadable"
    things = [f"{thing.size} {thing.colour} {thing.shape}" for thing in scene.things]
    return f"{f' {scene.relation} '.join(things)}, {scene.background}"


def main(study: Study) -> None:
    study.out.mkdir(parents=True, exist_ok=True)
    reader, teacher = (
        load_reader(assets.SCENES_READER),
        load_latent_model(assets.scenes_teacher(), torch.device("cpu")),
    )
    scenes = Scenes(seed=424242, split="all")
    pictures = [scenes[i] for i in range(2000)]
    pixels = to_pixels([picture.image for picture in pictures])
    rebuilt = torch.cat([teacher.codec.decode(teacher.codec.encode(part)[0]) for part in pixels.split(100)])
    figures: dict[str, object] = {}
    for name, shown in (("reader_on_real_pictures", pixels), ("reader_on_reconstructions", rebuilt.clamp(-1, 1))):
        found, _ = read(reader, shown)
        right = [scene == picture.scene for scene, picture in zip(found, pictures, strict=True)]
        figures[name] = sum(right) / len(right)
    print(figures, flush=True)
    rows = []
    for scale in (study.guidance_scale, *study.others):
        n = study.n if scale == study.guidance_scale else study.n // 4
        cell = Cell("teacher", TEACHER_STEPS, "trailing", scale)
        row, kept = score(
            make_scenes_bench(make_scenes_roster(n, n // 4)), cell, painter_of(cell, teacher, None), "teacher"
        )
        rows.append({"n": n, "n_unseen": n // 4, **row})
        print(rows[-1], flush=True)
        if scale == study.guidance_scale:
            painted = teacher.codec.decode(kept.latents[:100]).clamp(-1, 1)
            labels = [f"{i}: {describe(scene)}" for i, scene in enumerate(read(reader, painted)[0])]
            images = to_images(painted)
            bands = [
                labelled_grid([("", images[i : i + SHEET_COLUMNS])], labels[i : i + SHEET_COLUMNS], cell=100)
                for i in range(0, len(images), SHEET_COLUMNS)
            ]
            sheet = Image.new("RGB", (bands[0].width, sum(band.height for band in bands)), "white")
            for i, band in enumerate(bands):
                sheet.paste(band, (0, sum(above.height for above in bands[:i])))
            sheet.save(study.out / "contact-sheet.png", optimize=True)
    (study.out / "scores.json").write_text(json.dumps({**figures, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Study))
