import pytest
import torch

from fewstep.diffusion.flow import Flow
from fewstep.diffusion.schedule import Tabulated
from fewstep.method.times import consistency_times, draw_times, fixed_gap, shrinking_gap, step_back

ALMOST_ONE = 1 - 2**-53
TABULATED = {steps: Tabulated.from_config({"num_train_timesteps": steps}) for steps in (1000, 250)}
SCHEDULES = pytest.mark.parametrize("schedule", [TABULATED[1000], Flow(1000)], ids=["tabulated", "flow"])


def every_u(count: int = 20_000) -> torch.Tensor:
    return (torch.arange(count, dtype=torch.float64) + 0.5) / count


@pytest.mark.parametrize(("num_steps", "skip"), [(1000, 20), (1000, 50), (1000, 30), (250, 5)])
def test_grid_times_are_where_samplers_land(num_steps, skip):
    t = draw_times(every_u(), TABULATED[num_steps], skip, "grid")
    assert t.unique().tolist() == list(range(skip - 1, num_steps, skip))
    assert not t.is_floating_point()


@pytest.mark.parametrize(("num_steps", "skip"), [(1000, 20), (1000, 30), (50, 1)])
def test_grid_times_of_a_flow_reach_from_noise_alone_to_the_data(num_steps, skip):
    t = draw_times(every_u(), Flow(num_steps, shift=3.0), skip, "grid")
    assert t.unique().tolist() == list(range(skip, num_steps + 1, skip))


@pytest.mark.parametrize("skip", range(1, 101))
@SCHEDULES
def test_every_skip_is_trained_where_its_sampler_lands(schedule, skip):
    t = draw_times(every_u(), schedule, skip, "grid")
    landing = consistency_times(schedule, 1000 // skip, 1000 // skip)
    assert set(landing) - {0} == set(t.tolist())


def test_skip_of_one_leaves_out_time_zero():
    t = draw_times(every_u(), TABULATED[1000], 1, "grid")
    assert (int(t.min()), int(t.max())) == (1, 999)


@SCHEDULES
def test_any_times_are_those_a_whole_skip_above_zero(schedule):
    found = draw_times(every_u(), schedule, 20, "any").unique().tolist()
    assert found == list(range(20, schedule.last + 1))


@pytest.mark.parametrize("times", ["grid", "any"])
def test_ends_of_u_are_ends_of_the_times(times):
    t = draw_times(torch.tensor([0.0, ALMOST_ONE], dtype=torch.float64), TABULATED[1000], 20, times)
    assert t.tolist() == [19 if times == "grid" else 20, 999]


def test_grid_times_are_equally_likely():
    t = draw_times(every_u(), TABULATED[1000], 20, "grid")
    assert set(t.unique(return_counts=True)[1].tolist()) == {400}


def test_fixed_gap_is_the_skip_at_every_time_and_position():
    assert fixed_gap(20)(torch.tensor([19, 999]), torch.tensor([0, 10**9])).tolist() == [20, 20]


def test_gap_shrinks_from_the_whole_schedule_to_the_skip():
    gap = shrinking_gap(1000, 20, pictures=400)
    found = gap(torch.full((6,), 999), torch.tensor([0, 100, 200, 300, 400, 1200]))
    assert found.tolist() == [1000, 376, 141, 53, 20, 20]  # 20·50^(1 − p)
    assert not found.is_floating_point()


def test_s_is_a_gap_below_t_and_no_earlier_than_the_end():
    t = torch.tensor([999, 999, 499, 19, 19])
    gap, e = torch.tensor([20, 1000, 20, 20, 20]), torch.tensor([0, 749, 499, 0, 9])
    assert step_back(t, gap, e).tolist() == [979, 749, 499, 0, 9]
