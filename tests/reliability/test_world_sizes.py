"""One run over changing numbers of processes: the same samples, the same noise, and, to rounding, the same losses."""

import hashlib
import json
import random

import pytest
import torch
from torch import nn

from closed_forms import SD_CONFIG
from fewstep.data.latents import LatentBatch
from fewstep.data.order import SampleOrder
from fewstep.diffusion.prediction import to_prediction
from fewstep.diffusion.schedule import Tabulated
from fewstep.method.distances import l2
from fewstep.method.paths import TeacherPath
from fewstep.method.step import Method
from fewstep.method.times import fixed_gap
from fewstep.parallel.world import current_world
from fewstep.train.config import LoopConfig
from fewstep.train.distill_task import DistillTask, TimeAndGuidance
from fewstep.train.learner import learn_every_weight, replicate
from fewstep.train.loop import fit
from ranks import run_ranks

STEPS, BATCH, POINTS = 30, 12, 40


class Network(nn.Module):
    def __init__(self, schedule, seed):
        super().__init__()
        torch.manual_seed(seed)
        self.schedule = schedule
        self.layers = nn.Sequential(nn.Linear(5, 32), nn.Tanh(), nn.Linear(32, 2))

    def forward(self, z_t, t, cond, omega):
        more = torch.stack([t / 1000, cond["class"], torch.zeros_like(t) if omega is None else omega], dim=1)
        output = self.layers(torch.cat([z_t, more.to(z_t.dtype)], dim=1))
        return to_prediction("v_prediction", output, z_t, *self.schedule.coefficients(t, z_t))


class Points:
    def shape_at(self, _counters):
        return (2,)

    broken = -1

    def __init__(self):
        self.order = SampleOrder(5, (POINTS,))
        generator = torch.Generator().manual_seed(0)
        self.points = torch.randn(POINTS, 2, generator=generator)
        self.classes = torch.randint(2, (POINTS,), generator=generator).to(self.points.dtype)

    def batch(self, counters, noise):
        index = torch.from_numpy(self.order(counters))
        valid = torch.tensor([i % 17 != 3 for i in counters])  # some cannot be read
        points = self.points[index].clone()
        if self.broken in counters:
            points[counters.index(self.broken)] = torch.nan
        return LatentBatch(points + 0.1 * noise, {"class": self.classes[index]}, valid)

    def keys(self, counters):
        return [f"point {i}" for i in self.order(counters)]

    def dropped(self):
        return []


class Recorded(DistillTask):
    """Writes the hash of all that a picture's loss is made of."""

    def draw_batch(self, counters):
        batch, valid = super().draw_batch(counters)
        with self.file.open("a") as file:
            for i, counter in enumerate(counters):
                parts = (batch.z_0, batch.epsilon, batch.t, batch.s, batch.e, batch.omega, batch.cond["class"], valid)
                content = b"".join(part[i].numpy().tobytes() for part in parts)
                file.write(json.dumps({"counter": counter, "sha256": hashlib.sha256(content).hexdigest()}) + "\n")
        return batch, valid


def train(folder, steps):
    torch.set_default_dtype(torch.float64)
    world = current_world()
    schedule = Tabulated.from_config(SD_CONFIG)
    teacher = Network(schedule, 1).requires_grad_(False)
    learner = learn_every_weight(Network(schedule, 2), ema=True)
    if world.size > 1:
        learner = replicate(learner)
    method = Method(schedule, TeacherPath(teacher, schedule, {"class": torch.full((1,), 0.5)}), l2)
    drawn = TimeAndGuidance(skip=20, times="grid", gap=fixed_gap(20), omega_range=(1.0, 4.0))
    task = Recorded(learner, method, Points(), drawn, seed=7)
    folder.mkdir(exist_ok=True)
    task.file = folder / f"seen-{steps}-{world.rank}.jsonl"
    config = LoopConfig(
        steps=steps, batch_size=BATCH, accumulation=2, lr=1e-2, ema_decay=0.9, log_every=1, seed=7, record_samples=True
    )
    fit(task, config, folder, "test")


def losses(folder):
    return [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").open()]


def seen(folder):
    lines = [json.loads(line) for file in folder.glob("seen-*") for line in file.open()]
    hashes = {line["counter"]: line["sha256"] for line in lines}
    assert len(hashes) == len(lines)  # no sample twice
    return hashes


def in_changing_worlds(folder, sizes, rng):
    ends = [*sorted(rng.sample(range(2, STEPS - 1), len(sizes) - 1)), STEPS]
    for size, end in zip(sizes, ends, strict=True):
        run_ranks(size, train, folder, end)


def check_same_training(straight, changing):
    assert seen(changing) == seen(straight)
    assert sorted(seen(straight)) == list(range(STEPS * BATCH))
    assert losses(changing) == pytest.approx(losses(straight), rel=1e-5)
    assert (changing / "samples.jsonl").read_text() == (straight / "samples.jsonl").read_text()


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    folder = tmp_path_factory.mktemp("worlds") / "straight"
    run_ranks(1, train, folder, STEPS)
    return folder


def test_one_two_four_three_one(straight, tmp_path):
    in_changing_worlds(tmp_path / "run", (1, 2, 4, 3, 1), random.Random(0))
    check_same_training(straight, tmp_path / "run")


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(20))
def test_any_order_of_worlds(straight, tmp_path, seed):
    rng = random.Random(seed)
    in_changing_worlds(tmp_path / "run", [rng.choice((1, 2, 3, 4)) for _ in range(5)], rng)
    check_same_training(straight, tmp_path / "run")


def test_the_comparison_can_fail(straight, tmp_path):
    """Gradients that are averaged, not summed: another training."""
    run_ranks(2, train_averaged, tmp_path / "run", STEPS)
    assert seen(tmp_path / "run") == seen(straight)
    assert losses(tmp_path / "run") != pytest.approx(losses(straight), rel=1e-5)


def test_a_loss_that_is_not_finite_in_one_process_is_left_out_by_all(tmp_path):
    for size in (1, 3):
        run_ranks(size, train_broken, tmp_path / str(size), STEPS)
    assert losses(tmp_path / "3")[3:] == pytest.approx(losses(tmp_path / "1")[3:], rel=1e-5)
    numbers = [
        json.loads((tmp_path / f"{size}/checkpoints/step-0000030/state.json").read_text()) for size in (1, 3)
    ]  # fmt: skip
    assert numbers[0] == numbers[1]
    assert [each["step"] for each in numbers[0]["skipped"]] == [3]


def train_broken(folder, steps):
    Points.broken = 30  # of update 3, in the second of three processes
    train(folder, steps)


def train_averaged(folder, steps):
    import fewstep.train.learner as module

    def averaged(_, bucket):
        bucket.buffer().div_(2)
        return honest(_, bucket)

    honest, module._sum = module._sum, averaged
    train(folder, steps)
