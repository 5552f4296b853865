"""How far pictures in bf16 are from those in fp32, and from diffusers' in bf16, with the bundled few-step model.

    python studies/half_precision.py        # half a minute on a CPU

Figures: docs/studies/half_precision.json, docs/log.md.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import tyro
from diffusers import LatentConsistencyModelPipeline
from PIL import Image

import fewstep
from fewstep import assets
from fewstep.evaluate.report import markdown_table

PROMPTS = ["a red star", "a blue heart", "a large green circle above a small yellow square", "a pink moon"]
SEED = 3


@dataclass(frozen=True, kw_only=True)
class Study:
    out: Path = field(default=Path("docs/studies/half_precision.json"))


def main(study: Study) -> None:
    with tempfile.TemporaryDirectory() as folder:
        model = copy_whole(Path(folder) / "model")
        rows = [row for steps in (1, 2, 4, 8) for row in compare(model, steps)]
    print("\n".join(markdown_table(rows)))
    study.out.write_text(json.dumps(rows, indent=1) + "\n")


def copy_whole(folder: Path) -> Path:
    """Copies the bundled few-step model with all its parts, as diffusers wants it."""
    shutil.copytree(assets.scenes_lcm(), folder)
    for part in ("vae", "text_encoder", "tokenizer"):
        shutil.copytree(assets.find_part(assets.scenes_lcm(), part), folder / part)
    return folder


def compare(model: Path, steps: int) -> list[dict[str, float | str]]:
    """Rows of differences in levels of 255."""
    ours = {
        name: levels(fewstep.load(model, "cpu", precision=name)(PROMPTS, steps=steps, seed=SEED))
        for name in ("fp32", "bf16")
    }
    theirs = {
        name: levels(paint_plainly(model, steps, dtype))
        for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16))
    }
    pairs = {
        "ours and diffusers', both bf16": (ours["bf16"], theirs["bf16"]),
        "ours, bf16 and fp32": (ours["bf16"], ours["fp32"]),
        "diffusers', bf16 and fp32": (theirs["bf16"], theirs["fp32"]),
    }
    rows: list[dict[str, float | str]] = []
    for name, (one, other) in pairs.items():
        difference = np.abs(one - other)
        within = round(100 * float((difference <= 2).mean()), 2)
        rows.append(
            {"steps": steps, "pictures": name, "mean": round(float(difference.mean()), 3), "within 2, %": within}
        )
    return rows


def paint_plainly(model: Path, steps: int, dtype: torch.dtype) -> list[Image.Image]:
    """Paints the same with diffusers' own pipeline."""
    pipeline = LatentConsistencyModelPipeline.from_pretrained(model, torch_dtype=dtype)
    pipeline.set_progress_bar_config(disable=True)
    generators = [torch.Generator().manual_seed(SEED + i) for i in range(len(PROMPTS))]
    scale = fewstep.load(model, "cpu").guidance_scale
    images: list[Image.Image] = pipeline(
        PROMPTS, num_inference_steps=steps, guidance_scale=scale, generator=generators
    ).images  # fmt: skip
    return images


def levels(images: list[Image.Image]) -> np.ndarray:
    return np.stack([np.asarray(image.convert("RGB")).astype(int) for image in images])


if __name__ == "__main__":
    main(tyro.cli(Study))
