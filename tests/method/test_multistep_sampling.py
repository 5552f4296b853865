"""Multistep sampling: one step alone or among others, re-noised or along the ODE."""

import itertools

import pytest
import torch

from closed_forms import Gaussian
from fewstep.diffusion.prediction import to_prediction
from fewstep.diffusion.sampling import sample_ode
from fewstep.diffusion.schedule import sampling_times
from fewstep.method.landing import BOUNDARY, BY_DDIM, ConsistencyFunction, boundary
from fewstep.method.sampling import advance, renoise, sample_consistency
from fewstep.method.times import consistency_times


@pytest.fixture
def f(sd_schedule):
    def network(z, t, cond, omega):
        output = (z + cond["shift"][:, None] + 0.1 * omega[:, None]).sin()
        return to_prediction("epsilon", output, z, *sd_schedule.coefficients(t, z))

    return ConsistencyFunction(network, {"shift": torch.linspace(-1, 1, 4)}, torch.arange(4.0), sd_schedule)


def seeded(count=4):
    generator = torch.Generator().manual_seed(0)
    return lambda: torch.randn((count, 3), generator=generator)


@pytest.mark.parametrize("from_picture", [False, True])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_sampling_is_algorithm_3(count, from_picture, f):
    times = consistency_times(f.schedule, 50, count)
    start = torch.ones(4, 3) if from_picture else None
    draw = seeded()
    z = start if from_picture else draw()
    for i, time in enumerate(times):
        t = torch.full((4,), time)
        if i > 0 or from_picture:
            z = f.schedule.diffuse(z, draw(), t)
        c_skip, c_out = (c[:, None] for c in boundary(t))
        z = c_skip * z + c_out * f.network(z, t, f.cond, f.omega).z_0
    assert torch.equal(sample_consistency(f, times, seeded(), start), z)


def test_a_step_among_others_is_the_step_alone(f):
    z, noise = torch.randn(2, 4, 3).unbind()
    f = ConsistencyFunction(f.network, f.cond, f.omega, f.schedule, BY_DDIM)
    t, before = torch.tensor([999, 499, 999, 259]), torch.tensor([999, 0, 300, 259])
    e = torch.tensor([0, 259, 100, 0])
    together = advance(f, z, t, e, noise, before)
    for i in range(4):
        row = slice(i, i + 1)
        own = ConsistencyFunction(f.network, {"shift": f.cond["shift"][row]}, f.omega[row], f.schedule, BY_DDIM)
        stands = z[row]
        if before[i] == 0:
            stands = f.schedule.diffuse(z[row], noise[row], t[row])
        elif before[i] < t[i]:
            stands = renoise(f.schedule, z[row], noise[row], before[row], t[row])
        assert torch.equal(together[row], advance(own, stands, t[row], e[row]))
        assert before[i] == t[i] or not torch.equal(together[row], advance(own, z[row], t[row], e[row]))


def test_a_step_that_lands_where_it_stands_only_adds_the_noise(f):
    at_t = ConsistencyFunction(f.network, f.cond, f.omega, f.schedule, BY_DDIM)
    z, noise = torch.randn(2, 4, 3).unbind()
    t = torch.tensor([999, 499, 259, 19])
    assert torch.equal(advance(at_t, z, t, t), z)
    assert torch.equal(advance(at_t, z, t, t, noise), f.schedule.diffuse(z, noise, t))


def gaussian(schedule) -> tuple[Gaussian, ConsistencyFunction]:
    mean, std = torch.tensor([[1.5, -0.5, 0.25], [0.3, 1.2, 0.7]], dtype=torch.float64)
    data = Gaussian(schedule, mean, std)
    return data, ConsistencyFunction(lambda z, t, _cond, _omega: data(z, t), {}, None, schedule, BY_DDIM)


def test_ends_at_the_next_times_follow_the_ode(sd_schedule):
    """One draw, DDIM's own steps, and so an error of first order."""
    data, f = gaussian(sd_schedule)
    noise = torch.randn(64, 3, dtype=torch.float64)
    exact = data.flow(noise, torch.full((64,), 999), torch.full((64,), 0))
    errors = []
    for count in (25, 50, 100):
        times, drawn = sampling_times(sd_schedule, count, "trailing"), iter([noise])
        found = sample_consistency(f, times, lambda drawn=drawn: next(drawn), ends=[*times[1:], 0])
        ddim = sample_ode(sd_schedule, data, noise, [*times, 0])
        torch.testing.assert_close(found, ddim, rtol=1e-9, atol=1e-9)
        errors.append(float((found - exact).square().mean().sqrt()))
    for coarse, fine in itertools.pairwise(errors):
        assert coarse / fine == pytest.approx(2, rel=0.25)


def test_noise_is_drawn_wherever_an_end_lies_below_the_next_time(sd_schedule):
    _, f = gaussian(sd_schedule)
    asked = []

    def draw():
        asked.append(None)
        return torch.randn(2, 3, dtype=torch.float64)

    for ends, draws in (([0, 0, 0], 3), ([300, 100, 0], 3), ([499, 259, 0], 1), ([499, 0, 0], 2), ([0, 259, 100], 2)):
        asked.clear()
        sample_consistency(f, [999, 499, 259], draw, ends=ends)
        assert len(asked) == draws


def test_ends_that_cannot_be_reached_are_refused(f):
    at_any_end = ConsistencyFunction(f.network, f.cond, f.omega, f.schedule, BY_DDIM)
    for ends in ([600, 0, 0], [999, 0, 0], [499, 259, 300], [499, 259]):
        with pytest.raises(ValueError, match=r"ends are|longer"):
            sample_consistency(at_any_end, [999, 499, 259], seeded(), ends=ends)
    with pytest.raises(ValueError, match="the landing boundary reaches 0 alone"):
        sample_consistency(f, [999, 499, 259], seeded(), ends=[499, 259, 0])
    assert f.landing is BOUNDARY
