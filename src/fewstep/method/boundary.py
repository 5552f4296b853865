"""The consistency function f and the boundary that makes it the identity at t = 0."""

from __future__ import annotations

import torch
from torch import Tensor

from fewstep.diffusion.prediction import Cond, Network

SIGMA_DATA = 0.5
TIME_SCALE = 10.0


def boundary(t: Tensor) -> tuple[Tensor, Tensor]:
    """c_skip(t) and c_out(t), shaped like `t`: 1 and 0 at t = 0 (LCM, section 4.1 and its released code).

    c_skip = σ_d²/((10t)² + σ_d²),  c_out = 10t/√((10t)² + σ_d²),  σ_d = 0.5
    """
    scaled = TIME_SCALE * t.to(torch.promote_types(t.dtype, torch.float32))
    square = scaled**2 + SIGMA_DATA**2
    return SIGMA_DATA**2 / square, scaled / square.sqrt()


def consistency_function(network: Network, z_t: Tensor, t: Tensor, cond: Cond, omega: Tensor | None) -> Tensor:
    """f(z_t, ω, c, t) = c_skip(t)·z_t + c_out(t)·ẑ_0 (LCM, eq. 9); `[b, …]` from `[b, …]` and t `[b]`."""
    z_0 = network(z_t, t, cond, omega).z_0
    c_skip, c_out = (c.to(z_0.dtype).view((-1,) + (1,) * (z_t.ndim - 1)) for c in boundary(t))
    return c_skip * z_t + c_out * z_0
