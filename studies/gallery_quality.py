"""How good the gallery's autoencoder, reader and teacher are, of what a run folder holds so far; the bars beside them.

    python studies/gallery_quality.py --run runs/gallery --photographs photographs    # minutes on one core

Writes scores.json, reconstructions.png and, once there is a teacher, paintings.png: what the reader says under each.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from diffusers import AutoencoderKL
from PIL import Image
from torch import Tensor
from transformers import CLIPTextModel

from fewstep.data.pictures import to_images, to_pixels
from fewstep.data.worlds.gallery import Gallery, draw_agreeing_scene
from fewstep.data.worlds.gallery_drawing import draw_gallery_scene
from fewstep.data.worlds.gallery_scene import Asked, GalleryPrompt, GalleryScene
from fewstep.data.worlds.scenes import Scenes
from fewstep.evaluate.cell import TEACHER_STEPS, Cell, painter_of
from fewstep.evaluate.frechet import Moments, frechet_distance
from fewstep.evaluate.gallery_coverage import Coverage, measure_coverage
from fewstep.evaluate.gallery_reader import GalleryReader, load_gallery_reader, read_gallery
from fewstep.evaluate.grid import labelled_grid
from fewstep.models.family import LatentModel
from fewstep.models.loading import load_latent_model
from fewstep.teacher.blocks import BlockCode
from fewstep.teacher.gallery_tasks import LOOKS, PATCHES, expect_slots, list_looks, list_waves
from gallery_pictures import HELD_OUT, load_photographs
from gallery_teacher import CODE, find_newest, load_tokenizer, tokenise

Rebuild = Callable[[Tensor], Tensor]

_BIRD = Asked(kind="bird")
OPEN_PROMPTS = (
    ("an animal next to a meal", GalleryPrompt((Asked(kind="animal"), Asked(kind="meal")), "next to", None)),
    ("a cat and a pizza", GalleryPrompt((Asked("cat"), Asked("pizza")), None, None)),
    ("a vehicle in a meadow", GalleryPrompt((Asked(kind="vehicle"),), None, "meadow")),
    ("a bird, a fruit and a toy", GalleryPrompt((_BIRD, Asked(kind="fruit"), Asked(kind="toy")), None, None)),
    ("two things", GalleryPrompt((Asked(), Asked()), None, None)),
    ("", GalleryPrompt(None, None, None)),
)  # fmt: skip
"""What coverage is measured on: captions of the world that leave much open."""


@dataclass(frozen=True, kw_only=True)
class Study:
    run: Path = Path("runs/gallery")
    """Run folder of studies/gallery_teacher.py."""
    photographs: Path = Path("photographs")
    """Folder of photographs, as studies/gallery_teacher.py takes it."""
    out: Path = Path("docs/gallery")
    """Folder for what is written."""
    n: int = 1000
    """Pictures of each sort for reader and autoencoder, and exact captions for the teacher."""
    each: int = 200
    """Pictures of each prompt for coverage."""
    scales: tuple[float, ...] = (1.0, 1.5, 2.0, 3.0)
    """Guidance scales (ω + 1) to choose from, by a quarter of the exact captions."""
    few_steps: tuple[int, ...] = (4,)
    """Numbers of steps at which the solvers that need no training are tried."""
    parts: tuple[Literal["psnr", "reader", "text", "exact", "teacher"], ...] = ("psnr", "reader", "text", "teacher")
    """What is measured; of the others scores.json keeps what it holds. `exact` is a quick look at the teacher."""


def main(study: Study) -> None:
    study.out.mkdir(parents=True, exist_ok=True)
    file = study.out / "scores.json"
    scores: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    reader_folder, autoencoder_folder = (find_newest(study.run, name) for name in ("reader", "vae"))
    reader = load_gallery_reader(reader_folder) if reader_folder else None
    rebuilders: dict[str, Rebuild] = {}
    if autoencoder_folder:
        autoencoder = AutoencoderKL.from_pretrained(autoencoder_folder).eval()
        rebuilders["reconstructed"] = functools.partial(rebuild, autoencoder)
    if (study.run / CODE).exists():
        code = BlockCode.load(study.run / CODE)
        rebuilders["components alone"] = lambda pixels: code.decode(code.encode(pixels)).clamp(-1, 1)
    if rebuilders and "psnr" in study.parts:
        scores["psnr"] = measure_psnr(study, rebuilders)
    if reader and "reader" in study.parts:
        scores["reader"] = measure_reader(reader, rebuilders, study.n)
    if "text" in study.parts and (study.run / "text_encoder").exists():
        scores["text"] = measure_text(study)
    print(json.dumps(scores, indent=2), flush=True)
    if reader and "teacher" in study.parts and (study.run / "pipeline").exists():
        teacher = load_latent_model(str(study.run / "pipeline"), torch.device("cpu"))
        scores["teacher"] = measure_teacher(study, reader, teacher)
    if reader and "exact" in study.parts and (study.run / "pipeline").exists():
        teacher = load_latent_model(str(study.run / "pipeline"), torch.device("cpu"))
        scores["exact"] = {scale: look_at_exact(reader, teacher, scale) for scale in study.scales}
        print(scores["exact"], flush=True)
    file.write_text(json.dumps(scores, indent=2) + "\n")


@torch.no_grad()
def measure_text(study: Study) -> dict[str, float]:
    """How much a linear layer, fitted to half of the exact captions, misses of what the last tokens are to say of the
    other half: as a share of its variance; and how often a thing's own look is the nearest of all."""
    tokenizer = load_tokenizer(study.run)
    encoder = CLIPTextModel.from_pretrained(study.run / "text_encoder").float().eval()
    gallery, half = Gallery(seed=7, split="test", level="exact"), study.n // 2
    captions, prompts = zip(*(gallery.prompt(i) for i in range(study.n)), strict=True)
    expected = torch.stack([expect_slots(prompt) for prompt in prompts])
    tokens = tokenise(tokenizer, captions)
    said = torch.cat([encoder(part)[0][:, -expected.shape[1] :] for part in tokens.split(100)])
    said = torch.cat([said, torch.ones_like(said[..., :1])], dim=-1)
    # In fp32 the solution is left to rounding: said holds a norm's outputs, which nearly depend on each other.
    said, expected = said.double(), expected.double()
    read = torch.linalg.lstsq(said[:half].flatten(0, 1), expected[:half].flatten(0, 1)).solution
    found, wanted = said[half:] @ read, expected[half:]

    def miss(part: slice) -> float:
        spread = wanted[..., part] - wanted[..., part].mean((0, 1))
        return float((found - wanted)[..., part].square().mean() / spread.square().mean())

    looks, waves = slice(0, LOOKS), slice(LOOKS, LOOKS + list_waves().shape[-1])
    there = wanted[..., -1].reshape(-1, PATCHES**2)[:, 0] == 1
    each = [x[..., looks].reshape(len(there), -1)[there] for x in (found, wanted)]
    nearest = [torch.cdist(x, list_looks().flatten(1).double()).argmin(1) for x in each]
    names = float((nearest[0] == nearest[1]).float().mean())
    return {"missed of looks": miss(looks), "missed of where": miss(waves), "nearest is right": names}


@torch.no_grad()
def rebuild(autoencoder: AutoencoderKL, pixels: Tensor) -> Tensor:
    parts = [autoencoder.decode(autoencoder.encode(part).latent_dist.mean).sample for part in pixels.split(50)]
    return torch.cat(parts).clamp(-1, 1)


def draw_sorts(n: int) -> dict[str, tuple[Tensor, list[GalleryScene]]]:
    """Pictures that no training draws, by the hand that drew them; of held-out things the reader knows nothing."""
    sorts = {
        "noto": Gallery(seed=0, split="test"),
        "twemoji": Gallery(seed=0, split="test", hand="twemoji"),
        "held-out things": Gallery(seed=0, split="held-out"),
    }
    drawn = {name: [gallery[i] for i in range(n)] for name, gallery in sorts.items()}
    return {name: (to_pixels([p.image for p in shown]), [p.scene for p in shown]) for name, shown in drawn.items()}


def measure_psnr(study: Study, rebuilders: Mapping[str, Rebuild]) -> dict[str, dict[str, float]]:
    """In dB, the mean over pictures; and a sheet of pictures over what becomes of them."""
    pixels = {name: pictures for name, (pictures, _) in draw_sorts(200).items()}
    pixels["scenes"] = to_pixels([Scenes(seed=1, split="unseen")[i].image for i in range(200)])
    for photograph in load_photographs(study.photographs, HELD_OUT):
        cuts = [photograph.crop((x, y, x + 64, y + 64)) for x in range(0, photograph.width - 63, 64)
                for y in range(0, photograph.height - 63, 64)]  # fmt: skip
        whole = photograph.crop((0, 0, min(photograph.size), min(photograph.size))).resize((64, 64))
        pixels["photographs"] = torch.cat([to_pixels([whole, *cuts]), pixels.get("photographs", torch.empty(0))])
    figures: dict[str, dict[str, float]] = {how: {} for how in rebuilders}
    sheet = []
    for name, pictures in pixels.items():
        sheet.append((name, to_images(pictures[:8])))
        for how, rebuild in rebuilders.items():
            rebuilt = rebuild(pictures)
            error = ((rebuilt - pictures) / 2).square().mean((1, 2, 3))
            figures[how][name] = round(float((-10 * error.clamp(min=1e-8).log10()).mean()), 2)
            sheet.append((how, to_images(rebuilt[:8])))
    labelled_grid(sheet, [""] * 8, cell=64).save(study.out / "reconstructions.png", optimize=True)
    return figures


def measure_reader(reader: GalleryReader, rebuilders: Mapping[str, Rebuild], n: int) -> dict[str, Any]:
    """The share read right in every attribute, of real pictures and of their reconstructions, and in each attribute."""
    figures = {}
    for name, (pixels, scenes) in draw_sorts(n).items():
        if name == "held-out things":
            continue
        sorts = {name: pixels} | {f"{name}, {how}": rebuild(pixels) for how, rebuild in rebuilders.items()}
        for sort, shown in sorts.items():
            found, _ = read_gallery(reader, shown)
            pairs = list(zip(found, scenes, strict=True))
            figures[sort] = {
                "all": share(pairs, lambda scene: scene),
                "names": share(pairs, lambda scene: [thing.name for thing in scene.things]),
                "sizes": share(pairs, lambda scene: [thing.size for thing in scene.things]),
                "arrangement": share(pairs, lambda scene: scene.arrangement),
                "ground": share(pairs, lambda scene: scene.ground),
                "unreadable": sum(scene is None for scene in found) / len(found),
            }
    return figures


def share(pairs: list[tuple[GalleryScene | None, GalleryScene]], part: Any) -> float:
    return sum(found is not None and part(found) == part(scene) for found, scene in pairs) / len(pairs)


def paint(teacher: LatentModel, cell: Cell, captions: list[str], seed: int) -> Tensor:
    """Pixels `[n, 3, 64, 64]`, painted fifty at a time."""
    painter, parts = painter_of(cell, teacher, None), []
    for start in range(0, len(captions), 50):
        part = captions[start : start + 50]
        z_0 = painter.latents(teacher.conditioner.encode(part), list(range(seed + start, seed + start + len(part))))
        parts.append(teacher.codec.decode(z_0).clamp(-1, 1))
    return torch.cat(parts)


def measure_teacher(study: Study, reader: GalleryReader, teacher: LatentModel) -> list[dict[str, Any]]:
    """The teacher at 50 steps and the solvers at few, each at the guidance that has the most exact captions right."""
    gallery = Gallery(seed=7, split="test", level="exact")
    captions, prompts = zip(*(gallery.prompt(i) for i in range(study.n)), strict=True)
    real = [[draw_agreeing_scene(random.Random(f"{i} {j}"), prompt) for j in range(study.each)]
            for i, (_, prompt) in enumerate(OPEN_PROMPTS)]  # fmt: skip
    rng = random.Random(0)
    drawn = [to_pixels([draw_gallery_scene(scene, rng)[0] for scene in scenes]) for scenes in real]
    read_real = [read_gallery(reader, pixels) for pixels in drawn]
    of_real = measure_coverage([prompt for _, prompt in OPEN_PROMPTS], [scenes for scenes, _ in read_real])
    reference = Moments.of(torch.cat([features for _, features in read_real]))
    frechet_distance(reference, reference)  # which refuses too few pictures before any is painted
    rows = [{"sampler": "real pictures", "each": study.each, **describe(of_real)}]
    print(rows[0], flush=True)
    few = [(name, steps) for steps in study.few_steps for name in ("dpm++", "unipc", "ddim")]
    for sampler, steps in [("teacher", TEACHER_STEPS), *few]:
        tried = {}
        for scale in study.scales:
            pixels = paint(teacher, Cell(sampler, steps, "trailing", scale), list(captions[: study.n // 4]), 0)
            tried[scale] = count_right(reader, pixels, prompts)
        best = max(tried, key=lambda scale: tried[scale])
        cell = Cell(sampler, steps, "trailing", best)
        exact = paint(teacher, cell, list(captions), 10_000)
        painted = [paint(teacher, cell, [caption] * study.each, 20_000 + 1000 * i)
                   for i, (caption, _) in enumerate(OPEN_PROMPTS)]  # fmt: skip
        found = [read_gallery(reader, pixels) for pixels in painted]
        coverage = measure_coverage([prompt for _, prompt in OPEN_PROMPTS], [scenes for scenes, _ in found])
        rows.append(
            {
                "sampler": sampler, "steps": steps, "guidance_scale": best, "exact_captions": study.n,
                "exact_right": count_right(reader, exact, prompts),
                "coverage_against_real": coverage.mean / of_real.mean,
                "fd": frechet_distance(reference, Moments.of(torch.cat([features for _, features in found]))),
                "tried": tried,
                **describe(coverage),
            }
        )  # fmt: skip
        print(rows[-1], flush=True)
        if sampler == "teacher":
            save_sheet(study.out / "paintings.png", reader, exact[:60])
    return rows


def look_at_exact(reader: GalleryReader, teacher: LatentModel, scale: float, n: int = 200) -> dict[str, str]:
    """Says how many of `n` exact captions are right in 25 steps, of one, two and three things: minutes on one core."""
    captions, prompts = zip(*(Gallery(seed=7, split="test", level="exact").prompt(i) for i in range(n)), strict=True)
    found, _ = read_gallery(reader, paint(teacher, Cell("teacher", 25, "trailing", scale), list(captions), 0))
    counts: dict[str, list[bool]] = {"all": []}
    for prompt, scene in zip(prompts, found, strict=True):
        right = scene is not None and prompt.agrees_with(scene)
        counts["all"].append(right)
        counts.setdefault(str(len(prompt.things or ())), []).append(right)
    return {name: f"{sum(each)} of {len(each)}" for name, each in sorted(counts.items())}


def describe(coverage: Coverage) -> dict[str, Any]:
    return {"coverage": coverage.mean, **dataclasses.asdict(coverage)}


def count_right(reader: GalleryReader, pixels: Tensor, prompts: tuple[GalleryPrompt, ...]) -> float:
    found, _ = read_gallery(reader, pixels)
    pairs = zip(prompts, found, strict=False)  # fewer may be painted than asked for
    return sum(scene is not None and prompt.agrees_with(scene) for prompt, scene in pairs) / len(found)


def save_sheet(file: Path, reader: GalleryReader, pixels: Tensor, columns: int = 6) -> None:
    """Pictures with what the reader says of each."""
    found, images = read_gallery(reader, pixels)[0], to_images(pixels)
    bands = [
        labelled_grid(
            [("", images[i : i + columns])], [say(scene) for scene in found[i : i + columns]], cell=190
        )
        for i in range(0, len(images), columns)
    ]  # fmt: skip
    sheet = Image.new("RGB", (bands[0].width, sum(band.height for band in bands)), "white")
    for i, band in enumerate(bands):
        sheet.paste(band, (0, sum(above.height for above in bands[:i])))
    sheet.save(file, optimize=True)


def say(scene: GalleryScene | None) -> str:
    if scene is None:
        return "unreadable"
    return f"{scene.arrangement}, {scene.ground}: {', '.join(f'{thing.size} {thing.name}' for thing in scene.things)}"


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(tyro.cli(Study))
