"""Miniatures of flow transformers as they are loaded: what is frozen of them is read once, and its answers kept."""

from __future__ import annotations

import copy
import functools
import hashlib
import weakref
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    DiffusionPipeline,
    Flux2Transformer2DModel,
    FluxTransformer2DModel,
    PixArtTransformer2DModel,
    QwenImageTransformer2DModel,
    SanaTransformer2DModel,
    SD3Transformer2DModel,
    ZImageTransformer2DModel,
)
from transformers import Qwen3Model

from fewstep.models.family import LatentModel
from fewstep.models.loading import load_latent_model
from fewstep.models.parts import load_weights

_SHARED: dict[tuple[object, ...], torch.nn.Module] = {}


def load_shared(kind: Any, folder: Path, dtype: torch.dtype = torch.float32, **how: Any) -> Any:
    """Loads a network as `load_weights` does; what is no transformer is the same object for the same files."""
    if kind in _TRANSFORMERS:
        return load_weights(kind, folder, dtype, **how)
    assert not any(how.values()), "transformers alone are shaped"
    held = tuple((file.name, hashlib.sha256(file.read_bytes()).digest()) for file in sorted(folder.iterdir()))
    key = (kind, dtype, *held)
    if key not in _SHARED:
        _SHARED[key] = load_weights(kind, folder, dtype)
    return _SHARED[key]


_TRANSFORMERS = (
    Flux2Transformer2DModel, FluxTransformer2DModel, PixArtTransformer2DModel, QwenImageTransformer2DModel,
    SanaTransformer2DModel, SD3Transformer2DModel, ZImageTransformer2DModel,
)  # fmt: skip


@functools.cache
def _load(folder: Path) -> LatentModel:
    return load_latent_model(folder, torch.device("cpu"))


@functools.cache
def _load_stock(folder: Path) -> DiffusionPipeline:
    return DiffusionPipeline.from_pretrained(folder)


def copy_model(given: Path | LatentModel) -> LatentModel:
    """Returns a model of one's own, of a folder that is read once in a run of the tests or as another; its text
    encoders and autoencoder, which are frozen, are the other's."""
    model = given if isinstance(given, LatentModel) else _load(given)
    return copy.deepcopy(model, _keep([model.codec.autoencoder, *model.conditioner.encoders.values()]))


def copy_stock(folder: Path) -> DiffusionPipeline:
    """Returns a stock pipeline of one's own, which is read once too, but for the same parts."""
    pipe = _load_stock(folder)
    parts = {name: part for name, part in pipe.components.items() if isinstance(part, torch.nn.Module)}
    return copy.deepcopy(pipe, _keep([part for name, part in parts.items() if name != "transformer"]))


def _keep(parts: list[torch.nn.Module]) -> dict[int, Any]:
    """Makes a memory for deepcopy, by which it takes these parts for copied."""
    return {id(part): part for part in parts}


_READ = Qwen3Model.forward
_ANSWERS: weakref.WeakKeyDictionary[torch.nn.Module, dict[object, Any]] = weakref.WeakKeyDictionary()


def read_once(reader: Qwen3Model, **given: Any) -> Any:
    """Answers as Qwen3 does, which takes longest of all parts; the same answer where the same is asked of the same
    weights again."""
    weights = [*reader.parameters(), *reader.buffers()]
    tensors = [each for each in given.values() if isinstance(each, torch.Tensor)]
    if torch.is_grad_enabled() or any(each.device.type != "cpu" for each in (*weights, *tensors)):
        return _READ(reader, **given)
    asked = {name: _name(value) for name, value in sorted(given.items())}
    how = torch.is_autocast_enabled("cpu"), torch.is_inference_mode_enabled()
    key = (*how, *((id(each), each._version) for each in weights), str(asked))
    known = _ANSWERS.setdefault(reader, {})
    if key not in known:
        known[key] = weights, _READ(reader, **given)  # weights that are held here lend their identity to no other
    return known[key][1]


def _name(value: Any) -> object:
    if isinstance(value, torch.Tensor):
        return str(value.dtype), tuple(value.shape), hashlib.sha256(value.contiguous().numpy().tobytes()).hexdigest()
    return value
