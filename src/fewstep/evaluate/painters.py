"""Who paints the parts of an evaluation beside its main process: workers of this machine, or actors of a ray cluster.

Both are given the same jobs. Workers write the parts that they paint; actors, whose disks are elsewhere, send theirs to
the main process, which writes them.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

from torch import Tensor

from fewstep.evaluate.config import Evaluate
from fewstep.evaluate.studio import EvaluationStudio, PaintingJob
from fewstep.models.libraries import PRELOAD
from fewstep.models.network import hash_weights
from fewstep.parallel.workers import Workers, count_cores
from fewstep.precision import name_dtype


class Painters(Protocol):
    """Paint parts, which are kept once this returns."""

    count: int

    def paint(self, jobs: Sequence[PaintingJob]) -> None: ...


class WorkerPainters:
    """Are processes of this machine."""

    def __init__(self, count: int, workers: Workers) -> None:
        self.count, self._workers = count, workers

    def paint(self, jobs: Sequence[PaintingJob]) -> None:
        self._workers.run(jobs)


class PaintingRunner:
    """Paints in an actor, where nothing is kept."""

    def __init__(self, config: Evaluate) -> None:
        studio = EvaluationStudio(config)
        self.run, self.plan = studio.paint, describe_studio(studio)


class ActorPainters:
    """Are actors of a ray cluster."""

    def __init__(self, count: int, workers: Any, studio: EvaluationStudio) -> None:
        self.count, self._workers, self._studio = count, workers, studio

    def paint(self, jobs: Sequence[PaintingJob]) -> None:
        self._workers.run(jobs, self._keep)

    def _keep(self, job: PaintingJob, painted: dict[str, Tensor]) -> None:
        self._studio.keep(job, painted)


def describe_studio(studio: EvaluationStudio) -> dict[str, Any]:
    """Returns what a picture depends on, beside its job."""
    return {
        "device": studio.device.type, "precision": name_dtype(studio.dtype), "batch_size": studio.batch_size,
        "prompts": studio.found.scored.sha256, "extractor": studio.extractor.sha256,
        "teacher": hash_weights(studio.teacher.network.backbone),
        "student": hash_weights(studio.student.model.network.backbone),
    }  # fmt: skip


@contextlib.contextmanager
def open_painters(config: Evaluate, studio: EvaluationStudio) -> Iterator[Painters | None]:
    """Yields who paints, as the configuration says; None where the main process does it alone."""
    if config.executor == "ray":
        with _open_actors(config, studio) as painters:
            yield painters
        return
    small = studio.device.type == "cpu" and studio.teacher.resolution <= 128
    count = config.workers or (count_cores() if small else 1)
    if count == 1:
        yield None
        return
    with Workers(count, EvaluationStudio, (config,), PRELOAD) as workers:
        yield WorkerPainters(count, workers)


@contextlib.contextmanager
def _open_actors(config: Evaluate, studio: EvaluationStudio) -> Iterator[ActorPainters]:
    from fewstep.parallel.ray_cluster import choose_gpus, count_actors, describe_crew, join_cluster
    from fewstep.parallel.ray_workers import ActorSettings, RayWorkers

    with join_cluster(config.ray_address) as ray:
        gpus = choose_gpus(ray, config.gpus_per_actor, config.device)
        count = config.actors or count_actors(ray, gpus, 0)
        settings = ActorSettings(f"{__name__}:{PaintingRunner.__name__}", (config,), gpus)
        with contextlib.closing(RayWorkers(ray, settings, count, plan=describe_studio(studio))) as workers:
            print(describe_crew(ray, count, gpus), file=sys.stderr, flush=True)
            yield ActorPainters(count, workers, studio)
