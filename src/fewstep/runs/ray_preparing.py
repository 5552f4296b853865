"""A preparation on a ray cluster: actors that hold the model, and others that read pictures for them."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path

from fewstep.data.shards.store import FolderStore, UrlStore
from fewstep.errors import UserError
from fewstep.parallel.ray_cluster import choose_gpus, count_actors, describe_crew, join_cluster
from fewstep.parallel.ray_workers import ActorSettings, RayWorkers, name_machine
from fewstep.recipes.prepare import Prepare
from fewstep.runs.preparing import MakeStudio, Part, PartsPlan, Stages, plan_of, sum_stages
from fewstep.runs.reading_stage import ReadingHelpers, ReadingRunner


class RayStudio:
    """Is a studio in an actor, which must see the folder that it writes into."""

    def __init__(
        self, config: Prepare, make: MakeStudio, seen: tuple[Path, str] | None, helpers: ReadingHelpers | None = None
    ) -> None:
        """`seen` is a folder, and the name of a file that lies in it for everyone who sees it."""
        if seen is not None and not (seen[0] / seen[1]).exists():
            raise UserError(
                f"machine {name_machine()} of the ray cluster does not see {seen[0]}; give as --out a "
                "URL, such as s3://bucket/folder, or a folder that all machines share"
            )
        studio = make(config, 0, helpers)
        self.run, self.plan = studio.run, plan_of(studio)


class RayExecutor:
    """Makes parts by actors of a cluster, which write the shards themselves."""

    def __init__(self, workers: RayWorkers) -> None:
        self._workers = workers
        greeting = workers.greet()
        print(greeting.said, end="", flush=True)
        self.plan: PartsPlan = greeting.plan

    def run(self, parts: list[Part]) -> Stages:
        return sum_stages(self._workers.run(parts))


@contextlib.contextmanager
def open_ray_executor(config: Prepare, make: MakeStudio, store: FolderStore | UrlStore) -> Iterator[RayExecutor]:
    """Joins the cluster and yields its actors, which end with this. Raises UserError where they cannot work."""
    with contextlib.ExitStack() as stack:
        ray = stack.enter_context(join_cluster(config.ray_address))
        gpus = choose_gpus(ray, config.gpus_per_actor, config.device)
        count = config.actors or count_actors(ray, gpus, config.readers)
        seen = None
        if isinstance(store, FolderStore):
            seen = store.folder.absolute(), stack.enter_context(store.mark())
        own = ActorSettings(f"{__name__}:{RayStudio.__name__}", (config, make, seen), gpus)
        reader = ActorSettings(f"{ReadingRunner.__module__}:{ReadingRunner.__name__}", (config,))
        workers = RayWorkers(ray, own, count, (reader, config.readers))
        stack.callback(workers.close)
        print(describe_crew(ray, count, gpus, config.readers), file=sys.stderr, flush=True)
        yield RayExecutor(workers)
