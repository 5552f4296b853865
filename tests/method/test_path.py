import pytest
import torch

from closed_forms import Mixture
from fewstep.diffusion.guidance import Guided
from fewstep.diffusion.schedule import Flow, Tabulated
from fewstep.diffusion.solvers import DDIM, SOLVERS
from fewstep.method.paths import DataPath, Sample, TeacherPath, draw_times, shrinking_gap
from fewstep.method.sampling import consistency_times

ALMOST_ONE = 1 - 2**-53


def at(t, s, cond, omega) -> Sample:
    """As much of a sample as a teacher's path needs."""
    return Sample(torch.zeros(0), cond, t, s, torch.zeros(0), omega)


def every_u(count: int = 20_000) -> torch.Tensor:
    return (torch.arange(count, dtype=torch.float64) + 0.5) / count


TABULATED = {steps: Tabulated.from_config({"num_train_timesteps": steps}) for steps in (1000, 250)}


@pytest.mark.parametrize(("num_steps", "skip"), [(1000, 20), (1000, 50), (1000, 30), (250, 5)])
def test_grid_times_are_where_samplers_land(num_steps, skip):
    t, s = draw_times(every_u(), TABULATED[num_steps], skip, "grid")
    assert t.unique().tolist() == list(range(skip - 1, num_steps, skip))
    assert torch.equal(s, (t - skip).clamp(min=0))
    assert (s < t).all()
    assert not t.is_floating_point()


@pytest.mark.parametrize(("num_steps", "skip"), [(1000, 20), (1000, 30), (50, 1)])
def test_grid_times_of_a_flow_reach_from_noise_alone_to_the_data(num_steps, skip):
    t, s = draw_times(every_u(), Flow(num_steps, shift=3.0), skip, "grid")
    assert t.unique().tolist() == list(range(skip, num_steps + 1, skip))
    assert torch.equal(s, t - skip)


@pytest.mark.parametrize("skip", range(1, 101))
@pytest.mark.parametrize("schedule", [TABULATED[1000], Flow(1000)], ids=["tabulated", "flow"])
def test_every_skip_is_trained_where_its_sampler_lands(schedule, skip):
    t, s = draw_times(every_u(), schedule, skip, "grid")
    landing = consistency_times(schedule, 1000 // skip, 1000 // skip)
    assert set(landing) - {0} == set(t.tolist())
    assert torch.equal(s, (t - skip).clamp(min=0))


def test_skip_of_one_leaves_out_time_zero():
    t, s = draw_times(every_u(), TABULATED[1000], 1, "grid")
    assert (int(t.min()), int(t.max())) == (1, 999)
    assert torch.equal(s, t - 1)


@pytest.mark.parametrize("schedule", [TABULATED[1000], Flow(1000)], ids=["tabulated", "flow"])
def test_any_times_are_those_a_whole_skip_above_zero(schedule):
    t, s = draw_times(every_u(), schedule, 20, "any")
    assert t.unique().tolist() == list(range(20, schedule.last + 1))
    assert torch.equal(s, t - 20)


@pytest.mark.parametrize("times", ["grid", "any"])
def test_ends_of_u_are_ends_of_the_times(times):
    u = torch.tensor([0.0, ALMOST_ONE], dtype=torch.float64)
    t, s = draw_times(u, TABULATED[1000], 20, times)
    assert t.tolist() == [19 if times == "grid" else 20, 999]
    assert s.tolist() == [0, 979]
    t, s = draw_times(u, Flow(1000), 20, times)
    assert (t.tolist(), s.tolist()) == ([20, 1000], [0, 980])


def test_grid_times_are_equally_likely():
    t, _ = draw_times(every_u(), TABULATED[1000], 20, "grid")
    assert set(t.unique(return_counts=True)[1].tolist()) == {400}


def test_gap_shrinks_from_the_whole_schedule_to_the_skip():
    progress = torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0, 3.0], dtype=torch.float64)
    gap = shrinking_gap(progress, 1000, 20)
    assert gap.tolist() == [1000, 376, 141, 53, 20, 20]  # 20·50^(1 − p)
    t, s = draw_times(every_u(6), TABULATED[1000], 20, "grid", gap)
    assert torch.equal(s, (t - gap).clamp(min=0))
    assert int(s[0]) == 0
    same, _ = draw_times(every_u(6), TABULATED[1000], 20, "grid")
    assert torch.equal(t, same)  # where samplers land, whatever the gap


@pytest.fixture
def setting(sd_schedule):
    generator = torch.Generator().manual_seed(0)
    means = torch.tensor([[-0.5, 0.5], [-0.5, -0.5], [0.5, 0.5], [0.5, -0.5]])
    teacher = Mixture(sd_schedule, means, 0.5)
    weights = torch.tensor([[0.5, 0.5, 0.0, 0.0], [0.0, 0.0, 0.5, 0.5], [0.7, 0.1, 0.1, 0.1]])
    z_t = torch.randn(3, 2, dtype=torch.float64, generator=generator)
    t, s = torch.tensor([999, 500, 19]), torch.tensor([979, 480, 0])
    return teacher, {"weights": weights}, {"weights": torch.full((1, 4), 0.25)}, z_t, t, s


@pytest.mark.parametrize("name", SOLVERS)
def test_teacher_path_is_one_solver_step_of_the_guided_teacher(name, sd_schedule, setting):
    teacher, cond, null_cond, z_t, t, s = setting
    omega = torch.tensor([0.0, 3.0, 7.5])
    z_s = TeacherPath(teacher, sd_schedule, null_cond, SOLVERS[name])(z_t, at(t, s, cond, omega))
    field = Guided(teacher, cond, {"weights": null_cond["weights"].repeat(3, 1)}, omega)
    torch.testing.assert_close(z_s, SOLVERS[name].step(sd_schedule, field, z_t, t, s))


def test_every_option_of_the_path_matters(sd_schedule, setting):
    teacher, cond, null_cond, z_t, t, s = setting
    omega = torch.full((3,), 5.0)
    plain, sample = TeacherPath(teacher, sd_schedule, null_cond), at(t, s, cond, omega)
    z_s = plain(z_t, sample)
    others = {
        "solver": TeacherPath(teacher, sd_schedule, null_cond, SOLVERS["dpm-solver-2"])(z_t, sample),
        "null_cond": TeacherPath(teacher, sd_schedule, {"weights": torch.eye(4)[:1] + 0.01})(z_t, sample),
        "omega": plain(z_t, at(t, s, cond, omega - 1)),
        "cond": plain(z_t, at(t, s, {"weights": cond["weights"].flip(0)}, omega)),
    }
    for name, other in others.items():
        assert (other - z_s).abs().max() > 1e-6, name


@pytest.mark.parametrize("without", ["null_cond", "omega"])
def test_without_null_cond_or_omega_the_plain_teacher_is_followed(without, sd_schedule, setting):
    teacher, cond, null_cond, z_t, t, s = setting
    asked = []

    def counting(z, at, given, omega):
        asked.append(len(z))
        return teacher(z, at, given, omega)

    path = TeacherPath(counting, sd_schedule, None if without == "null_cond" else null_cond)
    z_s = path(z_t, at(t, s, cond, None if without == "omega" else torch.ones(3)))
    assert asked == [3]
    torch.testing.assert_close(z_s, DDIM.step(sd_schedule, lambda z, at: teacher(z, at, cond, None), z_t, t, s))


def test_data_path_keeps_picture_and_noise(sd_schedule):
    z_0, epsilon = torch.randn(2, 3, 4, dtype=torch.float64).unbind()
    t, s = torch.tensor([999, 500, 19]), torch.tensor([979, 480, 0])
    z_s = DataPath(sd_schedule)(sd_schedule.diffuse(z_0, epsilon, t), Sample(z_0, {}, t, s, epsilon, None))
    assert torch.equal(z_s, sd_schedule.diffuse(z_0, epsilon, s))
