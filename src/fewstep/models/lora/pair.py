"""What a LoRA adds to one module, whatever its file called it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Pair:
    """ΔW = alpha/rank · B·A of one linear or convolutional module; with a magnitude that of DoRA (arXiv 2402.09353)."""

    down: Tensor
    """Is A, `[rank, in]` or `[rank, in, k, k]`."""
    up: Tensor
    """Is B, `[out, rank]` or `[out, rank, 1, 1]`."""
    alpha: float
    magnitude: Tensor | None = None
    """Is DoRA's m, `[out, 1]` or `[out, 1, 1, 1]`, or along the inputs `[1, in]` or `[1, in, 1, 1]`."""

    @property
    def rank(self) -> int:
        return len(self.down)

    @property
    def scale(self) -> float:
        return self.alpha / self.rank

    def delta(self, weight: Tensor | None = None) -> Tensor:
        """Computes ΔW `[out, in]` or `[out, in, k, k]`, in float64; of a DoRA by the `weight` that it is for."""
        up, down = self.up.double().flatten(1), self.down.double().flatten(1)
        delta: Tensor = (self.scale * up @ down).unflatten(1, self.down.shape[1:])
        if self.magnitude is None:
            return delta
        assert weight is not None
        base = weight.double().to(delta.device)
        whole: Tensor = self.gain(weight).to(delta.device) * (base + delta) - base
        return whole

    def gain(self, weight: Tensor) -> Tensor:
        """Computes DoRA's m/‖W + alpha/rank·B·A‖ in float64, shaped as the magnitude, on the device of `weight`."""
        assert self.magnitude is not None
        magnitude = self.magnitude.to(weight.device).double()
        plain = Pair(self.down, self.up, self.alpha).delta().to(weight.device)
        summed = tuple(axis for axis, length in enumerate(magnitude.shape) if length == 1 and axis != self._axis)
        norm = torch.linalg.vector_norm(weight.double() + plain, dim=summed, keepdim=True)
        gain: Tensor = magnitude / norm.clamp_min(torch.finfo(torch.float32).tiny)
        return gain

    @property
    def _axis(self) -> int:
        """Returns the axis along which the magnitude stands: a module may have one output, or one input."""
        assert self.magnitude is not None
        return int(self.magnitude.shape[0] == 1 and self.magnitude.shape[1] > 1)


Lora = dict[str, Pair]
"""Pairs by the module's name in the pipeline, which begins with its part: `text_encoder.…`."""


def find_dora(pairs: Lora) -> str | None:
    """Returns the name of a module that is adapted by a DoRA, if there is one."""
    return next((name for name, pair in pairs.items() if pair.magnitude is not None), None)
