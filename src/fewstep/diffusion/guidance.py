"""Classifier-free guidance in the paper's convention: ω = 0 is the plain conditional network."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.diffusion.prediction import Cond, Network, Prediction, concatenate

Rescale = Callable[[Tensor, Tensor, Prediction, Prediction], Prediction]
"""(z_t, t, prediction under the condition, that guided) → what guidance comes to, where a family has such a rule."""


@dataclass(frozen=True)
class Guided:
    """The field of the augmented PF-ODE (LCM, eq. 7): (1 + ω)·ε(z, c, t) − ω·ε(z, ∅, t).

    Both halves run in one batched forward, the second only where ω acts. `omega` and every entry of the conditions
    have the batch in front; diffusers' `guidance_scale` is ω + 1.
    """

    network: Network
    cond: Cond
    null_cond: Cond
    omega: Tensor
    guided_from: int = 0
    """ω acts at t ≥ this time and is 0 below it: guidance in a limited interval (arXiv 2404.07724)."""
    rescale: Rescale | None = None

    def __call__(self, z_t: Tensor, t: Tensor) -> Prediction:
        # A slice where all are guided: a GPU would have to wait for the count of some.
        where = (t >= self.guided_from).nonzero()[:, 0] if self.guided_from else slice(None)
        null_cond = {name: value[where] for name, value in self.null_cond.items()}
        cond = concatenate(self.cond, null_cond)
        both = self.network(torch.cat([z_t, z_t[where]]), torch.cat([t, t[where]]), cond, None)
        omega = self.omega[where].to(both.z_0.dtype).view((-1,) + (1,) * (z_t.ndim - 1))

        def guide(halves: Tensor) -> Tensor:
            guided, unconditional = halves[: len(z_t)].clone(), halves[len(z_t) :]
            guided[where] = (1 + omega) * guided[where] - omega * unconditional
            return guided

        # Prediction is affine in the network's output with weights that add to one, so guiding z_0 and ε
        # is guiding the output.
        guided = Prediction(guide(both.z_0), guide(both.epsilon))
        if self.rescale is None:
            return guided
        conditional = Prediction(both.z_0[: len(z_t)], both.epsilon[: len(z_t)])
        return self.rescale(z_t, t, conditional, guided)
