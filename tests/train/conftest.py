"""A small teacher and students of it that others follow."""

import pytest
from PIL import Image
from transformers import CLIPTokenizer

from fewstep import assets
from fewstep.commands.distill import distill
from fewstep.recipes.distill import Distill
from followed import COMMON
from miniatures import save_miniature


@pytest.fixture(scope="package")
def teacher(tmp_path_factory):
    """A miniature, with pictures beside it."""
    folder = tmp_path_factory.mktemp("teacher")
    (folder / "photos").mkdir()
    for i in range(4):
        Image.new("RGB", (16, 16), (60 * i, 90, 120)).save(folder / "photos" / f"{i}.png")
        (folder / "photos" / f"{i}.txt").write_text(f"a red star {i}")
    (folder / "prompts.txt").write_text("a red star\na blue ring\n")
    tokenizer = CLIPTokenizer.from_pretrained(assets.scenes_teacher() / "tokenizer")
    return save_miniature("sd15", tokenizer, folder / "sd15")


@pytest.fixture(scope="package")
def followed(teacher, tmp_path_factory):
    """Run folders of students to follow, by the rank of their adapters, and of an any-step model."""
    folder = tmp_path_factory.mktemp("followed")
    common = {**COMMON, "teacher": str(teacher), "data": str(teacher.parent / "photos")}
    distill(Distill(**common, out=folder / "0"))
    distill(Distill(**{**common, "guidance_range": (5.0, 5.0)}, lora_rank=2, out=folder / "2"))
    distill(Distill(**{**common, "method": "any-step", "lr": 3e-3}, skip=125, out=folder / "any"))
    return folder
