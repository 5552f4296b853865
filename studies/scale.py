"""What training on many pictures and GPUs needs: room, reading, checkpoints; from measured constants and your numbers.

    python studies/scale.py        # half a minute; --help lists the numbers that can be your own

Figures: docs/scale.json, docs/scale.md.
"""

from __future__ import annotations

import json
import math
import os
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import tyro
from diffusers import UNet2DConditionModel

from fewstep.evaluate.report import markdown_table
from fewstep.models.families.stable_diffusion import SD1, SD2, SDXL
from fewstep.models.family import Family
from fewstep.train.checkpoint import Checkpoints

SHAPES: dict[str, tuple[Family, int]] = {
    "sd15": (SD1, 512), "sd21-base": (SD2, 512), "sd21": (SD2, 768), "sdxl": (SDXL, 1024),
}  # fmt: skip
PER_LATENT, CHANNELS, TOKENS = 8, 4, 77
TFLOP_AT_512 = 2.41 + 1.61 + 0.80
"""Of one picture of Stable Diffusion 1.5 at 512 pixels: student forward and backward, guided teacher, target."""
CAPTION_BYTES = 120


@dataclass(frozen=True, kw_only=True)
class Scale:
    pictures: int = 100_000_000
    gpus: int = 256
    tflops: float = 400.0
    """Sustained by a GPU, in bf16."""
    shard: int = 10_000
    """Pictures in a shard of latents."""
    original_kib: float = 100.0
    """Of a picture as it was downloaded."""
    hours_between_failures: float = 50_000.0
    """Of one GPU, with all that belongs to it."""
    write_mib_per_second: float = 0.0
    """To where checkpoints lie; 0 measures this machine's disk."""
    out: Path = field(default=Path("docs/scale.json"))


def main(scale: Scale) -> None:
    rate = scale.write_mib_per_second or measured_rate()
    rows = [row(name, scale, rate) for name in SHAPES]
    numbers = {name: value for name, value in vars(scale).items() if name != "out"}
    held = {"numbers": {**numbers, "write_mib_per_second": round(rate)}, "rows": rows}
    scale.out.write_text(json.dumps(held, indent=1) + "\n")
    print("\n".join(markdown_table(rows)))


def row(name: str, scale: Scale, mib_per_second: float) -> dict[str, Any]:
    """All of one family."""
    family, side = SHAPES[name]
    with torch.device("meta"):
        parameters = sum(p.numel() for p in UNet2DConditionModel(**family.unet).parameters())
    latent = CHANNELS * (side // PER_LATENT) ** 2 * 2  # bytes in fp16
    text = TOKENS * family.text_width * 2
    kept = 2 * latent + CAPTION_BYTES  # mean and deviation
    # Work grows with the pixels, and here as if with the weights.
    tflop = TFLOP_AT_512 * (side / 512) ** 2 * parameters / 859.5e6
    per_gpu = scale.tflops / tflop
    state = 4 * 4 * parameters  # student, average, two moments in fp32
    save = state / 2**20 / mib_per_second
    between = scale.hours_between_failures * 3600 / scale.gpus
    return {
        "recipe": name,
        "latents, KiB": round(2 * latent / 2**10, 1),
        "texts would be, KiB": round(text / 2**10, 1),
        "all latents, TiB": round(scale.pictures * kept / 2**40, 2),
        "originals, TiB": round(scale.pictures * scale.original_kib / 2**30, 1),
        "a shard, MiB": round(scale.shard * kept / 2**20),
        "pictures a second, a GPU": round(per_gpu, 1),
        "read, MiB/s, a GPU": round(per_gpu * kept / 2**20, 1),
        "read, GiB/s, all": round(scale.gpus * per_gpu * kept / 2**30, 2),
        "an epoch, hours": round(scale.pictures / (scale.gpus * per_gpu) / 3600, 1),
        "checkpoint, GiB": round(state / 2**30, 1),
        "saved in, s": round(save),
        "interval, min": round(math.sqrt(2 * save * between) / 60),
    }  # fmt: skip


def measured_rate() -> float:
    """MiB/s at which a checkpoint is written, hashed and on the disk, here."""
    tensors = {f"{i}": torch.randn(2**24) for i in range(16)}  # 1 GiB
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR", "/tmp")) as folder:
        begun = time.perf_counter()
        Checkpoints(Path(folder)).save(tensors, {"step": 1, "counter": 1}, 2)
        return 1024 / (time.perf_counter() - begun)


if __name__ == "__main__":
    main(tyro.cli(Scale))
