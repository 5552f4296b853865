"""A student spread over two processes learns what one in one process learns."""

import dataclasses
import json
import os

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.distributed.tensor import DTensor

from fewstep.commands.distill import load_teacher, make_path, make_student
from fewstep.errors import UserError
from fewstep.parallel.world import current_world, find_rows, gather_tensor, is_spread
from fewstep.recipes.distill import Distill
from fewstep.runs.adversarial import add_heads
from fewstep.runs.consistency import make_task
from fewstep.runs.material import open_material
from fewstep.train.loop import fit
from ranks import read_state, run_ranks


def prepared(teacher, photos, folder, **changes):
    torch.set_default_dtype(torch.float64)
    config = Distill(
        teacher=str(teacher), data=str(photos), out=folder, resolution=16, batch_size=4, steps=3,
        guidance_range=(2.0, 5.0), guidance_scale=3.0, log_every=1, device="cpu", lr=1e-3,
        **{"ema_decay": 0.5, **changes},
    )  # fmt: skip
    model = load_teacher(config)
    model.network.backbone.double()
    student = make_student(config, model)
    student.learner.weights.double()
    latents = open_material(config, model).latents()
    return config, student, make_task(config, student, make_path(config, student, model), model, latents)


def learn(teacher, photos, folder, changes):
    world = current_world()
    config, student, task = prepared(teacher, photos, folder, **changes)
    model = student.model
    assert is_spread(student.learner.weights) == (config.distribution != "ddp" and world.size > 1)
    assert is_spread(model.network) == is_spread(student.learner.weights)
    total, _ = task.loss(world.share(range(8, 12)))
    (total / 4).backward()
    gradients = {
        name: gather_tensor(p.grad) for name, p in student.learner.weights.named_parameters() if p.grad is not None
    }
    world.sum(total.detach())
    if world.main:
        folder.mkdir(exist_ok=True)
        save_file({**gradients, "loss": total.detach().reshape(1)}, folder.parent / f"{folder.name}.safetensors")
    student.learner.weights.zero_grad(set_to_none=True)
    fit(task, config, folder, "test")
    student.save(folder / "model")


def losses(folder):
    return [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").open()]


@pytest.mark.parametrize(
    "changes",
    [
        {"distribution": "ddp"},
        {"distribution": "fsdp", "target_decay": 0.8},
        {"ema_decay": 0.0},
        {"distribution": "fsdp", "method": "any-step", "skip": 125},
    ],
    ids=str,
)
def test_two_processes_learn_what_one_does(tiny, photos, tmp_path, changes):
    for size in (1, 2):
        run_ranks(size, learn, tiny, photos, tmp_path / str(size), changes)
    one, two = (load_file(tmp_path / f"{size}.safetensors") for size in (1, 2))
    assert one.keys() == two.keys()
    assert len(one) > 50
    largest = max(float(value.abs().max()) for name, value in one.items() if name != "loss")
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-5, atol=1e-9 * largest)
    assert losses(tmp_path / "2") == pytest.approx(losses(tmp_path / "1"), rel=1e-5)
    states = [read_state(tmp_path / f"{size}/checkpoints/step-0000003/state.safetensors") for size in (1, 2)]
    assert states[0].keys() == states[1].keys()
    for name, value in states[0].items():
        assert states[1][name].shape == value.shape
    models = [
        load_file(tmp_path / f"{size}/model/unet/diffusion_pytorch_model.safetensors") for size in (1, 2)
    ]  # fmt: skip
    assert models[0].keys() == models[1].keys()
    for name, value in models[0].items():
        torch.testing.assert_close(models[1][name], value, rtol=1e-4, atol=1e-6)


def test_a_spread_run_goes_on_whole_and_the_other_way_round(tiny, photos, tmp_path):
    """A state does not tell how it was spread."""
    run_ranks(1, go_on, tiny, photos, tmp_path / "straight", 3)
    run_ranks(2, go_on, tiny, photos, tmp_path / "run", 1)
    run_ranks(1, go_on, tiny, photos, tmp_path / "run", 2)
    run_ranks(2, go_on, tiny, photos, tmp_path / "run", 3)
    assert losses(tmp_path / "run") == pytest.approx(losses(tmp_path / "straight"), rel=1e-5)


def check_halves(network):
    """Two machines have a whole network each, spread over their two processes."""
    held = [value.to_local().numel() for value in network.parameters()]
    shapes = [len(value) for value in network.parameters()]
    assert sum(held) < 0.6 * sum(value.numel() for value in network.parameters())
    parts = current_world().gather([find_rows(value).start for value in network.parameters()])
    assert parts[0] == parts[2] == [0] * len(held)
    assert parts[1] == parts[3] == [-(-length // 2) for length in shapes]
    first = next(network.parameters()).to_local().detach().double().sum().item()
    sums = current_world().gather(first)
    assert sums[0] == sums[2] != sums[1] == sums[3]


def test_machines_with_a_spread_student_each_learn_what_one_process_does(tiny, photos, tmp_path):
    """And any of them goes on from the state of another."""
    run_ranks(1, go_on, tiny, photos, tmp_path / "straight", 3)
    for size, steps, distribution in ((4, 1, "hybrid"), (2, 2, "fsdp"), (4, 3, "hybrid")):
        run_ranks(size, go_on, tiny, photos, tmp_path / "run", steps, distribution)
        assert len([*(tmp_path / f"run/checkpoints/step-{steps:07d}").glob("*.safetensors")]) == 2
    assert losses(tmp_path / "run") == pytest.approx(losses(tmp_path / "straight"), rel=1e-5)


SPREAD_BASE = {"distribution": "fsdp", "lora_rank": 2, "guidance_range": (3.0, 3.0), "target_decay": 0.8}


def prepare_adapters(teacher, photos, folder, **changes):
    """As `prepared`, in fp32, as which adapters learn."""
    config = Distill(
        teacher=str(teacher), data=str(photos), out=folder, resolution=16, steps=3, ema_decay=0.5,
        guidance_scale=3.0, log_every=1, device="cpu", lr=1e-3, **{"batch_size": 4, **SPREAD_BASE, **changes},
    )  # fmt: skip
    model = load_teacher(config)
    student = make_student(config, model)
    latents = open_material(config, model).latents()
    task = make_task(config, student, make_path(config, student, model), model, latents)
    return config, student, add_heads(config, task, student, model) if config.adversarial else task


def count_held(module):
    """The bytes of a network's base that this process holds while nothing computes."""
    held = [value for name, value in module.named_parameters() if ".lora_" not in name]
    return sum((value.to_local() if isinstance(value, DTensor) else value).nbytes for value in held)


def learn_adapters(teacher, photos, folder, steps, changes):
    config, student, task = prepare_adapters(teacher, photos, folder, **changes)
    assert student.is_spread == (current_world().size > 1 and config.distribution != "ddp")
    assert is_spread(student.learner.weights) == (student.is_spread and not config.lora_rank)
    assert is_spread(student.model.network.backbone) == student.is_spread
    fit(task, dataclasses.replace(config, steps=steps), folder, "test")
    student.save(folder / "model")
    held = current_world().gather(count_held(student.model.network))
    (folder / "held.json").write_text(json.dumps(held))


def test_a_spread_base_teaches_adapters_what_a_whole_one_does(tiny, photos, tmp_path):
    """Teacher, student and target are the same parts, put together a block at a time."""
    for size in (1, 2):
        run_ranks(size, learn_adapters, tiny, photos, tmp_path / str(size), 3, {"gradient_checkpointing": size == 2})
    assert losses(tmp_path / "2") == pytest.approx(losses(tmp_path / "1"), rel=1e-5)
    states = [load_file(tmp_path / f"{size}/checkpoints/step-0000003/state.safetensors") for size in (1, 2)]
    assert states[0].keys() == states[1].keys()
    # Means of gradients: AdamW makes an update of any gradient, however near 0, by whose rounding weights differ.
    means = [{name: value for name, value in state.items() if ".exp_avg." in name} for state in states]
    largest = max(float(value.abs().max()) for value in means[0].values())
    assert len(means[0]) > 50
    for name, value in means[0].items():
        torch.testing.assert_close(means[1][name], value, rtol=1e-3, atol=1e-3 * largest)
    ((whole,), parts) = (json.loads((tmp_path / f"{size}/held.json").read_text()) for size in (1, 2))
    assert max(parts) < 0.52 * whole
    files = [load_file(tmp_path / f"{size}/model/pytorch_lora_weights.safetensors") for size in (1, 2)]
    assert files[0].keys() == files[1].keys()
    assert {name: value.shape for name, value in files[0].items()} == {n: v.shape for n, v in files[1].items()}


def test_adapters_on_a_spread_base_go_on_on_a_whole_one_and_the_other_way_round(tiny, photos, tmp_path):
    run_ranks(1, learn_adapters, tiny, photos, tmp_path / "straight", 3, {"target_decay": None})
    for size, steps in ((2, 1), (1, 2), (2, 3)):
        run_ranks(size, learn_adapters, tiny, photos, tmp_path / "run", steps, {"target_decay": None})
    assert losses(tmp_path / "run") == pytest.approx(losses(tmp_path / "straight"), rel=1e-5)


MATCHED = {"method": "tdm", "target_decay": None, "fake_rank": 2}


@pytest.mark.parametrize("rank", [2, 0])
def test_two_roles_on_a_spread_base_learn_what_they_do_on_a_whole_one(tiny, photos, tmp_path, rank):
    """Student and fake score are adapters of two names on the teacher's parts; or the student has parts of its own."""
    begun = {"target_decay": None, "method": "pcm", "distribution": "ddp", "lora_rank": rank}
    run_ranks(1, learn_adapters, tiny, photos, tmp_path / "begun", 1, begun)
    for size in (1, 2):
        changes = {**MATCHED, "start": str(tmp_path / "begun/model"), "lora_rank": rank}
        run_ranks(
            size, learn_adapters, tiny, photos, tmp_path / str(size), 3, {**changes, "gradient_checkpointing": size > 1}
        )
    one, two = ([json.loads(line) for line in (tmp_path / size / "metrics.jsonl").open()] for size in "12")
    for name in ("loss", "loss_fake"):
        assert [line[name] for line in two] == pytest.approx([line[name] for line in one], rel=1e-5)


@pytest.mark.parametrize("rank", [2, 0])
def test_a_stage_that_follows_adapters_on_a_spread_base_learns_what_it_does_on_a_whole_one(
    tiny, photos, tmp_path, rank
):  # fmt: skip
    first = {"method": "guided-distill", "target_decay": None, "lora_rank": rank}
    run_ranks(1, learn_adapters, tiny, photos, tmp_path / "begun", 1, {**first, "distribution": "ddp"})
    second = {**first, "start": str(tmp_path / "begun/model"), "to_steps": 4}
    for size in (1, 2):
        run_ranks(size, learn_adapters, tiny, photos, tmp_path / str(size), 3, second)
    assert losses(tmp_path / "2") == pytest.approx(losses(tmp_path / "1"), rel=1e-5)


def test_a_lora_follows_a_spread_model_as_it_does_a_whole_one(tiny, photos, tmp_path):
    """The any-step model that is followed is spread beside the base."""
    first = {"method": "any-step", "target_decay": None, "states": "data", "lora_rank": 0, "distribution": "ddp"}
    run_ranks(1, learn_adapters, tiny, photos, tmp_path / "begun", 1, first)
    second = {"method": "pcm", "phases": (4,), "target_decay": None, "follow": str(tmp_path / "begun/model")}
    for size in (1, 2):
        run_ranks(size, learn_adapters, tiny, photos, tmp_path / str(size), 3, second)
    assert losses(tmp_path / "2") == pytest.approx(losses(tmp_path / "1"), rel=1e-5)


@pytest.mark.parametrize("rank", [2, 0])
def test_heads_on_a_spread_teacher_judge_as_those_on_a_whole_one(tiny, photos, tmp_path, rank):
    """They read features in its midst, and the student's gradient goes back through what it computed on the way."""
    judged = {"target_decay": None, "adversarial": 0.5, "lora_rank": rank}
    for distribution in ("ddp", "fsdp"):
        changes = {**judged, "distribution": distribution, "gradient_checkpointing": distribution == "fsdp"}
        run_ranks(2, learn_adapters, tiny, photos, tmp_path / distribution, 3, changes)
    whole, spread = (
        [json.loads(line) for line in (tmp_path / each / "metrics.jsonl").open()] for each in ("ddp", "fsdp")
    )  # fmt: skip
    for name in ("loss", "loss_heads"):
        assert [line[name] for line in spread] == pytest.approx([line[name] for line in whole], rel=1e-6)


WALKERS = {"method": "any-step", "target_decay": None, "skip": 125, "batch_size": 8}


def test_walkers_ask_a_spread_base_as_a_whole_one(tiny, photos, tmp_path):
    """Some processes have none under way yet when others go on; the base is asked by all together."""
    run_ranks(1, learn_adapters, tiny, photos, tmp_path / "straight", 3, WALKERS)
    for size, steps in ((2, 2), (4, 3)):
        run_ranks(size, learn_adapters, tiny, photos, tmp_path / "run", steps, WALKERS)
    assert losses(tmp_path / "run") == pytest.approx(losses(tmp_path / "straight"), rel=1e-5)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"frozen_precision": "nf4"}, "nf4 is held whole in every process; give --distribution ddp"),
    ],
)
def test_what_does_not_go_with_a_spread_base_is_refused(changes, said):
    with pytest.raises(UserError, match=said):
        Distill(guidance_scale=3.0, ema_decay=0.5, **{**SPREAD_BASE, **changes})


def go_on(teacher, photos, folder, steps, distribution="fsdp"):
    if distribution == "hybrid":
        os.environ["LOCAL_WORLD_SIZE"] = "2"
    config, student, task = prepared(teacher, photos, folder, distribution=distribution)
    if distribution == "hybrid":
        check_halves(student.learner.weights)
        check_halves(student.learner.averaged)
        check_halves(student.base)
    fit(task, dataclasses.replace(config, steps=steps), folder, "test")
