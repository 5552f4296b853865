import pytest
import torch

from fewstep.diffusion.flow import Flow
from fewstep.method.weights import MOST, WEIGHTS

TIMES = [torch.tensor([0.0, 500.0, 999.0])] * 3


def test_constant_weight_is_one(sd_schedule):
    assert WEIGHTS["constant"](sd_schedule)(*TIMES).tolist() == [1, 1, 1]


def test_truncated_snr_is_the_formula_at_every_time(zero_terminal_schedule):
    schedule = zero_terminal_schedule
    weight = WEIGHTS["truncated-snr"](schedule)(*[torch.arange(1000, dtype=torch.float64)] * 3)
    torch.testing.assert_close(weight, (schedule.alphas / schedule.sigmas).square().clamp(min=1), rtol=1e-9, atol=0)
    assert weight[-1] == 1


def test_truncated_snr_keeps_the_precision_it_is_asked_in(sd_schedule):
    weight = WEIGHTS["truncated-snr"](sd_schedule)(*[torch.tensor([19.0, 999.0])] * 3)
    assert weight.dtype == torch.float32
    assert weight[0] > 50 > weight[1] == 1


@pytest.mark.parametrize("schedule", ["sd_schedule", Flow(1000, 3.0)], ids=["tabulated", "flow"])
def test_equal_jumps_undo_what_a_jump_makes_of_an_error(schedule, request):
    """An error of v̂ is one of ẑ_0 and ε̂ that leaves z_t as it is, and moves z_e."""
    schedule = request.getfixturevalue(schedule) if isinstance(schedule, str) else schedule
    t, e = torch.tensor([999.0, 700.0, 300.0]), torch.tensor([0.0, 500.0, 100.0])
    error_0 = -schedule.sigma(t)
    error_epsilon = schedule.alpha(t)
    moved = schedule.alpha(e) * error_0 + schedule.sigma(e) * error_epsilon
    weight = WEIGHTS["equal-jumps"](schedule)(t, e, e)
    torch.testing.assert_close(weight * moved.square().float(), torch.ones(3), rtol=1e-5, atol=0)
    assert WEIGHTS["equal-jumps"](schedule)(t[:1], t[:1], t[:1]) == MOST


def test_the_inverse_jump_undoes_it_up_to_three_times(sd_schedule):
    t, e = torch.tensor([999.0, 700.0, 300.0, 999.0]), torch.tensor([0.0, 200.0, 0.0, 990.0])
    square = WEIGHTS["equal-jumps"](sd_schedule)(t, e, e)
    assert (square[:3] < 9).all()
    torch.testing.assert_close(WEIGHTS["inverse-jump"](sd_schedule)(t, e, e), square.sqrt().clamp(max=3))


def test_the_inverse_gap_is_that_of_the_noise_beside_the_picture(sd_schedule):
    t, s = torch.tensor([999.0, 500.0]), torch.tensor([900.0, 480.0])
    noise = [sd_schedule.sigma(time) / sd_schedule.alpha(time) for time in (t, s)]
    weight = WEIGHTS["inverse-gap"](sd_schedule)(t, s, s)
    torch.testing.assert_close(weight, (1 / (noise[0] - noise[1])).float())
