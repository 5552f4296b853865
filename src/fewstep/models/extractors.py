"""Networks that turn pictures into features for distances and scores: CLIP, DINOv2, and FID's Inception, from local
files."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fewstep.errors import UserError
from fewstep.models.model_files import find_file, read_json
from fewstep.models.model_places import find_snapshot, name_model
from fewstep.models.parts import check_tokenizer, load_tokenizer, load_weights

logger = logging.getLogger(__name__)

INCEPTION_SIDE = 299
_AT_ONCE = 32


@dataclass(frozen=True)
class Extractor:
    """Features of pictures."""

    name: str
    sha256: str
    """Is the hash of the weights' files."""
    resize: str
    """What is done to a picture before the network sees it."""
    features: Callable[[Tensor], Tensor]
    """Turns uint8 `[n, h, w, 3]` into fp32 `[n, d]` on the CPU."""
    text_features: Callable[[Sequence[str]], Tensor] | None = None
    """`[n, d]` of texts, in the same space, where the network has one."""


def load_extractor(source: str | Path, device: torch.device) -> Extractor:
    """Loads a folder of CLIP or DINOv2 in transformers' layout, or Inception's TorchScript file. Nothing is fetched."""
    path = find_snapshot(Path(source))
    if path.is_file():
        return _load_inception(path, device)
    config = path / "config.json"
    if not config.is_file():
        raise UserError(f"{path} is neither a folder of CLIP or DINOv2 (it has no config.json) nor a TorchScript file")
    kind = read_json(config, f"{path} is not a model").get("model_type")
    if kind == "clip":
        return _load_clip(path, device)
    if kind == "dinov2":
        return _load_dinov2(path, device)
    raise UserError(f"{path} holds a {kind!r} model; features are read from clip and dinov2")


def _load_clip(folder: Path, device: torch.device) -> Extractor:
    from transformers import CLIPModel, CLIPTokenizer

    model = _loaded(CLIPModel, folder, device)
    tokenizer = load_tokenizer(CLIPTokenizer, folder)
    check_tokenizer(tokenizer, model.config.text_config, str(folder))
    side = model.config.vision_config.image_size

    @torch.no_grad()
    def texts(captions: Sequence[str]) -> Tensor:
        given = tokenizer(list(captions), padding="max_length", truncation=True, return_tensors="pt").to(device)
        pooled = model.text_model(input_ids=given.input_ids, attention_mask=given.attention_mask).pooler_output
        projected: Tensor = model.text_projection(pooled).float().cpu()
        return projected

    def images(pixels: Tensor) -> Tensor:
        projected: Tensor = model.visual_projection(model.vision_model(pixel_values=pixels).pooler_output)
        return projected

    return Extractor(
        f"CLIP {name_model(folder)}", _hash_files(folder), f"middle square to {side}",
        _in_parts(side, _normalised(folder, images, device), device), texts,
    )  # fmt: skip


def _load_dinov2(folder: Path, device: torch.device) -> Extractor:
    from transformers import Dinov2Model

    model = _loaded(Dinov2Model, folder, device)
    side = _read_preprocessor(folder).get("crop_size", {}).get("height", 224)
    network = _normalised(folder, lambda pixels: model(pixel_values=pixels).pooler_output, device)
    features = _in_parts(side, network, device)
    return Extractor(f"DINOv2 {name_model(folder)}", _hash_files(folder), f"middle square to {side}", features)


def _load_inception(file: Path, device: torch.device) -> Extractor:
    """Loads `inception-2015-12-05.pt`, which takes uint8 and, asked so, gives the 2,048 features of FID."""
    logger.info(f"note: {file} is a program in TorchScript, which is run: give none that you do not trust")
    try:
        model = torch.jit.load(str(file), map_location=device).eval()
    except (RuntimeError, OSError) as error:
        raise UserError(f"{file} is not a TorchScript file ({str(error).splitlines()[0][:100]})") from error

    def network(pixels: Tensor) -> Tensor:
        read: Tensor = model((pixels * 255).round().byte(), return_features=True)
        return read

    features = _in_parts(INCEPTION_SIDE, network, device)
    return Extractor(file.stem, _hash_files(file), f"middle square to {INCEPTION_SIDE}", features)


def _normalised(folder: Path, network: Callable[[Tensor], Tensor], device: torch.device) -> Callable[[Tensor], Tensor]:
    held = _read_preprocessor(folder)
    mean, std = (torch.tensor(held[name], device=device).view(3, 1, 1) for name in ("image_mean", "image_std"))
    return lambda pixels: network((pixels - mean) / std)


def _in_parts(side: int, network: Callable[[Tensor], Tensor], device: torch.device) -> Callable[[Tensor], Tensor]:
    @torch.no_grad()
    def features(pictures: Tensor) -> Tensor:
        parts = pictures.split(_AT_ONCE)
        return torch.cat([network(resized(part, side).to(device)).float().cpu() for part in parts])

    return features


def resized(pictures: Tensor, side: int) -> Tensor:
    """Turns uint8 `[n, h, w, 3]` into fp32 `[n, 3, side, side]` in [0, 1]: the middle square, by Pillow's bicubic on
    floats, antialiased when it shrinks; how pictures are resized moves FID by whole points (arXiv 2104.11222)."""
    height, width = pictures.shape[1:3]
    short = min(height, width)
    left, top = (width - short) // 2, (height - short) // 2
    square = pictures[:, top : top + short, left : left + short]
    found = [
        np.asarray(Image.fromarray(channel, "F").resize((side, side), Image.Resampling.BICUBIC))
        for picture in square.float().div(255).numpy()
        for channel in np.ascontiguousarray(picture.transpose(2, 0, 1))
    ]
    return torch.from_numpy(np.stack(found)).view(len(pictures), 3, side, side).clamp(0, 1)


def _loaded(kind: Any, folder: Path, device: torch.device) -> Any:
    return load_weights(kind, folder).to(device)


def _read_preprocessor(folder: Path) -> dict[str, Any]:
    return read_json(
        folder / "preprocessor_config.json", f"{folder} does not say how pictures are normalised for its network"
    )


def _hash_files(source: Path) -> str:
    names = sorted(file.name for file in source.glob("*.safetensors"))
    files = [find_file(source, name) for name in names] if source.is_dir() else [source]
    total = hashlib.sha256()
    for file in files:
        with file.open("rb") as opened:
            total.update(hashlib.file_digest(opened, "sha256").digest())
    return total.hexdigest()
