"""Reads the attributes of a scene back from a picture, so that obedience to a prompt can be counted."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TypeVar

import safetensors.torch
import torch
from torch import Tensor, nn

from fewstep.data.worlds.scene import BACKGROUNDS, COLOURS, SHAPES, SIZES, Scene, Thing
from fewstep.errors import UserError
from fewstep.files import read_safetensors, write_whole

LAYOUTS = ("single", "left of", "above", "unreadable")
_THING = (len(SHAPES), len(COLOURS), len(SIZES))
HEADS = (len(LAYOUTS), *_THING, *_THING, len(BACKGROUNDS))
"""Sizes of the answers: layout; shape, colour, size of the first thing; of the second; background."""
FEATURES = 64
READER_FILE = "reader.safetensors"


class Reader(nn.Module):
    """Classifies 64×64 pictures by a small convolutional network."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for narrow, wide, stride in ((3, 32, 2), (32, 64, 2), (64, 96, 1), (96, 128, 2), (128, 128, 1)):
            layers += [nn.Conv2d(narrow, wide, 3, stride, 1), nn.GroupNorm(8, wide), nn.GELU()]
        self.body = nn.Sequential(*layers, nn.Conv2d(128, 32, 1), nn.Flatten(), nn.Linear(32 * 64, FEATURES))
        self.heads = nn.Sequential(nn.GELU(), nn.Linear(FEATURES, sum(HEADS)))

    def features(self, pixels: Tensor) -> Tensor:
        """Maps `[b, 3, 64, 64]` in [−1, 1] to `[b, 64]`, which the Fréchet distance compares."""
        features: Tensor = self.body(pixels.contiguous(memory_format=torch.channels_last))
        return features

    def forward(self, pixels: Tensor) -> list[Tensor]:
        """Returns logits `[b, k]` for each of HEADS."""
        return list(self.heads(self.features(pixels)).split(HEADS, dim=1))


@torch.no_grad()
def read(reader: Reader, pixels: Tensor, batch_size: int = 256) -> tuple[list[Scene | None], Tensor]:
    """Returns what each picture shows (None: unreadable), and its features `[n, 64]`."""
    scenes: list[Scene | None] = []
    features = []
    for part in pixels.split(batch_size):
        feature = reader.features(part)
        answers = [logits.argmax(1).tolist() for logits in reader.heads(feature).split(HEADS, dim=1)]
        scenes += [_to_scene(answer) for answer in zip(*answers, strict=True)]
        features.append(feature)
    return scenes, torch.cat(features)


def _to_scene(answer: tuple[int, ...]) -> Scene | None:
    layout = LAYOUTS[answer[0]]
    if layout == "unreadable":
        return None
    first = Thing(SHAPES[answer[1]], COLOURS[answer[2]], SIZES[answer[3]])
    second = Thing(SHAPES[answer[4]], COLOURS[answer[5]], SIZES[answer[6]])
    single = layout == "single"
    return Scene((first,) if single else (first, second), None if single else layout, BACKGROUNDS[answer[7]])


_Network = TypeVar("_Network", bound=nn.Module)


def load_reader(folder: Path) -> Reader:
    """Loads the reader as `train-teacher` saved it."""
    return load_into(Reader(), folder)


def load_into(reader: _Network, folder: Path) -> _Network:
    """Gives a reader the weights that `save_reader` saved, and freezes it."""
    tensors = read_safetensors(folder / READER_FILE)
    try:
        reader.load_state_dict({name: value.float() for name, value in tensors.items()})
    except RuntimeError as error:
        raise UserError(
            f"{folder}/{READER_FILE} holds the weights of another reader; give one of this world"
        ) from error
    reader.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch annotates it for 4-D only
    return reader.eval().requires_grad_(False)


def hash_reader(reader: nn.Module) -> str:
    """Hashes the weights."""
    total = hashlib.sha256()
    for name, value in sorted(reader.state_dict().items()):
        total.update(name.encode() + value.contiguous().numpy().tobytes())
    return total.hexdigest()


def save_reader(reader: nn.Module, folder: Path) -> None:
    """Saves the weights in fp16, 0.9 MB of a reader of scenes and 4 MB of one of the gallery."""
    tensors = {name: value.half().contiguous() for name, value in reader.state_dict().items()}
    with write_whole(folder / READER_FILE) as draft:
        safetensors.torch.save_file(tensors, draft)
