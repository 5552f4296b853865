"""The engine: a seed is its picture alone or among others, whoever comes and goes; what fails costs no others."""

import threading
import time

import numpy as np
import pytest
import torch
from PIL import Image

from fewstep import assets
from fewstep.errors import UserError
from fewstep.models.pipeline import Pipeline
from fewstep.models.pipeline_loading import load_pipeline
from fewstep.serve.engine import Engine
from fewstep.serve.errors import to_refusal
from fewstep.serve.jobs import (
    BusyError,
    CancelledError,
    ClosedError,
    DeadlineError,
    EngineLimits,
    PictureSpec,
    ShortOfMemoryError,
)
from serving import with_loras

PROMPTS = ["a small red star above a blue ring on a white background", "a pink heart", "a green cross"]


@pytest.fixture(scope="module")
def pipeline():
    return load_pipeline(assets.SCENES_LCM, "cpu")


@pytest.fixture
def engine(pipeline):
    engine = Engine(pipeline, {}, EngineLimits())
    engine.start()
    yield engine
    assert engine.close(30)


def spec(**changes):
    return PictureSpec(**{"prompt": PROMPTS[0], "seed": 3, "steps": 4, "omega": 1.0, "size": (64, 64), **changes})


def levels(image):
    return np.asarray(image).astype(int)


def painted(engine, *specs):
    return [levels(job.future.result(30)) for job in engine.submit(specs)]


def test_a_seed_is_its_picture_alone_or_batched_and_the_pipelines(engine, pipeline):
    specs = [
        spec(prompt=prompt, seed=seed, steps=steps)
        for prompt, seed, steps in zip(PROMPTS * 2, range(6), (1, 2, 4, 8, 3, 4), strict=True)
    ]
    together = painted(engine, *specs)
    for each, found in zip(specs, together, strict=True):
        (alone,) = painted(engine, each)
        (image,) = pipeline(each.prompt, steps=each.steps, seed=each.seed)
        assert np.abs(found - alone).max() <= 1
        assert np.abs(found - levels(image)).max() <= 1
    assert np.abs(together[0] - together[3]).mean() > 1


def test_from_a_picture_it_is_the_pipelines_too(engine, pipeline):
    start = pipeline(PROMPTS[1], seed=8)[0].resize((90, 70))
    found, other = painted(
        engine, spec(prompt=PROMPTS[1], start=start, strength=0.6), spec(prompt=PROMPTS[1], start=start, strength=0.2)
    )
    (image,) = pipeline(PROMPTS[1], seed=3, init_image=start, strength=0.6)
    assert np.abs(found - levels(image)).max() <= 1
    assert np.abs(other - found).mean() > 0.5


def test_a_picture_that_is_not_finite_is_told_of_and_costs_no_others(engine, pipeline, monkeypatch):
    decode = type(pipeline.model.codec).decode

    def overflow(codec, z_0):
        pixels = decode(codec, z_0)
        pixels[-1, 0, 0, 0] = float("nan")
        return pixels

    monkeypatch.setattr(type(pipeline.model.codec), "decode", overflow)
    kept, lost = engine.submit([spec(steps=1), spec(steps=1, seed=4)])
    with pytest.raises(UserError, match="scenes-lcm paints no picture but NaN"):
        lost.future.result(30)
    assert kept.future.result(30).size == (64, 64)
    assert to_refusal(lost.future.exception()).status == 500
    assert "numbers overflow in fp32" in str(to_refusal(lost.future.exception()))


class Gate:
    """Lets the network's evaluations through one by one."""

    def __init__(self, pipeline, monkeypatch):
        self.sizes, self._open, self.asked = [], threading.Semaphore(0), threading.Semaphore(0)
        forward = pipeline.model.network.forward

        def gated(z_t, *rest):
            self.asked.release()
            assert self._open.acquire(timeout=30)
            self.sizes.append(len(z_t))
            return forward(z_t, *rest)

        monkeypatch.setattr(pipeline.model.network, "forward", gated)

    def wait(self):
        assert self.asked.acquire(timeout=30)

    def let(self, count=1):
        for _ in range(count):
            self._open.release()


def test_pictures_join_and_leave_between_steps(engine, pipeline, monkeypatch):
    gate = Gate(pipeline, monkeypatch)
    (first,) = engine.submit([spec(steps=3)])
    gate.wait()
    (second,) = engine.submit([spec(prompt=PROMPTS[1], steps=3)])  # while the first step of the other is computed
    gate.let()
    gate.wait()
    (third,) = engine.submit([spec(prompt=PROMPTS[2], steps=1)])
    gate.let(6)
    for job in (first, second, third):
        assert job.future.result(30)
    assert gate.sizes == [1, 2, 3, 1]


def test_who_leaves_makes_room(engine, pipeline, monkeypatch):
    gate = Gate(pipeline, monkeypatch)
    stays, leaves = engine.submit([spec(steps=3), spec(seed=5, steps=3)])
    gate.wait()
    leaves.cancel()
    gate.let(5)
    assert stays.future.result(30)
    with pytest.raises(CancelledError):
        leaves.future.result(1)
    assert gate.sizes == [2, 1, 1]
    assert engine.waiting == 0


@pytest.mark.parametrize(("limits", "most"), [(EngineLimits(batch=2), 2), (EngineLimits(batch_pixels=3 * 64 * 64), 3)])
def test_batches_are_bounded(pipeline, monkeypatch, limits, most):
    engine, sizes, forward = Engine(pipeline, {}, limits), [], pipeline.model.network.forward
    monkeypatch.setattr(pipeline.model.network, "forward", lambda z, *rest: sizes.append(len(z)) or forward(z, *rest))
    jobs = engine.submit([spec(seed=i, steps=1) for i in range(5)])
    engine.start()
    assert all(job.future.result(30) for job in jobs)
    assert max(sizes) == most
    assert sum(sizes) == 5
    assert engine.close(30)


def test_a_full_queue_refuses_and_says_when_to_come_again(pipeline):
    engine = Engine(pipeline, {}, EngineLimits(waiting=3))
    engine.submit([spec()] * 2)
    with pytest.raises(BusyError) as told:
        engine.submit([spec()] * 2)
    assert told.value.retry_after >= 1
    engine.submit([spec()])
    engine.start()
    assert engine.close(30)  # what was accepted is finished
    assert engine.counts.pictures == 3
    with pytest.raises(ClosedError):
        engine.submit([spec()])


def test_what_is_late_is_given_up(pipeline):
    engine = Engine(pipeline, {}, EngineLimits(deadline=0.01))
    (job,) = engine.submit([spec()])
    time.sleep(0.02)
    engine.start()
    with pytest.raises(DeadlineError):
        job.future.result(30)
    assert engine.counts.failed == {"DeadlineError": 1}
    assert engine.close(30)


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), ShortOfMemoryError),
        (MemoryError(), ShortOfMemoryError),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), ShortOfMemoryError),
        (ValueError("a fault"), ValueError),
    ],
)
def test_the_engine_outlives_what_goes_wrong(engine, pipeline, monkeypatch, error, told):
    def fails(*_):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(pipeline.model.network, "forward", fails)
        jobs = engine.submit([spec(), spec(seed=4)])
        for job in jobs:
            with pytest.raises(told):
                job.future.result(30)
    assert painted(engine, spec())[0].shape == (64, 64, 3)
    assert engine.counts.failed == {told.__name__: 2}


def test_steps_are_shown_to_those_who_want_them(engine):
    shown = []
    jobs = engine.submit([spec(previews=True), spec(seed=4)], lambda step, image: shown.append((step, levels(image))))
    final = levels(jobs[0].future.result(30))
    jobs[1].future.result(30)
    assert [step for step, _ in shown] == [1, 2, 3]
    assert np.abs(shown[-1][1] - final).mean() > 0.1


def test_lora_scales_act_at_once_and_pictures_of_others_are_untouched():
    engine = Engine(Pipeline(with_loras()), {"one": "lora0", "other": "lora1"}, EngineLimits())
    engine.start()
    kinds = [(("one", a), ("other", b)) for a, b in ((0.0, 0.0), (0.7, 0.0), (0.7, 0.4), (0.0, 0.0))]
    found = painted(engine, *(spec(loras=kind) for kind in kinds))
    assert engine.close(30)
    plain = levels(load_pipeline(assets.SCENES_LCM, "cpu")(PROMPTS[0], seed=3)[0])
    assert np.abs(found[0] - plain).max() <= 1
    assert np.abs(found[3] - plain).max() <= 1
    assert np.abs(found[1] - plain).max() > 8
    assert np.abs(found[2] - found[1]).max() > 8
    model = with_loras()
    for layer in model.network.backbone.modules():
        for name, scale in (("lora0", 0.7), ("lora1", 0.4)):
            if name in getattr(layer, "lora_A", {}):
                layer.set_scale(name, scale)
    assert np.abs(levels(Pipeline(model)(PROMPTS[0], seed=3)[0]) - found[2]).max() <= 1


def test_no_kind_waits_for_ever_behind_another(pipeline):
    """Pictures of another kind come in turn, though one kind alone would fill every batch."""
    engine = Engine(pipeline, {}, EngineLimits(batch=2))
    done = []
    many = engine.submit([spec(seed=i, steps=2) for i in range(8)])
    (other,) = engine.submit([spec(loras=(("none", 0.0),), steps=2)])
    for name, jobs in (("many", many), ("other", [other])):
        for job in jobs:
            job.future.add_done_callback(lambda _, name=name: done.append(name))
    engine._loras["none"] = "lora0"
    engine.start()
    assert engine.close(30)
    assert done.index("other") < 4


def test_a_stream_of_new_kinds_starves_nobody(pipeline):
    engine = Engine(pipeline, {}, EngineLimits(waiting=200))
    engine._use = lambda *_: None
    done = []
    (own,) = engine.submit([spec(steps=4)])
    own.future.add_done_callback(lambda _: done.append("own"))

    def another(number):
        """As soon as one is done the next comes, of a kind that was never there."""
        if number < 60:
            (job,) = engine.submit([spec(steps=1, loras=(("none", number / 100),))])
            job.future.add_done_callback(lambda _: (done.append(number), another(number + 1)))

    another(0)
    engine.start()
    own.future.result(60)
    while len(done) < 61:
        time.sleep(0.01)
    assert engine.close(30)
    assert done.index("own") <= 6


def test_a_start_that_cannot_be_read_costs_its_own_picture(engine, monkeypatch):
    alone = painted(engine, spec(seed=1))[0]

    def too_large(*_):
        raise MemoryError

    monkeypatch.setattr("fewstep.serve.engine.fit_cover", too_large)
    broken, other = engine.submit([spec(start=Image.new("RGB", (64, 64))), spec(seed=1)])
    with pytest.raises(ShortOfMemoryError):
        broken.future.result(30)
    assert np.abs(levels(other.future.result(30)) - alone).max() <= 1


def test_who_leaves_at_the_very_moment_does_no_harm(engine):
    class Leaving(type(engine.submit([spec(steps=1)])[0].future)):
        """Cancelled between the question whether it is done and the answer."""

        def set_result(self, result):
            self.cancel()
            super().set_result(result)

        def set_exception(self, exception):
            self.cancel()
            super().set_exception(exception)

    (gone,) = engine.submit([spec(steps=8)])
    gone.future.__class__ = Leaving
    (late,) = engine.submit([spec(steps=8)])
    late.future.__class__ = Leaving
    late.cancel()
    assert painted(engine, spec(seed=2))[0].shape == (64, 64, 3)
    assert engine.alive


def test_room_is_counted_by_what_is_painted_together(pipeline):
    """Where pixels bound the batch to one picture, sixteen of them take sixteen times as long."""
    engine = Engine(pipeline, {}, EngineLimits(batch_pixels=64 * 64, deadline=10))
    engine.counts.seconds_per_step = 0.5
    engine.submit([spec(steps=8)])
    with pytest.raises(BusyError):
        engine.submit([spec(steps=8)])
    Engine(pipeline, {}, EngineLimits(deadline=10)).submit([spec(steps=8)] * 2)
    engine.start()
    assert engine.close(30)


def test_pictures_of_every_mode_can_be_started_from(engine):
    assert painted(engine, spec(start=Image.new("RGB", (10, 300), "red")))[0].shape == (64, 64, 3)
