"""Pictures and captions encoded once, by one process for all, and kept in the folder of a run, which goes on with
them."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from safetensors.torch import save_file
from torch import Tensor

from fewstep.data.pictures import to_pixels
from fewstep.data.reading import PictureReader, Sizes
from fewstep.documents import load_json
from fewstep.errors import UserError
from fewstep.files import read_safetensors, write_whole
from fewstep.models.conditioner import Conditioner
from fewstep.models.family import LatentModel
from fewstep.models.network import hash_weights
from fewstep.parallel.world import current_world
from fewstep.progress import report

logger = logging.getLogger(__name__)
_CHUNK = 64
_QUIET_SECONDS = 10.0
"""How long nothing is said of encoding where no terminal shows a bar."""
_TENSORS, _REST = "encoded.safetensors", "encoded.json"


@dataclass(frozen=True)
class Encoded:
    """All pictures of a source and their captions, in main memory."""

    mean: Tensor
    """Is the mean of the latents' posterior, `[n, c·h·w]`, of smaller ones with zeros after it; `std` is its
    deviation."""
    std: Tensor
    text: dict[str, Tensor]
    """Conditions of every caption once, `[captions, …]`."""
    sizes: dict[str, Tensor]
    """Conditions of every picture's sizes, where the network takes them."""
    rows: list[list[int]]
    """Holds the numbers of each picture's captions."""
    reasons: list[str]
    """Why a picture could not be read; empty where it could."""

    def tensors(self) -> dict[str, Tensor]:
        """Returns every tensor under a name."""
        text = {f"text.{name}": value for name, value in self.text.items()}
        return {"mean": self.mean, "std": self.std} | text | {f"sizes.{name}": v for name, v in self.sizes.items()}

    def with_tensors(self, tensors: Mapping[str, Tensor]) -> Encoded:
        """Returns the same with other tensors, as `tensors` names them."""
        text, sizes = (
            {name.removeprefix(begin): value for name, value in tensors.items() if name.startswith(begin)}
            for begin in ("text.", "sizes.")
        )
        return Encoded(tensors["mean"], tensors["std"], text, sizes, self.rows, self.reasons)


def encode_pictures(model: LatentModel, reading: PictureReader) -> Encoded:
    """Reads and encodes everything, with a bar on a terminal."""
    console = Console(stderr=True)
    chunks = reading.list_chunks(range(len(reading)), _CHUNK)
    dtype = next(model.codec.autoencoder.parameters()).dtype
    longest = math.prod(model.codec.shape(reading.crop_settings.resolution))
    mean, std = torch.zeros(2, len(reading), longest, dtype=dtype)
    numbers: dict[str, int] = {}  # equal captions are encoded once
    sizes: list[Sizes] = [(0,) * 6] * len(reading)
    rows: list[list[int]] = [[]] * len(reading)
    reasons = [""] * len(reading)
    title = f"encoding {len(reading):,} pictures"
    bar = track(chunks, title, console=console, disable=not console.is_terminal)
    done, said = 0, time.perf_counter()
    if not console.is_terminal:
        logger.info(title)
    for chunk, part in zip(chunks, reading.read_in_turn(bar), strict=True):
        for held, found in zip((mean, std), model.codec.encode(to_pixels([each.image for each in part])), strict=True):
            flat = found.flatten(1).cpu()
            held[torch.tensor(chunk), : flat.shape[1]] = flat
        for i, square in zip(chunk, part, strict=True):
            sizes[i], reasons[i] = square.sizes, square.reason
            rows[i] = [numbers.setdefault(caption, len(numbers)) for caption in square.captions]
        done += len(chunk)
        report("encoding", done, len(reading))
        if not console.is_terminal and time.perf_counter() - said > _QUIET_SECONDS:
            said = time.perf_counter()
            logger.info(f"encoding {done:,} of {len(reading):,} pictures")
    return Encoded(
        mean=mean, std=std, rows=rows, reasons=reasons, text=encode_captions(model.conditioner, list(numbers)),
        sizes={name: value.cpu() for name, value in model.conditioner.tell_sizes(sizes).items()},
    )  # fmt: skip


def encode_captions(conditioner: Conditioner, captions: Sequence[str]) -> dict[str, Tensor]:
    """Encodes captions, in parts, into main memory: `[captions, …]`."""
    parts = (conditioner.encode(captions[i : i + _CHUNK]) for i in range(0, len(captions), _CHUNK))
    texts = [{name: value.cpu() for name, value in part.items()} for part in parts]
    return {name: torch.cat([part[name] for part in texts]) for name in texts[0]}


@dataclass(frozen=True)
class Keeping:
    """Where encoded pictures are kept, and what tells that they are still these."""

    folder: Path
    pictures: dict[str, Any]
    """What was chosen of which sources, and the sizes and times of their files."""


def share_encoded(model: LatentModel, reading: PictureReader, keeping: Keeping) -> Encoded:
    """Reads what is kept of these pictures; where nothing whole is, one process encodes them for all that see it."""
    world, folder = current_world(), keeping.folder
    made_of = {**_describe(model, reading), "pictures": keeping.pictures}
    encoded = None
    if world.main:
        encoded = read_encoded(folder, made_of)
        if encoded is None:
            encoded = encode_pictures(model, reading)
            _try_to_write(encoded, folder, made_of)
    world.wait()
    return encoded or read_encoded(folder, made_of) or encode_pictures(model, reading)


def _describe(model: LatentModel, reading: PictureReader) -> dict[str, Any]:
    """Returns what encoded pictures depend on, beside what the pictures themselves are."""
    settings = reading.crop_settings
    return {
        "format": 2, **model.codec.describe(), "resolution": settings.resolution, "crop": settings.crop,
        "encoders": {name: hash_weights(module) for name, module in model.conditioner.encoders.items()},
        "pictures_sha256": reading.hash_contents(),
    }  # fmt: skip


def _try_to_write(encoded: Encoded, folder: Path, made_of: dict[str, Any]) -> None:
    try:
        write_encoded(encoded, folder, made_of)
    except Exception as error:  # safetensors and the file system each raise their own
        shutil.rmtree(folder, ignore_errors=True)  # the run needs the room that half of it takes
        reason = " ".join(str(getattr(error, "strerror", "") or error).split())[:120]
        logger.warning(f"note: encoded pictures are not kept for the next start: {folder} cannot be written ({reason})")


def write_encoded(encoded: Encoded, folder: Path, made_of: dict[str, Any]) -> None:
    """Writes tensors, then what vouches for them."""
    folder.mkdir(parents=True, exist_ok=True)
    with write_whole(folder / _TENSORS) as draft:
        save_file({name: value.contiguous() for name, value in encoded.tensors().items()}, draft)
        rest = {
            "made_of": made_of, "sha256": _hash_file(draft), "rows": encoded.rows, "reasons": encoded.reasons,
        }  # fmt: skip
    with write_whole(folder / _REST) as draft:
        draft.write_text(json.dumps(rest))


def read_encoded(folder: Path, made_of: dict[str, Any]) -> Encoded | None:
    """Reads what was written there of the same pictures and models; None where that is something else, or not whole."""
    try:
        rest = load_json(folder / _REST)
        if rest["made_of"] != json.loads(json.dumps(made_of)) or rest["sha256"] != _hash_file(folder / _TENSORS):
            return None
        held, rows, reasons = read_safetensors(folder / _TENSORS), rest["rows"], rest["reasons"]
        if not isinstance(rows, list) or not isinstance(reasons, list) or len(rows) != len(reasons):
            return None
    except (OSError, ValueError, KeyError, TypeError, UserError):
        return None
    empty = torch.empty(0)
    return Encoded(empty, empty, {}, {}, rows, reasons).with_tensors(held)


def _hash_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
