"""A student spread over two processes learns what one in one process learns."""

import dataclasses
import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from fewstep.commands.distill import load_teacher, make_path, make_student
from fewstep.parallel.world import current_world
from fewstep.recipes.distill import Distill
from fewstep.runs.consistency import make_task
from fewstep.runs.material import open_material
from fewstep.train.loop import fit
from fewstep.train.state import gather_tensor, is_spread
from ranks import run_ranks


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
    assert is_spread(student.learner.weights) == (config.distribution == "fsdp" and world.size > 1)
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
    "changes", [{"distribution": "ddp"}, {"distribution": "fsdp", "target_decay": 0.8}, {"ema_decay": 0.0}], ids=str
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
    states = [load_file(tmp_path / f"{size}/checkpoints/step-0000003/state.safetensors") for size in (1, 2)]
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


def go_on(teacher, photos, folder, steps):
    config, _, task = prepared(teacher, photos, folder, distribution="fsdp")
    fit(task, dataclasses.replace(config, steps=steps), folder, "test")
