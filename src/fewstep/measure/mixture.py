"""A world whose teacher is known in closed form: four Gaussians in the plane, two to a class.

Its guided ODE can be solved as finely as one likes, so what a method's student and its sampler leave is measured
exactly, apart from what the networks of real pictures add.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fewstep.data.latents import DroppedPicture, LatentBatch
from fewstep.data.order import SampleOrder
from fewstep.diffusion.flow import Flow
from fewstep.diffusion.prediction import Cond, Guided, Parameterisation, Prediction, to_prediction
from fewstep.diffusion.schedule import Schedule
from fewstep.diffusion.solvers.dpm_solver import SOLVER as DPM_SOLVER_2

MEANS = torch.tensor([[-1.2, 1.2], [-1.2, -1.2], [1.2, 1.2], [1.2, -1.2]])
STD = 0.45
_LARGEST = 8.0
CLASSES = torch.tensor([[0.5, 0.5, 0.0, 0.0], [0.0, 0.0, 0.5, 0.5]])
"""Weights of the four Gaussians in each class."""
NULL_COND = {"weights": torch.full((1, 4), 0.25)}
OMEGA_RANGE = (-1.0, 6.0)
"""What students are trained for."""


@dataclass(frozen=True)
class Mixture:
    """Isotropic Gaussians at `means` `[modes, d]` of one `std`; as a Network, conditioned on the modes' weights
    `cond["weights"]` `[b, modes]`."""

    schedule: Schedule
    means: Tensor
    std: float

    def __call__(self, z_t: Tensor, t: Tensor, cond: Cond, omega: Tensor | None) -> Prediction:
        """Returns E[z_0 | z_t, weights] and E[ε | z_t, weights]; has no ω input."""
        assert omega is None
        alpha, sigma = self.schedule.coefficients(t, z_t)
        means, variance = self.means.to(z_t.dtype), alpha**2 * self.std**2 + sigma**2
        distances = (z_t[:, None, :] - alpha[..., None] * means).square().sum(-1)
        posterior = torch.softmax(cond["weights"].to(z_t.dtype).log() - distances / (2 * variance), dim=1)
        mean = posterior @ means
        centred = (z_t - alpha * mean) / variance
        return Prediction(mean + alpha * self.std**2 * centred, sigma * centred)

    def draw(self, weights: Tensor, generator: torch.Generator) -> Tensor:
        """Draws one point for every row of `weights`."""
        modes = torch.multinomial(weights, 1, generator=generator)[:, 0]
        return self.means[modes] + self.std * torch.randn(len(weights), self.means.shape[1], generator=generator)


def follow_finely(
    schedule: Schedule, field: Callable[[Tensor, Tensor], Prediction], z: Tensor, times: Tensor
) -> Tensor:
    """Returns z at the last of `times` by the classical Runge-Kutta method of order 4, for data without a closed flow.

    In y = z/(α + σ) = (1 − x)·z_0 + x·ε and x = σ/(α + σ), where the PF-ODE is dy/dx = ε̂ − ẑ_0; a step between
    neighbouring times.
    """

    def scale(t: Tensor) -> Tensor:
        alpha, sigma = schedule.coefficients(t.expand(len(z)), z)
        return alpha + sigma

    def slope(y: Tensor, t: Tensor) -> Tensor:
        prediction = field(y * scale(t), t.expand(len(z)))
        return prediction.epsilon - prediction.z_0

    y = z / scale(times[:1])
    for t, s in itertools.pairwise(times.split(1)):
        x_t, x_s = (torch.sigmoid(-schedule.lam(time)) for time in (t, s))
        middle, h = schedule.time_of_lam(-torch.logit((x_t + x_s) / 2)), x_s - x_t
        first = slope(y, t)
        second = slope(y + h / 2 * first, middle)
        third = slope(y + h / 2 * second, middle)
        y = y + h / 6 * (first + 2 * second + 2 * third + slope(y + h * third, s))
    return y * scale(times[-1:])


def guide(teacher: Mixture, cond: Cond, omega: Tensor) -> Guided:
    """Returns the field of the guided ODE under a condition."""
    null_cond = {name: value.to(omega.dtype).expand(len(omega), -1) for name, value in NULL_COND.items()}
    return Guided(teacher, cond, null_cond, omega)


@dataclass(frozen=True)
class ExactMap:
    """As a Network that is told the end, the guided ODE's own map: what it predicts lands on z_e by DDIM's formula."""

    teacher: Mixture
    longest: int = 5
    """Most steps of the schedule that one step of its solver takes."""

    def __call__(self, z_t: Tensor, t: Tensor, cond: Cond, omega: Tensor | None) -> Prediction:
        """Follows the whole batch from one t to one e."""
        assert omega is not None
        schedule, e = self.teacher.schedule, cond["end"]
        field = guide(self.teacher, {"weights": cond["weights"]}, omega)
        count = max(1, -(-int(t[0] - e[0]) // self.longest))
        times = torch.linspace(int(t[0]), int(e[0]), count + 1).round().long()
        z_e = z_t
        for now, then in itertools.pairwise(times):
            z_e = DPM_SOLVER_2.step(schedule, field, z_e, now.expand(len(z_t)), then.expand(len(z_t)))
        # What solves α_t·z_0 + σ_t·ε = z_t and α_e·z_0 + σ_e·ε = z_e.
        (alpha_t, sigma_t), (alpha_e, sigma_e) = (schedule.coefficients(time, z_t) for time in (t, e))
        determinant = alpha_t * sigma_e - sigma_t * alpha_e
        return Prediction((z_t * sigma_e - sigma_t * z_e) / determinant, (alpha_t * z_e - alpha_e * z_t) / determinant)


class Student(nn.Module):
    """An MLP that predicts v, or a flow's velocity, of z_t, the class, ω, λ(t) and waves of t, and where it is told the
    end, of the same of e."""

    lams: Tensor

    def __init__(self, schedule: Schedule, *, told_end: bool, width: int = 128) -> None:
        super().__init__()
        self._schedule, self._told_end = schedule, told_end
        # A flow's ends are ±∞.
        self.register_buffer("lams", schedule.lam(torch.arange(schedule.last + 1)).float().clamp(-_LARGEST, _LARGEST))
        self._outputs: Parameterisation = "flow_prediction" if isinstance(schedule, Flow) else "v_prediction"
        features = 2 + 4 + 2 + 9 * (1 + told_end)
        layers: list[nn.Module] = [nn.Linear(features, width), nn.SiLU()]
        for _ in range(2):
            layers += [nn.Linear(width, width), nn.SiLU()]
        self.mlp = nn.Sequential(*layers, nn.Linear(width, 2))
        for parameter in self.mlp[-1].parameters():
            nn.init.zeros_(parameter)

    def forward(self, z_t: Tensor, t: Tensor, cond: Cond, omega: Tensor) -> Prediction:
        features = [
            z_t, cond["weights"] * 4 - 1, (omega / 2.5 - 1)[:, None], ((omega + 2).log() * 2 - 2.5)[:, None],
            self._waves(t), *([self._waves(cond["end"])] if self._told_end else []),
        ]  # fmt: skip
        output = self.mlp(torch.cat(features, dim=1))
        return to_prediction(self._outputs, output, z_t, *self._schedule.coefficients(t, z_t))

    def _waves(self, t: Tensor) -> Tensor:
        waves = t[:, None] / self._schedule.num_steps * torch.pi * torch.arange(1, 5, device=t.device)
        return torch.cat([self.lams[t][:, None], waves.sin(), waves.cos()], dim=1)


class Points:
    """Points of the mixture with their classes, as a LatentSource."""

    def shape_at(self, counters: range) -> tuple[int, ...]:  # noqa: ARG002  # all are of one
        return (2,)

    def __init__(self, teacher: Mixture, count: int = 4096, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self._weights = CLASSES[torch.randint(2, (count,), generator=generator)]
        self._points = teacher.draw(self._weights, generator)
        self._order = SampleOrder(seed, (count,))

    def batch(self, counters: range, noise: Tensor) -> LatentBatch:  # noqa: ARG002  # points are what they are
        index = torch.from_numpy(self._order(counters))
        valid = torch.ones(len(counters), dtype=torch.bool)
        return LatentBatch(self._points[index], {"weights": self._weights[index]}, valid)

    def keys(self, counters: range) -> list[str]:
        return [str(i) for i in self._order(counters)]

    def dropped(self) -> list[DroppedPicture]:
        return []


def energy_distance(x: Tensor, y: Tensor) -> float:
    """Estimates 2·E|X − Y| − E|X − X′| − E|Y − Y′| from samples `[n, d]` and `[m, d]`, without bias: about 0, and so
    at times below, where both are of one law."""
    within = [torch.pdist(each).mean() for each in (x, y)]
    return float(2 * torch.cdist(x, y).mean() - within[0] - within[1])
