"""Muon, which learns what is seen rarely sooner than AdamW does: names, of which every picture shows one to three."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.train.config import Optimisation


class Muon(torch.optim.Optimizer):
    """Gives the update of each matrix, or convolution seen as one, singular values near 1 (Jordan et al. 2024), and
    AdamW's size times `RATIO` (Liu et al., arXiv 2502.16982); all other weights follow Adam. torch's own takes no
    convolutions."""

    MOMENTUM = 0.95
    RATIO = 20 / 3
    _ITERATIONS = 5
    _COEFFICIENTS = (3.4445, -4.7750, 2.0315)

    def __init__(self, weights: nn.Module, optimisation: Optimisation, as_vectors: tuple[str, ...] = ()) -> None:
        """`as_vectors` are how the names of those matrices begin that follow Adam, such as the first and last layer."""
        if optimisation.weight_decay:
            raise ValueError(f"weight_decay is {optimisation.weight_decay}; Muon has none here")
        matrices: list[Tensor] = []
        rest: list[Tensor] = []
        for name, parameter in weights.named_parameters():
            if parameter.requires_grad:
                (rest if parameter.ndim < 2 or name.startswith(as_vectors) else matrices).append(parameter)
        settings = {"lr": optimisation.lr, "betas": (0.9, optimisation.beta2)}
        super().__init__([{"params": rest}, {"params": matrices}], settings)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]  # as torch's
        loss = None if closure is None else closure()
        rest, matrices = self.param_groups
        for parameter in rest["params"]:
            if (gradient := parameter.grad) is not None:
                self._follow_adam(parameter, gradient, rest)
        self._follow_directions([parameter for parameter in matrices["params"] if parameter.grad is not None])
        return loss

    def _follow_adam(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state, (beta1, beta2) = self.state[parameter], group["betas"]
        if not state:
            state |= {"step": torch.zeros(()), "exp_avg": torch.zeros_like(parameter)}
            state["exp_avg_sq"] = torch.zeros_like(parameter)
        state["step"] += 1
        count = float(state["step"])
        state["exp_avg"].lerp_(gradient, 1 - beta1)
        state["exp_avg_sq"].lerp_(gradient.square(), 1 - beta2)
        deviation = (state["exp_avg_sq"] / (1 - beta2**count)).sqrt_().add_(1e-8)
        parameter.addcdiv_(state["exp_avg"], deviation, value=-group["lr"] / (1 - beta1**count))

    def _follow_directions(self, parameters: list[Tensor]) -> None:
        """Moves matrices of one shape together, which takes fewer and larger products."""
        lr = self.param_groups[1]["lr"]
        shapes: dict[tuple[int, int], list[Tensor]] = {}
        for parameter in parameters:
            shapes.setdefault((len(parameter), parameter[0].numel()), []).append(parameter)
        for shape, alike in shapes.items():
            ahead = [self._look_ahead(parameter).reshape(shape) for parameter in alike]
            rate = lr * self.RATIO * 0.2 * math.sqrt(max(shape))
            for parameter, direction in zip(alike, self.orthogonalise(torch.stack(ahead)), strict=True):
                parameter.sub_(direction.reshape(parameter.shape), alpha=rate)

    def _look_ahead(self, parameter: Any) -> Tensor:
        """Moves the momentum, and returns it in Nesterov's way."""
        momentum: Tensor = self.state[parameter].setdefault("exp_avg", torch.zeros_like(parameter))
        momentum.lerp_(parameter.grad, 1 - self.MOMENTUM)
        return torch.lerp(parameter.grad, momentum, self.MOMENTUM)

    def orthogonalise(self, matrices: Tensor) -> Tensor:
        """Brings the singular values of `[n, r, k]` near 1, between about 0.7 and 1.2, by Newton and Schulz's
        iteration."""
        x = matrices.bfloat16()
        tall = x.shape[1] > x.shape[2]
        x = x.mT if tall else x
        x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
        a, b, c = self._COEFFICIENTS
        for _ in range(self._ITERATIONS):
            square = x @ x.mT
            x = a * x + (b * square + c * (square @ square)) @ x
        orthogonal: Tensor = x.mT if tall else x
        return orthogonal.to(matrices.dtype)
