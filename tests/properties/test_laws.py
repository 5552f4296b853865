"""Laws that hold for every schedule, time, seed and batch."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from closed_forms import SD_CONFIG
from fewstep.data import draws
from fewstep.data.order import SampleOrder
from fewstep.diffusion.flow import Flow
from fewstep.diffusion.prediction import to_prediction
from fewstep.diffusion.schedule import Tabulated
from fewstep.method.times import consistency_times, draw_times, fixed_gap, shrinking_gap, step_back

TABULATED = [
    Tabulated.from_config(config)
    for config in (
        SD_CONFIG,
        SD_CONFIG | {"rescale_betas_zero_snr": True},
        {"beta_schedule": "linear", "num_train_timesteps": 300},
        {"beta_schedule": "squaredcos_cap_v2"},
    )
]
flows = st.builds(Flow, st.integers(2, 1000), st.floats(0.1, 20))
schedules = st.sampled_from(TABULATED) | flows


def law(*strategies):
    """A few examples, the same ones every time."""
    return lambda test: settings(max_examples=25, deadline=None, derandomize=True)(given(*strategies)(test))


seeds = st.integers(0, 2**31)
streams = st.sampled_from(["t", "omega", "epsilon", "vae"])


@st.composite
def schedule_and_time(draw, kinds=schedules):
    """A schedule and a whole or fractional time of it, below the last one."""
    schedule = draw(kinds)
    whole = st.integers(0, schedule.last - 1).map(float)
    return schedule, draw(whole | st.floats(0, schedule.last - 1))


@law(schedule_and_time(st.sampled_from(TABULATED)))
def test_alpha_squared_and_sigma_squared_add_to_one(pair):
    schedule, time = pair
    t = torch.tensor([time], dtype=torch.float64)
    assert abs(float(schedule.alpha(t) ** 2 + schedule.sigma(t) ** 2) - 1) < 1e-12


@law(schedule_and_time(flows))
def test_alpha_and_sigma_of_a_flow_add_to_one(pair):
    schedule, time = pair
    t = torch.tensor([time], dtype=torch.float64)
    assert abs(float(schedule.alpha(t) + schedule.sigma(t)) - 1) < 1e-15


@law(schedules)
def test_alpha_and_lam_fall_and_sigma_rises_strictly(schedule):
    t = torch.arange(schedule.last + 1)
    assert (schedule.alpha(t).diff() < 0).all()
    assert (schedule.sigma(t).diff() > 0).all()
    lam = schedule.lam(t)
    assert (lam[1:] < lam[:-1]).all()


@law(schedule_and_time(), st.floats(0.01, 0.99))
def test_they_do_so_between_whole_times_too(pair, part):
    schedule, time = pair
    t = torch.tensor([time, time + part], dtype=torch.float64)
    assert schedule.lam(t).diff() < 0 or schedule.lam(t)[1] == -torch.inf
    assert schedule.alpha(t).diff() < 0
    assert schedule.sigma(t).diff() > 0


@law(schedule_and_time())
def test_lam_is_that_of_alpha_and_sigma(pair):
    schedule, time = pair
    t = torch.tensor([time], dtype=torch.float64)
    lam = torch.log(schedule.alpha(t)) - torch.log(schedule.sigma(t))
    torch.testing.assert_close(schedule.lam(t), lam, rtol=1e-9, atol=1e-9)


@law(schedule_and_time())
def test_time_of_lam_inverts_lam(pair):
    schedule, time = pair
    t = torch.tensor([time], dtype=torch.float64)
    assert abs(float(schedule.time_of_lam(schedule.lam(t))) - time) < (1e-9 if isinstance(schedule, Flow) else 1e-6)


@law(flows | st.sampled_from([each for each in TABULATED if each.has_zero_terminal_snr]))
def test_time_of_lam_inverts_lam_at_both_ends(schedule):
    t = torch.tensor([0, schedule.last])
    assert torch.equal(schedule.time_of_lam(schedule.lam(t)), t.double())


@law(schedules, st.floats(-30, 30))
def test_lam_inverts_time_of_lam_within_the_schedule(schedule, value):
    lam = torch.tensor([value], dtype=torch.float64)
    t = schedule.time_of_lam(lam)
    assert 0 <= t <= schedule.last
    low, high = schedule.lam(torch.tensor([schedule.last - 1, 0]))
    if low <= value <= high:
        assert abs(float(schedule.lam(t)) - value) < 1e-6


@law(schedule_and_time(st.sampled_from(TABULATED)), st.sampled_from(["epsilon", "v_prediction", "sample"]), seeds)
def test_every_prediction_puts_z_t_together_again(pair, kind, seed):
    """z_t = α·z_0 + σ·ε for whatever a network outputs, not only for a right answer."""
    schedule, time = pair
    generator = torch.Generator().manual_seed(seed)
    output, z_t = torch.randn(2, 1, 4, 3, 3, dtype=torch.float64, generator=generator).unbind()
    t = torch.tensor([time], dtype=torch.float64)
    prediction = to_prediction(kind, output, z_t, *schedule.coefficients(t, z_t))
    torch.testing.assert_close(schedule.diffuse(prediction.z_0, prediction.epsilon, t), z_t, rtol=0, atol=1e-9)


@law(seeds, streams, st.integers(0, 10**9), st.integers(1, 8), st.data())
def test_draws_do_not_depend_on_how_a_batch_is_split(seed, stream, first, size, data):
    counters = range(first, first + size)
    cut = data.draw(st.integers(0, size))
    parts = [part for part in (counters[:cut], counters[cut:]) if part]
    assert torch.equal(
        draws.normal(seed, stream, counters, (2, 3)),
        torch.cat([draws.normal(seed, stream, part, (2, 3)) for part in parts]),
    )
    assert torch.equal(
        draws.uniform(seed, stream, counters), torch.cat([draws.uniform(seed, stream, part) for part in parts])
    )


@law(seeds, streams, st.integers(0, 10**9))
def test_draws_differ_in_seed_stream_and_counter(seed, stream, counter):
    values = [
        float(draws.uniform(*name, [at])[0])
        for *name, at in [
            (seed, stream, counter), (seed + 1, stream, counter), (seed, stream + "2", counter),
            (seed, stream, counter + 1),
        ]
    ]  # fmt: skip
    assert len(set(values)) == 4


@law(seeds, streams, st.integers(0, 10**9))
def test_drawing_leaves_the_global_generator_alone(seed, stream, counter):
    state = torch.get_rng_state()
    draws.normal(seed, stream, [counter], (3,))
    SampleOrder(seed, (5,))([counter])
    assert torch.equal(torch.get_rng_state(), state)


def test_uniform_draws_are_uniform_and_normal_draws_normal():
    u = draws.uniform(0, "t", range(4000))
    assert float(u.min()) >= 0
    assert float(u.max()) < 1
    assert (torch.histc(u, 8, 0, 1) / 4000 - 1 / 8).abs().max() < 0.02
    x = draws.normal(0, "epsilon", range(1000), (4,))
    assert abs(float(x.mean())) < 0.06
    assert abs(float(x.std()) - 1) < 0.05


def test_the_largest_key_still_gives_a_draw_below_one(monkeypatch):
    monkeypatch.setattr(draws, "key", lambda *_: 2**63 - 1)
    assert float(draws.uniform(0, "t", [0])[0]) < 1


@law(st.integers(2, 1000), st.booleans(), st.data())
def test_sampling_stands_on_times_that_were_trained(num_steps, flow, data):
    """Every time of a consistency sampler is one that grid training draws; steps fall, and the first is the last.

    But for t = 0, which only k = 1 has: there f is the identity and needs no training.
    """
    schedule = Flow(num_steps) if flow else Tabulated.from_config({"num_train_timesteps": num_steps})
    grid_size = data.draw(st.integers(1, num_steps))
    count = data.draw(st.integers(1, grid_size))
    times = consistency_times(schedule, grid_size, count)
    u = torch.arange(4000, dtype=torch.float64) / 4000
    trained = draw_times(u, schedule, num_steps // grid_size, "grid")
    assert len(times) == count
    assert times == sorted(set(times), reverse=True)
    assert set(times) - {0} <= set(trained.tolist())
    assert times[0] == schedule.last - num_steps % grid_size


@law(st.integers(2, 1000), st.sampled_from(["grid", "any"]), st.data())
def test_ends_lie_below_s_and_s_below_t(num_steps, times, data):
    """e ≤ s ≤ t, whatever the gap, and s < t where the end leaves room."""
    skip = data.draw(st.integers(1, num_steps - 1))
    gap = data.draw(st.sampled_from([fixed_gap(skip), shrinking_gap(num_steps, skip, 200)]))
    u = torch.arange(400, dtype=torch.float64) / 400
    t = draw_times(u, Flow(num_steps), skip, times)
    e = (t * u.flip(0)).long()
    s = step_back(t, gap(t, torch.arange(400)), e)
    assert (e <= s).all()
    assert (s <= t).all()
    assert torch.equal(s == t, e == t)
