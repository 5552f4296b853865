"""The training loop on a small regression, where every option's effect can be seen."""

import dataclasses
import json
import math
import re
import signal
import time

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from fewstep.data import draws
from fewstep.errors import StoppedError, UserError
from fewstep.train.config import LoopConfig
from fewstep.train.loop import NonFiniteLossError, fit
from fewstep.train.optimisation import compute_learning_rate, update_average
from fewstep.train.task import Loss
from regression import Regression

BASE = LoopConfig(steps=12, batch_size=8, lr=0.01, ema_decay=0.9, log_every=5, checkpoint_every=5)


def trained(folder, config=BASE, **options):
    task = Regression(**options)
    fit(task, config, folder, "test")
    return task


def weights(module):
    return torch.cat([parameter.detach().flatten() for parameter in module.parameters()])


def test_learns_and_logs(tmp_path):
    trained(tmp_path, dataclasses.replace(BASE, steps=300, log_every=50))
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [50, 100, 150, 200, 250, 300]
    assert lines[-1]["loss"] < 0.3 * lines[0]["loss"]
    assert {"loss", "lr", "images_per_second", "seconds"} <= lines[0].keys()


def test_images_a_second_leave_out_what_is_done_between_updates(tmp_path, capsys):
    class Slow(Regression):
        def loss(self, counters):
            time.sleep(0.02)
            return super().loss(counters)

    fit(Slow(), BASE, tmp_path, "test", lambda _: time.sleep(0.1))
    _, second, _ = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert second["seconds"] > 9 * 0.12
    assert 8 / 0.1 < second["images_per_second"] < 8 / 0.02
    left = int(re.search(r"5/12 .* (\d+) s left", capsys.readouterr().err)[1])
    assert left >= 1  # 7 times 0.12 s; without what is done between, 0.14


def test_tensorboard_gets_what_metrics_hold(tmp_path):
    trained(tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    for name in ("loss", "lr"):
        shown = [(event.step, event.value) for event in events.Scalars(name)]
        assert shown == [(line["step"], pytest.approx(line[name], rel=1e-6)) for line in lines]


@pytest.mark.parametrize(
    "change",
    [
        {"steps": 13}, {"batch_size": 4}, {"lr": 0.02}, {"lr_decay": "cosine"}, {"lr_decay": "linear"},
        {"warmup_steps": 4}, {"weight_decay": 0.5}, {"beta2": 0.9}, {"clip_norm": 0.01}, {"precision": "bf16"},
    ],
    ids=str,
)  # fmt: skip
def test_every_option_changes_the_weights(tmp_path, change):
    plain = trained(tmp_path / "a")
    changed = trained(tmp_path / "b", dataclasses.replace(BASE, **change))
    assert not torch.equal(weights(plain.student), weights(changed.student))


def test_ema_decay_changes_the_average_alone(tmp_path):
    plain = trained(tmp_path / "a")
    changed = trained(tmp_path / "b", dataclasses.replace(BASE, ema_decay=0.5))
    assert torch.equal(weights(plain.student), weights(changed.student))
    assert not torch.equal(weights(plain.averaged), weights(changed.averaged))


def test_checkpointing_and_logging_change_no_weight(tmp_path):
    plain = trained(tmp_path / "a")
    changed = trained(tmp_path / "b", dataclasses.replace(BASE, log_every=1, checkpoint_every=1, keep_checkpoints=3))
    assert torch.equal(weights(plain.student), weights(changed.student))
    assert len(list((tmp_path / "b" / "checkpoints").iterdir())) == 3


def test_accumulation_is_the_same_batch_in_parts(tmp_path):
    whole, parts = trained(tmp_path / "a"), trained(tmp_path / "b", dataclasses.replace(BASE, accumulation=4))
    torch.testing.assert_close(weights(whole.student), weights(parts.student), rtol=1e-4, atol=1e-6)
    assert whole.seen == parts.seen


def test_every_sample_counter_comes_once_and_in_order(tmp_path):
    assert trained(tmp_path).seen == list(range(12 * 8))


@pytest.mark.parametrize("ema", [True, False])
def test_interrupted_equals_uninterrupted_bit_for_bit(tmp_path, ema):
    config = dataclasses.replace(BASE, checkpoint_every=4, ema_decay=0.9 if ema else 0)

    class InterruptedError(Exception):
        pass

    def interrupt(step):
        if step == 6:  # two updates after the last checkpoint
            raise InterruptedError

    straight = trained(tmp_path / "a", config, ema=ema)
    with pytest.raises(InterruptedError):
        fit(Regression(ema=ema), config, tmp_path / "b", "test", interrupt)
    resumed = trained(tmp_path / "b", config, ema=ema)
    assert resumed.seen[0] == 4 * 8
    assert torch.equal(weights(straight.student), weights(resumed.student))
    if ema:
        assert torch.equal(weights(straight.averaged), weights(resumed.averaged))
    logged = [[json.loads(line) for line in (tmp_path / x / "metrics.jsonl").open()] for x in "ab"]
    assert [[(line["step"], line["loss"]) for line in lines] for lines in logged] == [
        [(5, logged[0][0]["loss"]), (10, logged[0][1]["loss"]), (12, logged[0][2]["loss"])]
    ] * 2
    shown = EventAccumulator(str(tmp_path / "b" / "tensorboard")).Reload().Scalars("loss")
    assert [event.step for event in shown] == [5, 10, 12]


def test_what_is_cut_short_at_a_step_is_done_again_and_costs_no_update(tmp_path):
    done = []

    def failing(step):
        if step == 5:
            raise MemoryError

    with pytest.raises(MemoryError):
        fit(Regression(), BASE, tmp_path, "test", failing)
    task = Regression()
    fit(task, BASE, tmp_path, "test", done.append)
    assert done[0] == 5
    assert task.seen[0] == 5 * BASE.batch_size


def test_seconds_go_on_after_a_restart(tmp_path):
    trained(tmp_path, dataclasses.replace(BASE, steps=5))
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    (tmp_path / "metrics.jsonl").write_text(json.dumps({**json.loads(lines[0]), "seconds": 1000.0}) + "\n")
    trained(tmp_path)
    seconds = [json.loads(line)["seconds"] for line in (tmp_path / "metrics.jsonl").open()]
    assert seconds[0] == 1000
    assert 1000 <= seconds[1] <= seconds[2] < 1100


def test_resuming_keeps_moments_with_their_weights_in_channels_last(tmp_path):
    class Convolution(Regression):
        def __init__(self):
            super().__init__(ema=False)
            self.student = nn.Conv2d(4, 6, 3).to(memory_format=torch.channels_last)

        def loss(self, counters):
            x = draws.normal(0, "x", counters, (4, 5, 5))
            return Loss.from_mean((self.student(x) - x.mean()).square().mean(), counters)

    config = dataclasses.replace(BASE, ema_decay=0)
    whole, first, second = Convolution(), Convolution(), Convolution()
    fit(whole, config, tmp_path / "a", "test")
    fit(first, dataclasses.replace(config, steps=6), tmp_path / "b", "test")
    fit(second, config, tmp_path / "b", "test")
    assert torch.equal(weights(whole.student), weights(second.student))


@pytest.mark.parametrize("left_out", ["optimizer.exp_avg.0.weight", "averaged.0.weight", "student.0.bias", "counter"])
def test_a_state_with_something_left_out_does_not_end_the_same(tmp_path, left_out, monkeypatch):
    """The control of the test above: it must be able to fail."""
    from fewstep.train.state import RunState

    config = dataclasses.replace(BASE, checkpoint_every=6, steps=12)
    straight = trained(tmp_path / "a", config)
    trained(tmp_path / "b", dataclasses.replace(config, steps=6))
    complete = RunState.restore

    def forgetful(state, tensors, numbers):
        if left_out in tensors:
            tensors[left_out] = torch.zeros_like(tensors[left_out])
        else:
            numbers[left_out] = 0
        complete(state, tensors, numbers)

    monkeypatch.setattr(RunState, "restore", forgetful)
    resumed = trained(tmp_path / "b", config)
    same = torch.equal(weights(straight.student), weights(resumed.student)) and torch.equal(
        weights(straight.averaged), weights(resumed.averaged)
    )
    assert not same


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_a_broken_update_is_left_out_and_told(tmp_path, where, capsys):
    """Update 3 holds samples 16 to 23: it moves neither weights, nor moments, nor average."""

    class Broken(Regression):
        def loss(self, counters):
            total, count = super().loss(counters)
            if 20 in counters and where == "gradient":
                total = total + (self.student[0].weight * 0).abs().sqrt().sum()  # 0, with an infinite slope
            return Loss(total, count)

    class Missing(Regression):
        """Never asked for update 3: the learning rate is constant, so that the others are the same."""

        def loss(self, counters):
            return super().loss(counters if counters.start < 16 else range(counters.start + 8, counters.stop + 8))

    task, reference = Broken(broken_at=[20] if where == "loss" else []), Missing()
    fit(task, BASE, tmp_path / "a", "test")
    fit(reference, dataclasses.replace(BASE, steps=11), tmp_path / "b", "test")
    assert torch.equal(weights(task.student), weights(reference.student))
    assert torch.equal(weights(task.averaged), weights(reference.averaged))
    assert "the loss of update 3 is not finite, it was left out (picture 16, picture 17, picture 18 and 5 more)" in (
        capsys.readouterr().err
    )
    numbers = json.loads((tmp_path / "a/checkpoints/step-0000012/state.json").read_text())
    assert numbers["skipped"] == [{"step": 3, "samples": [f"picture {i}" for i in range(16, 24)]}]
    losses = [json.loads(line)["loss"] for line in (tmp_path / "a/metrics.jsonl").open()]
    assert not any(math.isnan(loss) for loss in losses)


def test_three_broken_updates_in_a_row_end_the_run(tmp_path):
    """Updates 6, 7 and 8; the host looks after update 10 only, and nothing has moved since update 5."""
    config = dataclasses.replace(BASE, log_every=10, checkpoint_every=100)
    task, reference = Regression(broken_at=range(40, 64)), Regression()
    with pytest.raises(NonFiniteLossError, match="update 8 is not finite, 3 so far"):
        fit(task, config, tmp_path / "a", "test")
    fit(reference, dataclasses.replace(config, steps=5), tmp_path / "b", "test")
    assert torch.equal(weights(task.student), weights(reference.student))
    assert torch.equal(weights(task.averaged), weights(reference.averaged))
    assert not list((tmp_path / "a").glob("checkpoints/*"))


def test_broken_updates_count_over_a_restart(tmp_path):
    """Three of twelve are too many, in a row or not."""
    config = dataclasses.replace(BASE, log_every=2, checkpoint_every=2)
    fit(Regression(broken_at=[0, 30]), dataclasses.replace(config, steps=6), tmp_path, "test")
    with pytest.raises(NonFiniteLossError):
        fit(Regression(broken_at=[0, 30, 80]), config, tmp_path, "test")


def test_pictures_that_cannot_be_read_weigh_nothing_and_are_listed(tmp_path):
    class Without(Regression):
        def loss(self, counters):
            return super().loss([i for i in counters if i not in (3, 90)])

    task, reference = Regression(unreadable=(3, 90)), Without()
    fit(task, BASE, tmp_path / "a", "test")
    fit(reference, BASE, tmp_path / "b", "test")
    torch.testing.assert_close(weights(task.student), weights(reference.student), rtol=1e-5, atol=1e-6)
    listed = [json.loads(line) for line in (tmp_path / "a/dropped.jsonl").open()]
    assert [(each["counter"], each["key"], each["reason"]) for each in listed] == [
        (3, "picture 3", "broken picture"), (90, "picture 90", "broken picture"),
    ]  # fmt: skip


@pytest.mark.parametrize("unreadable", [range(100, 200), range(0, 4000, 10)], ids=["in a row", "too many"])
def test_too_many_unreadable_pictures_end_the_run(tmp_path, unreadable):
    config = dataclasses.replace(BASE, steps=500)
    with pytest.raises(UserError, match=r"could not be read.*picture \d+ \(broken picture\)"):
        fit(Regression(unreadable=unreadable), config, tmp_path, "test")


def test_the_samples_of_every_update_are_written_if_wanted(tmp_path):
    trained(tmp_path, dataclasses.replace(BASE, record_samples=True))
    lines = [json.loads(line) for line in (tmp_path / "samples.jsonl").open()]
    assert [line["step"] for line in lines] == list(range(1, 13))
    assert [key for line in lines for key in line["keys"]] == [f"picture {i}" for i in range(96)]


def test_a_signal_ends_the_update_saves_and_goes_on(tmp_path):
    def interrupt(step):
        if step == 6:
            signal.raise_signal(signal.SIGTERM)

    straight = trained(tmp_path / "a")
    with pytest.raises(StoppedError, match="after update 7") as stopped:
        fit(Regression(), BASE, tmp_path / "b", "test", interrupt)
    assert stopped.value.number == signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    resumed = trained(tmp_path / "b")
    assert resumed.seen[0] == 7 * 8
    assert torch.equal(weights(straight.student), weights(resumed.student))
    assert torch.equal(weights(straight.averaged), weights(resumed.averaged))


def test_average_is_the_formula():
    student, averaged = nn.Linear(3, 2), nn.Linear(3, 2)
    expected = 0.9 * averaged.weight.detach() + 0.1 * student.weight.detach()
    update_average(averaged, student, 0.9, torch.zeros(()))
    torch.testing.assert_close(averaged.weight.detach(), expected)


def test_learning_rate_shapes():
    config = LoopConfig(steps=110, lr=1.0, warmup_steps=10, lr_decay="linear")
    assert compute_learning_rate(config, 0, 110) == pytest.approx(0.1)
    assert compute_learning_rate(config, 9, 110) == pytest.approx(1.0)
    assert compute_learning_rate(config, 60, 110) == pytest.approx(0.5)
    assert compute_learning_rate(dataclasses.replace(config, lr_decay="cosine"), 60, 110) == pytest.approx(0.5)
    assert compute_learning_rate(dataclasses.replace(config, lr_decay="constant"), 109, 110) == 1.0


@pytest.mark.parametrize(
    "change",
    [
        {"lr": float("nan")}, {"weight_decay": float("inf")}, {"seed": 2**64}, {"steps": 0}, {"batch_size": 0},
        {"accumulation": 3}, {"lr": 0.0}, {"ema_decay": 1.0}, {"clip_norm": -1.0}, {"keep_checkpoints": 1},
    ],
    ids=str,
)  # fmt: skip
def test_impossible_settings_are_refused(change):
    with pytest.raises(UserError, match=next(iter(change))):
        dataclasses.replace(BASE, **change)
