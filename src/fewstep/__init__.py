"""Distil a latent diffusion model into one that paints in 1 to 8 steps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from fewstep.api import Report, Run, combine, configure, distill, evaluate, finetune, prepare, train_lora
    from fewstep.errors import UserError
    from fewstep.models.options import Engine, Offload
    from fewstep.models.pipeline import Pipeline
    from fewstep.precision import PaintPrecision
    from fewstep.progress import Progress

__all__ = [
    "Pipeline", "Progress", "Report", "Run", "UserError", "__version__", "combine", "configure", "distill", "evaluate",
    "finetune", "load", "prepare", "train_lora",
]  # fmt: skip
__version__ = "0.2.0"
_HOMES = {"Pipeline": "models.pipeline", "Progress": "progress", "UserError": "errors"}
"""Where a public name stands that is not of `api`."""


def load(  # noqa: PLR0913  # as load_pipeline
    model: str | Path = "scenes-lcm", device: str = "auto", *, loras: Sequence[str | Path] = (),
    engine: Engine = "torch", tiny_decoder: str | Path = "", precision: PaintPrecision = "auto",
    calibration_prompts: str = "", offload: Offload = "auto", sampler: str = "auto",
    allow_download: bool = False, quiet: bool = False,
) -> Pipeline:  # fmt: skip
    """Loads a few-step model: `pipe = fewstep.load(); images = pipe("a red star", steps=4, seed=7)`.

    `model` is `scenes-lcm`, which is bundled, a folder that `distill` wrote, also of a run that has not ended, any
    LatentConsistencyModelPipeline folder, or a Hub id; `loras` are what --lora takes, each with its scale after a
    colon, as in `style.safetensors:0.8`; `device` is auto, cpu, cuda or mps; `engine` torch or openvino;
    `tiny_decoder` one in TAESD's layout; `precision` is auto, fp32, bf16, fp16 or, with engine openvino, int8, which is
    calibrated on the lines of a file `calibration_prompts`; `offload` auto, on or off;
    `sampler` auto, deterministic, consistency or the share of fresh noise between, 0 to 1; `allow_download` lets the
    header of a LoRA in that folder name what is fetched from the Hub; `quiet` keeps notes off stdout and stderr.
    Raises fewstep.errors.UserError for anything else.
    """
    # torch and diffusers load here, not with `import fewstep`
    from fewstep.models.libraries import silence
    from fewstep.models.lora.source import parse_lora
    from fewstep.models.pipeline import read_sampler
    from fewstep.progress import listen
    from fewstep.runs.unfinished import load_painter

    read_sampler(sampler)
    with listen(None, quiet=quiet), silence():
        pipeline = load_painter(
            model, device, [parse_lora(str(given)) for given in loras], engine=engine, tiny_decoder=tiny_decoder,
            precision=precision, offload=offload, allow_download=allow_download,
            calibration_prompts=calibration_prompts,
        )  # fmt: skip
    pipeline.use_sampler(sampler)
    return pipeline


if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        """Imports what is public when it is first used, since torch takes seconds."""
        if name not in __all__:
            raise AttributeError(f"module 'fewstep' has no attribute {name!r}")
        import importlib

        return getattr(importlib.import_module(f"fewstep.{_HOMES.get(name, 'api')}"), name)
