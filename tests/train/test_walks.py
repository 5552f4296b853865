"""Walkers: where each stands follows from its number alone, however often the run was cut and shared out."""

import dataclasses
import itertools

import pytest
import torch

from fewstep.commands.bench_methods import STABLE_DIFFUSION, BenchMethods, Oracle, draw, make_method
from fewstep.data import draws
from fewstep.data.latents import DroppedPicture
from fewstep.diffusion.schedule import Tabulated
from fewstep.measure.mixture import Points, Student
from fewstep.method.named import METHODS
from fewstep.method.times import edges
from fewstep.method.walks import Walk, make_walk
from fewstep.train.config import LoopConfig
from fewstep.train.learner import learn_every_weight
from fewstep.train.loop import fit
from fewstep.train.walk_task import WalkTask

SCHEDULE = Tabulated.from_config(STABLE_DIFFUSION)
NAMED = METHODS["any-step"]


class CountedPoints(Points):
    """Notes what is read, and loses every fifth picture."""

    def __init__(self, teacher):
        super().__init__(teacher, 64)
        self.read, self._lost = [], []

    def batch(self, counters, noise):
        self.read += counters
        batch = super().batch(counters, noise)
        lost = torch.tensor([i % 5 == 0 for i in counters])
        self._lost += [DroppedPicture(i, f"p{i}", "broken picture") for i in counters if i % 5 == 0]
        return dataclasses.replace(batch, valid=~lost)

    def dropped(self):
        lost, self._lost = self._lost, []
        return lost


@pytest.fixture(scope="module")
def world():
    return Oracle(SCHEDULE, (), 16)


@pytest.fixture
def make(world):
    """Makes a task of 8 walkers by steps of at most `skip`."""

    def make(skip=125, walkers=8, source=None):
        torch.manual_seed(0)
        config = BenchMethods(skip=skip, batch_size=walkers)
        walk = make_walk(SCHEDULE, skip, NAMED.phases, walkers)
        learner = learn_every_weight(Student(SCHEDULE, told_end=True, width=16), ema=True)
        return WalkTask(
            learner, make_method(NAMED, world), source or Points(world.teacher), draw(NAMED, config), 3, walk=walk
        )

    return make


@pytest.mark.parametrize("skip", [125, 25, 20, 7])
def test_a_walk_stops_at_every_phase_and_takes_equal_steps_between(skip):
    stops = make_walk(SCHEDULE, skip, (1, 2, 4, 8), 4).stops
    assert (stops[0], stops[-1]) == (SCHEDULE.last, 0)
    assert set(edges(SCHEDULE, 8).tolist()) <= set(stops.tolist())
    assert (stops[:-1] - stops[1:]).min() > 0
    assert (stops[:-1] - stops[1:]).max() <= skip
    lcms = make_walk(SCHEDULE, skip, (), 4).stops
    assert (lcms[:-1] - lcms[1:]).unique().numel() <= 2


@pytest.mark.parametrize(("hops", "walkers"), [(16, 8), (5, 8), (8, 8), (3, 1)])
def test_each_walker_goes_hop_by_hop_and_no_trajectory_twice(hops, walkers):
    walk = Walk(torch.arange(hops, -1, -1), walkers)
    counters = range(-hops * walkers, 4 * hops * walkers)
    numbers, done = walk.locate(counters)
    for walker in range(walkers):
        own, way = numbers[walker::walkers], done[walker::walkers]
        assert all(b == (a + 1) % hops for a, b in itertools.pairwise(way))
        assert all((b == a) == (hop > 0) for a, b, hop in zip(own, own[1:], way[1:], strict=False))
    begun = [number for number, hop in zip(numbers, done, strict=True) if hop == 0 and number >= 0]
    assert begun == list(range(len(begun)))  # read in their order, each once
    now = done[hops * walkers : (hops + 1) * walkers]
    assert max(map(now.count, now)) <= -(-walkers // hops)  # evenly spread over the way


def test_where_a_walker_stands_is_where_the_teacher_leads_from_its_noise(make, world):
    task = make()
    for visit in range(11):
        counters = range(8 * visit, 8 * visit + 8)
        batch, valid = task.draw_batch(counters)
        assert valid.all()
        assert bool((batch.e <= batch.s).all())
        assert bool((batch.s < batch.t).all())
        numbers, hops = task._walk.locate(counters)
        for row, (number, hop) in enumerate(zip(numbers, hops, strict=True)):
            z = draws.normal(3, "epsilon", [number], (2,))
            one = {name: value[row : row + 1] for name, value in batch.cond.items()}
            for t, s in zip(task._walk.stops[:hop], task._walk.stops[1:], strict=False):
                step = dataclasses.replace(
                    batch, cond=one, t=t.view(1), s=s.view(1), omega=batch.omega[row : row + 1], z_t=z
                )
                z = make_method(NAMED, world).path(z, step)
            torch.testing.assert_close(batch.z_t[row : row + 1], z, rtol=1e-4, atol=1e-5)
        task.loss(counters)


def test_a_run_that_goes_on_and_one_in_parts_stand_where_the_undisturbed_does(make):
    undisturbed, late, shared = make(), make(), make()
    for visit in range(14):
        counters = range(8 * visit, 8 * visit + 8)
        whole = undisturbed.draw_batch(counters)[0]
        parts = [shared.draw_batch(part)[0] for part in (counters[:4], counters[4:])]
        torch.testing.assert_close(torch.cat([part.z_t for part in parts]), whole.z_t)
        if visit == 9:
            again = late.draw_batch(counters)[0]
            assert torch.equal(again.z_t, whole.z_t)
            assert all(torch.equal(again.cond[name], whole.cond[name]) for name in whole.cond)
            assert torch.equal(again.omega, whole.omega)
            assert torch.equal(again.e, whole.e)
        undisturbed.loss(counters)
        for part in (counters[:4], counters[4:]):
            shared.loss(part)


def test_a_picture_is_read_when_its_trajectory_begins_and_counted_at_every_step(make, world):
    source = CountedPoints(world.teacher)
    task = make(source=source)
    for visit in range(20):
        counters = range(8 * visit, 8 * visit + 8)
        loss = task.loss(counters)
        numbers, _ = task._walk.locate(counters)
        out = [counter for counter, number in zip(counters, numbers, strict=True) if number % 5 == 0]
        assert [each.counter for each in task.dropped()] == out
        assert int(loss.valid) == 8 - len(out)
        assert task.keys(counters) == [source.keys(range(i, i + 1))[0] for i in numbers]
    assert source.read == sorted(set(source.read))
    # Eight that are learnt and eight on their way; then at each update one begins, and at the last one's end.
    assert len(source.read) == 2 * 8 + 20 - 1


def test_a_run_cut_and_taken_up_ends_with_the_same_weights(make, tmp_path):
    ends = []
    for folder, cuts in (("one", (12,)), ("two", (7, 12))):
        for steps in cuts:
            task = make()
            fit(
                task, LoopConfig(steps=steps, batch_size=8, checkpoint_every=7, precision="fp32"), tmp_path / folder, ""
            )
        ends.append(task.student.state_dict())
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])
