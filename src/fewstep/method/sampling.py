"""Multistep consistency sampling (LCM, algorithm 3): answer, add noise, answer again."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fewstep.diffusion.schedule import Schedule
from fewstep.method.landing import ConsistencyFunction, Landing


def consistency_times(schedule: Schedule, grid_size: int, count: int, strength: float = 1.0) -> list[int]:
    """Returns `count` of the `grid_size` times of the schedule's grid, latest first.

    With `strength` below 1, of the earlier part of them alone. Raises ValueError where there are fewer than `count`.
    """
    allowed = int(grid_size * strength)
    if not 1 <= count <= allowed:
        raise ValueError(f"steps is {count}; this model allows 1 to {allowed}")
    grid: list[int] = schedule.grid(grid_size).tolist()
    return [grid[allowed - i * allowed // count - 1] for i in range(count)]


def advance(
    f: ConsistencyFunction, z: Tensor, t: Tensor, e: Tensor, noise: Tensor | None = None, fresh: Tensor | None = None
) -> Tensor:
    """Returns z_e `[b, …]` after one evaluation at t `[b]`, to which `noise` has brought a clean `z`.

    Without noise, and in rows where `fresh` `[b]` is true, `z` stands at t already. What has landed at 0 is clean, as
    LCM has it, though Stable Diffusion's schedule still has σ = 0.029 there.
    """
    z_t = z if noise is None else f.schedule.diffuse(z, noise, t)
    if fresh is not None:
        z_t = torch.where(fresh.view((-1,) + (1,) * (z.ndim - 1)), z, z_t)
    return f(z_t, t, e)


def sample_consistency(
    f: ConsistencyFunction, times: Sequence[int], draw: Callable[[], Tensor], start: Tensor | None = None,
    ends: Sequence[int] | None = None,
) -> Tensor:  # fmt: skip
    """Returns z `[b, …]` after one evaluation at each of `times`, landed at each of `ends`, by default at 0.

    `draw()` gives standard normal fp32 noise `[b, …]`: first the initial latent, then that of every later step that
    follows a landing at 0. With a picture's latents `[b, …]` as `start`, the first draw is what noises them to the
    first time. Raises ValueError for an end that is neither 0 nor the next time, or that the landing cannot reach.
    """
    ends = [0] * len(times) if ends is None else ends
    _check_ends(f.landing, times, ends)
    z, clean = (draw(), False) if start is None else (start, True)
    for time, end in zip(times, ends, strict=True):
        t, e = (torch.full((len(z),), each, dtype=torch.long, device=z.device) for each in (time, end))
        z = advance(f, z, t, e, draw() if clean else None)
        clean = end == 0
    return z


def _check_ends(landing: Landing, times: Sequence[int], ends: Sequence[int]) -> None:
    if any(ends) and not landing.anywhere:
        raise ValueError(f"ends are {list(ends)} and the landing {landing.name} reaches 0 alone; give another landing")
    if any(end not in (0, later) for end, later in zip(ends, times[1:], strict=False)) or ends[-1] > times[-1]:
        raise ValueError(
            f"ends are {list(ends)} at the times {list(times)}; each must be 0 or the next time, and the last one at "
            "most its own time"
        )
