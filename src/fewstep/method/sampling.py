"""Multistep consistency sampling (LCM, algorithm 3): answer, add noise, answer again."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fewstep.diffusion.prediction import Cond, Network
from fewstep.diffusion.schedule import Schedule
from fewstep.method.boundary import consistency_function


def consistency_times(schedule: Schedule, grid_size: int, count: int, strength: float = 1.0) -> list[int]:
    """Returns `count` of the `grid_size` times of the schedule's grid, latest first.

    With `strength` below 1, of the earlier part of them alone. Raises ValueError where there are fewer than `count`.
    """
    allowed = int(grid_size * strength)
    if not 1 <= count <= allowed:
        raise ValueError(f"steps is {count}; this model allows 1 to {allowed}")
    grid: list[int] = schedule.grid(grid_size).tolist()
    return [grid[allowed - i * allowed // count - 1] for i in range(count)]


def sample_consistency(
    schedule: Schedule, network: Network, cond: Cond, omega: Tensor | None, times: Sequence[int],
    draw: Callable[[], Tensor], start: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """z_0 `[b, …]` after one evaluation at each of `times`.

    `draw()` gives standard normal fp32 noise `[b, …]`: first the initial latent, then that of every later step. With a
    picture's latents `[b, …]` as `start`, the first draw is what noises them to the first time.
    """
    z = draw() if start is None else start
    for i, time in enumerate(times):
        t = torch.full((len(z),), time, dtype=torch.long, device=z.device)
        if i > 0 or start is not None:
            z = schedule.diffuse(z, draw(), t)
        z = consistency_function(network, z, t, cond, omega)
    return z
