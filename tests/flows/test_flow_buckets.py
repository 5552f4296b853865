"""Every transformer trained on a shape that is no square."""

import numpy as np
import pytest
import torch
from PIL import Image

from fewstep.commands import distill as command
from fewstep.errors import UserError
from fewstep.models.family import Family
from fewstep.recipes.distill import Distill
from fewstep.runs.buckets import choose_buckets
from fewstep.runs.consistency import make_task
from fewstep.runs.material import open_material
from flow_miniatures import TRANSFORMERS


@pytest.fixture(scope="module", params=TRANSFORMERS)
def transformer(request, flow_tokenizer, tmp_path_factory):
    return TRANSFORMERS[request.param](flow_tokenizer, tmp_path_factory.mktemp("transformers") / request.param)


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """Two pictures, almost four times as wide as high."""
    folder, generator = tmp_path_factory.mktemp("wide"), np.random.default_rng(0)
    for i in range(2):
        Image.fromarray(generator.integers(0, 255, (40, 150, 3), dtype=np.uint8)).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text("a red star")
    return folder


def test_a_wide_batch_is_learnt_as_a_square_one(transformer, wide, tmp_path, monkeypatch):
    config = Distill(
        teacher=str(transformer), data=str(wide), out=tmp_path, batch_size=2, device="cpu", buckets="on",
        guidance_range=(4.0, 4.0), guidance_scale=4.0, lora_rank=2, lora_alpha=2.0,
    )  # fmt: skip
    teacher = command.load_teacher(config)
    latents = open_material(config, teacher).latents()
    channels, height, width = latents.shape_at(range(2))
    assert height < width
    assert (height * teacher.codec.multiple, width * teacher.codec.multiple) in choose_buckets(
        teacher, teacher.resolution
    )
    student = command.make_student(config, teacher)
    task = make_task(config, student, command.make_path(config, student, teacher), teacher, latents)
    answers = task.answer(range(2))
    assert answers.from_t.shape == (2, channels, height, width)
    loss = task.loss(range(2)).total
    loss.backward()
    assert torch.isfinite(loss)
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in task.student.parameters())
    monkeypatch.setattr(Family, "largest_side", lambda *_: teacher.resolution)
    monkeypatch.setattr(type(teacher.family), "largest_side", Family.largest_side, raising=False)
    with pytest.raises(UserError, match="pixels a side, give --buckets off"):
        choose_buckets(teacher, teacher.resolution)
