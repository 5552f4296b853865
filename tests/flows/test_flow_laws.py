"""A transformer that knows the velocity of Gaussians exactly, through our network and solvers: whom they then paint is
known in closed form, and every known mistake paints another."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from closed_forms import Gaussian
from fewstep.diffusion.flow import Flow
from fewstep.diffusion.sampling import sample_ode
from fewstep.diffusion.schedule import sampling_times
from fewstep.diffusion.solvers import SOLVERS
from fewstep.method.landing import BOUNDARY, ConsistencyFunction
from fewstep.method.paths import TeacherPath
from fewstep.method.sampling import sample_consistency
from fewstep.method.times import consistency_times
from fewstep.models.families.sd3 import SD3Network

STD, COUNT = 0.5, 4096
FLOW = Flow(1000, 3.0)


class ExactTransformer(nn.Module):
    """Has Stable Diffusion 3's call; data is N(m, STD²), and m is said by the pooled text."""

    config = SimpleNamespace(patch_size=2)
    time_text_embed = None

    def __init__(self, sign: float = 1.0):
        super().__init__()
        self.sign = sign

    def forward(self, hidden_states, timestep, encoder_hidden_states, pooled_projections, return_dict):  # noqa: ARG002
        assert not return_dict
        sigma, mean = (each.view(-1, 1, 1, 1) for each in (timestep / 1000, pooled_projections))
        centred = (hidden_states - (1 - sigma) * mean) / ((1 - sigma) ** 2 * STD**2 + sigma**2)
        return (self.sign * (sigma * centred - (mean + (1 - sigma) * STD**2 * centred)),)


class WithAnotherTime(SD3Network):
    """Tells σ where 1000 σ is wanted."""

    def ask(self, z_t, told, cond, omega):
        return super().ask(z_t, told / 1000, cond, omega)


def cond(mean, count=COUNT):
    return {"text": torch.zeros(count, 1, 1), "pooled": torch.full((count, 1), mean)}


def noise(seed=0):
    return torch.randn(COUNT, 1, 2, 2, generator=torch.Generator().manual_seed(seed))


def paint(network, solver="midpoint", omega=0.0, schedule=FLOW, steps=50):
    """Returns mean and deviation of what a guided teacher paints of data at 1, away from data at 0.5."""
    null = {name: value[:1] for name, value in cond(0.5).items()}
    field = TeacherPath(network, schedule, null).field(cond(1.0), torch.full((COUNT,), omega))
    with torch.no_grad():
        z = sample_ode(schedule, field, noise(), sampling_times(schedule, steps, "trailing"), SOLVERS[solver])
    return float(z.mean()), float(z.std())


@pytest.mark.parametrize("t", [1, 20, 500, 980, 1000])
def test_the_prediction_is_the_exact_one(t):
    z, times = noise(), torch.full((COUNT,), t)
    mine = SD3Network(ExactTransformer(), FLOW)(z, times, cond(1.0), None)
    exact = Gaussian(FLOW, torch.tensor([1.0, 1.0]), torch.tensor([STD, STD]))(z, times)
    assert torch.allclose(mine.z_0, exact.z_0, atol=1e-4)
    assert torch.allclose(mine.epsilon, exact.epsilon, atol=1e-4)
    assert torch.allclose(
        mine.z_0 * FLOW.alpha(times[:1]).float() + mine.epsilon * FLOW.sigma(times[:1]).float(), z, atol=1e-4
    )


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("omega", [0.0, 2.0])
def test_the_guided_teacher_paints_what_it_must(solver, omega):
    """Of equal deviations guidance moves the mean alone: to m + ω·(m − m_∅)."""
    mean, std = paint(SD3Network(ExactTransformer(), FLOW), solver, omega)
    slack = 0.03 if SOLVERS[solver].order == 1 else 0.015
    assert mean == pytest.approx(1.0 + omega * 0.5, abs=slack)
    assert std == pytest.approx(STD, abs=slack)


MISTAKES = {
    "the sign is turned": lambda: paint(SD3Network(ExactTransformer(sign=-1.0), FLOW), omega=2.0),
    "the time is told as σ": lambda: paint(WithAnotherTime(ExactTransformer(), FLOW), omega=2.0),
    "the shift is forgotten": lambda: paint(SD3Network(ExactTransformer(), Flow(1000)), omega=2.0),
    "ω + 1 for ω": lambda: paint(SD3Network(ExactTransformer(), FLOW), omega=3.0),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_paints_another(mistake):
    mean, std = MISTAKES[mistake]()
    assert abs(mean - 2.0) > 0.1 or abs(std - STD) > 0.1


@pytest.mark.parametrize("steps", [1, 2, 4, 8])
def test_the_exact_map_keeps_the_data_under_fresh_noise(steps):
    """Multistep consistency sampling has no error of its own on a shifted grid."""
    gaussian = Gaussian(FLOW, torch.tensor([1.0, 1.0]), torch.tensor([STD, STD]))

    def exact(z_t, t, _cond, _omega):
        clean = gaussian.flow(z_t, t, torch.zeros_like(t))
        return gaussian(z_t, t)._replace(z_0=clean)

    generator = torch.Generator().manual_seed(1)
    f = ConsistencyFunction(exact, {}, None, FLOW, BOUNDARY)
    times = consistency_times(FLOW, 50, steps)
    z = sample_consistency(f, times, lambda: torch.randn(COUNT, 1, 2, 2, generator=generator))
    assert float(z.mean()) == pytest.approx(1.0, abs=0.02)
    assert float(z.std()) == pytest.approx(STD, abs=0.02)
