"""The loss of algorithm 1: exact consistency function in, only solver error out; gradient into the student alone."""

import dataclasses
import itertools

import pytest
import torch
from torch import nn

from closed_forms import Gaussian
from fewstep.diffusion.prediction import Prediction, to_prediction
from fewstep.diffusion.solvers import SOLVERS
from fewstep.method.distances import l2, pseudo_huber
from fewstep.method.landing import BOUNDARY, BY_DDIM, boundary
from fewstep.method.paths import DataPath, TeacherPath, TrainingBatch
from fewstep.method.step import Method, consistency_losses
from fewstep.method.times import draw_times, step_back
from fewstep.method.weights import one

ORDERS = {"ddim": 1, "dpm-solver-2": 2, "dpm-solver++2s": 2}


class ExactConsistency:
    """A Network whose consistency function is the Gaussian's flow to t = 0."""

    def __init__(self, data: Gaussian) -> None:
        self.data = data

    def __call__(self, z_t, t, cond, omega):  # noqa: ARG002
        c_skip, c_out = (c.to(z_t.dtype)[:, None] for c in boundary(t))
        answer = self.data.flow(z_t, t, torch.zeros_like(t))
        z_0 = torch.where(c_out > 0, (answer - c_skip * z_t) / c_out, 0.0)
        return Prediction(z_0, torch.zeros_like(z_t))


class Linear(nn.Module):
    """A small ε-network with weights, and an answer that depends on the condition and on ω."""

    def __init__(self, schedule) -> None:
        super().__init__()
        self.schedule, self.asked = schedule, []
        self.layer = nn.Linear(3, 3, dtype=torch.float64)

    def forward(self, z_t, t, cond, omega):
        self.asked.append(len(z_t))
        output = self.layer(z_t) + cond["shift"][:, None] + (0 if omega is None else 0.1 * omega[:, None])
        return to_prediction("epsilon", output, z_t, *self.schedule.coefficients(t, z_t))


@pytest.fixture
def data(sd_schedule):
    mean, std = torch.tensor([[1.5, -0.5, 0.25], [0.3, 1.2, 0.7]], dtype=torch.float64)
    return Gaussian(sd_schedule, mean, std)


def make_batch(t, s, omega=None, e=None) -> TrainingBatch:
    generator = torch.Generator().manual_seed(0)
    z_0, epsilon = torch.randn(2, len(t), 3, dtype=torch.float64, generator=generator).unbind()
    cond = {"shift": torch.linspace(-1, 1, len(t), dtype=torch.float64)}
    return TrainingBatch(z_0, cond, t, s, torch.zeros_like(t) if e is None else e, epsilon, omega)


def draw_pairs(schedule, times):
    t = draw_times(torch.arange(200, dtype=torch.float64) / 200, schedule, 20, times)
    return t, step_back(t, torch.full_like(t, 20), torch.zeros_like(t))


def teacher_path(data: Gaussian, solver_name) -> TeacherPath:
    return TeacherPath(lambda z, t, _cond, _omega: data(z, t), data.schedule, None, SOLVERS[solver_name])


@pytest.mark.parametrize("times", ["grid", "any"])
def test_exact_network_on_the_exact_path_has_no_loss(data, times):
    t, s = draw_pairs(data.schedule, times)
    method = Method(data.schedule, lambda z_t, batch: data.flow(z_t, batch.t, batch.s), l2)
    exact = ExactConsistency(data)
    assert float(consistency_losses(method, exact, exact, make_batch(t, s)).mean()) <= 1e-24


@pytest.mark.parametrize("name", ORDERS)
def test_exact_network_on_a_solver_path_leaves_the_solvers_local_error(name, data):
    """A step of a solver of order p is off by O(h^{p+1}): halving the skip divides the distance by 2^{p+1}."""
    exact = ExactConsistency(data)
    method = Method(data.schedule, teacher_path(data, name), l2)
    t = torch.full((64,), 600)
    losses = [consistency_losses(method, exact, exact, make_batch(t, t - skip)) for skip in (80, 40, 20, 10)]
    rms = [float(loss.mean()) ** 0.5 for loss in losses]
    for coarse, fine in itertools.pairwise(rms):
        assert coarse / fine == pytest.approx(2 ** (ORDERS[name] + 1), rel=0.15)


def test_wrong_target_time_is_seen_by_the_exact_network(data):
    """What the laws above rule out: the same path, answered at t instead of at s, has a large loss."""
    exact = ExactConsistency(data)
    t, s = draw_pairs(data.schedule, "grid")
    method = Method(data.schedule, lambda z_t, batch: data.flow(z_t, batch.t, batch.s), l2)

    def late(z, _s, cond, omega):
        return exact(z, t, cond, omega)

    assert float(consistency_losses(method, exact, late, make_batch(t, s)).mean()) > 1e-4


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_exact_network_has_no_loss_at_any_end_between_zero_and_s(share, sd_schedule):
    """Of data that is one point the landing by DDIM is exact, so nothing but ends that differ could make a loss."""
    data = Gaussian(sd_schedule, torch.ones(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64))
    t, s = draw_pairs(data.schedule, "grid")
    batch = make_batch(t, s, e=(share * s).long())
    method = Method(sd_schedule, teacher_path(data, "ddim"), l2, landing=BY_DDIM)

    def exact(z, t, _cond, _omega):
        return data(z, t)

    assert float(consistency_losses(method, exact, exact, batch).mean()) <= 1e-18


@pytest.fixture
def networks(sd_schedule):
    torch.manual_seed(0)
    return Linear(sd_schedule), Linear(sd_schedule), Linear(sd_schedule)


@pytest.fixture
def batch():
    return make_batch(torch.tensor([19, 259, 999]), torch.tensor([0, 239, 979]), torch.tensor([0.0, 2.0, 7.5]))


NULL_COND = {"shift": torch.zeros(1, dtype=torch.float64)}


def test_gradient_flows_into_the_student_alone(sd_schedule, networks, batch):
    student, target, teacher = networks
    path = TeacherPath(teacher, sd_schedule, NULL_COND)
    consistency_losses(Method(sd_schedule, path, l2), student, target, batch).mean().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in student.parameters())
    assert all(p.grad is None for network in (target, teacher) for p in network.parameters())


def test_a_student_that_is_its_own_target_gets_no_gradient_through_the_target(sd_schedule, networks, batch):
    student, frozen, teacher = networks
    frozen.load_state_dict(student.state_dict())
    method = Method(sd_schedule, TeacherPath(teacher, sd_schedule, NULL_COND), l2)
    consistency_losses(method, student, student, batch).mean().backward()
    own = [p.grad.clone() for p in student.parameters()]
    student.zero_grad()
    consistency_losses(method, student, frozen, batch).mean().backward()
    for gradient, p in zip(own, student.parameters(), strict=True):
        torch.testing.assert_close(gradient, p.grad)


def test_loss_is_the_weighted_mean_of_the_distances(sd_schedule, networks, batch):
    student, target, teacher = networks
    path = TeacherPath(teacher, sd_schedule, NULL_COND)
    method = Method(sd_schedule, path, pseudo_huber(0.03), weight=lambda t, _s, _e: 1 + t / 100)
    z_t = sd_schedule.diffuse(batch.z_0, batch.epsilon, batch.t)
    z_s = path(z_t, batch)
    distances = pseudo_huber(0.03)(
        method.consistency_function(student, batch)(z_t, batch.t, batch.e),
        method.consistency_function(target, batch)(z_s, batch.s, batch.e),
    )
    weights = torch.tensor([1.19, 3.59, 10.99], dtype=torch.float64)
    torch.testing.assert_close(consistency_losses(method, student, target, batch), weights * distances)


def test_every_seam_of_the_method_changes_the_loss(sd_schedule, networks, batch):
    student, target, teacher = networks
    path = TeacherPath(teacher, sd_schedule, NULL_COND)

    def loss(target=target, path=path, distance=l2, weight=one, landing=BOUNDARY, batch=batch):
        method = Method(sd_schedule, path, distance, weight, landing)
        return consistency_losses(method, student, target, batch).mean().item()

    halfway = dataclasses.replace(batch, e=batch.s // 2)
    others = {
        "target": loss(target=student),
        "path": loss(path=DataPath(sd_schedule)),
        "solver": loss(path=TeacherPath(teacher, sd_schedule, NULL_COND, SOLVERS["dpm-solver-2"])),
        "distance": loss(distance=pseudo_huber(0.03)),
        "weight": loss(weight=lambda t, _s, _e: t / 1000),
        "no target": loss(target=None),
        "omega": loss(batch=dataclasses.replace(batch, omega=batch.omega - 1)),
        "landing": loss(landing=BY_DDIM),
    }
    for name, other in others.items():
        assert other != pytest.approx(loss(), rel=1e-6), name
    assert loss(landing=BY_DDIM, batch=halfway) != pytest.approx(others["landing"], rel=1e-6), "e"


def test_where_s_is_the_end_the_target_is_z_s_whatever_its_network_says(sd_schedule, networks, batch):
    student, target, _ = networks
    at_s = dataclasses.replace(batch, e=batch.s)
    method = Method(sd_schedule, DataPath(sd_schedule), l2, landing=BY_DDIM)
    z_t, z_s = (sd_schedule.diffuse(batch.z_0, batch.epsilon, time) for time in (batch.t, batch.s))
    wanted = l2(method.consistency_function(student, at_s)(z_t, batch.t, batch.s), z_s)
    assert torch.equal(consistency_losses(method, student, target, at_s), wanted)


def test_plain_consistency_distillation_asks_the_teacher_once_without_guidance(sd_schedule, networks):
    student, target, teacher = networks
    plain = make_batch(torch.tensor([19, 999]), torch.tensor([0, 979]), omega=None)
    method = Method(sd_schedule, TeacherPath(teacher, sd_schedule, None), l2)
    loss = consistency_losses(method, student, target, plain).mean()
    loss.backward()
    assert torch.isfinite(loss)
    assert (teacher.asked, student.asked, target.asked) == ([2], [2], [2])
