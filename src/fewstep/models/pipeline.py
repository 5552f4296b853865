"""Painting with a few-step model: `pipe = fewstep.load(folder); images = pipe("a red star", steps=4, seed=7)`."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from fewstep.consistency.sampling import consistency_times, sample_consistency
from fewstep.data.pictures import to_images
from fewstep.diffusion.prediction import Cond
from fewstep.errors import UserError
from fewstep.models.latent_model import LatentModel, load_latent_model, pick_device

DIFFUSERS_GUIDANCE_SCALE = 8.5  # LatentConsistencyModelPipeline's default, for models that record none
MAX_STEPS = 50


def seeded_noise(seeds: Sequence[int], shape: Sequence[int], device: torch.device) -> Callable[[], Tensor]:
    """Standard normal fp32 `[len(seeds), *shape]` at every call, each picture from its own CPU generator.

    The same numbers that a diffusers pipeline draws when given these generators.
    """
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def draw() -> Tensor:
        return torch.cat([torch.randn((1, *shape), generator=generator) for generator in generators]).to(device)

    return draw


class Pipeline:
    """A loaded few-step model."""

    def __init__(self, model: LatentModel) -> None:
        if model.network.unet.config.time_cond_proj_dim is None:
            raise UserError(
                f"{model.source} is a teacher, not a few-step model; make one with `fewstep distill --teacher`"
            )
        self.model = model
        self.name = str(model.details.get("name", Path(model.source).name))
        self.grid_size = _whole_number(model, "original_inference_steps", 50)
        """How many times its sampler may choose from."""
        self.guidance_scale = _finite_number(model, "guidance_scale", DIFFUSERS_GUIDANCE_SCALE)
        """Used when none is given; diffusers' convention, ω + 1."""

    def __call__(
        self,
        prompt: str | Sequence[str],
        *,
        steps: int = 4,
        seed: int = 0,
        count: int = 1,
        guidance_scale: float | None = None,
        negative_prompt: str | None = None,
        batch_size: int = 16,
    ) -> list[Image.Image]:
        """Paints `count` pictures of every prompt, prompt by prompt.

        Picture i has a CPU generator of its own, seeded with seed + i, and does not depend on `batch_size`.
        `guidance_scale` is diffusers' (ω + 1). Raises UserError for steps the model does not allow.
        """
        if negative_prompt:
            warnings.warn("this model has guidance built in and ignores the negative prompt", stacklevel=2)
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        prompts = [each for each in prompts for _ in range(count)]
        for each in dict.fromkeys(prompts):
            if self.model.truncated(each):
                limit = self.model.tokenizer.model_max_length - 2
                warnings.warn(
                    f"the model reads the first {limit} tokens of {each!r} and ignores the rest", stacklevel=2
                )
        scale = self.guidance_scale if guidance_scale is None else guidance_scale
        low, high = self.model.details.get("guidance_range", (scale, scale))
        if not low <= scale <= high:
            warnings.warn(f"guidance_scale is {scale:g}; this model was trained for {low:g} to {high:g}", stacklevel=2)
        images: list[Image.Image] = []
        for start in range(0, len(prompts), batch_size):
            part = prompts[start : start + batch_size]
            seeds = range(seed + start, seed + start + len(part))
            z_0 = self.latents(self.model.encode_text(part), seeds, steps, omega=scale - 1)
            images += to_images(self.model.decode(z_0))
        return images

    @torch.no_grad()
    def latents(self, cond: Cond, seeds: Sequence[int], steps: int, omega: float) -> Tensor:
        """z_0 `[b, c, h, w]` for conditions `[b, …]`, one seed a picture; ω in the paper's convention."""
        draw = seeded_noise(seeds, self.model.latent_shape(self.model.resolution), self.model.device)
        omegas = torch.full((len(seeds),), omega, device=self.model.device)
        return sample_consistency(self.model.schedule, self.model.network, cond, omegas, self.times(steps), draw)

    def times(self, steps: int) -> list[int]:
        """The times at which `steps` evaluations stand, latest first."""
        most = min(MAX_STEPS, self.grid_size)
        if not 1 <= steps <= most:
            raise UserError(f"steps is {steps}; this model allows 1 to {most}")
        return consistency_times(self.model.schedule.num_steps, self.grid_size, steps)


def _whole_number(model: LatentModel, name: str, default: int) -> int:
    value = model.scheduler_config.get(name, default)
    if type(value) is not int or not 1 <= value <= model.schedule.num_steps:
        allowed = f"1 to {model.schedule.num_steps}"
        raise UserError(f"{model.source} has {name} {value!r} in scheduler_config.json; allowed are {allowed}")
    return value


def _finite_number(model: LatentModel, name: str, default: float) -> float:
    value = model.details.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise UserError(f"{model.source} has {name} {value!r} in fewstep.json; a number is wanted")
    return float(value)


def load_pipeline(source: str | Path, device: str = "auto") -> Pipeline:
    """Loads a few-step model from a diffusers folder or Hub id; `device` is auto, cpu, cuda or mps."""
    return Pipeline(load_latent_model(source, pick_device(device)))
