"""A task of two roles: a student that is judged, and the critic that judges it, on the smallest nets there are."""

import copy
import dataclasses
import itertools
import json
import math

import pytest
import torch
from torch import nn

from fewstep.data import draws
from fewstep.errors import UserError
from fewstep.parallel.world import current_world, shard
from fewstep.train.config import LoopConfig, Optimisation
from fewstep.train.learner import Learner, replicate
from fewstep.train.loop import begin, fit
from fewstep.train.role import Role
from fewstep.train.task import Loss, Task
from ranks import read_state, run_ranks

CONFIG = LoopConfig(
    steps=8, batch_size=8, lr=0.01, ema_decay=0.9, clip_norm=0.5, log_every=3, checkpoint_every=1, keep_checkpoints=8
)
CRITICS = Optimisation(lr=0.03, beta2=0.95, clip_norm=0.1, weight_decay=0.1)


class Game(Task):
    """The student makes points that the critic shall take for those of the data; losses in `broken` are not finite, and
    those in `empty` are of no sample."""

    def __init__(self, every=1, students_every=1, broken=(), empty=(), optimisation=CRITICS):
        torch.manual_seed(3)
        self.student, self.critic = nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1))
        self.averaged = copy.deepcopy(self.student)
        self.every, self.students_every, self.optimisation = every, students_every, optimisation
        self.broken, self.empty, self.asked = broken, empty, 0
        self.student_network, self.critic_network = self.student, self.critic

    @property
    def roles(self):
        return (
            Role(
                weights=self.student, network=self.student_network, average=self.averaged, every=self.students_every
            ),
            Role(
                name="critic", weights=self.critic, network=self.critic_network, optimisation=self.optimisation,
                every=self.every,
            ),
        )  # fmt: skip

    def points(self, counters):
        return (draws.normal(0, name, counters, (2,)).to(self.student.weight) for name in ("z", "x"))

    def losses(self, counters, due):
        z, x = self.points(counters)
        made = self.student_network(z)
        self.asked += 1
        if "student" in due:
            yield "student", self.finished("student", -self.critic(made).mean(), counters)
        if "critic" in due:
            real, made = self.critic_network(torch.cat([x + 2, made.detach()])).chunk(2)
            yield "critic", self.finished("critic", (1 - real).relu().mean() + (1 + made).relu().mean(), counters)

    def finished(self, role, mean, counters):
        total, valid = Loss.from_mean(mean * (math.nan if (role, counters[0]) in self.broken else 1), counters)
        return Loss(total * 0, valid * 0) if (role, counters[0]) in self.empty else Loss(total, valid)


class Careless(Game):
    """Detaches nothing: what a loss must not reach is the loop's business."""

    def losses(self, counters, due):
        z, x = self.points(counters)
        for role, loss in (("student", self.students_loss), ("critic", self.critics_loss)):
            if role in due:
                yield role, Loss.from_mean(loss(z, x), counters)

    def students_loss(self, z, _):
        return -self.critic(self.student(z)).mean()

    def critics_loss(self, z, x):
        real, made = self.critic(torch.cat([x + 2, self.student(z)])).chunk(2)
        return (1 - real).relu().mean() + (1 + made).relu().mean()


def trained(folder, task=None, config=CONFIG, **options):
    task = task or Game(**options)
    fit(task, config, folder, "test")
    return task


def weights(module):
    return torch.cat([parameter.detach().flatten() for parameter in module.parameters()])


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").open()]


def state(folder, step=CONFIG.steps):
    return read_state(folder / f"checkpoints/step-{step:07d}/state.safetensors")


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("role", ["student", "critic"])
def test_a_role_follows_the_gradient_of_its_own_loss_alone(tmp_path, role):
    reference = Careless()
    module = getattr(reference, role)
    loss = getattr(reference, f"{role}s_loss")(*reference.points(range(8)))
    for parameter, gradient in zip(
        module.parameters(), torch.autograd.grad(loss, list(module.parameters())), strict=True
    ):
        parameter.grad = gradient
    own = CONFIG if role == "student" else CRITICS
    nn.utils.clip_grad_norm_(module.parameters(), own.clip_norm)
    torch.optim.AdamW(
        module.parameters(), lr=own.lr, betas=(0.9, own.beta2), weight_decay=own.weight_decay
    ).step()  # fmt: skip
    task = trained(tmp_path, Careless(), dataclasses.replace(CONFIG, steps=1))
    torch.testing.assert_close(weights(getattr(task, role)), weights(module), rtol=1e-6, atol=1e-7)
    assert not torch.equal(weights(module), weights(getattr(Careless(), role)))
    assert all(parameter.requires_grad for parameter in (*task.student.parameters(), *task.critic.parameters()))


def test_roles_share_a_forward_pass(tmp_path):
    shared, apart = trained(tmp_path / "a"), trained(tmp_path / "b", Careless())
    assert shared.asked == CONFIG.steps
    for role in ("student", "critic"):
        torch.testing.assert_close(weights(getattr(shared, role)), weights(getattr(apart, role)))


def test_both_losses_are_logged(tmp_path):
    trained(tmp_path, config=dataclasses.replace(CONFIG, log_every=1))
    assert [list(line)[:4] for line in lines(tmp_path)] == [["step", "loss", "loss_critic", "lr"]] * 8
    assert len({line["loss_critic"] for line in lines(tmp_path)}) == 8
    assert {line["lr"] for line in lines(tmp_path)} == {CONFIG.lr}


@pytest.mark.parametrize("slow", ["student", "critic"])
def test_a_role_learns_every_so_often(tmp_path, slow):
    seen = []
    task = Game(every=2 if slow == "critic" else 1, students_every=2 if slow == "student" else 1)

    def at_step(_):
        seen.append({name: weights(getattr(task, name)) for name in ("student", "critic", "averaged")})

    fit(task, dataclasses.replace(CONFIG, log_every=1), tmp_path, "test", at_step)
    for name in ("student", "critic", "averaged"):
        moved = [not torch.equal(one[name], other[name]) for one, other in itertools.pairwise(seen)]
        often = (name == "critic") != (slow == "critic")
        assert moved == ([True] * 7 if often else [True, False, True, False, True, False, True])
    name = "loss_critic" if slow == "critic" else "loss"
    assert [name in line for line in lines(tmp_path)] == [False, True] * 4
    assert state(tmp_path)["critic.optimizer.step.0.weight"] == (4 if slow == "critic" else 8)
    assert state(tmp_path)["optimizer.step.weight"] == (4 if slow == "student" else 8)


@pytest.mark.parametrize("every", [{"every": 2}, {"students_every": 3}], ids=str)
@pytest.mark.parametrize("stop", range(1, CONFIG.steps))
def test_it_goes_on_bit_for_bit_after_a_stop_at_any_step(tmp_path, stop, every):
    def interrupt(step):
        if step == stop:
            raise InterruptedError

    trained(tmp_path / "a", **every)
    with pytest.raises(InterruptedError):
        fit(Game(**every), CONFIG, tmp_path / "b", "test", interrupt)
    resumed = trained(tmp_path / "b", **every)
    assert resumed.asked == CONFIG.steps - stop
    assert same(state(tmp_path / "a"), state(tmp_path / "b"))
    losses = [[[line.get(name) for name in ("loss", "loss_critic")] for line in lines(tmp_path / x)] for x in "ab"]
    assert losses[0] == losses[1]


def test_a_checkpoint_has_each_role_under_its_name(tmp_path):
    trained(tmp_path, every=2)
    moments = ("exp_avg", "exp_avg_sq", "step")
    student, critic = ("weight", "bias"), ("0.weight", "0.bias", "2.weight", "2.bias")
    assert state(tmp_path).keys() == {
        *(f"{part}.{name}" for part in ("student", "averaged") for name in student),
        *(f"optimizer.{moment}.{name}" for moment in moments for name in student), "losses",
        *(f"critic.weights.{name}" for name in critic),
        *(f"critic.optimizer.{moment}.{name}" for moment in moments for name in critic), "critic.losses",
    }  # fmt: skip


@pytest.mark.parametrize("role", ["student", "critic"])
def test_a_broken_loss_of_one_role_leaves_out_the_update_of_all(tmp_path, role, capsys):
    trained(tmp_path, broken=[(role, 16)])  # update 3
    kept = [name for name in state(tmp_path) if "losses" not in name]
    assert all(torch.equal(state(tmp_path, 2)[name], state(tmp_path, 3)[name]) for name in kept)
    assert not any(torch.equal(state(tmp_path, 3)[name], state(tmp_path, 4)[name]) for name in kept)
    numbers = json.loads((tmp_path / "checkpoints/step-0000008/state.json").read_text())
    assert [each["step"] for each in numbers["skipped"]] == [3]
    assert "the loss of update 3 is not finite, it was left out" in capsys.readouterr().err
    assert all(math.isfinite(line[name]) for line in lines(tmp_path) for name in ("loss", "loss_critic"))


def test_an_update_without_a_sample_for_one_role_is_left_out_and_is_not_broken(tmp_path):
    trained(tmp_path, empty=[("critic", 16)])
    kept = [name for name in state(tmp_path) if "losses" not in name]
    assert all(torch.equal(state(tmp_path, 2)[name], state(tmp_path, 3)[name]) for name in kept)
    assert json.loads((tmp_path / "checkpoints/step-0000008/state.json").read_text())["skipped"] == []


def test_accumulation_is_the_same_batch_in_parts(tmp_path):
    whole, parts = trained(tmp_path / "a"), trained(tmp_path / "b", config=dataclasses.replace(CONFIG, accumulation=4))
    assert parts.asked == 4 * whole.asked
    for role in ("student", "critic"):
        torch.testing.assert_close(weights(getattr(whole, role)), weights(getattr(parts, role)), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("change", [{"lr": 0.01}, {"clip_norm": 1e-3}, {"beta2": 0.5}, {"weight_decay": 0.0}], ids=str)
def test_every_setting_of_a_role_changes_its_weights(tmp_path, change):
    changed = trained(tmp_path / "a", optimisation=dataclasses.replace(CRITICS, **change))
    assert not torch.equal(weights(changed.critic), weights(trained(tmp_path / "b").critic))


def test_a_role_without_settings_takes_the_runs(tmp_path):
    own, none = (trained(tmp_path / str(i), optimisation=each) for i, each in enumerate((CONFIG, None)))
    assert torch.equal(weights(own.critic), weights(none.critic))


@pytest.mark.parametrize(
    ("roles", "message"),
    [
        ([Role(name="critic", weights=nn.Linear(1, 1))], "'student' first"),
        ([Role(weights=nn.Linear(1, 1)), Role(weights=nn.Linear(1, 1))], "no name twice"),
        ([Role(weights=nn.Linear(1, 1), every=2)], "one with every=1"),
        ([Role(weights=(shared := nn.Linear(1, 1))), Role(name="critic", weights=shared)], "share a weight"),
    ],
)
def test_roles_that_do_not_go_together_are_refused(roles, message):
    with pytest.raises(ValueError, match=message):
        begin(roles, CONFIG)


@pytest.mark.parametrize("wrong", [{"every": 0}, {"name": "optimizer"}, {"name": "a.b"}], ids=str)
def test_impossible_roles_are_refused(wrong):
    with pytest.raises(ValueError, match=r"role"):
        Role(weights=nn.Linear(1, 1), **wrong)


@pytest.mark.parametrize("given", [["student"], ["critic", "student"]], ids=str)
def test_losses_that_are_not_those_of_the_roles_are_refused(tmp_path, given):
    class Wrong(Careless):
        def losses(self, counters, due):
            found = dict(super().losses(counters, due))
            yield from ((name, found[name]) for name in given)

    with pytest.raises(ValueError, match="Wrong gave the loss of"):
        trained(tmp_path, Wrong())


def test_a_checkpoint_of_other_roles_is_refused(tmp_path):
    class Alone(Game):
        @property
        def roles(self):
            return super().roles[:1]

    short = dataclasses.replace(CONFIG, steps=4)
    trained(tmp_path / "two", config=short)
    trained(tmp_path / "one", Alone(), short)
    with pytest.raises(UserError, match="is of this run"):
        trained(tmp_path / "two", Alone())
    with pytest.raises(UserError, match="is of this run"):
        trained(tmp_path / "one")


def play(folder, distribution, every):
    torch.set_default_dtype(torch.float64)
    task = Game(**every)
    if current_world().size > 1:
        if distribution == "ddp":
            task.student_network = replicate(Learner(weights=task.student, student=task.student)).student
        else:
            shard(task.student, [])
            shard(task.averaged, [])
        task.critic_network = replicate(Learner(weights=task.critic, student=task.critic)).student
    fit(task, dataclasses.replace(CONFIG, accumulation=2), folder, "test")


@pytest.mark.parametrize("every", [{"every": 2}, {"students_every": 2}], ids=str)
@pytest.mark.parametrize("distribution", ["ddp", "fsdp"])
def test_two_processes_play_what_one_does(tmp_path, distribution, every):
    for size in (1, 2):
        run_ranks(size, play, tmp_path / str(size), distribution, every)
    one, two = (state(tmp_path / str(size)) for size in (1, 2))
    assert one.keys() == two.keys()
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-5, atol=1e-9)
