"""The first stage of a preparation: pictures read and cropped, by the process that uses them or by others."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

from fewstep.data.reading import CropSettings, PictureReader, Square
from fewstep.data.sources.base import Source
from fewstep.data.sources.prompts import is_prompt_file, open_prompts
from fewstep.recipes.prepare import Prepare
from fewstep.runs.picture_material import open_source

_BATCHES_AHEAD = 2


@dataclass(frozen=True)
class ReadingJob:
    """Names a batch to be read: how it is cropped, and index and position of each picture."""

    crop: CropSettings
    places: tuple[tuple[int, int], ...]


ReadBatch = tuple[list[Square], float]
"""Holds the pictures of a batch, and the seconds that reading took, of all threads together."""


class ReadingHelpers(Protocol):
    """Read for the process that encodes."""

    def run_in_order(self, jobs: Iterable[ReadingJob]) -> Iterator[ReadBatch | None]:
        """Yields what became of each job, in their order; None where nobody could be reached for it."""
        ...


class ReadingStage:
    """Reads the batches of parts in their order; some threads, or helpers, read the next ones meanwhile."""

    def __init__(self, reading: PictureReader, threads: int = 0, helpers: ReadingHelpers | None = None) -> None:
        self._reading, self._helpers = reading, helpers
        self._pool = ThreadPoolExecutor(threads, "decode") if threads else None

    def read_in_order(self, batches: Iterable[Sequence[tuple[int, int]]]) -> Iterator[ReadBatch]:
        """Yields the batches, each named by index and position of its pictures."""
        if self._helpers is not None:
            jobs = [ReadingJob(self._reading.crop_settings, tuple(batch)) for batch in batches]
            for job, read in zip(jobs, self._helpers.run_in_order(jobs), strict=True):
                yield read or self.read(job.places)
            return
        if self._pool is None:
            yield from map(self.read, batches)
            return
        waiting: deque[list[Future[tuple[Square, float]]]] = deque()
        for batch in batches:
            waiting.append([self._pool.submit(self._read, *place) for place in batch])
            if len(waiting) > _BATCHES_AHEAD:
                yield _join([future.result() for future in waiting.popleft()])
        for futures in waiting:
            yield _join([future.result() for future in futures])

    def read(self, places: Sequence[tuple[int, int]]) -> ReadBatch:
        """Reads one batch in this thread."""
        return _join([self._read(*place) for place in places])

    def _read(self, index: int, position: int) -> tuple[Square, float]:
        begun = time.perf_counter()
        return self._reading.read(index, position), time.perf_counter() - begun


def _join(read: Sequence[tuple[Square, float]]) -> ReadBatch:
    return [square for square, _ in read], sum(seconds for _, seconds in read)


class ReadingRunner:
    """Reads for others, in a process without a model; the pictures are opened at the first batch."""

    def __init__(self, config: Prepare) -> None:
        self._config = config
        self._stages: dict[CropSettings, ReadingStage] = {}

    def run(self, job: ReadingJob) -> ReadBatch:
        if job.crop not in self._stages:
            self._stages[job.crop] = ReadingStage(open_reading(self._config, job.crop)[0])
        return self._stages[job.crop].read(job.places)


def open_reading(config: Prepare, crop: CropSettings) -> tuple[PictureReader, Source]:
    """Opens what a preparation reads; prompts alone for trajectories, which look at no picture."""
    if config.trajectories and is_prompt_file(config.data):
        source: Source = open_prompts(config.data, crop.resolution)
    else:
        source = open_source(config, config.data, crop.resolution, config.seed)
    return PictureReader([source], [1.0], crop, config.seed), source
