"""`fewstep prepare`: encodes pictures into shards of latents, in any number of processes on one machine or many."""

from __future__ import annotations

import contextlib
import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import torch

from fewstep import assets
from fewstep.data.pictures import to_pixels
from fewstep.data.reading import CropSettings, PictureReader, Square, hash_sources
from fewstep.data.shards.prepared import (
    PreparedRow,
    check_written,
    is_written,
    read_statuses,
    write_manifest,
    write_shard,
)
from fewstep.data.sources.base import Source, escape_line, list_repeats
from fewstep.errors import UserError
from fewstep.files import remove_abandoned
from fewstep.models.loading import load_latent_model, pick_device
from fewstep.models.options import DeviceOptions, ModelOptions
from fewstep.models.prepared_latents import made_of
from fewstep.parallel.workers import Workers, count_cores, use_one_thread
from fewstep.recipes.pictures import PictureOptions
from fewstep.runs.material import choose_resolution, open_source
from fewstep.train.config import check_at_least
from fewstep.train.ledger import MOST_DROPPED, MOST_IN_A_ROW, is_broken


@dataclass(frozen=True, kw_only=True)
class Prepare(PictureOptions, ModelOptions, DeviceOptions):
    """Encodes pictures into a folder that a training takes as --data.

    Give the same command again to resume it, or several times at once, on one machine or many, to share the work.
    """

    model: str = assets.SCENES
    """The model whose autoencoder encodes the pictures: `scenes` (bundled), a diffusers folder in Stable Diffusion's
    layout, a single-file checkpoint or a Hub id."""
    out: Path = Path("prepared")
    """Folder for the shards of latents: one for each shard of the source, or several for a long one (--part)."""
    std: bool = True
    """Also store the standard deviations of the latents, so that training can sample them; --no-std halves the disk
    space."""
    part: int = 10_000
    """Most pictures in a shard of latents."""
    batch_size: int = 16
    """Pictures encoded together. Latents depend on it, but only by rounding."""
    workers: int = 0
    """Processes on this machine, of one thread each on a CPU; 0 takes one for each core, or one for a GPU."""
    seed: int = 0
    """Seed of random crops and of scenes."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(self, 1, "part", "batch_size")
        check_at_least(self, 0, "workers")


@dataclass(frozen=True)
class Part:
    """Consecutive pictures of a source, and the name of the shard that they become."""

    name: str
    pictures: range
    times: int = 1
    """How often an epoch goes through it."""


def prepare(config: Prepare) -> None:
    """Fills `config.out`, and prints how many pictures were used and dropped."""
    config.out.mkdir(parents=True, exist_ok=True)
    remove_abandoned(config.out)
    studio = EncodingStudio(config)
    parts = studio.parts
    for file in sorted(config.out.glob("*.safetensors")):
        check_written(config.out, file.stem, studio.made_of)
    left = [part for part in _order_for_process(parts) if not is_written(config.out, part.name)]
    print(f"{len(parts)} shards of latents, {len(parts) - len(left)} of them there already", flush=True)
    count = min(config.workers or (count_cores() if studio.on_cpu else 1), len(left))
    if count > 1:
        with Workers(count, EncodingStudio, (config,)) as workers:
            workers.run(left)
    elif left:
        with use_one_thread() if studio.on_cpu else contextlib.nullcontext():  # more would round otherwise
            for part in left:
                studio.run(part)
    statuses: Counter[str] = Counter()
    for part in parts:
        statuses.update(read_statuses(config.out, part.name))
    used = statuses.pop("", 0)
    dropped = dict(sorted(statuses.items()))
    report = {"found": used + statuses.total(), "used": used, "dropped": dropped}
    write_manifest(config.out, [part.name for part in parts], studio.made_of, report)
    said = ", ".join(f"{count} {reason}" for reason, count in dropped.items())
    print(f"prepared: {report['found']} pictures, {used} used{f', {said}' if said else ''}: {config.out}", flush=True)


class EncodingStudio:
    """Holds the model and the source in each of the processes."""

    def __init__(self, config: Prepare) -> None:
        self._config = config
        self._model = load_latent_model(config.model, pick_device(config.device), config.base_config, config)
        self.on_cpu = self._model.device.type == "cpu"
        resolution = choose_resolution(config, self._model)
        self._source = open_source(config, config.data, resolution, config.seed)
        self._reading = PictureReader(
            [self._source], [1.0], CropSettings(resolution=resolution, crop=config.crop), config.seed
        )
        self.parts = list(_split(self._source, config.part))
        self.made_of = made_of(
            self._model, resolution=resolution, crop=config.crop, std=config.std, seed=config.seed
        ) | {
            "data": config.data, "batch_size": config.batch_size, "part": config.part,
            "pictures_sha256": hash_sources([self._source]),
        }  # fmt: skip
        if repeats := {part.name: part.times for part in self.parts if part.times != 1}:
            self.made_of["repeats"] = repeats

    def run(self, part: Part) -> None:
        """Encodes a part, unless another process has meanwhile."""
        if is_written(self._config.out, part.name):
            return
        rows: list[PreparedRow] = []
        latents: dict[str, list[torch.Tensor]] = {"mean": [], "std": []}
        size = self._config.batch_size
        for first in range(part.pictures.start, part.pictures.stop, size):
            indices = range(first, min(first + size, part.pictures.stop))
            squares = [self._reading.read(i, i) for i in indices]
            kept = torch.tensor([not square.reason for square in squares])
            # All batches are of one size, so that what a picture becomes depends on none beside it.
            filled = [squares[i % len(squares)].image for i in range(size)]
            for name, value in zip(("mean", "std"), self._model.codec.encode(to_pixels(filled)), strict=True):
                latents[name].append(value[: len(squares)].cpu()[kept].half())
            rows += [_make_row(self._reading, i, square) for i, square in zip(indices, squares, strict=True)]
            _check(rows, part)
        joined = {name: torch.cat(values) for name, values in latents.items() if name == "mean" or self._config.std}
        write_shard(self._config.out, part.name, rows, joined, self.made_of)


def _make_row(reading: PictureReader, index: int, square: Square) -> PreparedRow:
    first, *others = square.captions
    return PreparedRow(reading.key(index), first, square.sizes, square.reason, tuple(others))


def _check(rows: list[PreparedRow], part: Part) -> None:
    """Raises UserError where so much cannot be read that something must be wrong."""
    lost = [row for row in rows if is_broken(row.status)]
    last = rows[-MOST_IN_A_ROW:]
    if len(last) == MOST_IN_A_ROW and all(is_broken(row.status) for row in last):
        raise UserError(f"{MOST_IN_A_ROW} pictures in a row of {part.name} cannot be read ({last[-1].status}); mend it")
    if len(lost) >= MOST_IN_A_ROW and len(lost) > MOST_DROPPED * len(part.pictures):
        raise UserError(
            f"{len(lost)} of {len(part.pictures)} pictures of {part.name} cannot be read, more than "
            f"{MOST_DROPPED:.0%}; the last is {escape_line(lost[-1].key)} ({lost[-1].status})"
        )


def _split(source: Source, most: int) -> Iterator[Part]:
    """Yields a part for each shard of the source, and for each `most` pictures of a longer one."""
    first = 0
    for number, (size, times) in enumerate(zip(source.shard_sizes, list_repeats(source), strict=True)):
        name = source.shard_name(number)
        stem = "scenes" if name == str(number) else PurePosixPath(name).stem  # what is drawn has no file
        word = re.sub(r"[^A-Za-z0-9_.-]+", "_", stem)[:60]
        for start in range(0, size, most):
            pictures = range(first + start, first + min(start + most, size))
            yield Part(f"{number:05d}-{start // most:04d}-{word}", pictures, times)
        first += size


def _order_for_process(parts: list[Part]) -> list[Part]:
    """Returns the parts in the order for this process of several: its own share first, then what others may leave."""
    rank, size = (
        next((int(os.environ[name]) for name in names if name in os.environ), default)
        for names, default in ((("RANK", "SLURM_ARRAY_TASK_ID"), 0), (("WORLD_SIZE", "SLURM_ARRAY_TASK_COUNT"), 1))
    )
    start = len(parts) * (rank % size) // size
    return parts[start:] + parts[:start]
