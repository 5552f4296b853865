"""fp16 with loss scaling, on a processor: overflows are left out by all alike, and nothing of it is lost."""

import copy
import dataclasses
import json

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from fewstep.data import draws
from fewstep.parallel.world import current_world
from fewstep.train import loop, vetoes
from fewstep.train.config import LoopConfig
from fewstep.train.learner import Learner, replicate
from fewstep.train.loop import NonFiniteLossError, fit
from fewstep.train.task import Loss, StudentTask
from fewstep.train.vetoes import LossScale
from ranks import run_ranks

CONFIG = LoopConfig(
    steps=12, batch_size=8, lr=0.01, ema_decay=0.9, log_every=1, checkpoint_every=4, keep_checkpoints=9,
    precision="fp16",
)  # fmt: skip
CPU = torch.device("cpu")


class Steep(StudentTask):
    """Fits a small network to sin; the loss of samples in `steep` is that of others times 1,000."""

    def __init__(self, steep=()):
        torch.manual_seed(5)
        network = nn.Sequential(nn.Linear(1, 16), nn.Tanh(), nn.Linear(16, 1))
        self.averaged = copy.deepcopy(network)
        self.learner = Learner(weights=network, student=network)
        if current_world().size > 1:
            self.learner = replicate(self.learner)
        self.student, self.steep = network, steep

    def loss(self, counters):
        x = draws.normal(0, "x", counters, (1,))
        losses = (self.learner.student(x).float() - x.sin()).square().mean(1)
        factors = torch.tensor([1000.0 if i in self.steep else 1.0 for i in counters])
        return Loss((losses * factors).sum(), torch.tensor(float(len(losses))))


def trained(folder, config=CONFIG, steep=()):
    task = Steep(steep)
    fit(task, config, folder, "test")
    return task


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_it_learns_as_fp32_does_and_computes_in_fp16(tmp_path):
    config = dataclasses.replace(CONFIG, steps=120)
    trained(tmp_path / "half", config)
    trained(tmp_path / "whole", dataclasses.replace(config, precision="fp32"))
    half, whole = (lines(tmp_path / name)[-1] for name in ("half", "whole"))
    assert half["loss"] != whole["loss"]
    assert half["loss"] == pytest.approx(whole["loss"], rel=0.1)
    assert half["loss"] < 0.2 * lines(tmp_path / "half")[0]["loss"]
    assert half["loss_scale"] == vetoes.FIRST_SCALE
    assert "loss_scale" not in whole


def test_overflows_lower_the_scale_and_change_no_weight(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(loop, "FIRST_SCALE", 2.0**24)
    task = Steep()
    begun, seen = [copy.deepcopy(task.student.state_dict())], []
    fit(task, CONFIG, tmp_path, "test", lambda _: seen.append(copy.deepcopy(task.student.state_dict())))
    scales = [line["loss_scale"] for line in lines(tmp_path)]
    overflowed = [later < before for before, later in zip([2.0**24, *scales], scales, strict=False)]
    assert all(overflowed[:4])  # more in a row than would end a run
    assert not all(overflowed)
    assert scales[-1] == 2.0 ** (24 - sum(overflowed))
    for skipped, before, after in zip(overflowed, begun + seen, seen, strict=False):
        assert all(torch.equal(before[name], after[name]) for name in before) == skipped
    assert "left out" not in capsys.readouterr().err
    numbers = json.loads((tmp_path / "checkpoints/step-0000012/state.json").read_text())
    assert numbers["skipped"] == []
    assert (numbers["loss_scale"], numbers["updates_at_loss_scale"]) == (
        scales[-1], 12 - 1 - max(i for i, skipped in enumerate(overflowed) if skipped)
    )  # fmt: skip


def test_what_no_scale_helps_ends_the_run(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "FIRST_SCALE", 2.0)
    steep = range(8, 1000)
    monkeypatch.setattr(Steep, "loss", lambda self, counters: Loss(
        (self.student(torch.ones(8, 1)).float() * (1e6 if counters.start in steep else 1.0)).sum(), torch.tensor(8.0)
    ))  # fmt: skip
    with pytest.raises(NonFiniteLossError, match="the loss of update 5 is not finite, 3 so far"):
        trained(tmp_path)


def test_a_run_that_is_cut_goes_on_bit_for_bit(tmp_path, monkeypatch):
    monkeypatch.setattr(vetoes, "GROWS_AFTER", 3)
    steep = range(40, 48)
    trained(tmp_path / "straight", steep=steep)

    def cut(step):
        if step == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(Steep(steep), CONFIG, tmp_path / "cut", "test", cut)
    trained(tmp_path / "cut", steep=steep)
    for name in ("straight", "cut"):
        scales = {line["step"]: line["loss_scale"] for line in lines(tmp_path / name)}
        assert scales[5] == scales[3] == 2 * scales[1]  # grown after three
        assert scales[6] == scales[5] / 2  # the steep ones overflow
    one, other = (
        load_file(tmp_path / name / "checkpoints/step-0000012/state.safetensors") for name in ("straight", "cut")
    )
    assert all(torch.equal(one[name], other[name]) for name in one)
    one, other = ((tmp_path / name / "checkpoints/step-0000012/state.json").read_text() for name in ("straight", "cut"))
    assert one == other


def test_all_processes_leave_out_what_overflows_in_one(tmp_path):
    run_ranks(2, _train_rank, str(tmp_path))
    found = [json.loads((tmp_path / f"rank-{rank}.json").read_text()) for rank in (0, 1)]
    assert found[0] == found[1]
    assert found[0]["scales"][3:6] == [2.0**16, 2.0**15, 2.0**15]


def _train_rank(folder):
    from pathlib import Path

    from fewstep.train.loop import begin, do_update

    task, world = Steep(steep=range(36, 40)), current_world()  # the second half of the fifth batch, one process's share
    state, scales = begin(task.roles, CONFIG), []
    for _ in range(7):
        do_update(task, state, CONFIG, world)
        scales.append(float(state.scaling.scale))
    total = [float(value.double().sum()) for value in task.student.state_dict().values()]
    (Path(folder) / f"rank-{world.rank}.json").write_text(json.dumps({"scales": scales, "weights": total}))


def test_the_scale_doubles_after_enough_updates_and_not_while_it_is_vetoed():
    scale = LossScale(CPU, 4.0, vetoes.GROWS_AFTER - 2)
    zero, one = torch.tensor(0.0), torch.tensor(1.0)
    scale.follow(zero, one)
    assert scale.numbers() == {"loss_scale": 4.0, "updates_at_loss_scale": vetoes.GROWS_AFTER - 2}
    scale.follow(zero, zero)
    scale.follow(zero, zero)
    assert scale.numbers() == {"loss_scale": 8.0, "updates_at_loss_scale": 0}
    scale.follow(one, one)
    assert scale.numbers() == {"loss_scale": 4.0, "updates_at_loss_scale": 0}
