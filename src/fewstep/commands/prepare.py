"""`fewstep prepare`: encodes pictures into shards of latents, in any number of processes on one machine or many."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import re
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import torch

from fewstep import assets
from fewstep.data.draws import check_seed
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
from fewstep.models.libraries import PRELOAD
from fewstep.models.loading import load_codec, pick_device
from fewstep.models.options import DeviceOptions, SingleFileOptions
from fewstep.models.prepared_latents import made_of
from fewstep.parallel.workers import Workers, count_cores, use_one_thread
from fewstep.recipes.pictures import PictureOptions
from fewstep.runs.lock import hold_folder
from fewstep.runs.material import choose_side, open_source
from fewstep.train.config import check_at_least
from fewstep.train.ledger import MOST_DROPPED, MOST_IN_A_ROW, is_broken

_BATCHES_AHEAD = 2


@dataclass(frozen=True, kw_only=True)
class Prepare(PictureOptions, SingleFileOptions, DeviceOptions):
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
    """Processes on this machine; 0 takes one for each GPU, or without one for each core, of one thread each."""
    read_ahead: int = 4
    """Threads of each process on a GPU that read and decode the next pictures while it encodes; 0 reads them in
    between."""
    seed: int = 0
    """Seed of random crops and of scenes."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(self, 1, "part", "batch_size")
        check_at_least(self, 0, "workers", "read_ahead")
        check_seed(self.seed)


@dataclass(frozen=True)
class Part:
    """Consecutive pictures of a source, and the name of the shard that they become."""

    name: str
    pictures: range
    times: int = 1
    """How often an epoch goes through it."""


def prepare(config: Prepare) -> None:
    """Fills `config.out`, and prints how many pictures were used and dropped."""
    studio = EncodingStudio(config)
    made_of = json.dumps(studio.made_of, sort_keys=True)
    with hold_folder(config.out, sharing=hashlib.sha256(made_of.encode()).hexdigest()):
        fill(config, studio)


def fill(config: Prepare, studio: EncodingStudio) -> None:
    """Writes what is not there yet, and the list of all. Raises UserError where a shard is of something else."""
    remove_abandoned(config.out)
    parts = studio.parts
    for file in sorted(config.out.glob("*.safetensors")):
        check_written(config.out, file.stem, studio.made_of)
    left = [part for part in _order_for_process(parts) if not is_written(config.out, part.name)]
    print(f"{len(parts)} shards of latents, {len(parts) - len(left)} of them there already", flush=True)
    begun = time.perf_counter()
    stages = encode_parts(config, studio, left)
    if stages.pictures:
        print(stages.describe(time.perf_counter() - begun), flush=True)
    statuses: Counter[str] = Counter()
    for part in parts:
        statuses.update(read_statuses(config.out, part.name))
    used = statuses.pop("", 0)
    dropped = dict(sorted(statuses.items()))
    report = {"found": used + statuses.total(), "used": used, "dropped": dropped}
    write_manifest(config.out, [part.name for part in parts], studio.made_of, report)
    said = ", ".join(f"{count} {reason}" for reason, count in dropped.items())
    print(f"prepared: {report['found']} pictures, {used} used{f', {said}' if said else ''}: {config.out}", flush=True)


def encode_parts(config: Prepare, studio: EncodingStudio, left: list[Part]) -> Stages:
    """Encodes what is left, in this process or in several; returns the time that it took."""
    count = min(config.workers or (count_cores() if studio.on_cpu else studio.gpus), len(left))
    if count > 1:
        with Workers(count, EncodingStudio, (config,), PRELOAD) as workers:
            return sum_stages(workers.run(left))
    with use_one_thread() if studio.on_cpu else contextlib.nullcontext():  # more would round otherwise
        return sum_stages([studio.run(part) for part in left])


@dataclass(frozen=True)
class Stages:
    """How long the stages of some pictures' preparation took, in seconds of all processes together."""

    pictures: int = 0
    decoding: float = 0.0
    """What all threads took together."""
    encoding: float = 0.0
    writing: float = 0.0

    def describe(self, seconds: float) -> str:
        """Returns how many pictures a second each stage does alone, and all of them did in `seconds`."""
        named = {"decode": self.decoding, "encode": self.encoding, "write": self.writing}
        rates = ", ".join(f"{name} {self.pictures / max(taken, 1e-9):.0f}" for name, taken in named.items())
        return f"pictures a second: {rates} (of one thread or process), {self.pictures / max(seconds, 1e-9):.0f} in all"


def sum_stages(parts: Iterable[Stages]) -> Stages:
    """Adds them up."""
    rows = [dataclasses.astuple(part) for part in parts]
    return Stages(*(sum(column) for column in zip(*rows, strict=True))) if rows else Stages()


class EncodingStudio:
    """Holds the autoencoder and the source in each of the processes."""

    def __init__(self, config: Prepare, number: int = 0) -> None:
        """`number` is that of the process on this machine, each of which has a GPU of its own as long as there are
        some."""
        self._config = config
        own = int(os.environ.get("LOCAL_RANK", "0")) * max(1, config.workers) + number
        device = pick_device(config.device, own)
        self._codec, side = load_codec(config.model, device, config.base_config)
        self.on_cpu = device.type == "cpu"
        self.gpus = 1 if "LOCAL_RANK" in os.environ or device.type != "cuda" else torch.cuda.device_count()
        threads = 0 if self.on_cpu else config.read_ahead  # on a CPU there are as many processes as cores
        self._pool = ThreadPoolExecutor(threads, "decode") if threads else None
        resolution = choose_side(config, side, self._codec.multiple)
        self._source = open_source(config, config.data, resolution, config.seed)
        self._reading = PictureReader(
            [self._source], [1.0], CropSettings(resolution=resolution, crop=config.crop), config.seed
        )
        self.parts = list(_split(self._source, config.part))
        self.made_of = made_of(
            self._codec, resolution=resolution, crop=config.crop, std=config.std, seed=config.seed
        ) | {
            "data": config.data, "batch_size": config.batch_size, "part": config.part,
            "pictures_sha256": hash_sources([self._source]),
        }  # fmt: skip
        if repeats := {part.name: part.times for part in self.parts if part.times != 1}:
            self.made_of["repeats"] = repeats

    def run(self, part: Part) -> Stages:
        """Encodes a part, unless another process has meanwhile."""
        if is_written(self._config.out, part.name):
            return Stages()
        decoding = encoding = 0.0
        rows: list[PreparedRow] = []
        latents: dict[str, list[torch.Tensor]] = {"mean": [], "std": []}
        size = self._config.batch_size
        for indices, squares, seconds in self._read_batches(part, size):
            decoding += seconds
            begun = time.perf_counter()
            kept = torch.tensor([not square.reason for square in squares])
            # All batches are of one size, so that what a picture becomes depends on none beside it.
            filled = [squares[i % len(squares)].image for i in range(size)]
            for name, value in zip(("mean", "std"), self._codec.encode(to_pixels(filled)), strict=True):
                latents[name].append(value[: len(squares)].cpu()[kept].half())
            encoding += time.perf_counter() - begun
            rows += [_make_row(self._reading, i, square) for i, square in zip(indices, squares, strict=True)]
            _check(rows, part)
        joined = {name: torch.cat(values) for name, values in latents.items() if name == "mean" or self._config.std}
        begun = time.perf_counter()
        write_shard(self._config.out, part.name, rows, joined, self.made_of)
        return Stages(len(part.pictures), decoding, encoding, time.perf_counter() - begun)

    def _read_batches(self, part: Part, size: int) -> Iterator[tuple[range, list[Square], float]]:
        """Yields the batches of a part with the seconds that reading each took; with threads, while the last one is
        encoded the next two are read."""
        starts = range(part.pictures.start, part.pictures.stop, size)
        batches = (range(first, min(first + size, part.pictures.stop)) for first in starts)
        if self._pool is None:
            for indices in batches:
                yield indices, *self._join([self._read(i) for i in indices])
            return
        waiting: deque[tuple[range, list[Future[tuple[Square, float]]]]] = deque()
        for indices in batches:
            waiting.append((indices, [self._pool.submit(self._read, i) for i in indices]))
            if len(waiting) > _BATCHES_AHEAD:
                earlier, futures = waiting.popleft()
                yield earlier, *self._join([future.result() for future in futures])
        for earlier, futures in waiting:
            yield earlier, *self._join([future.result() for future in futures])

    def _read(self, index: int) -> tuple[Square, float]:
        begun = time.perf_counter()
        return self._reading.read(index, index), time.perf_counter() - begun

    @staticmethod
    def _join(read: Sequence[tuple[Square, float]]) -> tuple[list[Square], float]:
        return [square for square, _ in read], sum(seconds for _, seconds in read)


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
