"""An adversarial loss beside consistency: its parts in closed form, and heads as a second role on a frozen teacher."""

import dataclasses
import itertools
import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn

import fewstep
from fewstep.commands.distill import distill, load_teacher, make_path, make_student
from fewstep.commands.prepare import prepare
from fewstep.data.worlds.scenes import Scenes
from fewstep.errors import UserError
from fewstep.method.adversarial import draw_tau, heads_losses, student_losses
from fewstep.method.times import edges, phase_lengths
from fewstep.models import scenes_model
from fewstep.models.loading import load_latent_model
from fewstep.parallel.world import current_world
from fewstep.recipes.distill import Distill
from fewstep.recipes.prepare import Prepare
from fewstep.runs.adversarial import add_heads
from fewstep.runs.consistency import make_task
from fewstep.runs.folder import claim_run_folder
from fewstep.runs.material import open_material
from fewstep.train.adversarial_task import HEADS, AdversarialTask
from fewstep.train.checkpoint import TENSORS_FILE
from fewstep.train.loop import begin, do_update, fit
from fewstep.train.role import STUDENT
from miniatures import FAMILIES, save_miniature
from ranks import read_state, run_ranks

LORA = {"lora_rank": 2, "gradient_checkpointing": True}
CASES = {
    "lcm": {"method": "lcm"},
    "pcm, LoRA, checkpointed": {"method": "pcm", **LORA},
    "pcm, x0": {"method": "pcm", "prediction_type": "sample"},
    "any-step, walkers": {"method": "any-step"},
    "tcd, data": {"method": "tcd", "gradient_checkpointing": True},
    "tcd, LoRA, walkers": {"method": "tcd", "states": "walkers", **LORA},
    "guided-distill": {"method": "guided-distill"},
    "pcm, LoRA, trajectories": {"method": "pcm", "data": "", **LORA},
}


@pytest.fixture(scope="module")
def miniatures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("miniatures")
    tokenizer = scenes_model.build_tokenizer(Scenes().prompt(i)[0] for i in range(300))
    return {family: str(save_miniature(family, tokenizer, folder / family)) for family in FAMILIES}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A folder of captioned noise."""
    folder = tmp_path_factory.mktemp("pictures")
    generator = np.random.default_rng(0)
    for i in range(8):
        Image.fromarray(generator.integers(0, 255, (16, 16, 3), dtype=np.uint8)).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(f"a {'red' if i % 2 else 'blue'} star")
    return str(folder)


@pytest.fixture(scope="module")
def kept(miniatures, pictures, tmp_path_factory):
    """A folder of trajectories."""
    out = tmp_path_factory.mktemp("kept") / "trajectories"
    prepare(
        Prepare(
            model=miniatures["sd15"], trajectories=4, skip=125, guidance_range=(5.0, 5.0), data=pictures, batch_size=4,
            workers=1, device="cpu", out=out,
        )
    )  # fmt: skip
    return str(out)


@pytest.fixture
def settings(miniatures, pictures, tmp_path):
    """Makes the settings of a short run on a miniature."""

    def settings(family="sd15", **changes):
        return Distill(**{
            "teacher": miniatures[family], "data": pictures, "batch_size": 4,
            "steps": 3, "skip": 125, "guidance_range": (5.0, 5.0), "lr": 1e-3, "ema_decay": 0.5, "adversarial": 0.5,
            "sample_every": 0, "log_every": 1, "device": "cpu", "out": tmp_path / "run", **changes,
        })  # fmt: skip

    return settings


def make(config):
    """Returns the task, its teacher, and the task that it adds to."""
    teacher = load_teacher(config)
    student = make_student(config, teacher)
    latents = open_material(config, teacher).latents()
    plain = make_task(config, student, make_path(config, student, teacher), teacher, latents)
    for name, parameter in plain.student.named_parameters():  # what begins without effect hides much
        if "lora_B" in name or "class_embedding/linear_2" in name:
            nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(1))
    return add_heads(config, plain, student, teacher), teacher, plain


def gradients(task, name):
    """Returns that of one role's loss in every weight that learns, by role."""
    weights = {role.name: role.weights for role in task.roles}
    for each in weights.values():
        each.zero_grad()
    ((given, loss),) = task.losses(range(4), {name})
    loss.total.backward()
    assert given == name
    return {
        role: [None if p.grad is None else p.grad.clone() for p in each.parameters() if p.requires_grad]
        for role, each in weights.items()
    }


def test_both_hinges_in_closed_form():
    """Means over positions first, so that a large level counts no more than a small one."""
    large, small = torch.full((2, 1, 4, 4), -2.0), torch.tensor([[[[0.5]]], [[[3.0]]]])
    # 1 − D: 3 and 0.5, 3 and 0
    torch.testing.assert_close(student_losses([large, small]), torch.tensor([1.75, 1.5]))
    # 1 + D of the fake: 0 and 1.5, 0 and 4; 1 − D of the real: 0 and 1, 0 and 1
    real = [torch.full((2, 1, 4, 4), 2.0), torch.zeros(2, 1, 1, 1)]
    torch.testing.assert_close(heads_losses(list, [large, small], real), torch.tensor([1.25, 2.5]))


@pytest.mark.parametrize("phases", [(), (4,), (1, 2, 4, 8)])
def test_tau_lies_in_the_phase_of_the_end_and_covers_it(sd_schedule, phases):
    for i, count in enumerate(phases or (1,)):
        u = torch.full((4000,), (i + 0.5) / max(1, len(phases)), dtype=torch.float64)
        lengths = phase_lengths(sd_schedule, torch.full((4000,), 500), u, phases)  # where no sampler asks
        assert lengths.unique().tolist() == [1000 / count]
        for e in edges(sd_schedule, count)[:-1]:
            v = torch.linspace(0, 1 - 1e-9, 4000, dtype=torch.float64)
            tau = draw_tau(sd_schedule, e.expand(4000), lengths, v)
            assert tau.unique().tolist() == list(range(int(e), int(e) + 1000 // count))
    late = draw_tau(sd_schedule, torch.full((9,), 990), torch.full((9,), 1000.0), torch.linspace(0, 0.999, 9))
    assert (int(late.min()), int(late.max())) == (990, 999)  # an end anywhere, and no phase


@pytest.mark.parametrize("family", FAMILIES)
def test_features_are_those_of_the_way_inward_and_nothing_else_is_computed(family, settings):
    _, teacher, plain = make(settings(family, **LORA))
    (batch, _), network, asked = plain.draw_batch(range(4)), teacher.network, []
    for block in network.blocks[len(network.feature_widths) :]:
        block.register_forward_hook(lambda *_: asked.append(1))
    z_t = torch.randn(4, *batch.z_0.shape[1:]).requires_grad_()
    found = network.features(z_t, batch.t, batch.cond)
    assert not asked
    assert [each.shape[:2] for each in found] == [(4, width) for width in network.feature_widths]
    (gradient,) = torch.autograd.grad(sum(each.sum() for each in found), z_t)
    assert gradient.abs().sum() > 0
    assert torch.isfinite(network(z_t, batch.t, batch.cond, None).z_0).all()
    assert asked  # the hooks are gone that stopped it
    pristine = load_latent_model(settings(family).teacher, torch.device("cpu")).network
    with plain._learner.student.__self__.alone():
        alone = network.features(z_t, batch.t, batch.cond)
    for own, other, adapted in zip(alone, pristine.features(z_t, batch.t, batch.cond), found, strict=True):
        torch.testing.assert_close(own, other)
        assert not torch.allclose(own, adapted)


@pytest.mark.parametrize("case", CASES)
def test_each_role_learns_from_its_own_loss_alone(case, settings, kept):
    config = settings(**{**CASES[case], **({"data": kept} if CASES[case].get("data") == "" else {})})
    task, teacher, _ = make(config)
    frozen = {key: value.clone() for key, value in teacher.network.state_dict().items() if "lora_" not in key}
    for name in (STUDENT, HEADS):
        found = gradients(task, name)
        assert list(found) == [STUDENT, HEADS]
        moved = {role: [each is not None and bool(each.any()) for each in given] for role, given in found.items()}
        assert sum(moved.pop(name)) > 0.8 * len(found[name]), name
        assert not any(itertools.chain(*moved.values())), name
    for role in task.roles:
        role.weights.zero_grad()
    before = {role.name: [p.clone() for p in role.weights.parameters()] for role in task.roles}
    do_update(task, begin(task.roles, config), config, current_world())  # where other roles are frozen meanwhile
    for role in task.roles:
        pairs = zip(before[role.name], role.weights.parameters(), strict=True)
        assert sum(not torch.equal(p, q) for p, q in pairs) > 0.8 * len(before[role.name]), role.name
    now = teacher.network.state_dict()
    assert all(torch.equal(frozen[key], now[key]) for key in frozen)


@pytest.mark.parametrize(("family", "rank"), [*((family, 0) for family in FAMILIES), ("sd15", 2)])
def test_the_students_loss_is_consistency_and_so_much_of_the_other(family, rank, settings):
    """Differentiated in one graph, with the features of the teacher alone."""
    task, teacher, plain = make(settings(family, method="pcm", lora_rank=rank))
    found = gradients(task, STUDENT)[STUDENT]
    heads = task.roles[1].weights
    answers = plain.answer(range(4))
    renoising = task._draw_renoising(answers, range(4))
    with task._judge.alone():
        features = teacher.network.features(renoising(answers.from_t), renoising.tau, answers.batch.cond)
    judged = student_losses(heads(features))
    plain.student.zero_grad()
    (plain.compare(answers) + 0.5 * judged).sum().backward()
    wanted = [p.grad for p in plain.student.parameters()]
    largest = max(float(each.abs().max()) for each in wanted if each is not None)
    for mine, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6 * largest)
    assert 0.2 < float(judged.mean()) < 3


@pytest.mark.parametrize("method", ["lcm", "pcm"])
def test_what_is_real_are_the_pictures_if_so_asked(method, settings):
    """With the noise that they have where answers land, and at τ no other than the answers'."""
    task, teacher, plain = make(settings(method=method, adversarial_real="pictures"))
    found = gradients(task, HEADS)[HEADS]
    heads, answers = task.roles[1].weights, plain.answer(range(4))
    batch, renoising = answers.batch, task._draw_renoising(answers, range(4))
    real = plain.method.schedule.diffuse(batch.z_0, batch.epsilon, batch.e)
    fake, real = (
        teacher.network.features(renoising(each.detach()), renoising.tau, batch.cond) for each in (answers.from_t, real)
    )
    heads.zero_grad()
    heads_losses(heads, fake, real).sum().backward()
    for mine, wanted in zip(found, heads.parameters(), strict=True):
        torch.testing.assert_close(mine, wanted.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("rank", [0, 2])
def test_checkpointing_finds_the_adapters_that_a_pass_had(rank, settings):
    one, other = (
        gradients(make(settings(method="pcm", lora_rank=rank, gradient_checkpointing=each))[0], STUDENT)[STUDENT]
        for each in (False, True)
    )
    largest = max(float(each.abs().max()) for each in one if each is not None)
    for plain, again in zip(one, other, strict=True):
        torch.testing.assert_close(again, plain, rtol=1e-4, atol=1e-6 * largest)


def test_settings_reach_the_update(settings):
    task, _, _ = make(settings())
    plain = gradients(task, STUDENT)[STUDENT][0]
    more = gradients(make(settings(adversarial=1.0))[0], STUDENT)[STUDENT][0]
    less = gradients(make(settings(adversarial=1e-9))[0], STUDENT)[STUDENT][0]
    torch.testing.assert_close(more - less, 2 * (plain - less), rtol=1e-3, atol=1e-6)
    assert not torch.equal(more, less)
    heads = (each.roles[1].optimisation for each in (task, make(settings(adversarial_lr=0.1, lr_decay="cosine"))[0]))
    assert [(each.lr, each.lr_decay, each.ema_decay) for each in heads] == [(2e-3, "constant", 0), (0.1, "constant", 0)]


def test_draws_are_those_of_each_sample(settings):
    """Shared out and cut to parts as may be."""
    task, _, plain = make(settings(method="any-step", states="data"))
    whole, parts = (
        [task._draw_renoising(plain.answer(each), each) for each in given]
        for given in ([range(8, 12)], [range(8, 10), range(10, 12)])
    )
    for name in ("tau", "noise", "e"):
        assert torch.equal(getattr(whole[0], name), torch.cat([getattr(each, name) for each in parts]))
    other, _, _ = make(settings(method="any-step", states="data"))
    heads = zip(task.roles[1].weights.parameters(), other.roles[1].weights.parameters(), strict=True)
    assert all(torch.equal(one, two) for one, two in heads)  # whatever was drawn in between


def test_a_broken_head_leaves_out_the_update_of_both(settings):
    config = settings()
    task, _, _ = make(config)
    next(task.roles[1].weights.parameters()).data.fill_(torch.nan)
    state = begin(task.roles, config)
    before = [p.clone() for role in task.roles for p in role.weights.parameters()]
    do_update(task, state, config, current_world())
    after = [p for role in task.roles for p in role.weights.parameters()]
    assert all(torch.equal(p.nan_to_num(), q.nan_to_num()) for p, q in zip(before, after, strict=True))
    assert all(bool(torch.isnan(role.losses[0])) for role in state.roles)


@pytest.mark.parametrize(
    "changes", [{"method": "any-step"}, {"method": "pcm", **LORA}, {"adversarial_real": "pictures"}], ids=str
)
def test_it_goes_on_bit_for_bit_and_exports_no_heads(changes, settings):
    config = settings(**changes, checkpoint_every=1, steps=2)
    distill(config)
    exported = {path: load_file(path) for path in (config.out / "model").rglob("*.safetensors")}
    assert not any("levels" in name for tensors in exported.values() for name in tensors)
    card = json.loads((config.out / "model/fewstep.json").read_text())
    assert (card["adversarial"], card["adversarial_real"]) == (0.5, config.adversarial_real)
    assert fewstep.load(config.out, "cpu")("x", steps=1)
    lines = [json.loads(line) for line in (config.out / "metrics.jsonl").open()]
    assert [list(line)[:4] for line in lines] == [["step", "loss", "loss_heads", "lr"]] * 2
    last = load_file(config.out / "checkpoints/step-0000002" / TENSORS_FILE)
    assert sum(name.startswith("heads.weights.levels.") for name in last) == 3 * 10
    assert sum(name.startswith("heads.optimizer.exp_avg.levels.") for name in last) == 3 * 10
    for name in ("model", "checkpoints/step-0000002"):
        shutil.rmtree(config.out / name)
    distill(config)
    again = load_file(config.out / "checkpoints/step-0000002" / TENSORS_FILE)
    assert last.keys() == again.keys()
    assert all(torch.equal(last[key], again[key]) for key in last)
    assert all(torch.equal(before[key], load_file(path)[key]) for path, before in exported.items() for key in before)


def learn(config):
    """Trains in double precision, so that processes differ by nothing else."""
    torch.set_default_dtype(torch.float64)
    try:
        learn_in_double(config)
    finally:
        torch.set_default_dtype(torch.float32)


def learn_in_double(config):
    model = load_teacher(config)
    model.network.backbone.double()
    student = make_student(config, model)
    student.learner.weights.double()
    latents = open_material(config, model).latents()
    plain = make_task(config, student, make_path(config, student, model), model, latents)
    task = add_heads(config, plain, student, model)
    task.roles[1].weights.double()
    config.out.mkdir(exist_ok=True)
    fit(task, config, config.out, "test")


def test_two_processes_learn_what_one_does(settings, tmp_path):
    """The student spread over both, the heads whole in each."""
    config = settings(method="pcm", steps=2, distribution="fsdp", accumulation=2)
    learn(dataclasses.replace(config, out=tmp_path / "1"))
    run_ranks(2, learn, dataclasses.replace(config, out=tmp_path / "2"))
    one, two = (read_state(tmp_path / f"{size}/checkpoints/step-0000002" / TENSORS_FILE) for size in (1, 2))
    assert one.keys() == two.keys()
    assert any(name.startswith("heads.") for name in one)
    for name, value in one.items():
        if "optimizer" not in name:
            torch.testing.assert_close(two[name], value, rtol=1e-4, atol=1e-7)


def test_without_a_weight_there_are_no_heads(settings):
    distill(config := settings(adversarial=0.0, steps=1))
    assert not any("heads" in name for name in load_file(config.out / "checkpoints/step-0000001" / TENSORS_FILE))
    assert "adversarial" not in json.loads((config.out / "model/fewstep.json").read_text())


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"method": "tdm"}, "adversarial is 0.5 and tdm compares no steps of a teacher; leave --adversarial out"),
        ({"method": "tdm", "adversarial": 0.0, "adversarial_lr": 0.1}, "leave --adversarial-lr out"),
        ({"method": "ect"}, "ect learns from pictures and has no teacher"),
        ({"adversarial": -0.1}, "adversarial is -0.1; it must not be negative"),
        ({"adversarial": float("nan")}, "adversarial is nan; it must be a finite number"),
        ({"adversarial_lr": -1.0}, "adversarial_lr is -1.0; it must not be negative"),
        ({"adversarial": 0.0, "adversarial_lr": 0.1}, "adversarial_lr is 0.1 without heads; give --adversarial too"),
        ({"adversarial": 0.0, "adversarial_real": "pictures"}, "adversarial_real is pictures without heads"),
        ({"method": "any-step", "adversarial_real": "pictures"}, "and walkers show none; give --states data"),
        ({"states": "trajectories"}, "trajectories give up the teacher, whose features are judged"),
    ],
)
def test_settings_that_do_not_go_with_it_are_refused(changes, said, settings):
    with pytest.raises(UserError, match=said):
        settings(**changes)


def test_trajectories_found_in_the_data_are_refused_before_the_run_begins(settings, kept):
    config = settings(method="pcm", data=kept)
    with pytest.raises(UserError, match="trajectories give up the teacher"):
        distill(config)
    with pytest.raises(UserError, match="adversarial_real is pictures, and trajectories show none"):
        distill(settings(method="pcm", data=kept, adversarial_real="pictures", **LORA))
    assert not (config.out / "config.yaml").exists()


def test_the_task_is_one_of_two_roles(settings):
    task, _, plain = make(settings(method="any-step"))
    assert isinstance(task, AdversarialTask)
    assert (task.keys(range(4)), task.dropped()) == (plain.keys(range(4)), [])


def test_heads_neither_join_a_run_nor_leave_it(tmp_path):
    plain = Distill(out=tmp_path / "run")
    claim_run_folder(plain.out, plain)
    with pytest.raises(UserError, match="of a run with a student alone and this is one with heads; choose another"):
        claim_run_folder(plain.out, dataclasses.replace(plain, adversarial=0.1, change=("adversarial",)))
    claim_run_folder(plain.out, plain)  # is as it was
    judged = Distill(out=tmp_path / "judged", adversarial=0.1)
    claim_run_folder(judged.out, judged)
    with pytest.raises(UserError, match="of a run with heads and this is one with a student alone"):
        claim_run_folder(judged.out, dataclasses.replace(judged, adversarial=0.0, change=("adversarial",)))
    claim_run_folder(judged.out, dataclasses.replace(judged, adversarial=0.2, change=("adversarial",)))
