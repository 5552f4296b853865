"""Solvers against the PF-ODE of data known in closed form, on every kind of schedule."""

import dataclasses
import functools
import itertools
import math

import pytest
import torch

from closed_forms import SD_CONFIG, Gaussian, Mixture, follow_finely
from fewstep.diffusion.flow import Flow
from fewstep.diffusion.prediction import Guided, Prediction, to_prediction
from fewstep.diffusion.schedule import Schedule, Tabulated
from fewstep.diffusion.solvers import SOLVERS
from fewstep.diffusion.solvers.base import DDIM
from fewstep.diffusion.solvers.dpm_solver_pp import SOLVER as DPM_SOLVER_PP_2S
from fewstep.diffusion.solvers.midpoint import SOLVER as MIDPOINT

SCHEDULES: dict[str, Schedule] = {
    "SD": Tabulated.from_config(SD_CONFIG),
    "zero-terminal": Tabulated.from_config(SD_CONFIG | {"rescale_betas_zero_snr": True}),
    "flow": Flow(1000),
    "shifted flow": Flow(1000, shift=3.0),
}
IN_LAMBDA = ("dpm-solver-2", "dpm-solver++2s")
STEP_COUNTS = (24, 48, 96)


def gaussian(schedule: Schedule, mean=(1.5, -0.5, 0.25), std=(0.3, 1.2, 0.7)) -> Gaussian:
    return Gaussian(schedule, torch.tensor(mean, dtype=torch.float64), torch.tensor(std, dtype=torch.float64))


def noise(count: int, width: int = 3) -> torch.Tensor:
    return torch.randn(count, width, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def mixture_field(schedule: Schedule, count: int, omega: float | None):
    """Four Gaussians, two to a class, for `count` points of the two classes in turn; guided unless `omega` is None.

    Not one Gaussian: there the midpoint rule is of order 3.
    """
    means = torch.tensor([[-1.2, 1.2], [-1.2, -1.2], [1.2, 1.2], [1.2, -1.2]], dtype=torch.float64)
    data = Mixture(schedule, means, std=0.5)
    weights = torch.tensor([[0.5, 0.5, 0.0, 0.0], [0.0, 0.0, 0.5, 0.5]], dtype=torch.float64).repeat(count // 2, 1)
    if omega is None:
        return lambda z, t: data(z, t, {"weights": weights}, None)
    return Guided(data, {"weights": weights}, {"weights": torch.full_like(weights, 0.25)}, torch.full((count,), omega))


def solve(solver, schedule: Schedule, field, z, times):
    for t, s in itertools.pairwise(times):
        z = solver.step(schedule, field, z, t.expand(len(z)), s.expand(len(z)))
    return z


def uniform_in_lam(schedule: Schedule, count: int) -> torch.Tensor:
    """From fractional time to fractional time, away from both ends."""
    ends = torch.tensor([0.99, 0.02], dtype=torch.float64) * schedule.num_steps
    start, end = schedule.lam(ends)
    return schedule.time_of_lam(start + (end - start) * torch.linspace(0, 1, count + 1, dtype=torch.float64))


def rms(difference: torch.Tensor) -> float:
    return float(difference.square().mean().sqrt())


@functools.cache
def fine_solution(kind: str, omega: float | None) -> torch.Tensor:
    schedule = SCHEDULES[kind]
    return follow_finely(schedule, mixture_field(schedule, 16, omega), noise(16, 2), uniform_in_lam(schedule, 200))


@pytest.mark.parametrize("kind", SCHEDULES)
def test_the_fine_solution_is_the_closed_flow_of_a_gaussian(kind):
    """What the orders are measured against."""
    data, times = gaussian(SCHEDULES[kind]), uniform_in_lam(SCHEDULES[kind], 200)
    found = follow_finely(SCHEDULES[kind], data, noise(4), times)
    exact = data.flow(noise(4), times[0].expand(4), times[-1].expand(4))
    torch.testing.assert_close(found, exact, rtol=0, atol=1e-7)


@pytest.mark.parametrize("omega", [None, 2.0], ids=["plain", "guided"])
@pytest.mark.parametrize("kind", SCHEDULES)
@pytest.mark.parametrize("name", SOLVERS)
def test_order_of_convergence(name, kind, omega):
    """−slope of log error over log n, for n steps uniform in λ."""
    schedule, errors = SCHEDULES[kind], []
    field = mixture_field(schedule, 16, omega)
    for count in STEP_COUNTS:
        found = solve(SOLVERS[name], schedule, field, noise(16, 2), uniform_in_lam(schedule, count))
        errors.append(rms(found - fine_solution(kind, omega)))
    x = torch.tensor([math.log(n) for n in STEP_COUNTS], dtype=torch.float64)
    y = torch.tensor([math.log(e) for e in errors], dtype=torch.float64)
    order = -float(((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum())
    assert order == pytest.approx(SOLVERS[name].order, abs=0.25)


@pytest.mark.parametrize("kind", ["zero-terminal", "flow", "shifted flow"])
def test_midpoint_holds_its_order_from_noise_alone_to_the_end(kind):
    """The λ solvers lose theirs at λ = ±∞."""
    schedule = SCHEDULES[kind]
    field = mixture_field(schedule, 16, 2.0)
    coarse, fine, finest = (torch.linspace(schedule.last, 0, n + 1, dtype=torch.float64) for n in (50, 100, 400))
    exact = follow_finely(schedule, field, noise(16, 2), finest)
    errors = [rms(solve(MIDPOINT, schedule, field, noise(16, 2), times) - exact) for times in (coarse, fine)]
    assert math.log2(errors[0] / errors[1]) == pytest.approx(2, abs=0.2)


@pytest.mark.parametrize("omega", [None, 2.0], ids=["plain", "guided"])
def test_midpoint_is_nearer_than_the_lam_solvers_on_a_shifted_flow(omega):
    """50 steps uniform in time, from noise alone to the data."""
    schedule = SCHEDULES["shifted flow"]
    field = mixture_field(schedule, 16, omega)
    times, finest = (torch.linspace(1000, 0, n + 1, dtype=torch.float64) for n in (50, 400))
    exact = follow_finely(schedule, field, noise(16, 2), finest)
    midpoint, lam_solver = (
        rms(solve(solver, schedule, field, noise(16, 2), times) - exact) for solver in (MIDPOINT, DPM_SOLVER_PP_2S)
    )
    assert 3 * midpoint < lam_solver


@pytest.mark.parametrize("name", SOLVERS)
def test_number_of_evaluations(name, sd_schedule):
    data, asked = gaussian(sd_schedule), []

    def field(z, t):
        asked.append(t)
        return data(z, t)

    SOLVERS[name].step(sd_schedule, field, noise(2), torch.tensor([999, 500]), torch.tensor([979, 480]))
    assert len(asked) == SOLVERS[name].evaluations


def second_time(name: str, schedule: Schedule, t, s) -> torch.Tensor:
    data, asked = gaussian(schedule), []

    def field(z, t):
        asked.append(t)
        return data(z, t)

    SOLVERS[name].step(schedule, field, noise(len(t)), t, s)
    return asked[1]


@pytest.mark.parametrize("kind", ["SD", "shifted flow"])
@pytest.mark.parametrize("name", IN_LAMBDA)
def test_second_evaluation_is_halfway_in_lam(name, kind):
    schedule, t, s = SCHEDULES[kind], torch.tensor([999, 500]), torch.tensor([979, 300])
    halfway = (schedule.lam(t) + schedule.lam(s)) / 2
    torch.testing.assert_close(schedule.lam(second_time(name, schedule, t, s)), halfway, rtol=1e-10, atol=1e-10)


def test_second_evaluation_of_midpoint_is_halfway_in_sigma_on_a_flow():
    schedule, t, s = SCHEDULES["shifted flow"], torch.tensor([1000, 1000, 500, 20]), torch.tensor([980, 0, 300, 0])
    middle = second_time("midpoint", schedule, t, s)
    torch.testing.assert_close(schedule.sigma(middle), (schedule.sigma(t) + schedule.sigma(s)) / 2, rtol=1e-12, atol=0)


def test_midpoint_on_a_flow_is_the_rule_for_v():
    """z_m = z_t + (σ_m − σ_t)·v(z_t, t),  z_s = z_t + (σ_s − σ_t)·v(z_m, m)."""
    schedule, z_t = SCHEDULES["shifted flow"], noise(3)
    t, s = torch.tensor([1000.0, 500.5, 20.0], dtype=torch.float64), torch.tensor([980.0, 300.0, 0.0])

    def v(z, sigma):
        return torch.sin(1.3 * z + 2 * sigma)

    def field(z, t):
        sigma = schedule.sigma(t)[:, None]
        return Prediction(z - sigma * v(z, sigma), z + (1 - sigma) * v(z, sigma))

    sigma_t, sigma_s = schedule.sigma(t)[:, None], schedule.sigma(s)[:, None]
    sigma_m = (sigma_t + sigma_s) / 2
    z_s = z_t + (sigma_s - sigma_t) * v(z_t + (sigma_m - sigma_t) * v(z_t, sigma_t), sigma_m)
    torch.testing.assert_close(MIDPOINT.step(schedule, field, z_t, t, s), z_s, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", SCHEDULES)
@pytest.mark.parametrize("name", SOLVERS)
def test_standing_still_gives_z_t_back(name, kind):
    schedule, z_t = SCHEDULES[kind], noise(5)
    t = torch.tensor([0.0, 19.0, 500.5, 999.0, schedule.last], dtype=torch.float64)
    z_s = SOLVERS[name].step(schedule, gaussian(schedule), z_t, t, t)
    torch.testing.assert_close(z_s, z_t, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", SCHEDULES)
@pytest.mark.parametrize("name", SOLVERS)
def test_samples_of_a_batch_do_not_mix(name, kind):
    """A batch may hold other times in every row, as a training batch does."""
    schedule, z_t = SCHEDULES[kind], noise(5)
    data = gaussian(schedule)
    t, s = torch.tensor([schedule.last, 19, 500, 60, schedule.last]), torch.tensor([979, 0, 500, 20, 0])
    together = SOLVERS[name].step(schedule, data, z_t, t, s)
    for i in range(5):
        alone = SOLVERS[name].step(schedule, data, z_t[i : i + 1], t[i : i + 1], s[i : i + 1])
        torch.testing.assert_close(together[i : i + 1], alone, rtol=0, atol=1e-12)


@pytest.mark.parametrize("times", [torch.long, torch.float32, torch.float64])
@pytest.mark.parametrize("latents", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", SCHEDULES)
@pytest.mark.parametrize("name", SOLVERS)
def test_steps_from_and_to_both_ends_are_finite(name, kind, latents, times):
    """From the last time, to time 0, all the way, and standing at either end; short steps are near the true flow."""
    schedule, last = SCHEDULES[kind], SCHEDULES[kind].last
    t, s = torch.tensor([last, last, 20, last, 0]), torch.tensor([last - 20, 0, 0, last, 0])
    if times.is_floating_point:
        inside = torch.tensor([last - 0.5, 600.25, 0.25]), torch.tensor([last - 1.25, 599.5, 0.0])
        t, s = torch.cat([t, inside[0]]), torch.cat([s, inside[1]])
    t, s = t.to(times), s.to(times)
    data, asked = gaussian(schedule), []
    data = dataclasses.replace(data, mean=data.mean.to(latents), std=data.std.to(latents))

    def field(z, t):
        asked.extend([z, t])
        return data(z, t)

    z_t = noise(len(t)).to(latents)
    z_s = SOLVERS[name].step(schedule, field, z_t, t, s)
    assert z_s.dtype == latents
    assert all(torch.isfinite(each).all() for each in [z_s, *asked])
    assert all(((each >= 0) & (each <= last)).all() for each in asked[1::2])
    exact = data.flow(z_t.double(), t, s)
    short = t - s <= 1.25
    torch.testing.assert_close(z_s[short].double(), exact[short], rtol=0, atol=5e-3)


@pytest.mark.parametrize("kind", ["zero-terminal", "flow", "shifted flow"])
@pytest.mark.parametrize("name", IN_LAMBDA)
def test_at_infinite_lam_the_step_is_of_first_order_and_only_there(name, kind):
    schedule = SCHEDULES[kind]
    data, z_t, last = gaussian(schedule), noise(4), schedule.last
    t, s = torch.tensor([last, last, 20, 600]), torch.tensor([last - 20, 0, 0, 580])
    z_s = SOLVERS[name].step(schedule, data, z_t, t, s)
    first_order = DDIM.step(schedule, data, z_t, t, s)
    infinite = ~(torch.isfinite(schedule.lam(t)) & torch.isfinite(schedule.lam(s)))
    assert infinite.tolist() == [True, True, isinstance(schedule, Flow), False]
    torch.testing.assert_close(z_s[infinite], first_order[infinite], rtol=0, atol=1e-12)
    assert (z_s - first_order)[~infinite].abs().amax(1).min() > 1e-6


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
