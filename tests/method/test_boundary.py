import pytest
import torch

from fewstep.diffusion.prediction import Prediction
from fewstep.method.boundary import boundary, consistency_function


def linear_network(z_t, _t, cond, omega):
    """Answers 2·z_t + shift + ω, plainly not the identity."""
    z_0 = 2 * z_t + cond["shift"][:, None] + (0 if omega is None else omega[:, None])
    return Prediction(z_0, torch.zeros_like(z_t))


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


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("t", [torch.zeros(3, dtype=torch.long), torch.zeros(3)])
def test_at_time_zero_the_consistency_function_is_the_identity(dtype, t):
    z = torch.randn(3, 5, dtype=dtype)
    omega = torch.tensor([0.0, 5.0, 13.0], dtype=dtype)
    assert torch.equal(consistency_function(linear_network, z, t, {"shift": torch.ones(3, dtype=dtype)}, omega), z)


def test_each_sample_is_mixed_by_its_own_time_and_omega():
    z = torch.randn(3, 5, dtype=torch.float64)
    t = torch.tensor([0.0, 0.05, 999.0], dtype=torch.float64)
    cond, omega = {"shift": torch.tensor([1.0, 2.0, 3.0])}, torch.tensor([0.0, 5.0, 13.0])
    f = consistency_function(linear_network, z, t, cond, omega)
    c_skip, c_out = (c[:, None] for c in boundary(t))
    shift = torch.tensor([[1.0], [7.0], [16.0]], dtype=torch.float64)
    torch.testing.assert_close(f, c_skip * z + c_out * (2 * z + shift), rtol=1e-12, atol=1e-12)


def test_late_times_answer_with_the_network():
    z = torch.randn(1, 5)
    cond = {"shift": torch.ones(1)}
    f = consistency_function(linear_network, z, torch.tensor([999]), cond, None)
    torch.testing.assert_close(f, 2 * z + 1, rtol=1e-5, atol=1e-5)
