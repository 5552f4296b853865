"""The scheduler of diffusers that asks and lands where a method's own sampler does."""

from __future__ import annotations

from typing import Any

from diffusers import (
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchLCMScheduler,
    LCMScheduler,
    TCDScheduler,
)

from fewstep.diffusion.flow import Flow
from fewstep.method.named import NamedMethod
from fewstep.models.card import SHOWN_STEPS, StudentCard, read_method
from fewstep.models.family import Family, LatentModel
from fewstep.models.scheduler import resolve_schedule

_LARGE = 3 * 10**9
"""Weights of network and text encoders together, above which fp32 is too much for the memory that people have."""


def make_scheduler(model: LatentModel, method: NamedMethod, grid_size: int) -> Any:
    """Makes it for a model that `method` has made few-step, with a grid of so many times."""
    if isinstance(model.schedule, Flow):
        return _make_flow(model.schedule, method)
    # What a file leaves out has one default in its own class and another in LCMScheduler.
    schedule = resolve_schedule(model.scheduler_config, model.source)
    if method.gamma == 1:
        # What sampling starts from; our own sampler follows the same rule.
        return LCMScheduler(**schedule, original_inference_steps=grid_size, clip_sample=False, set_alpha_to_one=False)
    if method.gamma:
        # It chooses n times of so many: of all, they are those of equal strides.
        every = {"original_inference_steps": model.schedule.num_steps}
        return TCDScheduler(**schedule, **every, clip_sample=False, set_alpha_to_one=False)
    # An offset of 1 changes no trailing time; without it the pipeline of diffusers warns.
    settings = {"timestep_spacing": "trailing", "steps_offset": 1, "clip_sample": False, "set_alpha_to_one": False}
    return DDIMScheduler(**schedule, **settings)


def _make_flow(schedule: Flow, method: NamedMethod) -> Any:
    # All by keywords: what is left out diffusers takes for unsaid, and lets a base's own settings decide.
    kind = FlowMatchLCMScheduler if method.gamma == 1 else FlowMatchEulerDiscreteScheduler
    return kind(
        num_train_timesteps=schedule.num_steps, shift=schedule.shift, use_dynamic_shifting=False, shift_terminal=None,
        invert_sigmas=False, use_karras_sigmas=False, use_exponential_sigmas=False, use_beta_sigmas=False,
    )  # fmt: skip


def describe_sampling(model: LatentModel, card: StudentCard) -> dict[str, Any]:
    """Returns what a card says of sampling by stock pipelines: what they are to be given, and of a flow its shift and
    the `sigmas` for each number of steps."""
    told: dict[str, Any] = {"stock_settings": given} if (given := dict(model.family.stock_settings)) else {}
    if not model.family.stock_loras:
        told["stock_loras"] = False
    counted = (p.numel() for part in model.parts.values() for p in part.parameters())
    if model.family.overflows_in_fp16 and sum(counted) > _LARGE:
        told["stock_large"] = True
    if not isinstance(model.schedule, Flow):
        return told if model.family.embeds_guidance else told | {"stock_scale": stock_scale(model.family, card)}
    if card.grid_size is None:
        return told
    method = read_method(card, model.source)
    counts = (card.sampling_steps,) if card.sampling_steps else SHOWN_STEPS
    times = {n: method.sampling(model.schedule, card.grid_size, n)[0] for n in counts if n <= card.grid_size}
    sigmas = {str(n): [round(t / model.schedule.num_steps, 6) for t in each] for n, each in times.items()}
    asked = stock_scale(model.family, card)
    told |= {} if asked == 1 else {"stock_scale": asked}
    if (name := model.family.guidance_argument) != "guidance_scale":
        told["stock_guidance"] = name
    return {"shift": model.schedule.shift, "sigmas": sigmas, **told}


def stock_scale(family: Family, card: StudentCard) -> float:
    """Returns the `guidance_scale` that a stock pipeline is to be given: the network's own input where it has one, and
    else what adds no guidance."""
    if family.guided_inside and card.guidance_scale is not None:
        return card.guidance_scale
    return family.guidance_of(0.0)
