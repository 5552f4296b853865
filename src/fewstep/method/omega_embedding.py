"""The guidance scale ω as an input of the network (LCM, section 4.2; the sinusoids of its released code)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

OMEGA_WIDTH = 256


def embed_omega(omega: Tensor, width: int = OMEGA_WIDTH) -> Tensor:
    """Embeds ω `[b]` as `[b, width]` fp32: sines, then cosines, of 1000·ω·exp(−j·ln 1e4/(width/2 − 1))."""
    half = width // 2
    frequencies = torch.exp(torch.arange(half, device=omega.device) * (-math.log(10_000.0) / (half - 1)))
    angles = 1000.0 * omega.float()[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=1)
