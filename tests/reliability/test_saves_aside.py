"""A checkpoint is written while training goes on: it holds its update, and no moment is a bad one to be killed in."""

import dataclasses
import json
import os
import shutil
import signal
import threading
import time

import pytest
import safetensors.torch

from fewstep.errors import StoppedError, UserError
from fewstep.files import DRAFT_MARK
from fewstep.parallel.world import current_world
from fewstep.train.checkpoint import NUMBERS_FILE, TENSORS_FILE, Checkpoints, why_spoilt
from fewstep.train.config import LoopConfig
from fewstep.train.loop import fit
from fewstep.train.saving import Saving
from killer import Killer
from ranks import run_ranks
from regression import Regression

BASE = LoopConfig(
    steps=15, batch_size=8, lr=0.01, ema_decay=0.9, log_every=3, checkpoint_every=4, record_samples=True
)  # fmt: skip
BROKEN = {"broken_at": (34, 100), "unreadable": (20, 70, 97)}
"""Samples of updates 5 and 13, and of 3, 9 and 13."""


def train(folder, at_step=None, **changes):
    fit(Regression(**BROKEN), dataclasses.replace(BASE, **changes), folder, "test", at_step)


def checkpoint(folder, step):
    return folder / "checkpoints" / f"step-{step:07d}"


def contents(folder, step):
    return [(checkpoint(folder, step) / name).read_bytes() for name in (TENSORS_FILE, NUMBERS_FILE)]


def rows(folder):
    """What is written along the way, but for times."""
    logged = [json.loads(line) for line in (folder / "metrics.jsonl").open()]
    kept = [{name: row[name] for name in ("step", "loss", "lr")} for row in logged]
    return kept, *((folder / name).read_text() for name in ("samples.jsonl", "dropped.jsonl"))


class Training:
    """How far a training is, for the thread that writes."""

    def __init__(self):
        self.step, self._moved = 0, threading.Condition()

    def __call__(self, step):
        with self._moved:
            self.step = step
            self._moved.notify_all()

    def wait_for(self, step):
        with self._moved:
            assert self._moved.wait_for(lambda: self.step >= step, 20)


def interrupt_at_5(training, folder):
    """Trains until somebody interrupts who has asked before."""

    def at_step(step):
        training(step)
        if step == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(folder, at_step)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    train(folder)
    return folder


@pytest.fixture
def while_writing(monkeypatch):
    """Gives what has a function of the step called in every save that follows, before the tensors are written."""
    save_file = safetensors.torch.save_file

    def install(act):
        def save(tensors, path):
            act(int(path.parent.name[len("step-") :][:7]))
            save_file(tensors, path)

        monkeypatch.setattr(safetensors.torch, "save_file", save)

    return install


def test_what_is_written_is_its_update_though_training_has_gone_on(tmp_path, while_writing, monkeypatch):
    training, writing, furthest = Training(), {}, {4: 7, 8: 11, 12: 14, 15: 15}  # then the next save waits
    begin = Saving.save

    def act(step):
        assert [*writing][-1] == step
        training.wait_for(furthest[step])
        time.sleep(0.05)
        assert training.step == furthest[step]

    def save(saving, state):
        held = [safetensors.torch.save(state.tensors()), json.dumps(state.numbers()).encode()]
        saving.finish()
        writing[state.step] = held
        begin(saving, state)

    while_writing(act)
    monkeypatch.setattr(Saving, "save", save)
    train(tmp_path, training, keep_checkpoints=9)
    assert [*writing] == [*furthest]
    for step, held in writing.items():
        assert contents(tmp_path, step) == held
    assert [len(json.loads(numbers)["skipped"]) for _, numbers in writing.values()] == [0, 1, 1, 2]


def killed_at(folder, at):
    """Goes on in another process, which is killed at a call of the first save when training is two updates further;
    returns whether that save came to its end."""
    child = os.fork()
    if child == 0:
        try:
            training, first = Training(), []

            def counts():
                thread = threading.current_thread()
                if thread.name == Saving.THREAD and not first:
                    first.append(thread)
                return thread in first

            Killer(at, counts, lambda: training.wait_for(14)).arm()
            train(folder, training)
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_killed_at_any_call_of_a_save_while_training_is_further(undisturbed, tmp_path):
    with pytest.raises(StoppedError, match="after update 8"):
        train(tmp_path / "before", lambda step: signal.raise_signal(signal.SIGTERM) if step == 7 else None)
    at, found = 0, []
    while True:
        folder = shutil.copytree(tmp_path / "before", tmp_path / str(at))
        finished = killed_at(folder, at)
        assert finished or rows(folder)[1].count("\n") in (14, 15)  # of updates that no checkpoint knows
        whole = [path for path in Checkpoints(folder / "checkpoints").list() if why_spoilt(path) is None]
        assert len(whole) >= 2
        found.append(int(whole[-1].name[5:]))
        train(folder)
        assert contents(folder, 15) == contents(undisturbed, 15)
        assert rows(folder) == rows(undisturbed)
        assert not list((folder / "checkpoints").glob(f"*{DRAFT_MARK}*"))
        shutil.rmtree(folder)
        if finished:
            break
        at += 1
    assert at > 30  # calls there were
    assert found[:-1] == sorted(found[:-1])
    assert set(found) == {8, 12, 15}


@pytest.mark.parametrize(("full_at", "latest"), [(8, 12), (15, 15)], ids=["at the next save", "at the end"])
def test_a_disk_that_fills_up_meanwhile_ends_the_run_in_a_line(undisturbed, tmp_path, while_writing, full_at, latest):
    training = Training()

    def act(step):
        if step == full_at:
            training.wait_for(min(step + 2, 15))
            raise OSError(28, "No space left on device")

    while_writing(act)
    before = {8: 4, 15: 12}[full_at]
    with pytest.raises(
        UserError, match=rf"No space left on device\); step-{before:07d} stands whole.*the same command goes on"
    ):
        train(tmp_path, training)
    assert min(full_at + 2, 15) <= training.step <= latest
    assert not list((tmp_path / "checkpoints").glob(f"*{DRAFT_MARK}*"))
    while_writing(lambda _: None)
    train(tmp_path)
    assert contents(tmp_path, 15) == contents(undisturbed, 15)
    assert rows(tmp_path) == rows(undisturbed)


def slowly(_):
    time.sleep(0.3)


def test_an_error_of_the_training_waits_for_what_is_being_written(tmp_path, while_writing):
    def fail(step):
        if step == 5:
            assert not checkpoint(tmp_path, 4).exists()
            raise RuntimeError("another reason")

    while_writing(slowly)
    with pytest.raises(RuntimeError, match="another reason"):
        train(tmp_path, fail)
    assert why_spoilt(checkpoint(tmp_path, 4)) is None


def test_a_second_interruption_does_not_wait(tmp_path, while_writing):
    training, leave = Training(), threading.Event()

    def act(_):
        training.wait_for(5)
        assert leave.wait(20)

    while_writing(act)
    interrupt_at_5(training, tmp_path)
    assert not checkpoint(tmp_path, 4).exists()
    leave.set()
    for thread in threading.enumerate():
        if thread.name == Saving.THREAD:
            assert thread.daemon  # the process would not wait for it
            thread.join()
    assert why_spoilt(checkpoint(tmp_path, 4)) is None


def test_a_run_started_again_in_the_same_process_waits_for_what_is_still_written(
    tmp_path, while_writing, undisturbed, monkeypatch
):
    waiting, newest = threading.Event(), Checkpoints.newest

    def act(step):
        if step == 4:
            assert not waiting.wait(0.5)  # nothing is looked for meanwhile

    def look(checkpoints, *given):
        waiting.set()
        return newest(checkpoints, *given)

    while_writing(act)
    interrupt_at_5(Training(), tmp_path)
    assert not checkpoint(tmp_path, 4).exists()
    monkeypatch.setattr(Checkpoints, "newest", look)
    steps = []
    train(tmp_path, steps.append)
    assert steps[0] == 4
    assert contents(tmp_path, 15) == contents(undisturbed, 15)
    assert not list(tmp_path.rglob(f"*{DRAFT_MARK}*"))


def test_the_next_copy_takes_the_place_of_the_one_before(tmp_path, monkeypatch):
    places = []

    def save(_, tensors, *__):
        places.append({name: value.data_ptr() for name, value in tensors.items() if name != "losses"})

    monkeypatch.setattr(Checkpoints, "save", save)
    train(tmp_path)
    assert len(places) == 4
    assert len(places[0]) > 10
    assert places == places[:1] * 4


def stop_in_one(folder):
    """The second process is asked to stop; both do, once the first has written."""
    world = current_world()
    if world.main:
        save_file = safetensors.torch.save_file
        safetensors.torch.save_file = lambda *given: (slowly(0), save_file(*given))

    def stop(step):
        if step == 4 and not world.main:
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(StoppedError, match="after update 5"):
        train(folder, stop)
    assert why_spoilt(checkpoint(folder, 5)) is None
    world.wait()


def test_all_processes_wait_for_the_one_that_writes(tmp_path):
    run_ranks(2, stop_in_one, tmp_path)  # fails where one of them does
    assert why_spoilt(checkpoint(tmp_path, 5)) is None
