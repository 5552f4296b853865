import torch

from fewstep.method.weights import WEIGHTS


def test_constant_weight_is_one(sd_schedule):
    assert WEIGHTS["constant"](sd_schedule)(torch.tensor([0.0, 500.0, 999.0])).tolist() == [1, 1, 1]


def test_truncated_snr_is_the_formula_at_every_time(zero_terminal_schedule):
    schedule = zero_terminal_schedule
    weight = WEIGHTS["truncated-snr"](schedule)(torch.arange(1000, dtype=torch.float64))
    torch.testing.assert_close(weight, (schedule.alphas / schedule.sigmas).square().clamp(min=1), rtol=1e-9, atol=0)
    assert weight[-1] == 1


def test_truncated_snr_keeps_the_precision_it_is_asked_in(sd_schedule):
    weight = WEIGHTS["truncated-snr"](sd_schedule)(torch.tensor([19.0, 999.0]))
    assert weight.dtype == torch.float32
    assert weight[0] > 50 > weight[1] == 1
