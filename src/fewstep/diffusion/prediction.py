"""What a network says of z_t, whatever it was trained to output: the clean latent and the noise in it; and what it says
under guidance, in the paper's convention: ω = 0 is the plain conditional network."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol, assert_never

import torch
from torch import Tensor

Parameterisation = Literal["epsilon", "v_prediction", "sample", "flow_prediction"]
"""diffusers' names for ε-, v- and x0-prediction, and for the velocity of a flow."""

Cond = dict[str, Tensor]
"""What a network is conditioned on; every tensor has the batch in front."""


class Prediction(NamedTuple):
    """z_t = α·z_0 + σ·epsilon, both shaped like z_t."""

    z_0: Tensor
    epsilon: Tensor


class Network(Protocol):
    """Every network, after conversion at the edge.

    z_t `[b, …]`, t `[b]`, omega `[b]` in the paper's convention or None for a network that has no ω input.
    """

    def __call__(self, z_t: Tensor, t: Tensor, cond: Cond, omega: Tensor | None) -> Prediction: ...


def to_prediction(kind: Parameterisation, output: Tensor, z_t: Tensor, alpha: Tensor, sigma: Tensor) -> Prediction:
    """Converts a network's output, with α and σ shaped to multiply it; computes in fp32 at least."""
    output, z_t = (x.to(torch.promote_types(x.dtype, torch.float32)) for x in (output, z_t))
    match kind:
        case "epsilon":
            return Prediction((z_t - sigma * output) / alpha, output)
        case "v_prediction":  # v = α·ε − σ·z_0 (arXiv 2202.00512, appendix D)
            return Prediction(alpha * z_t - sigma * output, alpha * output + sigma * z_t)
        case "sample":
            return Prediction(output, (z_t - alpha * output) / sigma)
        case "flow_prediction":  # ε − z_0, on a flow, where α + σ = 1 (arXiv 2403.03206, eq. 13)
            return Prediction(z_t - sigma * output, z_t + alpha * output)
        case _:
            assert_never(kind)


def to_output(kind: Parameterisation, prediction: Prediction, alpha: Tensor, sigma: Tensor) -> Tensor:
    """Returns what a network of this kind outputs where it predicts so: the inverse of `to_prediction`."""
    match kind:
        case "epsilon":
            return prediction.epsilon
        case "v_prediction":
            return alpha * prediction.epsilon - sigma * prediction.z_0
        case "sample":
            return prediction.z_0
        case "flow_prediction":
            return prediction.epsilon - prediction.z_0
        case _:
            assert_never(kind)


def concatenate(first: Cond, second: Cond) -> Cond:
    """Joins two conditions to one batch."""
    return {name: torch.cat([value, second[name]]) for name, value in first.items()}


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
