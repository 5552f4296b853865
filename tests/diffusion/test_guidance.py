import pytest
import torch

from fewstep.diffusion.prediction import Guided, to_prediction


class CountingNetwork:
    """A smooth ε-network that depends on z, t and the condition, and remembers how it was called."""

    def __init__(self, schedule):
        self.schedule, self.calls = schedule, []

    def __call__(self, z_t, t, cond, omega):
        self.calls.append((len(z_t), omega))
        output = torch.sin(z_t * cond["scale"][:, None] + 0.001 * t[:, None]) + cond["shift"]
        return to_prediction("epsilon", output, z_t, *self.schedule.coefficients(t, z_t))


@pytest.fixture
def inputs():
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(shape, dtype=torch.float64, generator=generator)

    cond = {"scale": normal(4), "shift": normal(4, 3)}
    null_cond = {"scale": normal(4), "shift": normal(4, 3)}
    return normal(4, 3), torch.tensor([19, 259, 500, 999]), cond, null_cond


def test_below_its_interval_the_network_is_not_guided(sd_schedule, inputs):
    z_t, t, cond, null_cond = inputs
    network = CountingNetwork(sd_schedule)
    omega = torch.full((4,), 4.0)
    part = Guided(network, cond, null_cond, omega, guided_from=500)(z_t, t)
    assert network.calls == [(6, None)]  # the two that are not guided are asked once
    whole, plain = Guided(network, cond, null_cond, omega)(z_t, t), network(z_t, t, cond, None)
    torch.testing.assert_close(part.z_0[2:], whole.z_0[2:], rtol=0, atol=0)
    torch.testing.assert_close(part.z_0[:2], plain.z_0[:2])
    assert (whole.z_0[:2] - plain.z_0[:2]).abs().max() > 0.01


def test_guidance_is_the_two_forward_formula_with_an_omega_per_sample(sd_schedule, inputs):
    z_t, t, cond, null_cond = inputs
    network = CountingNetwork(sd_schedule)
    omega = torch.tensor([0.0, 2.0, 7.5, 13.0])
    guided = Guided(network, cond, null_cond, omega)(z_t, t)
    conditional, unconditional = network(z_t, t, cond, None), network(z_t, t, null_cond, None)
    w = omega.double()[:, None]
    epsilon = (1 + w) * conditional.epsilon - w * unconditional.epsilon
    expected = to_prediction("epsilon", epsilon, z_t, *sd_schedule.coefficients(t, z_t))
    torch.testing.assert_close(guided.epsilon, expected.epsilon, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(guided.z_0, expected.z_0, rtol=1e-10, atol=1e-10)


def test_guidance_asks_the_network_once_with_a_double_batch_and_without_omega(sd_schedule, inputs):
    z_t, t, cond, null_cond = inputs
    network = CountingNetwork(sd_schedule)
    Guided(network, cond, null_cond, torch.ones(4))(z_t, t)
    assert network.calls == [(8, None)]


def test_omega_zero_is_the_conditional_network(sd_schedule, inputs):
    z_t, t, cond, null_cond = inputs
    network = CountingNetwork(sd_schedule)
    guided = Guided(network, cond, null_cond, torch.zeros(4))(z_t, t)
    conditional = network(z_t, t, cond, None)
    torch.testing.assert_close(guided.z_0, conditional.z_0)
    torch.testing.assert_close(guided.epsilon, conditional.epsilon)


def test_omega_minus_one_is_the_unconditional_network(sd_schedule, inputs):
    z_t, t, cond, null_cond = inputs
    network = CountingNetwork(sd_schedule)
    guided = Guided(network, cond, null_cond, -torch.ones(4))(z_t, t)
    torch.testing.assert_close(guided.z_0, network(z_t, t, null_cond, None).z_0)


def test_guidance_still_decomposes_z_t(sd_schedule, inputs):
    z_t, t, cond, null_cond = inputs
    guided = Guided(CountingNetwork(sd_schedule), cond, null_cond, torch.full((4,), 7.5))(z_t, t)
    torch.testing.assert_close(sd_schedule.diffuse(guided.z_0, guided.epsilon, t), z_t, rtol=0, atol=1e-9)
