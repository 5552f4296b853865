"""`fewstep prepare`: encodes pictures into shards of latents, or walks trajectories of a teacher into shards of states,
in any number of processes on one machine or many."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import time
from collections.abc import Iterator
from pathlib import PurePosixPath

import torch

from fewstep.data.buckets import describe_counts, list_buckets, name_sides
from fewstep.data.pictures import to_pixels
from fewstep.data.reading import CropSettings, hash_sources
from fewstep.data.shards.prepared import PreparedRow, is_written, write_shard
from fewstep.data.shards.store import FolderStore, UrlStore, open_store
from fewstep.data.sources.base import Source, list_repeats
from fewstep.errors import UserError
from fewstep.models.loading import load_codec, pick_device
from fewstep.models.prepared_latents import made_of
from fewstep.recipes.prepare import Prepare
from fewstep.runs.lock import hold_folder
from fewstep.runs.material import check_data, choose_side
from fewstep.runs.preparing import (
    MakeStudio,
    Part,
    PartsExecutor,
    ProcessEngine,
    Stages,
    check_readable,
    fill,
    make_row,
)  # fmt: skip
from fewstep.runs.reading_stage import ReadingHelpers, ReadingStage, open_reading
from fewstep.runs.walking import WalkingStudio
from fewstep.train.config import check_given

_PART = 10_000


def prepare(config: Prepare) -> None:
    """Fills `config.out`, and prints how much was used and dropped, once where torchrun started several."""
    if os.environ.get("RANK", "0") == "0":
        _prepare(config)
    else:
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
            _prepare(config)


def _prepare(config: Prepare) -> None:
    check_given(config, "model", "data")
    check_data(config)
    store = open_store(config.out)
    make = WalkingStudio if config.trajectories else EncodingStudio
    with open_executor(config, make, store) as executor:
        print(*executor.plan.notes, sep="\n", end="\n" if executor.plan.notes else "", flush=True)
        made_of = json.dumps(executor.plan.made_of, sort_keys=True)
        sharing = hashlib.sha256(made_of.encode()).hexdigest()
        # Behind a URL nothing can be locked: who writes there the same does no harm.
        with hold_folder(store.folder, sharing) if isinstance(store, FolderStore) else contextlib.nullcontext():
            fill(store, executor)


@contextlib.contextmanager
def open_executor(config: Prepare, make: MakeStudio, store: FolderStore | UrlStore) -> Iterator[PartsExecutor]:
    """Yields what makes the parts, as the configuration says."""
    if config.executor == "processes":
        yield ProcessEngine(config, make)
        return
    from fewstep.runs.ray_preparing import open_ray_executor

    with open_ray_executor(config, make, store) as executor:
        yield executor


class EncodingStudio:
    """Holds the autoencoder and the source in each of the processes."""

    noun, kind, verb = "pictures", "latents", "encode"

    def __init__(self, config: Prepare, number: int = 0, helpers: ReadingHelpers | None = None) -> None:
        """`number` is that of the process on this machine, each of which has a GPU of its own as long as there are
        some; `helpers` read for it."""
        self._config, self._store = config, open_store(config.out)
        own = int(os.environ.get("LOCAL_RANK", "0")) * max(1, config.workers) + number
        device = pick_device(config.device, own)
        self._codec, side = load_codec(config.model, device, config.base_config)
        weights = self._codec.autoencoder.named_parameters()
        if broken := next((name for name, value in weights if not value.isfinite().all()), None):
            raise UserError(f"{config.model} is broken: NaN or infinity in vae.{broken}; fetch the model again")
        self.on_cpu = device.type == "cpu"
        self.gpus = 1 if "LOCAL_RANK" in os.environ or device.type != "cuda" else torch.cuda.device_count()
        threads = 0 if self.on_cpu else config.read_ahead  # on a CPU there are as many processes as cores
        resolution = choose_side(config, side, self._codec.unit)
        buckets = list_buckets(resolution, self._codec.unit) if config.buckets == "on" else ()
        crop = CropSettings(resolution=resolution, buckets=buckets, crop=config.crop)
        self._reading, source = open_reading(config, crop)
        self.stage = ReadingStage(self._reading, threads, helpers)
        self.notes = describe_counts(self._reading.count_sides())
        part = config.part or _PART
        self.parts = list(_split(source, part))
        self.made_of = made_of(
            self._codec, resolution=resolution, crop=config.crop, std=config.std, seed=config.seed, buckets=buckets
        ) | {
            "data": config.data, "batch_size": config.batch_size, "part": part,
            "pictures_sha256": hash_sources([source]),
        }  # fmt: skip
        if repeats := {part.name: part.times for part in self.parts if part.times != 1}:
            self.made_of["repeats"] = repeats

    def run(self, part: Part) -> Stages:
        """Encodes a part, unless another process has meanwhile."""
        if is_written(self._store, part.name):
            return Stages()
        decoding = encoding = 0.0
        rows: dict[int, PreparedRow] = {}
        latents: dict[str, list[torch.Tensor]] = {}
        size = self._config.batch_size
        batches = self._reading.list_chunks(part.pictures, size)
        read = self.stage.read_in_order([(i, i) for i in indices] for indices in batches)
        for indices, (squares, seconds) in zip(batches, read, strict=True):
            decoding += seconds
            begun = time.perf_counter()
            kept = torch.tensor([not square.reason for square in squares])
            # All batches are of one size, so that what a picture becomes depends on none beside it.
            filled = [squares[i % len(squares)].image for i in range(size)]
            shape = f".{name_sides(self._reading.sides(indices[0]))}" if self._config.buckets == "on" else ""
            for name, value in zip(("mean", "std"), self._codec.encode(to_pixels(filled)), strict=True):
                if name == "mean" or self._config.std:
                    latents.setdefault(name + shape, []).append(value[: len(squares)].cpu()[kept].half())
            encoding += time.perf_counter() - begun
            rows |= {i: make_row(self._reading, i, square) for i, square in zip(indices, squares, strict=True)}
            check_readable(list(rows.values()), part)
        joined = {name: torch.cat(values) for name, values in latents.items()}
        begun = time.perf_counter()
        write_shard(self._store, part.name, [rows[i] for i in part.pictures], joined, self.made_of)
        return Stages(len(part.pictures), decoding, encoding, time.perf_counter() - begun)


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
