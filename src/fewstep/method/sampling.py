"""Multistep consistency sampling (LCM, algorithm 3): answer, add noise, answer again."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.diffusion.schedule import Schedule
from fewstep.method.landing import ConsistencyFunction, Landing, solve_clean


@dataclass(frozen=True)
class Kept:
    """What stays of clean latents while the rest is painted: inpainting with a model that was not trained for it."""

    z_0: Tensor
    """Are clean latents `[b, …]`."""
    free: Tensor
    """True where painting is free, `[b, …]` or what broadcasts to it; elsewhere `z_0` stays."""
    noise: Tensor | None = None
    """Standard normal `[b, …]` that brings `z_0` to an end above 0; landings at 0 need none."""

    def put_back(self, z_e: Tensor, e: Tensor, schedule: Schedule) -> Tensor:
        """Returns z_e with what stays in its place, at the level of noise of e `[b]`; at 0 it is clean."""
        known = self.z_0
        if self.noise is not None:
            landed = (e == 0).view((-1,) + (1,) * (z_e.ndim - 1))
            known = torch.where(landed, known, schedule.diffuse(known, self.noise, e))
        return torch.where(self.free, z_e, known)


def advance(
    f: ConsistencyFunction, z: Tensor, t: Tensor, e: Tensor, noise: Tensor | None = None, before: Tensor | None = None,
    kept: Kept | None = None,
) -> Tensor:  # fmt: skip
    """Returns z_e `[b, …]` after one evaluation at t `[b]`, to which `noise` brings z from where it stood `before`.

    Without noise, and in rows where `before` `[b]` is t, `z` stands at t already. What has landed at 0, as all has
    without `before`, is clean, as LCM has it, though Stable Diffusion's schedule still has σ = 0.029 there. What is
    `kept` is put back at e, and so stands at the next time's level of noise as soon as `noise` is added to the whole.
    """
    z_e = f(bring(f.schedule, z, t, noise, before), t, e)
    return z_e if kept is None else kept.put_back(z_e, e, f.schedule)


def bring(schedule: Schedule, z: Tensor, t: Tensor, noise: Tensor | None, before: Tensor | None) -> Tensor:
    """Returns z_t `[b, …]` of what stood at `before`, as `advance` has it."""
    if noise is None:
        return z
    z_t = schedule.diffuse(z, noise, t)
    if before is None:
        return z_t
    clean, there = ((before == time).view((-1,) + (1,) * (z.ndim - 1)) for time in (0, t))
    return torch.where(clean, z_t, torch.where(there, z, renoise(schedule, z, noise, before, t)))


def find_clean(schedule: Schedule, z_t: Tensor, z_e: Tensor, t: Tensor, e: Tensor) -> Tensor:
    """Returns the ẑ_0 by which DDIM's formula has led from z_t to z_e, and z_e itself where that is clean, at e = 0."""
    return torch.where((e == 0).view((-1,) + (1,) * (z_t.ndim - 1)), z_e, solve_clean(schedule, z_t, z_e, t, e))


def renoise(schedule: Schedule, z_e: Tensor, noise: Tensor, e: Tensor, t: Tensor) -> Tensor:
    """Returns z_t = r·z_e + √(σ_t² − r²·σ_e²)·noise with r = α_t/α_e, for e ≤ t `[b]` (TCD, arXiv 2402.19159)."""
    (alpha_t, sigma_t), (alpha_e, sigma_e) = (schedule.coefficients(time, z_e) for time in (t, e))
    r = alpha_t / alpha_e
    return r * z_e + (sigma_t.square() - (r * sigma_e).square()).clamp(min=0).sqrt() * noise


def sample_consistency(
    f: ConsistencyFunction, times: Sequence[int], draw: Callable[[], Tensor], start: Tensor | None = None,
    ends: Sequence[int] | None = None, kept: Kept | None = None, count: Callable[[], None] = lambda: None,
) -> Tensor:  # fmt: skip
    """Returns z `[b, …]` after one evaluation at each of `times`, landed at each of `ends`, by default at 0.

    `draw()` gives standard normal fp32 noise `[b, …]`: first the initial latent, then that of every later step whose
    time lies above the end before it. With a picture's latents `[b, …]` as `start`, the first draw is what noises them
    to the first time; what is `kept` of them stays. `count()` is called after each evaluation. Raises ValueError for an
    end above the next time, or that the landing cannot reach.
    """
    ends = [0] * len(times) if ends is None else ends
    _check_ends(f.landing, times, ends)
    z, stands = (draw(), times[0]) if start is None else (start, 0)
    for time, end in zip(times, ends, strict=True):
        t, e, before = (torch.full((len(z),), each, dtype=torch.long, device=z.device) for each in (time, end, stands))
        noise = draw() if stands < time else None
        if kept is not None and noise is not None:
            kept = dataclasses.replace(kept, noise=noise)
        z, stands = advance(f, z, t, e, noise, before if stands else None, kept), end
        count()
    return z


def _check_ends(landing: Landing, times: Sequence[int], ends: Sequence[int]) -> None:
    if any(ends) and not landing.anywhere:
        raise ValueError(f"ends are {list(ends)} and the landing {landing.name} reaches 0 alone; give another landing")
    if any(not 0 <= end <= later for end, later in zip(ends, [*times[1:], times[-1]], strict=True)):
        raise ValueError(
            f"ends are {list(ends)} at the times {list(times)}; each must lie between 0 and the next time, the last "
            "between 0 and its own"
        )
