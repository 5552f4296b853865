import pytest
import torch

from closed_forms import Mixture
from fewstep.diffusion.prediction import Guided
from fewstep.diffusion.solvers import SOLVERS
from fewstep.diffusion.solvers.base import DDIM
from fewstep.method.paths import DataPath, TeacherPath, TrainingBatch


def at(t, s, cond, omega) -> TrainingBatch:
    """Returns as much of a batch as a teacher's path needs."""
    return TrainingBatch(torch.zeros(0), cond, t, s, torch.zeros(0), torch.zeros(0), omega)


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
    plain, batch = TeacherPath(teacher, sd_schedule, null_cond), at(t, s, cond, omega)
    z_s = plain(z_t, batch)
    others = {
        "solver": TeacherPath(teacher, sd_schedule, null_cond, SOLVERS["dpm-solver-2"])(z_t, batch),
        "null_cond": TeacherPath(teacher, sd_schedule, {"weights": torch.eye(4)[:1] + 0.01})(z_t, batch),
        "omega": plain(z_t, at(t, s, cond, omega - 1)),
        "cond": plain(z_t, at(t, s, {"weights": cond["weights"].flip(0)}, omega)),
    }
    for name, other in others.items():
        assert (other - z_s).abs().max() > 1e-6, name


@pytest.mark.parametrize("without", ["null_cond", "omega"])
def test_without_null_cond_or_omega_the_teacher_is_asked_once(without, sd_schedule, setting):
    """With ω as its input, if it has one, where nobody guides it from outside."""
    teacher, cond, null_cond, z_t, t, s = setting
    asked = []

    def counting(z, at, given, omega):
        asked.append((len(z), None if omega is None else omega.tolist()))
        return teacher(z, at, given, None)

    path = TeacherPath(counting, sd_schedule, None if without == "null_cond" else null_cond)
    z_s = path(z_t, at(t, s, cond, None if without == "omega" else torch.ones(3)))
    assert asked == [(3, None if without == "omega" else [1.0] * 3)]
    torch.testing.assert_close(z_s, DDIM.step(sd_schedule, lambda z, at: teacher(z, at, cond, None), z_t, t, s))


def test_data_path_keeps_picture_and_noise(sd_schedule):
    z_0, epsilon = torch.randn(2, 3, 4, dtype=torch.float64).unbind()
    t, s = torch.tensor([999, 500, 19]), torch.tensor([979, 480, 0])
    batch = TrainingBatch(z_0, {}, t, s, torch.zeros_like(t), epsilon, None)
    z_s = DataPath(sd_schedule)(sd_schedule.diffuse(z_0, epsilon, t), batch)
    assert torch.equal(z_s, sd_schedule.diffuse(z_0, epsilon, s))
