"""Every family, trained whole, as LoRA and by fine-tuning, on miniatures of its exact layout."""

import dataclasses

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline, LCMScheduler
from PIL import Image

from fewstep.commands import distill as distill_command
from fewstep.commands import finetune as finetune_command
from fewstep.data.worlds.scenes import Scenes
from fewstep.diffusion.solvers import SOLVERS
from fewstep.method.paths import DataPath
from fewstep.models import scenes_model
from fewstep.models.loading import load_latent_model
from fewstep.models.lora.file import DIFFUSERS_FILE, KOHYA_FILE
from fewstep.models.pipeline_loading import load_pipeline
from fewstep.recipes import distill, finetune
from fewstep.runs.consistency import make_task
from fewstep.runs.material import open_material
from miniatures import FAMILIES, save_miniature

PROMPT = "a red star"


@pytest.fixture(scope="module")
def miniatures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("miniatures")
    tokenizer = scenes_model.build_tokenizer(Scenes().prompt(i)[0] for i in range(300))
    return {family: save_miniature(family, tokenizer, folder / family) for family in FAMILIES}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    generator = np.random.default_rng(0)
    for i in range(6):
        Image.fromarray(generator.integers(0, 255, (20, 24, 3), dtype=np.uint8)).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(f"a {'red' if i % 2 else 'blue'} star")
    return folder


def settings(kind, folder, pictures, out, **changes):
    common = {
        "data": str(pictures), "out": out, "steps": 2, "batch_size": 2, "lr": 1e-2, "ema_decay": 0.5, "sample_every": 0,
        "device": "cpu", **changes,
    }  # fmt: skip
    if kind == "fine-tuned":
        return finetune.Finetune(model=str(folder), **common)
    lora = {"lora_rank": 3, "lora_alpha": 6.0, "guidance_range": (8.5, 8.5), "guidance_scale": 8.5}
    return distill.Distill(teacher=str(folder), **common, **(lora if kind == "lora" else {}))


def first_loss(config):
    """Of the first batch, with its gradient, and what may learn."""
    if isinstance(config, finetune.Finetune):
        model = load_latent_model(config.model, torch.device("cpu"))
        student = finetune_command.make_student(config, model)
        path = DataPath(model.schedule)
    else:
        model = distill_command.load_teacher(config)
        torch.manual_seed(0)  # fresh adapters
        student = distill_command.make_student(config, model)
        path = distill_command.make_path(config, student, model)
    task = make_task(config, student, path, model, open_material(config, model).latents())
    loss = task.loss(range(2)).total
    loss.backward()
    return loss, task, model


@pytest.mark.parametrize(
    ("kind", "solver"), [*((kind, solver) for kind in ("whole", "lora") for solver in SOLVERS), ("fine-tuned", None)]
)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_step_is_the_same_twice_and_moves_the_right_weights(family, kind, solver, miniatures, pictures, tmp_path):
    change = {"solver": solver} if solver else {}  # fine-tuning asks none
    config = settings(kind, miniatures[family], pictures, tmp_path, **change)
    (loss, task, model), (again, _, _) = first_loss(config), first_loss(config)
    assert torch.isfinite(loss)
    assert torch.equal(loss, again)
    moved = {name for name, p in task.student.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert moved
    if kind == "lora":
        assert all("lora_" in name for name in moved)
        assert all(p.grad is None for name, p in model.network.named_parameters() if "lora_" not in name)
    frozen = [*model.codec.autoencoder.parameters(), *model.conditioner.encoders["text_encoder"].parameters()]
    assert not any(p.requires_grad for p in frozen)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_whole_student_is_painted_alike_by_diffusers(family, miniatures, pictures, tmp_path):
    distill_command.distill(settings("whole", miniatures[family], pictures, tmp_path / "run"))
    mine = load_pipeline(tmp_path / "run" / "model", "cpu")([PROMPT], steps=4, seed=5, guidance_scale=8.5)
    theirs = DiffusionPipeline.from_pretrained(tmp_path / "run" / "model")
    check_painted_alike(mine[0], theirs, 8.5)


@pytest.mark.parametrize("file", [DIFFUSERS_FILE, KOHYA_FILE])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_lora_is_painted_alike_by_diffusers(family, file, miniatures, pictures, tmp_path):
    distill_command.distill(settings("lora", miniatures[family], pictures, tmp_path / "run"))
    mine = load_pipeline(tmp_path / "run" / "model", "cpu")([PROMPT], steps=4, seed=5)
    theirs = DiffusionPipeline.from_pretrained(miniatures[family])
    plain = np.asarray(load_pipeline_without_lora(theirs), dtype=int)
    theirs.scheduler = LCMScheduler.from_config(theirs.scheduler.config)
    theirs.load_lora_weights(tmp_path / "run" / "model", weight_name=file)
    check_painted_alike(mine[0], theirs, 1.0)
    assert np.abs(np.asarray(mine[0], dtype=int) - plain).max() > 5


def load_pipeline_without_lora(pipe):
    scheduler, pipe.scheduler = pipe.scheduler, LCMScheduler.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    image = pipe(
        PROMPT,
        num_inference_steps=4,
        guidance_scale=1.0,
        height=16,
        width=16,
        generator=torch.Generator().manual_seed(5),
    ).images[0]
    pipe.scheduler = scheduler
    return image


def check_painted_alike(mine, pipe, guidance_scale):
    assert np.ptp(mine) > 30  # a blank picture is like any other
    pipe.set_progress_bar_config(disable=True)
    theirs = pipe(
        PROMPT, num_inference_steps=4, guidance_scale=guidance_scale, height=16, width=16,
        generator=torch.Generator().manual_seed(5),
    ).images[0]  # fmt: skip
    difference = np.abs(np.asarray(mine, dtype=int) - np.asarray(theirs, dtype=int)).max()
    assert difference <= 2


@pytest.mark.parametrize("family", FAMILIES)
def test_fine_tuning_goes_on_from_a_student(family, miniatures, pictures, tmp_path):
    distill_command.distill(settings("whole", miniatures[family], pictures, tmp_path / "first"))
    config = settings("fine-tuned", tmp_path / "first" / "model", pictures, tmp_path / "second")
    finetune_command.finetune(config)
    lora = dataclasses.replace(config, out=tmp_path / "third", lora_rank=2)
    finetune_command.finetune(lora)
    for run in ("second", "third"):
        assert load_pipeline(tmp_path / run / "model", "cpu")([PROMPT], steps=2)[0].size == (16, 16)
