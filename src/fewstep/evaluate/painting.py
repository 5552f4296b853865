"""Painting a cell part by part, every part kept, so that an interrupted evaluation goes on where it stopped."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch
from safetensors.torch import save_file
from torch import Tensor

from fewstep.data.pictures import to_levels
from fewstep.evaluate.bench import Bench, Observer, PaintedBatch
from fewstep.evaluate.cell import Painter
from fewstep.files import read_safetensors, write_whole

LATENTS = "latents"
_SECONDS = "seconds_per_image"
_ADVICE = "delete it, and it is painted again"


@dataclass(frozen=True)
class PaintedCell:
    """Holds all that is known of a cell's pictures, in the roster's order."""

    observed: dict[str, Tensor]
    latents: Tensor
    seconds_per_image: float
    """Is the time to sample and decode one, as the median over parts."""


def paint(
    bench: Bench, painter: Painter, observers: Mapping[str, Observer], batch_size: int, folder: Path | None = None
) -> PaintedCell:
    """Paints the bench's roster in batches that are all of `batch_size`, the last one filled up with pictures that are
    thrown away: every picture is computed in a batch of one shape, whatever else is painted with it.

    With a `folder`, each part is written there once it is painted, and one that is there is not painted again; what an
    observer that it lacks would keep is made up for from its latents.
    """
    parts = [
        paint_part(bench, painter, observers, batch_size, folder, number)
        for number in range(count_parts(bench, batch_size))
    ]
    joined = {name: torch.cat([part[name] for part in parts]) for name in {LATENTS, *observers}}
    seconds = median(float(part[_SECONDS]) for part in parts)
    return PaintedCell({name: joined[name] for name in observers if joined[name].numel()}, joined[LATENTS], seconds)


def count_parts(bench: Bench, batch_size: int) -> int:
    """Counts the parts that a cell of this bench is painted in."""
    return -(-len(bench.roster) // batch_size)


def find_part(folder: Path, number: int) -> Path:
    """Says where a part is kept."""
    return folder / f"part-{number:05d}.safetensors"


def paint_part(
    bench: Bench, painter: Painter, observers: Mapping[str, Observer], batch_size: int, folder: Path | None, number: int
) -> dict[str, Tensor]:
    """Reads one part from `folder`, or paints it now and writes it there."""
    file = None if folder is None else find_part(folder, number)
    rows = list(range(number * batch_size, min((number + 1) * batch_size, len(bench.roster))))
    held = read_safetensors(file, advice=_ADVICE) if file is not None and file.exists() else {}
    missing = {name: observe for name, observe in observers.items() if name not in held}
    if held and not missing:
        return held
    begun = time.perf_counter()
    z_0 = held[LATENTS] if held else _latents(bench, painter, rows, batch_size)
    # Decoded in the shape that they were painted in too.
    filled = z_0[torch.arange(batch_size) % len(rows)]
    pictures = to_levels(painter.model.codec.decode(filled.to(painter.model.device)))[: len(rows)]
    if not held:
        held = {LATENTS: z_0, _SECONDS: torch.tensor((time.perf_counter() - begun) / batch_size)}
    for name, observe in missing.items():
        value = observe(PaintedBatch(pictures, z_0, rows, bench))
        held[name] = torch.empty(0) if value is None else value.contiguous()
    if file is not None:
        keep_part(file, held)
    return held


def keep_part(file: Path, held: dict[str, Tensor]) -> None:
    """Writes a part, which is there whole or not at all."""
    with write_whole(file) as draft:
        save_file(held, draft)


def _latents(bench: Bench, painter: Painter, rows: list[int], batch_size: int) -> Tensor:
    filled = [rows[i % len(rows)] for i in range(batch_size)]
    cond = painter.model.conditioner.encode([bench.roster.prompts[i] for i in filled])
    z_0 = painter.latents(cond, [bench.roster.seeds[i] for i in filled])
    return z_0[: len(rows)].float().cpu().contiguous()
