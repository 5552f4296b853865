import pytest
import torch

from fewstep.diffusion.prediction import Prediction, concatenate, to_output, to_prediction

OUTPUTS = {
    "epsilon": lambda z_0, epsilon, alpha, sigma: epsilon,  # noqa: ARG005
    "v_prediction": lambda z_0, epsilon, alpha, sigma: alpha * epsilon - sigma * z_0,
    "sample": lambda z_0, epsilon, alpha, sigma: z_0,  # noqa: ARG005
}


@pytest.fixture
def latents(sd_schedule):
    """z_0, ε, z_t, α, σ in float64 at five times."""
    generator = torch.Generator().manual_seed(0)
    z_0, epsilon = torch.randn(2, 5, 3, 4, 4, dtype=torch.float64, generator=generator).unbind()
    t = torch.tensor([0, 19, 259, 759, 999])
    alpha, sigma = sd_schedule.coefficients(t, z_0)
    return z_0, epsilon, sd_schedule.diffuse(z_0, epsilon, t), alpha, sigma


@pytest.mark.parametrize("kind", OUTPUTS)
def test_each_parameterisation_gives_back_what_z_t_was_made_of(kind, latents):
    z_0, epsilon, z_t, alpha, sigma = latents
    output = OUTPUTS[kind](z_0, epsilon, alpha, sigma)
    prediction = to_prediction(kind, output, z_t, alpha, sigma)
    torch.testing.assert_close(prediction.z_0, z_0, rtol=0, atol=1e-12)
    torch.testing.assert_close(prediction.epsilon, epsilon, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", OUTPUTS)
def test_half_precision_outputs_are_promoted_before_any_arithmetic(kind, latents):
    z_0, epsilon, z_t, alpha, sigma = latents
    output = OUTPUTS[kind](z_0, epsilon, alpha, sigma).bfloat16()
    half = to_prediction(kind, output, z_t.bfloat16(), alpha.float(), sigma.float())
    exact = to_prediction(kind, output.double(), z_t.bfloat16().double(), alpha, sigma)
    for computed, expected in zip(half, exact, strict=True):
        assert computed.dtype == torch.float32
        torch.testing.assert_close(computed.double(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["v_prediction", "sample"])
def test_only_an_epsilon_network_has_no_answer_in_pure_noise(kind):
    z_t = torch.ones(1, 2)
    alpha, sigma = torch.zeros(1, 1), torch.ones(1, 1)
    prediction = to_prediction(kind, torch.full((1, 2), 0.5), z_t, alpha, sigma)
    assert torch.isfinite(torch.stack(prediction)).all()
    torch.testing.assert_close(prediction.epsilon, z_t)
    assert not torch.isfinite(to_prediction("epsilon", torch.full((1, 2), 0.5), z_t, alpha, sigma).z_0).any()


def test_concatenate_joins_every_entry_in_order():
    first = {"text": torch.zeros(2, 3), "pooled": torch.zeros(2)}
    second = {"pooled": torch.ones(1), "text": torch.ones(1, 3)}
    joined = concatenate(first, second)
    assert joined["text"][:, 0].tolist() == [0, 0, 1]
    assert joined["pooled"].tolist() == [0, 0, 1]


@pytest.mark.parametrize("kind", OUTPUTS)
def test_what_a_network_would_output_is_the_inverse(kind, latents):
    z_0, epsilon, _, alpha, sigma = latents
    assert torch.equal(
        to_output(kind, Prediction(z_0, epsilon), alpha, sigma), OUTPUTS[kind](z_0, epsilon, alpha, sigma)
    )


def test_an_unknown_parameterisation_is_taken_for_no_other(latents):
    z_0, epsilon, z_t, alpha, sigma = latents
    with pytest.raises(AssertionError):
        to_prediction("flow", z_0, z_t, alpha, sigma)
    with pytest.raises(AssertionError):
        to_output("flow", Prediction(z_0, epsilon), alpha, sigma)
