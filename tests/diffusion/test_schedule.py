import pytest
import torch

from closed_forms import SD_CONFIG
from fewstep.diffusion.schedule import Schedule, ScheduleError


def test_sd_schedule_has_the_published_ends(sd_schedule):
    assert sd_schedule.num_steps == 1000
    assert float(sd_schedule.sigmas[0]) == pytest.approx(0.00085**0.5, rel=1e-12)
    assert float(sd_schedule.alphas[-1]) == pytest.approx(0.0683, abs=1e-4)
    assert not sd_schedule.has_zero_terminal_snr


@pytest.mark.parametrize("changed", [{"beta_schedule": "linear"}, {"beta_start": 0.002}, {"beta_end": 0.02}])
def test_every_field_of_the_config_matters(sd_schedule, changed):
    other = Schedule.from_config(SD_CONFIG | changed)
    assert (other.alphas[-1] - sd_schedule.alphas[-1]).abs() > 1e-3 or (other.alphas[0] - sd_schedule.alphas[0]) != 0


def test_num_train_timesteps_is_the_length():
    assert Schedule.from_config(SD_CONFIG | {"num_train_timesteps": 250}).num_steps == 250


def test_trained_betas_win_over_a_named_schedule():
    schedule = Schedule.from_config(SD_CONFIG | {"trained_betas": [0.1, 0.2, 0.5]})
    torch.testing.assert_close(
        schedule.alphas.square(), torch.tensor([0.9, 0.72, 0.36], dtype=torch.float64), rtol=1e-12, atol=0
    )


def test_unknown_beta_schedule_is_named_in_the_error():
    with pytest.raises(ScheduleError, match="sigmoid_like"):
        Schedule.from_config({"beta_schedule": "sigmoid_like"})


def test_zero_terminal_snr_ends_in_noise_alone_and_keeps_the_start(sd_schedule, zero_terminal_schedule):
    schedule = zero_terminal_schedule
    assert schedule.has_zero_terminal_snr
    last = torch.tensor([999])
    assert schedule.alpha(last).item() == 0.0
    assert schedule.sigma(last).item() == 1.0
    assert schedule.lam(last).item() == -torch.inf
    torch.testing.assert_close(schedule.alphas[0], sd_schedule.alphas[0])


def test_whole_times_agree_whether_given_as_integers_or_floats(zero_terminal_schedule):
    whole = torch.tensor([0, 1, 19, 500, 999])
    for name in ("alpha", "sigma", "lam"):
        of = getattr(zero_terminal_schedule, name)
        assert torch.equal(of(whole), of(whole.double())), name


def test_lam_is_linear_between_whole_times(sd_schedule):
    t = torch.tensor([10.0, 10.25, 10.5, 11.0], dtype=torch.float64)
    first, quarter, half, last = sd_schedule.lam(t)
    torch.testing.assert_close(quarter, 0.75 * first + 0.25 * last)
    torch.testing.assert_close(half, (first + last) / 2)


def test_fractional_alpha_and_sigma_belong_to_the_fractional_lam(sd_schedule):
    t = torch.tensor([0.5, 18.3, 700.9, 998.01], dtype=torch.float64)
    alpha, sigma = sd_schedule.alpha(t), sd_schedule.sigma(t)
    torch.testing.assert_close((alpha / sigma).log(), sd_schedule.lam(t), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(alpha**2 + sigma**2, torch.ones(4, dtype=torch.float64), rtol=1e-12, atol=0)


def test_time_of_lam_is_clamped_to_the_table(sd_schedule):
    beyond = sd_schedule.time_of_lam(torch.tensor([100.0, -100.0], dtype=torch.float64))
    assert beyond.tolist() == [0.0, 999.0]


def test_time_of_lam_next_to_zero_terminal_snr_is_finite(zero_terminal_schedule):
    lam = zero_terminal_schedule.lam(torch.tensor([998])) - 1
    t = zero_terminal_schedule.time_of_lam(lam)
    assert torch.isfinite(zero_terminal_schedule.lam(t)).all()


@pytest.mark.parametrize(
    ("given", "computed"),
    [(torch.bfloat16, torch.float32), (torch.float32, torch.float32), (torch.float64, torch.float64)],
)
def test_mixing_never_runs_in_half_precision(sd_schedule, given, computed):
    """In bf16 σ(19) would be off by 4.8 %."""
    t = torch.tensor([19])
    epsilon = torch.ones(1, 1, dtype=given)
    z_t = sd_schedule.diffuse(torch.zeros_like(epsilon), epsilon, t)
    assert z_t.dtype == computed
    torch.testing.assert_close(z_t.double(), sd_schedule.sigma(t)[:, None], rtol=1e-6, atol=0)


def test_coefficients_are_shaped_to_multiply_each_sample(sd_schedule):
    t = torch.tensor([0, 999])
    z_0, epsilon = torch.randn(2, 2, 3, 4, 4, dtype=torch.float64).unbind()
    z_t = sd_schedule.diffuse(z_0, epsilon, t)
    for i in range(2):
        torch.testing.assert_close(z_t[i], sd_schedule.alphas[t[i]] * z_0[i] + sd_schedule.sigmas[t[i]] * epsilon[i])


def test_moving_to_a_device_keeps_the_tables(sd_schedule):
    moved = sd_schedule.to("cpu")
    assert moved.alphas.dtype == torch.float64
    assert torch.equal(moved.alphas, sd_schedule.alphas)
    assert torch.equal(moved.sigmas, sd_schedule.sigmas)
