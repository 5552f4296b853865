"""Where answers land: below their times; whatever the end, an exact map leaves no loss on an exact path."""

import dataclasses

import pytest
import torch

from closed_forms import Gaussian
from fewstep.diffusion.flow import Flow
from fewstep.diffusion.prediction import to_prediction
from fewstep.measure.mixture import CLASSES, MEANS, STD, ExactMap, Mixture
from fewstep.method.distances import l2
from fewstep.method.landing import BY_DDIM, ConsistencyFunction
from fewstep.method.named import METHODS
from fewstep.method.paths import TrainingBatch
from fewstep.method.sampling import sample_consistency
from fewstep.method.step import Method, consistency_losses
from fewstep.method.times import ENDS, ZERO, edges, fixed_gap, jump_times, ratio_gap, step_back, whole_gap

SCHEDULES = {"tabulated": "sd_schedule", "flow": Flow(1000, 3.0)}


@pytest.fixture(params=SCHEDULES)
def schedule(request):
    found = SCHEDULES[request.param]
    return request.getfixturevalue(found) if isinstance(found, str) else found


def every_time(schedule):
    return torch.arange(1, schedule.last + 1), torch.rand(schedule.last, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", ENDS)
def test_an_end_lies_below_its_time(name, schedule):
    t, u = every_time(schedule)
    e = ENDS[name].choose(schedule, t, u, (1, 2, 4, 8))
    assert e.dtype == t.dtype
    assert ((e >= 0) & (e < t)).all()
    assert ENDS[name].choose(schedule, t[:0], u[:0], (1,)).shape == (0,)
    zero = torch.zeros(1, dtype=torch.long)
    assert ENDS[name].choose(schedule, zero, u[:1], (4,)) == 0
    several = any(
        (ENDS[name].choose(schedule, t, torch.full_like(u, at), (1, 2, 4, 8)) != e).any() for at in (0.0, 0.99)
    )
    assert several == ENDS[name].several or name == "phase"  # of which a method names one number


def test_a_phase_ends_at_its_edge(schedule):
    begins = edges(schedule, 4)
    first = schedule.last + 1 - schedule.num_steps
    assert begins.tolist() == [0, *(250 * j - 1 + first for j in (1, 2, 3))]
    t = torch.tensor([1, int(begins[1]), int(begins[1]) + 1, int(begins[3]), schedule.last])
    e = ENDS["phase"].choose(schedule, t, torch.zeros(5), (4,))
    assert e.tolist() == [0, 0, int(begins[1]), int(begins[2]), int(begins[3])]


@pytest.mark.parametrize(
    ("t", "phases", "ends"),
    [
        (999, (1, 2, 4, 8), {0: 3 / 6, 499: 1 / 6, 749: 1 / 6, 874: 1 / 6}),
        (999, (1, 1, 1, 1, 2), {0: 4 / 5, 499: 1 / 5}),
        (999, (4,), {749: 1}),
        (874, (1, 2, 4, 8), {749: 1}),  # eight steps alone ask there
        (749, (1, 2, 4, 8), {499: 1 / 2, 624: 1 / 2}),
        (499, (1, 2, 4, 8), {0: 1 / 3, 249: 1 / 3, 374: 1 / 3}),
        (500, (1, 2, 4, 8), {0: 1 / 4, 499: 3 / 4}),  # none asks there
    ],
)
def test_jumps_are_those_of_its_own_samplers_where_one_asks(t, phases, ends, sd_schedule):
    u = torch.linspace(0, 1, 6001, dtype=torch.float64)[:-1] + 1e-6
    e = ENDS["drawn-phase"].choose(sd_schedule, torch.full_like(u, t).long(), u, phases)
    assert {int(each): float((e == each).double().mean()) for each in e.unique()} == pytest.approx(ends, abs=1e-3)


@pytest.mark.parametrize("name", ENDS)
def test_an_exact_map_leaves_the_loss_of_an_exact_path_at_zero(name, sd_schedule):
    mean, std = torch.tensor([[0.5, -1.0], [0.3, 0.8]], dtype=torch.float64)
    data = Gaussian(sd_schedule, mean, std)

    def exact(z_t, t, cond, _omega):
        """Predicts what lands on the Gaussian's own trajectory at the end that it is told."""
        e = cond["end"]
        z_e = data.flow(z_t, t, e)
        (alpha_t, sigma_t), (alpha_e, sigma_e) = (sd_schedule.coefficients(time, z_t) for time in (t, e))
        determinant = alpha_t * sigma_e - sigma_t * alpha_e
        prediction = data(z_t, t)
        there = (t == e)[:, None]  # where every prediction of z_t will do
        return type(prediction)(
            torch.where(there, prediction.z_0, (z_t * sigma_e - sigma_t * z_e) / determinant),
            torch.where(there, prediction.epsilon, (alpha_t * z_e - alpha_e * z_t) / determinant),
        )

    def off(z_t, t, cond, omega):
        answer = exact(z_t, t, cond, omega)
        return type(answer)(answer.z_0 + 0.1, answer.epsilon)

    t = torch.arange(24, 1000, 25)
    e = ENDS[name].choose(sd_schedule, t, torch.rand(40), (1, 2, 4, 8))
    z_0, epsilon = torch.randn(2, 40, 2, dtype=torch.float64)
    batch = TrainingBatch(z_0, {}, t, step_back(t, torch.full_like(t, 25), e), e, epsilon, None)
    method = Method(
        sd_schedule, lambda z_t, batch: data.flow(z_t, batch.t, batch.s), l2, landing=BY_DDIM, told_end=True
    )  # fmt: skip
    assert consistency_losses(method, exact, exact, batch).max() < 1e-20
    assert consistency_losses(method, off, exact, batch).min() > 1e-6


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_a_jump_to_where_it_stands_is_no_jump(kind, schedule):
    f = ConsistencyFunction(
        lambda z, t, _cond, _omega: to_prediction(kind, z.sin() + 1, z, *schedule.coefficients(t, z)), {}, None,
        schedule, BY_DDIM,
    )  # fmt: skip
    t = torch.tensor([1, 300, 998])
    z = torch.randn(3, 5)
    assert torch.equal(f(z, t, t), z)


def test_the_exact_map_is_the_same_in_any_number_of_jumps(sd_schedule):
    teacher = Mixture(sd_schedule, MEANS, STD)
    cond, omega = {"weights": CLASSES.repeat(16, 1)}, torch.full((32,), 5.0, dtype=torch.float64)
    f = ConsistencyFunction(ExactMap(teacher), cond, omega, sd_schedule, BY_DDIM, told_end=True)
    noise = torch.randn(32, 2, dtype=torch.float64)
    answers = []
    for count in (1, 2, 4, 8):
        times, ends = jump_times(sd_schedule, count)
        answers.append(sample_consistency(f, times, lambda: noise, ends=ends))
    for answer in answers[1:]:
        torch.testing.assert_close(answer, answers[0], rtol=0, atol=2e-3)


def test_gaps(sd_schedule):
    t, position = torch.tensor([24, 499, 999]), torch.tensor([0, 10, 100])
    assert whole_gap(t, position).tolist() == t.tolist()
    gap = ratio_gap(sd_schedule, q=2.0, doubling=10)
    noise = torch.exp(-sd_schedule.lam(t))
    wanted = 1 - 2.0 ** -(position // 10 + 1.0) * (1 + 8 * torch.sigmoid(-noise))
    found = torch.exp(-sd_schedule.lam(t - gap(t, position))) / noise
    assert gap(t, position)[0] == 24  # s = 0, below which there is nothing
    torch.testing.assert_close(found[1:], wanted[1:].clamp(min=float((torch.exp(-sd_schedule.lam(t * 0)) / noise)[1])),
                               rtol=0.03, atol=0.01)  # fmt: skip
    assert (gap(t, position) >= 1).all()


@pytest.mark.parametrize("name", METHODS)
def test_every_method_says_what_it_takes(name):
    method = METHODS[name]
    assert method.source
    assert method.end.several <= method.told_end or name in ("tcd", "guided-distill")  # which make do without
    assert method.phases or method.end.name not in ("phase", "drawn-phase")
    assert method.landing.anywhere or method.end is ZERO


def test_a_new_method_is_a_value(sd_schedule):
    """No loop, no class: the seams take other values."""
    new = dataclasses.replace(METHODS["any-step"], name="three", phases=(3,), told_end=False, end=ENDS["phase"])
    times, ends = new.sampling(sd_schedule, 40, 3)
    assert [*times, 0] == [999, *ends]
    gap = new.make_gap(sd_schedule, 25, 1)
    assert gap(torch.tensor([999]), torch.tensor([0])) == fixed_gap(25)(torch.tensor([999]), torch.tensor([0])) == 25
