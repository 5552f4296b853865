"""Distil a latent diffusion model into one that paints in 1 to 8 steps."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from fewstep.models.options import Engine, Offload
    from fewstep.models.pipeline import Pipeline
    from fewstep.precision import Precision

__all__ = ["__version__", "load"]
__version__ = "0.1.0"


def load(
    model: str | Path = "scenes-lcm", device: str = "auto", *, engine: Engine = "torch", tiny_decoder: str | Path = "",
    precision: Precision = "auto", offload: Offload = "auto", sampler: str = "auto",
    allow_download: bool = False,
) -> Pipeline:  # fmt: skip
    """Loads a few-step model: `pipe = fewstep.load(); images = pipe("a red star", steps=4, seed=7)`.

    `model` is `scenes-lcm`, which is bundled, a folder that `distill` wrote, also of a run that has not ended, any
    LatentConsistencyModelPipeline folder, or a Hub id; `device` is auto, cpu, cuda or mps; `engine` torch or openvino;
    `tiny_decoder` one in TAESD's layout; `precision` is auto, fp32, bf16 or fp16; `offload` auto, on or off;
    `sampler` auto, deterministic, consistency or the share of fresh noise between, 0 to 1; `allow_download` lets the
    header of a LoRA in that folder name what is fetched from the Hub.
    Raises fewstep.errors.UserError for anything else.
    """
    from fewstep.runs.unfinished import load_painter  # torch and diffusers load here, not with `import fewstep`

    pipeline = load_painter(
        model, device, engine=engine, tiny_decoder=tiny_decoder, precision=precision, offload=offload,
        allow_download=allow_download,
    )  # fmt: skip
    pipeline.use_sampler(sampler)
    return pipeline
