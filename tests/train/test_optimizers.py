"""8-bit moments, weights stored in bf16, and the note on slow averages."""

import pytest
import torch
from torch import nn

from fewstep.commands.distill import load_teacher, make_student
from fewstep.models.families.stable_diffusion import LORA
from fewstep.models.loading import load_latent_model
from fewstep.models.lora.adapters import AdaptedNetwork
from fewstep.recipes.distill import Distill
from fewstep.recipes.named import find_recipe
from fewstep.runs.consistency import describe_slow_average
from fewstep.train.checkpoint import Checkpoints, restore
from fewstep.train.config import LoopConfig
from fewstep.train.loop import begin, fit
from fewstep.train.optimisation import Batch, update
from fewstep.train.role import Role
from fewstep.train.task import Loss, StudentTask

CONFIG = LoopConfig(steps=6, lr=1e-2, optimizer="adamw8bit", log_every=1, checkpoint_every=3)


def updated(weights):
    """The state of a run after an update by the gradients that these weights have; and whether it was vetoed."""
    state = begin([Role(weights=weights)], CONFIG)
    return state, update(state, state.roles, [Batch(torch.zeros(()), torch.ones(()), torch.ones(()))])


class Regression(StudentTask):
    """Wide enough that its weight's moments are kept in 8 bits."""

    averaged = None

    def __init__(self):
        torch.manual_seed(0)
        self.student = nn.Linear(128, 64)

    def loss(self, counters):
        x = torch.randn(len(counters), 128, generator=torch.Generator().manual_seed(counters[0]))
        return Loss.from_mean((self.student(x) - x[:, :64]).square().mean(), counters)


def trained(tmp_path, **changes):
    task = Regression()
    fit(task, LoopConfig(**vars(CONFIG) | changes), tmp_path, "regression")
    return task.student


def test_8_bit_moments_learn_almost_as_32_do(tmp_path):
    eight, full = trained(tmp_path / "8"), trained(tmp_path / "32", optimizer="adamw")
    start = Regression().student.weight
    moved, apart = (eight.weight - start).norm(), (eight.weight - full.weight).norm()
    assert 0 < apart < 0.2 * moved


def test_8_bit_moments_take_a_quarter():
    student = nn.Linear(1024, 512)
    student(torch.randn(4, 1024)).square().mean().backward()
    state = updated(student)[0].roles[0].optimizer.state[student.weight]
    held = sum(value.numel() * value.element_size() for value in state.values() if isinstance(value, torch.Tensor))
    assert held < 0.27 * 8 * student.weight.numel()


def test_8_bit_runs_resume_bit_for_bit(tmp_path):
    whole = trained(tmp_path / "whole")
    trained(tmp_path / "parts", steps=3)
    resumed = trained(tmp_path / "parts")
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))


def test_8_bit_state_keeps_its_types(tmp_path):
    task = Regression()
    task.loss(range(4)).total.backward()
    state, _ = updated(task.student)
    before = dict(state.roles[0].optimizer.state[task.student.weight])
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(state.tensors(), state.numbers(), 2)
    restore(state, checkpoints.newest())
    after = state.roles[0].optimizer.state[task.student.weight]
    assert after.keys() == before.keys()
    for name, value in before.items():
        assert type(after[name]) is type(value)
        if isinstance(value, torch.Tensor):
            assert after[name].dtype == value.dtype
            assert torch.equal(after[name], value)


def test_a_broken_update_is_vetoed_with_8_bit_moments():
    task = Regression()
    before = task.student.weight.clone()
    (task.loss(range(4)).total * float("nan")).backward()
    assert updated(task.student)[1]
    assert torch.equal(task.student.weight, before)


def test_a_base_in_bf16_keeps_its_adapters_in_fp32(random_teacher):
    network = load_latent_model(random_teacher, torch.device("cpu")).network
    adapted = AdaptedNetwork(network, 4, 4.0, LORA.targets, torch.bfloat16)
    assert {p.dtype for p in adapted.weights.parameters()} == {torch.float32}
    assert {p.dtype for p in network.parameters() if not p.requires_grad} == {torch.bfloat16}
    z, t, cond = torch.randn(1, 12, 8, 8), torch.tensor([499]), {"text": torch.randn(1, 32, 64)}
    adapted.student(z, t, cond, None).z_0.square().mean().backward()
    assert all(p.grad.dtype == torch.float32 for p in adapted.weights.parameters())


@pytest.mark.parametrize("rank", [0, 4])
def test_frozen_precision_is_the_teachers(random_teacher, rank):
    guidance = {"guidance_range": (4.0, 4.0), "guidance_scale": 4.0}
    dtypes = {}
    for wanted in ("auto", "fp32", "bf16"):
        config = Distill(teacher=str(random_teacher), device="cpu", lora_rank=rank, frozen_precision=wanted, **guidance)
        teacher = load_teacher(config)
        student = make_student(config, teacher)
        dtypes[wanted] = teacher.network.backbone.conv_in.weight.dtype
        assert {p.dtype for p in student.learner.weights.parameters()} == {torch.float32}
    assert dtypes == {"auto": torch.float32, "fp32": torch.float32, "bf16": torch.bfloat16}


def test_the_note_on_slow_averages():
    said = describe_slow_average(find_recipe("sd15").ema_decay, 500)
    assert "half-life of 12,160 updates" in said
    assert "still 97%" in said
    assert "give --ema-decay 0.86" in describe_slow_average(0.95, 20)  # not what it has
