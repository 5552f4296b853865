"""Distribution matching: its losses in closed form, and its two roles on one base."""

import copy
import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import fewstep
from fewstep.commands.bench_methods import BenchMethods
from fewstep.commands.distill import distill, load_teacher, make_path, make_student
from fewstep.diffusion.prediction import Prediction
from fewstep.errors import UserError
from fewstep.method.matching import draw_tau, fake_losses, matching_losses, noise_on
from fewstep.parallel.world import current_world
from fewstep.recipes.distill import Distill
from fewstep.recipes.finetune import Finetune
from fewstep.runs.consistency import make_task
from fewstep.runs.material import open_material
from fewstep.train.checkpoint import TENSORS_FILE
from fewstep.train.loop import begin, do_update
from fewstep.train.matching_task import FAKE, MatchingTask
from fewstep.train.role import STUDENT

COMMON = {
    "method": "tdm", "data": "scenes", "pictures": 8, "steps": 2, "batch_size": 4, "guidance_range": (5.0, 5.0),
    "lr": 1e-3, "ema_decay": 0.5, "device": "cpu", "sample_every": 0, "log_every": 1, "fake_rank": 2,
}  # fmt: skip
OTHERS = {name: value for name, value in COMMON.items() if name != "fake_rank"}


@pytest.fixture(scope="module")
def begun(random_teacher, tmp_path_factory):
    """Run folders of students to go on from."""
    folder = tmp_path_factory.mktemp("begun")
    for method, rank in (("any-step", 0), ("pcm", 2), ("lcm", 0)):
        settings = {**OTHERS, "method": method, "skip": 125, "lr": 1e-2, "lora_rank": rank}
        distill(Distill(**settings, teacher=str(random_teacher), out=folder / method))
    return folder


@pytest.mark.parametrize("e", [0, 124, 499])
def test_noise_is_brought_from_anywhere_to_anywhere(sd_schedule, e):
    """What is noised from z_e is as noisy as what is noised from the picture at once."""
    z_0, tau = torch.randn(4000, 4, dtype=torch.float64), torch.full((4000,), 700)
    z_e = sd_schedule.diffuse(z_0, torch.randn_like(z_0), torch.full((4000,), e))
    z_tau = noise_on(sd_schedule, z_e, torch.full((4000,), e), tau, torch.randn_like(z_0)).z_tau
    alpha, sigma = (float(f(torch.tensor(700))) for f in (sd_schedule.alpha, sd_schedule.sigma))
    rest = z_tau - alpha * z_0
    assert abs(float(rest.std()) - sigma) < 0.02 * sigma
    assert abs(float((rest * z_0).mean())) < 0.03


def test_tau_lies_above_the_end_and_covers_all_that_does(sd_schedule):
    u = torch.linspace(0, 1 - 1e-6, 5000)
    for e in (0, 124, 874, 998):
        tau = draw_tau(sd_schedule, torch.full((5000,), e), u)
        assert int(tau.min()) == max(e + 1, 20)
        assert int(tau.max()) == max(979, e + 1)
        assert tau.unique().numel() == max(979, e + 1) - max(e + 1, 20) + 1


@pytest.mark.parametrize("e", [0, 249])
def test_the_fake_loss_is_least_at_the_score_of_the_answers(sd_schedule, e):
    """Of answers that all are one point, the score at τ is known: every bit of fresh noise can be told."""
    z_e, e, tau = torch.randn(6, 4, dtype=torch.float64), torch.full((6,), e), torch.full((6,), 600)
    answer = noise_on(sd_schedule, z_e, e, tau, torch.randn_like(z_e))
    (alpha, sigma), (alpha_e, sigma_e) = (sd_schedule.coefficients(each, z_e) for each in (tau, e))
    variance = sigma**2 - (alpha / alpha_e * sigma_e) ** 2
    score = (alpha / alpha_e * z_e - answer.z_tau) / variance
    told = Prediction((answer.z_tau + sigma**2 * score) / alpha, answer.noise)
    assert float(fake_losses(sd_schedule, told, answer).max()) < 1e-20
    worse = Prediction(told.z_0 + 0.01, answer.noise)
    assert float(fake_losses(sd_schedule, worse, answer).min()) > 1e-6


def test_answers_go_where_the_teacher_has_more_than_the_fake():
    z_0 = torch.zeros(2, 1, 2, 2, requires_grad=True)
    real, fake = torch.full((2, 1, 2, 2), 2.0), torch.full((2, 1, 2, 2), 0.5)
    matching_losses(z_0, real, fake).sum().backward()
    # 2/4 pixels · (fake − real)/|ẑ_0 − real| = 0.5 · (−1.5/2)
    torch.testing.assert_close(z_0.grad, torch.full((2, 1, 2, 2), -0.375))
    assert torch.equal(torch.autograd.grad(matching_losses(z_0, real, real).sum(), z_0)[0], torch.zeros(2, 1, 2, 2))


@pytest.mark.parametrize(("method", "rank"), [("any-step", 0), ("pcm", 2)])
def test_each_role_learns_from_its_own_loss_alone(method, rank, begun, random_teacher, tmp_path):
    config = Distill(
        **COMMON, start=str(begun / method), lora_rank=rank, teacher=str(random_teacher), out=tmp_path / "run"
    )
    teacher = load_teacher(config)
    student = make_student(config, teacher)
    path = make_path(config, student, teacher)
    task = make_task(config, student, path, teacher, open_material(config, teacher).latents())
    assert isinstance(task, MatchingTask)
    roles = {role.name: role.weights for role in task.roles}
    assert list(roles) == [STUDENT, FAKE]
    for due, weights in roles.items():
        for each in roles.values():
            each.zero_grad()
        ((name, loss),) = task.losses(range(4), {due})
        loss.total.backward()
        assert name == due
        moved = {name for name, each in roles.items() for p in each.parameters() if p.grad is not None and p.grad.any()}
        assert moved == {due}
        with_gradient = [p for p in weights.parameters() if p.requires_grad]
        assert sum(p.grad is not None for p in with_gradient) > 0.9 * len(with_gradient)
    frozen = copy.deepcopy(teacher.network.backbone.state_dict())
    before = {name: [p.clone() for p in weights.parameters()] for name, weights in roles.items()}
    state = begin(task.roles, config)
    do_update(task, state, config, current_world())
    for name, weights in roles.items():
        assert any(not torch.equal(p, q) for p, q in zip(before[name], weights.parameters(), strict=True)), name
    assert all(
        torch.equal(frozen[key], value)
        for key, value in teacher.network.backbone.state_dict().items()
        if "lora_" not in key
    )


def test_chains_are_as_long_as_the_phases_say(begun, random_teacher, tmp_path):
    config = Distill(**COMMON, start=str(begun / "any-step"), teacher=str(random_teacher), out=tmp_path / "run")
    teacher = load_teacher(config)
    student = make_student(config, teacher)
    task = make_task(
        config, student, make_path(config, student, teacher), teacher, open_material(config, teacher).latents()
    )
    drawn = {task.draw_step(range(i, i + 2)) for i in range(0, 2000, 4)}
    assert drawn == {(count, step) for count in (1, 2, 4, 8) for step in range(count)}
    assert task.draw_step(range(8, 10)) == task.draw_step(range(10, 12))  # parts of one batch


@pytest.mark.parametrize(("method", "rank"), [("any-step", 0), ("pcm", 2)])
def test_it_goes_on_from_a_student_and_is_painted_as_that_is(method, rank, begun, random_teacher, tmp_path):
    common = {**COMMON, "start": str(begun / method), "lora_rank": rank, "teacher": str(random_teacher)}
    distill(Distill(**common, out=tmp_path / "run"))
    card = json.loads((tmp_path / "run/model/fewstep.json").read_text())
    assert (card["consistency"], card["refined_by"]) == (method, "tdm")
    pipeline, was = fewstep.load(tmp_path / "run", "cpu"), fewstep.load(begun / method, "cpu")
    assert pipeline.method is was.method
    assert pipeline.jumps(4) == was.jumps(4)
    assert not np.array_equal(np.asarray(pipeline("x", steps=2)[0]), np.asarray(was("x", steps=2)[0]))
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").open()]
    assert {"loss", "loss_fake"} <= lines[0].keys()
    distill(Distill(**{**common, "lr": 1e-12, "fake_lr": 1e-3}, out=tmp_path / "still"))
    still = fewstep.load(tmp_path / "still", "cpu")
    assert np.abs(np.asarray(still("x", steps=4)[0], int) - np.asarray(was("x", steps=4)[0], int)).max() <= 1


@pytest.mark.parametrize(("method", "rank"), [("any-step", 0), ("pcm", 2)])
def test_it_goes_on_bit_for_bit_after_a_stop(method, rank, begun, random_teacher, tmp_path):
    config = Distill(
        **{**COMMON, "steps": 3}, start=str(begun / method), lora_rank=rank, teacher=str(random_teacher),
        checkpoint_every=1, keep_checkpoints=3, out=tmp_path / "run",
    )  # fmt: skip
    distill(config)
    exported = {path: load_file(path) for path in (config.out / "model").rglob("*.safetensors")}
    last = load_file(config.out / "checkpoints/step-0000003" / TENSORS_FILE)
    assert any(key.startswith("fake.") for key in last)
    for name in ("model", "checkpoints/step-0000003", "checkpoints/step-0000002"):
        shutil.rmtree(config.out / name)
    distill(config)
    again = load_file(config.out / "checkpoints/step-0000003" / TENSORS_FILE)
    assert last.keys() == again.keys()
    assert all(torch.equal(last[key], again[key]) for key in last)
    for path, before in exported.items():
        after = load_file(path)
        assert all(torch.equal(before[key], after[key]) for key in before)


@pytest.mark.parametrize("method", ["any-step", "tdm"])
def test_prompts_are_enough_where_no_picture_is_looked_at(method, random_teacher, tmp_path, capsys):
    (tmp_path / "prompts.txt").write_text("a red star\n\na blue ring\n")
    given = {**OTHERS, "method": method, "data": str(tmp_path / "prompts.txt"), "teacher": str(random_teacher)}
    distill(Distill(**given, skip=125, out=tmp_path / "run"))
    assert "3 lines found, 2 used, 1 dropped" in capsys.readouterr().out
    assert fewstep.load(tmp_path / "run", "cpu")("a red star", steps=2)
    with pytest.raises(UserError, match="holds prompts and no pictures"):
        distill(Distill(**{**given, "method": "lcm"}, out=tmp_path / "other"))
    (tmp_path / "prompts.txt").write_text("a red star\n\na green ring\n")
    shutil.rmtree(tmp_path / "run" / "model")
    with pytest.raises(UserError, match="are not those that"):
        distill(Distill(**given, skip=125, out=tmp_path / "run"))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"start": "lcm"}, "which .* by lcm cannot go; start from one by any-step or pcm"),
        ({"start": "any-step", "lora_rank": 2}, "no few-step LoRA|has|give"),
        ({"start": "pcm"}, "is a LoRA, which goes on as one; give its --lora-rank too"),
        ({"start": "pcm", "lora_rank": 4}, "of another rank than 4"),
        ({"start": "pcm", "lora_rank": 2, "lora_alpha": 1.0}, "another alpha than 1"),
        ({"start": "pcm:0.5", "lora_rank": 2}, "has the scale 0.5; adapters go on as they are"),
        ({"start": "any-step", "method": "pcm"}, "was made by any-step and cannot go on by pcm"),
    ],
)
def test_a_start_that_does_not_fit_is_refused(settings, said, begun, random_teacher, tmp_path):
    given = {**OTHERS, **settings, "start": str(begun / settings["start"])}
    with pytest.raises(UserError, match=said):
        distill(Distill(**given, teacher=str(random_teacher), out=tmp_path / "run"))


@pytest.mark.parametrize(
    ("make", "settings", "said"),
    [
        (
            Distill,
            {"guidance_range": (2.0, 9.0)},
            "matches pictures of one guidance and guidance_range is 2 to 9; give one value twice: --guidance-range 5 5",
        ),
        (Distill, {"states": "walkers"}, "states are walkers and tdm learns at own"),
        (Distill, {"method": "any-step", "states": "own"}, "states are own and any-step learns at walkers"),
        (Distill, {"fake_rank": 0}, "fake_rank"),
        (Distill, {"distance": "l2"}, "distance is l2 and tdm compares no steps of a teacher; leave --distance out"),
        (Distill, {"solver": "midpoint"}, "leave --solver out"),
        (Distill, {"times": "any"}, "leave --times out"),
        (Distill, {"shrink": 0.5}, "leave --shrink out"),
        (Distill, {"loss_weight": "constant"}, "leave --loss-weight out"),
        (Distill, {"target": "average"}, "tdm has none"),
        (Distill, {"method": "pcm", "fake_lr": 1e-3}, "fake_lr is 0.001 and pcm learns no fake score"),
        (Distill, {"method": "lcm", "fake_rank": 2}, "fake_rank is 2 and lcm learns no fake score"),
        (Finetune, {}, "tdm asks a teacher, and a fine-tuning has none"),
        (BenchMethods, {}, "tdm goes on from a student, which is not measured here"),
    ],
)
def test_settings_that_do_not_go_with_it_are_refused(make, settings, said):
    given = {"method": "tdm", "guidance_range": (5.0, 5.0), **settings}
    if make is BenchMethods:
        given = {"methods": ("lcm", "tdm")}
    with pytest.raises(UserError, match=said):
        make(**given)
