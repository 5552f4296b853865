import pytest
import torch

from closed_forms import SD_CONFIG
from fewstep.diffusion.flow import Flow
from fewstep.diffusion.schedule import ScheduleError, Tabulated


def test_sd_schedule_has_the_published_ends(sd_schedule):
    assert sd_schedule.num_steps == 1000
    assert float(sd_schedule.sigmas[0]) == pytest.approx(0.00085**0.5, rel=1e-12)
    assert float(sd_schedule.alphas[-1]) == pytest.approx(0.0683, abs=1e-4)
    assert not sd_schedule.has_zero_terminal_snr


@pytest.mark.parametrize("changed", [{"beta_schedule": "linear"}, {"beta_start": 0.002}, {"beta_end": 0.02}])
def test_every_field_of_the_config_matters(sd_schedule, changed):
    other = Tabulated.from_config(SD_CONFIG | changed)
    assert (other.alphas[-1] - sd_schedule.alphas[-1]).abs() > 1e-3 or (other.alphas[0] - sd_schedule.alphas[0]) != 0


def test_num_train_timesteps_is_the_length():
    assert Tabulated.from_config(SD_CONFIG | {"num_train_timesteps": 250}).num_steps == 250


def test_trained_betas_win_over_a_named_schedule():
    schedule = Tabulated.from_config(SD_CONFIG | {"trained_betas": [0.1, 0.2, 0.5]})
    torch.testing.assert_close(
        schedule.alphas.square(), torch.tensor([0.9, 0.72, 0.36], dtype=torch.float64), rtol=1e-12, atol=0
    )


@pytest.mark.parametrize(
    "change", [{"beta_end": 2}, {"beta_schedule": "linear", "beta_start": -1}, {"num_train_timesteps": 0}], ids=str
)
def test_betas_out_of_range_are_refused(change):
    with pytest.raises(ScheduleError, match="betas are out of range"):
        Tabulated.from_config(SD_CONFIG | change)


def test_unknown_beta_schedule_is_named_in_the_error():
    with pytest.raises(ScheduleError, match="sigmoid_like"):
        Tabulated.from_config({"beta_schedule": "sigmoid_like"})


def test_zero_terminal_snr_ends_in_noise_alone_and_keeps_the_start(sd_schedule, zero_terminal_schedule):
    schedule = zero_terminal_schedule
    assert schedule.has_zero_terminal_snr
    last = torch.tensor([999])
    assert schedule.alpha(last).item() == 0.0
    assert schedule.sigma(last).item() == 1.0
    assert schedule.lam(last).item() == -torch.inf
    torch.testing.assert_close(schedule.alphas[0], sd_schedule.alphas[0])
    assert schedule.time_of_lam(torch.tensor([-torch.inf, torch.inf])).tolist() == [999.0, 0.0]


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


@pytest.mark.parametrize("shift", [0.3, 1.0, 1.73, 3.0, 6.0, 12.7])
def test_a_flow_starts_at_the_data_and_ends_in_noise_alone(shift):
    schedule = Flow(1000, shift)
    t = torch.tensor([0, 1000])
    assert schedule.alpha(t).tolist() == [1.0, 0.0]
    assert schedule.sigma(t).tolist() == [0.0, 1.0]
    assert schedule.lam(t).tolist() == [torch.inf, -torch.inf]
    assert schedule.time_of_lam(schedule.lam(t)).tolist() == [0.0, 1000.0]
    assert schedule.has_zero_terminal_snr
    assert schedule.last == 1000


def test_a_flow_is_the_shifted_line():
    t = torch.tensor([0.0, 0.25, 1.0, 500.5, 999.75, 1000.0], dtype=torch.float64)
    u = t / 1000
    sigma = Flow(1000, shift=3.0).sigma(t)
    torch.testing.assert_close(sigma, 3 * u / (1 + 2 * u), rtol=1e-14, atol=0)
    torch.testing.assert_close(Flow(1000).sigma(t), u, rtol=1e-14, atol=0)


def test_a_flow_computes_in_float64_whatever_its_times_are_given_in():
    whole = torch.tensor([0, 1, 20, 500, 1000])
    for name in ("alpha", "sigma", "lam"):
        of = getattr(Flow(1000, shift=3.0), name)
        assert of(whole).dtype == torch.float64
        for dtype in (torch.float32, torch.float64):
            assert torch.equal(of(whole), of(whole.to(dtype))), name


@pytest.mark.parametrize("wrong", [{"num_steps": 0}, {"shift": 0.0}, {"shift": -1.0}, {"shift": float("nan")}], ids=str)
def test_a_flow_of_nothing_is_refused(wrong):
    with pytest.raises(ScheduleError, match="both must be above 0"):
        Flow(**wrong)


def test_moving_a_flow_changes_nothing():
    assert Flow(50, shift=3.0).to("cpu") == Flow(50, shift=3.0)


@pytest.mark.parametrize("kind", ["tabulated", "flow"])
def test_grids_reach_the_last_time_and_are_evenly_spaced(kind, sd_schedule):
    schedule = sd_schedule if kind == "tabulated" else Flow(1000)
    assert schedule.grid(4).tolist() == [time + schedule.last for time in (-750, -500, -250, 0)]
    assert len(schedule.grid(schedule.grid_size(30))) == 33
    assert schedule.grid(33).diff().unique().tolist() == [30]


@pytest.mark.parametrize("kind", ["tabulated", "flow"])
def test_picked_times_are_equally_likely_and_reach_the_last(kind, sd_schedule):
    schedule = sd_schedule if kind == "tabulated" else Flow(1000)
    t, counts = schedule.pick((torch.arange(5000, dtype=torch.float64) + 0.5) / 5000).unique(return_counts=True)
    assert (int(t[0]), int(t[-1])) == (0 if kind == "tabulated" else 1, schedule.last)
    assert counts.unique().tolist() == [5]
