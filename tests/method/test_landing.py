import pytest
import torch

from closed_forms import Gaussian
from fewstep.diffusion.prediction import Prediction, to_prediction
from fewstep.method.landing import BOUNDARY, BY_DDIM, LANDINGS, ConsistencyFunction, boundary


def linear_network(z_t, _t, cond, omega):
    """Answers 2·z_t + shift + ω, plainly not the identity."""
    z_0 = 2 * z_t + cond["shift"][:, None] + (0 if omega is None else omega[:, None])
    return Prediction(z_0, torch.zeros_like(z_t))


def network_of(kind, schedule):
    """Returns a network that outputs sin(3·z_t) + 1 of its kind."""
    return lambda z, t, _cond, _omega: to_prediction(kind, (3 * z).sin() + 1, z, *schedule.coefficients(t, z))


def test_values_are_the_formula_in_float64():
    t = torch.tensor([0.0, 0.05, 1.0, 19.0, 499.0, 999.0], dtype=torch.float64)
    c_skip, c_out = boundary(t)
    assert c_skip.dtype == c_out.dtype == torch.float64
    for time, skip, out in zip(t.tolist(), c_skip.tolist(), c_out.tolist(), strict=True):
        assert skip == pytest.approx(0.25 / ((10 * time) ** 2 + 0.25), rel=1e-14)
        assert out == pytest.approx(10 * time / ((10 * time) ** 2 + 0.25) ** 0.5, rel=1e-14, abs=0)


def test_whole_times_are_computed_in_fp32():
    c_skip, c_out = boundary(torch.tensor([0, 19, 999]))
    assert c_skip.dtype == c_out.dtype == torch.float32
    assert (c_skip[0], c_out[0]) == (1, 0)
    torch.testing.assert_close(c_out[1:], torch.ones(2), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", LANDINGS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("t", [torch.zeros(3, dtype=torch.long), torch.zeros(3)])
def test_at_time_zero_the_consistency_function_is_the_identity(t, dtype, name, sd_schedule):
    z = torch.randn(3, 5, dtype=dtype)
    cond, omega = {"shift": torch.ones(3, dtype=dtype)}, torch.tensor([0.0, 5.0, 13.0], dtype=dtype)
    f = ConsistencyFunction(linear_network, cond, omega, sd_schedule, LANDINGS[name])
    assert torch.equal(f(z, t, torch.zeros_like(t)), z)


def test_boundary_mixes_each_sample_by_its_own_time_and_omega(sd_schedule):
    z = torch.randn(3, 5, dtype=torch.float64)
    t = torch.tensor([0.0, 0.05, 999.0], dtype=torch.float64)
    cond, omega = {"shift": torch.tensor([1.0, 2.0, 3.0])}, torch.tensor([0.0, 5.0, 13.0])
    found = ConsistencyFunction(linear_network, cond, omega, sd_schedule, BOUNDARY)(z, t, torch.zeros_like(t))
    c_skip, c_out = (c[:, None] for c in boundary(t))
    shift = torch.tensor([[1.0], [7.0], [16.0]], dtype=torch.float64)
    torch.testing.assert_close(found, c_skip * z + c_out * (2 * z + shift), rtol=1e-12, atol=1e-12)


def test_late_times_answer_with_the_network(sd_schedule):
    z = torch.randn(1, 5)
    f = ConsistencyFunction(linear_network, {"shift": torch.ones(1)}, None, sd_schedule)
    torch.testing.assert_close(f(z, torch.tensor([999]), torch.tensor([0])), 2 * z + 1, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", LANDINGS)
def test_a_landing_answers_with_nan_exactly_where_it_says_that_it_cannot_land(name, sd_schedule):
    z, t, e = torch.randn(3, 5), torch.tensor([999, 999, 500]), torch.tensor([0, 499, 19])
    found = ConsistencyFunction(network_of("epsilon", sd_schedule), {}, None, sd_schedule, LANDINGS[name])(z, t, e)
    reached = torch.tensor([True, LANDINGS[name].anywhere, LANDINGS[name].anywhere])
    assert torch.equal(found.isfinite().all(1), reached)
    assert torch.equal(found.isnan().any(1), ~reached)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_where_the_end_is_t_ddim_is_the_identity_for_every_network(kind, sd_schedule):
    z, t = torch.randn(4, 5, dtype=torch.float64), torch.tensor([0, 19, 500, 999])
    network = network_of(kind, sd_schedule)
    f = ConsistencyFunction(network, {}, None, sd_schedule, BY_DDIM)
    assert torch.equal(f(z, t, t), z)
    near = f(z, t, t - 1e-6 * (t > 0))  # so it is no leap: a network's answer comes to the same
    torch.testing.assert_close(near, z, rtol=1e-6, atol=1e-6)
    assert not torch.equal(near, z)


def test_ddim_lands_each_sample_at_its_own_end(sd_schedule):
    z, t, e = torch.randn(3, 5, dtype=torch.float64), torch.tensor([999, 999, 500]), torch.tensor([0, 499, 19])
    network = network_of("v_prediction", sd_schedule)
    found = ConsistencyFunction(network, {}, None, sd_schedule, BY_DDIM)(z, t, e)
    answer = network(z, t, {}, None)
    for i, end in enumerate(e.tolist()):
        wanted = sd_schedule.alphas[end] * answer.z_0[i] + sd_schedule.sigmas[end] * answer.epsilon[i]
        torch.testing.assert_close(found[i], wanted, rtol=1e-12, atol=1e-12)


MEAN = torch.tensor([1.5, -0.5, 0.25], dtype=torch.float64)


@pytest.mark.parametrize("e", [0, 19, 499, 979])
def test_of_one_picture_ddim_lands_on_the_ode_from_any_time_at_any_end(e, sd_schedule):
    """The trajectories of data that is one point are straight: there DDIM makes no error."""
    data = Gaussian(sd_schedule, MEAN, torch.zeros(3, dtype=torch.float64))
    z, t, e = torch.randn(8, 3, dtype=torch.float64), torch.full((8,), 999), torch.full((8,), e)
    f = ConsistencyFunction(lambda z, t, _cond, _omega: data(z, t), {}, None, sd_schedule, BY_DDIM)
    torch.testing.assert_close(f(z, t, e), data.flow(z, t, e), rtol=1e-9, atol=1e-9)


def test_of_a_gaussian_ddim_leaves_the_local_error_of_a_first_order_solver(sd_schedule):
    data = Gaussian(sd_schedule, MEAN, torch.tensor([0.3, 1.2, 0.7], dtype=torch.float64))
    f = ConsistencyFunction(lambda z, t, _cond, _omega: data(z, t), {}, None, sd_schedule, BY_DDIM)
    z, t = torch.randn(64, 3, dtype=torch.float64), torch.full((64,), 600)
    coarse, fine = (float((f(z, t, t - gap) - data.flow(z, t, t - gap)).square().mean().sqrt()) for gap in (40, 20))
    assert coarse / fine == pytest.approx(4, rel=0.15)
