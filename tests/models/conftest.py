"""Miniatures of released models, and copies of them to spoil."""

import shutil

import pytest
import safetensors.torch
import torch
from transformers import CLIPTokenizer

from fewstep.data.worlds.scenes import Scenes
from fewstep.models import scenes_model
from fewstep.models.loading import load_latent_model
from miniatures import save_miniature
from single_files import save_single_file


@pytest.fixture(scope="package")
def miniatures(tmp_path_factory):
    """Of Stable Diffusion 1.x and XL a folder, and the same as one file; do not write into them."""
    root = tmp_path_factory.mktemp("loaded")
    tokenizer = scenes_model.build_tokenizer(Scenes().prompt(i)[0] for i in range(300))
    found = {}
    for family in ("sd15", "sd21", "sdxl"):
        folder = save_miniature(family, tokenizer, root / family)
        found[family] = folder, save_single_file(family, folder, root / f"{family}.safetensors")
    return found


@pytest.fixture
def copy(miniatures, tmp_path):
    """Copies a miniature's folder to spoil."""
    return lambda family="sd15": shutil.copytree(miniatures[family][0], tmp_path / family)


@pytest.fixture(scope="package")
def bases(random_teacher, tmp_path_factory):
    """Saves Stable Diffusion 1.x, 2.x and XL with the tokenizer of the bundled teacher; do not write into them."""
    tokenizer = CLIPTokenizer.from_pretrained(random_teacher / "tokenizer")
    folder = tmp_path_factory.mktemp("bases")
    return {family: save_miniature(family, tokenizer, folder / family) for family in ("sd15", "sd21-base", "sdxl")}


@pytest.fixture(scope="package")
def base_models(bases):
    """Each is as it was after a test."""
    return {family: load_latent_model(folder, torch.device("cpu")) for family, folder in bases.items()}


@pytest.fixture
def model(base_models):
    return base_models["sd15"]


@pytest.fixture
def write_lora(tmp_path):
    """Writes a LoRA file of these tensors."""

    def write(tensors, header=None, name="x"):
        path = tmp_path / f"{name}.safetensors"
        safetensors.torch.save_file({key: value.contiguous() for key, value in tensors.items()}, path, header)
        return path

    return write
