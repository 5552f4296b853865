"""The bundled reader against pictures whose attributes are known."""

import random

import pytest
import torch

from fewstep import assets
from fewstep.data.pictures import to_pixels
from fewstep.data.worlds.scenes import Scenes
from fewstep.evaluate.reader import load_reader, read
from fewstep.teacher.reader_task import spoil


@pytest.fixture(scope="module")
def reader():
    return load_reader(assets.SCENES_READER)


def test_reads_at_least_99_percent_of_held_out_pictures(reader):
    scenes = Scenes(seed=777, split="all")
    pictures = [scenes[i] for i in range(1000)]
    found, features = read(reader, to_pixels([picture.image for picture in pictures]))
    right = sum(scene == picture.scene for scene, picture in zip(found, pictures, strict=True))
    assert right >= 990
    assert features.shape == (1000, 64)


def test_calls_spoilt_pictures_unreadable(reader):
    rng = random.Random(5)
    scenes = Scenes(seed=778, split="all")
    found, _ = read(reader, to_pixels([spoil(scenes, 2 * i, rng) for i in range(400)]))
    assert sum(scene is None for scene in found) >= 380


@pytest.mark.parametrize("level", [-1.0, 0.0, 1.0])
def test_an_empty_picture_is_unreadable(reader, level):
    assert read(reader, torch.full((1, 3, 64, 64), level))[0] == [None]


def test_a_wrong_prompt_does_not_agree(reader):
    """Accuracy must be able to be low: pictures against each other's prompts."""
    scenes = Scenes(seed=779, split="all")
    pictures = [scenes[i] for i in range(200)]
    found, _ = read(reader, to_pixels([picture.image for picture in pictures]))
    shifted = [picture.prompt for picture in pictures[1:] + pictures[:1]]
    assert sum(s is not None and s.agrees_with(p) for s, p in zip(found, shifted, strict=True)) <= 6


def test_is_small():
    assert (assets.SCENES_READER / "reader.safetensors").stat().st_size < 2_000_000
