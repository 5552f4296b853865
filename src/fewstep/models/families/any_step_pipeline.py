"""Stable Diffusion's pipeline for a network that is told where each of its answers shall land.

A copy lies beside the weights of such a model, for `DiffusionPipeline.from_pretrained(folder, custom_pipeline=folder,
trust_remote_code=True)`.
With DDIM at trailing times each answer lands at the next time, and the last at 0, in any number of steps.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers import StableDiffusionPipeline


class AnyStepPipeline(StableDiffusionPipeline):  # type: ignore[misc]  # diffusers has no types
    """Paints in as many steps as it is asked for. `guidance_scale` is an input of the network, or built into it."""

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        if self.unet.config.time_cond_proj_dim is None:
            named["guidance_scale"] = 1.0  # no second pass for what is built in
        plain = self.unet.forward

        def forward(sample: torch.Tensor, timestep: torch.Tensor, *more: Any, **others: Any) -> Any:
            times = [int(time) for time in self.scheduler.timesteps]
            end = [*times[1:], 0][times.index(int(timestep))]
            ends = torch.full((len(sample),), float(end), device=sample.device)
            return plain(sample, timestep, *more, class_labels=ends, **others)

        self.unet.forward = forward
        try:
            return super().__call__(*arguments, **named)
        finally:
            self.unet.forward = plain
