import functools
import os
import shutil

import numpy as np
import pytest
from PIL import Image
from transformers import Qwen3Model

from fewstep.data.worlds.scenes import Scenes
from fewstep.models import scenes_model
from fewstep.models.families import flow_family
from flow_loading import load_shared, read_once
from flow_miniatures import FLOWS, TRANSFORMERS


@pytest.fixture(scope="session")
def flow_tokenizer():
    return scenes_model.build_tokenizer(Scenes().prompt(i)[0] for i in range(300))


@pytest.fixture(scope="session")
def make_flow(flow_tokenizer, tmp_path_factory):
    """Gives the folder of a family's miniature, which is written once; do not write into it."""
    folder = tmp_path_factory.mktemp("flows")

    @functools.cache
    def make(name):
        return TRANSFORMERS[name](flow_tokenizer, folder / name)

    return make


@pytest.fixture(scope="session", params=FLOWS)
def flow(request, make_flow):
    """The folder of a miniature of each family; do not write into it."""
    return make_flow(request.param)


@pytest.fixture
def copy_flow(make_flow, tmp_path):
    """Copies the folder of a family's miniature, to spoil all of it but its weights, which are links."""

    def copy(name, called=None):
        return shutil.copytree(make_flow(name), tmp_path / (called or name), copy_function=_copy_or_link)

    return copy


def _copy_or_link(source, target):
    (os.link if source.endswith(".safetensors") else shutil.copy2)(source, target)


@pytest.fixture(autouse=True)
def _read_frozen_parts_once(monkeypatch):
    """Has the text encoders and autoencoders of the same files be the same: they are frozen, and most of all work of
    loading a miniature; and Qwen3 read a prompt once."""
    monkeypatch.setattr(flow_family, "load_weights", load_shared)
    monkeypatch.setattr(Qwen3Model, "forward", read_once)


@pytest.fixture(scope="session")
def flow_pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    generator = np.random.default_rng(0)
    for i in range(6):
        Image.fromarray(generator.integers(0, 255, (70, 80, 3), dtype=np.uint8)).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(f"a {'red' if i % 2 else 'blue'} star")
    return folder
