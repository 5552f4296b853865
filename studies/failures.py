"""A month of 256 processes that fail: what is learnt in it, and whether every picture comes once an epoch.

    python studies/failures.py        # four minutes of one core; --help lists the numbers that can be your own

No weight is trained. Time is simulated; the order of pictures, their sharing among processes, the ledger's cut and the
interval of checkpoints are those of a run. Machines fail at random times and come back repaired. After a failure the
run goes on from its last checkpoint with the machines that are left; when one comes back, the run is stopped by a
signal, saves, and goes on with one more.

Figures: docs/studies/failures.json, docs/scale.md.
"""

from __future__ import annotations

import dataclasses
import heapq
import json
import math
import random
import statistics
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from fewstep.data.order import SampleOrder
from fewstep.evaluate.report import markdown_table
from fewstep.parallel.world import World

OUT = Path("docs/studies/failures.json")
HOUR = 3600.0


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """What a run has to live with."""

    machines: int = 32
    ranks: int = 8
    """Processes of each machine, which fail together."""
    hours_between_failures: float = 50_000.0
    """Of one process, with all that belongs to it: what Meta had while it trained Llama 3 (419 failures of 16,384 GPUs
    in 54 days, arXiv 2407.21783)."""
    repair_hours: float = 12.0
    """Until a machine that failed is back."""
    restart_seconds: float = 240.0
    """From a failure, or a stop, to the next update."""
    save_seconds: float = 70.0
    """That a checkpoint takes (docs/scale.md)."""
    batch: int = 3840
    pictures_per_second: float = 80.0
    """Of one process."""
    days: float = 30.0
    shards: tuple[int, ...] = field(default=(997, 1000, 1000, 1000, 513, 1000, 1000, 1, 1000, 1000))
    """Pictures in each shard of the data, small enough to look at whole epochs."""

    @property
    def all_ranks(self) -> int:
        """How many processes there are where every machine stands."""
        return self.machines * self.ranks

    def largest_world(self, machines: int) -> int:
        """Returns how many processes can share the batch evenly, with a number of each machine that is the same."""
        return max((n * self.ranks for n in range(machines + 1) if n and self.batch % (n * self.ranks) == 0), default=0)

    def update_seconds(self, world: int) -> float:
        """Returns what an update of that many processes takes."""
        return self.batch / world / self.pictures_per_second

    def young(self) -> float:
        """Returns the seconds between checkpoints that lose least: √(2·C·M) (Young 1974)."""
        return math.sqrt(2 * self.save_seconds * self.hours_between_failures * HOUR / self.all_ranks)


@dataclass(frozen=True)
class Segment:
    """What one world did between two restarts: updates from `first` up to `done`, which a checkpoint holds up to `end`;
    the next one does the rest again."""

    first: int
    end: int
    done: int
    world: int


@dataclass
class Month:
    """What came of it."""

    segments: list[Segment] = field(default_factory=list)
    failures: int = 0
    stops: int = 0
    repeated: int = 0
    """Updates that were lost with a failure, and done again."""

    @property
    def updates(self) -> int:
        """Updates that a checkpoint holds."""
        return self.segments[-1].end if self.segments else 0

    def goodput(self, cluster: Cluster) -> float:
        """Returns the share of what the whole cluster could have done in the time, if nothing ever failed or saved."""
        return self.updates * cluster.update_seconds(cluster.all_ranks) / (cluster.days * 24 * HOUR)


def live(cluster: Cluster, every: int, seed: int) -> Month:
    """Lives through a month with a checkpoint after each `every` updates."""
    chance, month = random.Random(seed), Month()
    now, end = 0.0, cluster.days * 24 * HOUR
    standing, back = cluster.machines, list[float]()
    while now < end:
        while back and back[0] <= now:
            heapq.heappop(back)
            standing += 1
        world = cluster.largest_world(standing)
        if not world:
            now = back[0]
            continue
        fails = now + chance.expovariate(standing * cluster.ranks / (cluster.hours_between_failures * HOUR))
        grows = back[0] if back else math.inf  # torchrun stops all processes when one more wants to join
        until = min(fails, grows, end)
        begun = now + cluster.restart_seconds
        done, kept = _count(cluster, world, every, month.updates, until - begun)
        saves = until == grows
        if saves and until > begun:
            kept, now = done, until + cluster.save_seconds  # after a signal the run saves what it has
        else:
            now = until
        if done:
            first = month.updates
            month.segments.append(Segment(first, first + kept, first + done, world))
        month.repeated += done - kept
        month.stops += saves
        if until == fails:
            month.failures += 1
            standing -= 1
            heapq.heappush(back, now + cluster.repair_hours * HOUR)
    return month


def _count(cluster: Cluster, world: int, every: int, begun_at: int, seconds: float) -> tuple[int, int]:
    """Returns how many updates are done in that time, and how many of them a checkpoint holds then.

    A checkpoint is due where the number of all updates is a multiple of `every`, wherever the run began.
    """
    if seconds <= 0:
        return 0, 0
    update, kept = cluster.update_seconds(world), 0
    first = every - begun_at % every
    if seconds < first * update + cluster.save_seconds:
        return min(first, int(seconds / update)), 0
    seconds, kept = seconds - first * update - cluster.save_seconds, first
    whole = int(seconds / (every * update + cluster.save_seconds))
    kept += whole * every
    seconds -= whole * (every * update + cluster.save_seconds)
    return kept + min(every, int(seconds / update)), kept


def count_reads(cluster: Cluster, month: Month, seed: int, epoch: int) -> np.ndarray:
    """Returns how often each picture was read in that epoch by what was kept: once, if nothing is wrong."""
    size, order = sum(cluster.shards), SampleOrder(seed, cluster.shards)
    reads, inside = np.zeros(size, int), range(epoch * size, (epoch + 1) * size)
    for segment in month.segments:
        updates = range(
            max(segment.first, inside.start // cluster.batch), min(segment.end, -(-inside.stop // cluster.batch))
        )
        for update in updates:
            batch = range(update * cluster.batch, (update + 1) * cluster.batch)
            shares = [World(rank, segment.world).share(batch) for rank in range(segment.world)]
            positions = np.concatenate(shares)
            reads += np.bincount(
                order(positions[(positions >= inside.start) & (positions < inside.stop)]), minlength=size
            )
    return reads


def look_at(cluster: Cluster, month: Month, seed: int) -> int:
    """Returns how many whole epochs were looked at: where the worlds changed, and one at random.

    Raises AssertionError where a picture of one was not read exactly once.
    """
    size, whole = sum(cluster.shards), month.updates * cluster.batch // sum(cluster.shards)
    if not whole:
        return 0
    changes = [segment.first * cluster.batch // size for segment in month.segments[1:]]
    chance = random.Random(seed)
    epochs = {chance.randrange(whole), *chance.sample(changes, min(2, len(changes)))} & set(range(whole))
    for epoch in epochs:
        reads = count_reads(cluster, month, seed, epoch)
        assert (reads == 1).all(), f"seed {seed}, epoch {epoch}: pictures {np.flatnonzero(reads != 1)[:9]} not once"
    return len(epochs)


@dataclass(frozen=True, kw_only=True)
class Study:
    cluster: Cluster = field(default_factory=Cluster)
    months: int = 400
    """Months that are lived through in each cell, each with a seed of its own."""
    looked_at: int = 10
    """Of these, how many are looked at picture by picture."""
    out: Path = OUT


def main(study: Study) -> None:
    begun, rows = time.perf_counter(), []
    for hours in (1_000.0, 5_000.0, study.cluster.hours_between_failures):
        for batch in (2048, study.cluster.batch):
            cluster = dataclasses.replace(study.cluster, hours_between_failures=hours, batch=batch)
            for times in (0.125, 0.5, 1.0, 2.0, 8.0):
                rows.append(measure(cluster, times, study))
                print(rows[-1], flush=True)
    taken = time.perf_counter() - begun
    held = {"cluster": dataclasses.asdict(study.cluster), "months a row": study.months, "seconds": round(taken, 1)}
    study.out.write_text(json.dumps({**held, "rows": rows}, indent=1) + "\n")
    print("\n".join(markdown_table(rows)))


def measure(cluster: Cluster, times: float, study: Study) -> dict[str, Any]:
    """Returns a row: months with an interval of so many times Young's."""
    every = max(1, round(times * cluster.young() / cluster.update_seconds(cluster.all_ranks)))
    months = [live(cluster, every, seed) for seed in range(study.months)]
    epochs = sum(look_at(cluster, month, seed) for seed, month in enumerate(months[: study.looked_at]))
    goodputs = [month.goodput(cluster) for month in months]
    return {
        "hours between failures of one": cluster.hours_between_failures,
        "failures a month": round(statistics.mean(month.failures for month in months), 1),
        "batch": cluster.batch,
        "interval, min": round(times * cluster.young() / 60, 1),
        "of Young's": times,
        "updates done twice": round(statistics.mean(month.repeated / max(1, month.updates) for month in months), 4),
        "goodput": round(statistics.mean(goodputs), 4),
        "worst": round(min(goodputs), 4),
        "epochs looked at": epochs,
    }


if __name__ == "__main__":
    main(tyro.cli(Study))
