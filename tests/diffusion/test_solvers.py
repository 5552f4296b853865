"""Solvers against the closed-form PF-ODE of Gaussian data."""

import itertools
import math

import pytest
import torch

from closed_forms import Gaussian
from fewstep.diffusion.guidance import Guided
from fewstep.diffusion.prediction import to_prediction
from fewstep.diffusion.schedule import Schedule
from fewstep.diffusion.solvers import DDIM, SOLVERS

SECOND_ORDER = [name for name, solver in SOLVERS.items() if solver.order == 2]
STEP_COUNTS = (16, 32, 64, 128)


def gaussian(schedule: Schedule, mean=(1.5, -0.5, 0.25), std=(0.3, 1.2, 0.7)) -> Gaussian:
    return Gaussian(schedule, torch.tensor(mean, dtype=torch.float64), torch.tensor(std, dtype=torch.float64))


def noise(count: int) -> torch.Tensor:
    return torch.randn(count, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def measured_order(solver, schedule: Schedule, field, flow) -> float:
    """−slope of log error over log n, for n steps uniform in λ, from fractional time to fractional time."""
    z_T = noise(32)
    start, end = (schedule.lam(torch.tensor([t], dtype=torch.float64)) for t in (990.0, 20.0))
    errors = []
    for count in STEP_COUNTS:
        times = schedule.time_of_lam(start + (end - start) * torch.linspace(0, 1, count + 1, dtype=torch.float64))
        z = z_T
        for t, s in itertools.pairwise(times):
            z = solver.step(schedule, field, z, t.expand(32), s.expand(32))
        exact = flow(z_T, times[0].expand(32), times[-1].expand(32))
        errors.append(float((z - exact).square().mean().sqrt()))
    x = torch.tensor([math.log(n) for n in STEP_COUNTS], dtype=torch.float64)
    y = torch.tensor([math.log(e) for e in errors], dtype=torch.float64)
    return -float(((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum())


@pytest.mark.parametrize("name", SOLVERS)
def test_order_of_convergence(name, sd_schedule):
    data = gaussian(sd_schedule)
    order = measured_order(SOLVERS[name], sd_schedule, data, data.flow)
    assert order == pytest.approx(SOLVERS[name].order, abs=0.25)


@pytest.mark.parametrize("name", SOLVERS)
def test_order_of_convergence_on_the_guided_ode(name, sd_schedule):
    """Between Gaussians of one std, guidance moves the mean to (1+ω)·m − ω·m_∅ and the flow stays closed."""
    std = torch.tensor([0.3, 1.2, 0.7], dtype=torch.float64)

    def network(z_t, t, cond, _omega):
        return Gaussian(sd_schedule, cond["mean"], std)(z_t, t)

    cond, null_cond = ({"mean": noise(33)[i].expand(32, 3)} for i in (0, 32))
    field = Guided(network, cond, null_cond, torch.full((32,), 3.0))
    flow = Gaussian(sd_schedule, 4 * cond["mean"] - 3 * null_cond["mean"], std).flow
    assert measured_order(SOLVERS[name], sd_schedule, field, flow) == pytest.approx(SOLVERS[name].order, abs=0.25)


@pytest.mark.parametrize("name", SOLVERS)
def test_number_of_evaluations(name, sd_schedule):
    data, asked = gaussian(sd_schedule), []

    def field(z, t):
        asked.append(t)
        return data(z, t)

    SOLVERS[name].step(sd_schedule, field, noise(2), torch.tensor([999, 500]), torch.tensor([979, 480]))
    assert len(asked) == SOLVERS[name].evaluations


@pytest.mark.parametrize("name", SECOND_ORDER)
def test_second_evaluation_is_halfway_in_lam(name, sd_schedule):
    data, asked = gaussian(sd_schedule), []

    def field(z, t):
        asked.append(t)
        return data(z, t)

    t, s = torch.tensor([999, 500]), torch.tensor([979, 300])
    SOLVERS[name].step(sd_schedule, field, noise(2), t, s)
    halfway = (sd_schedule.lam(t) + sd_schedule.lam(s)) / 2
    torch.testing.assert_close(sd_schedule.lam(asked[1]), halfway, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", SOLVERS)
def test_standing_still_gives_z_t_back(name, sd_schedule):
    z_t = noise(4)
    t = torch.tensor([0.0, 19.0, 500.5, 999.0], dtype=torch.float64)
    z_s = SOLVERS[name].step(sd_schedule, gaussian(sd_schedule), z_t, t, t)
    torch.testing.assert_close(z_s, z_t, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", SOLVERS)
def test_samples_of_a_batch_do_not_mix(name, sd_schedule):
    """A batch may hold other times in every row, as a training batch does."""
    data, z_t = gaussian(sd_schedule), noise(4)
    t, s = torch.tensor([999, 19, 500, 60]), torch.tensor([979, 0, 500, 20])
    together = SOLVERS[name].step(sd_schedule, data, z_t, t, s)
    for i in range(4):
        alone = SOLVERS[name].step(sd_schedule, data, z_t[i : i + 1], t[i : i + 1], s[i : i + 1])
        torch.testing.assert_close(together[i : i + 1], alone, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", SECOND_ORDER)
def test_from_zero_terminal_snr_the_step_is_of_first_order_and_only_there(name, zero_terminal_schedule):
    schedule = zero_terminal_schedule
    data, z_t = gaussian(schedule), noise(3)
    t, s = torch.tensor([999, 999, 600]), torch.tensor([979, 0, 580])
    z_s = SOLVERS[name].step(schedule, data, z_t, t, s)
    assert torch.isfinite(z_s).all()
    first_order = DDIM.step(schedule, data, z_t, t, s)
    torch.testing.assert_close(z_s[:2], first_order[:2], rtol=0, atol=1e-12)
    alone = SOLVERS[name].step(schedule, data, z_t[2:], t[2:], s[2:])
    torch.testing.assert_close(z_s[2:], alone, rtol=0, atol=1e-12)
    assert (z_s[2] - first_order[2]).abs().max() > 1e-6


@pytest.mark.parametrize("name", SOLVERS)
def test_half_precision_latents_are_stepped_in_fp32(name, sd_schedule):
    def field(z, t):
        return to_prediction("epsilon", torch.tanh(z), z, *sd_schedule.coefficients(t, z))

    z_t = noise(2).bfloat16()
    t, s = torch.tensor([39, 999]), torch.tensor([19, 979])
    z_s = SOLVERS[name].step(sd_schedule, field, z_t, t, s)
    assert z_s.dtype == torch.float32
    exact = SOLVERS[name].step(sd_schedule, field, z_t.double(), t, s)
    # tanh alone runs in bf16, with 8 bits; at t = 999 z_0 multiplies its error by σ/α = 15, s cancels most of that.
    torch.testing.assert_close(z_s.double(), exact, rtol=0, atol=0.02)
