"""A folder filled with shards by any number of processes, on one machine or many: whatever is cut goes on."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

from fewstep.data.reading import PictureReader, Square
from fewstep.data.shards.prepared import PreparedRow, check_written, read_statuses, write_manifest
from fewstep.data.shards.store import Store
from fewstep.data.sources.base import escape_line
from fewstep.errors import UserError
from fewstep.models.libraries import PRELOAD
from fewstep.parallel.workers import Workers, count_cores, use_one_thread
from fewstep.progress import report
from fewstep.recipes.prepare import Prepare
from fewstep.train.ledger import MOST_DROPPED, MOST_IN_A_ROW, is_broken

_AT_ONCE = 16
"""Shards that are looked at together, which behind a URL take a request or two each."""


@dataclass(frozen=True)
class Part:
    """Consecutive pictures of a source, or trajectories, and the name of the shard that they become."""

    name: str
    pictures: range
    times: int = 1
    """How often an epoch goes through it."""


@dataclass(frozen=True)
class Stages:
    """How long the stages of some pictures' preparation took, in seconds of all processes together."""

    pictures: int = 0
    decoding: float = 0.0
    """Is what all threads took together."""
    encoding: float = 0.0
    writing: float = 0.0

    def describe(self, seconds: float, noun: str = "pictures", verb: str = "encode") -> str:
        """Returns how many pictures a second each stage does alone, and all of them did in `seconds`."""
        named = {"decode": self.decoding, verb: self.encoding, "write": self.writing}
        rates = ", ".join(f"{name} {_show_rate(self.pictures / max(taken, 1e-9))}" for name, taken in named.items())
        in_all = _show_rate(self.pictures / max(seconds, 1e-9))
        return f"{noun} a second: {rates} (of one thread or process), {in_all} in all"


def _show_rate(rate: float) -> str:
    return f"{rate:.0f}" if rate >= 10 else f"{rate:.2g}"


def sum_stages(parts: Iterable[Stages]) -> Stages:
    """Adds them up."""
    rows = [dataclasses.astuple(part) for part in parts]
    return Stages(*(sum(column) for column in zip(*rows, strict=True))) if rows else Stages()


@dataclass(frozen=True)
class PartsPlan:
    """Says what is to be made, alike in all processes."""

    noun: str
    """What it makes shards of, one by one."""
    kind: str
    """What the shards hold."""
    verb: str
    """What it does to make it."""
    parts: list[Part]
    made_of: dict[str, Any]
    notes: list[str]
    """Say what is worth saying of them before it begins, a line each."""


class Studio(Protocol):
    """Makes the shards, in each of the processes: made of the configuration, the number of the process, and those
    who read for it."""

    noun: str
    kind: str
    verb: str
    on_cpu: bool
    gpus: int
    parts: list[Part]
    made_of: dict[str, Any]
    notes: list[str]

    def run(self, part: Part) -> Stages:
        """Writes the shard of a part, unless another process has meanwhile."""
        ...


MakeStudio = Callable[..., Studio]


def plan_of(studio: Studio) -> PartsPlan:
    """Returns what the studio is to make."""
    return PartsPlan(studio.noun, studio.kind, studio.verb, studio.parts, studio.made_of, studio.notes)


class PartsExecutor(Protocol):
    """Makes parts, in whatever processes."""

    plan: PartsPlan

    def run(self, parts: list[Part]) -> Stages:
        """Makes these parts, and returns the time that it took in all processes together."""
        ...


class ProcessEngine:
    """Makes parts in this process, or in several of this machine."""

    def __init__(self, config: Prepare, make: MakeStudio) -> None:
        self._config, self._studio = config, make(config)
        self.plan = plan_of(self._studio)

    def run(self, parts: list[Part]) -> Stages:
        return run_parts(self._config, self._studio, parts)


def fill(store: Store, executor: PartsExecutor) -> None:
    """Writes what is not there yet, and the list of all. Raises UserError where a shard is of something else."""
    store.clean()
    plan = executor.plan
    held = {name.removesuffix(".safetensors") for name in store.list_names() if name.endswith(".safetensors")}
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        for _ in pool.map(lambda name: check_written(store, name, plan.made_of), sorted(held)):
            pass
    left = [part for part in _order_for_process(plan.parts) if part.name not in held]
    print(f"{len(plan.parts)} shards of {plan.kind}, {len(plan.parts) - len(left)} of them there already", flush=True)
    begun = time.perf_counter()
    stages = executor.run(left)
    if stages.pictures:
        print(stages.describe(time.perf_counter() - begun, plan.noun, plan.verb), flush=True)
    statuses: Counter[str] = Counter()
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        for said in pool.map(lambda part: read_statuses(store, part.name), plan.parts):
            statuses.update(said)
    used = statuses.pop("", 0)
    dropped = dict(sorted(statuses.items()))
    report = {"found": used + statuses.total(), "used": used, "dropped": dropped}
    write_manifest(store, [part.name for part in plan.parts], plan.made_of, report)
    lost = ", ".join(f"{count} {reason}" for reason, count in dropped.items())
    counted = f"{report['found']} {plan.noun}, {used} used{f', {lost}' if lost else ''}"
    print(f"prepared: {counted}: {store}", flush=True)


def run_parts(config: Prepare, studio: Studio, left: list[Part]) -> Stages:
    """Makes what is left, in this process or in several; returns the time that it took."""
    count = min(config.workers or (count_cores() if studio.on_cpu else studio.gpus), len(left))
    if count > 1:
        with Workers(count, type(studio), (config,), PRELOAD) as workers:
            return sum_stages(_count(workers.run_in_turn(left), len(left)))
    with use_one_thread() if studio.on_cpu else contextlib.nullcontext():  # more would round otherwise
        return sum_stages(_count((studio.run(part) for part in left), len(left)))


def _count(stages: Iterable[Stages], total: int) -> Iterator[Stages]:
    """Reports each part when it is made."""
    for done, each in enumerate(stages, 1):
        report("preparation", done, total)
        yield each


def make_row(reading: PictureReader, index: int, square: Square) -> PreparedRow:
    """Makes the row of a picture that was read, or could not be."""
    first, *others = square.captions
    return PreparedRow(reading.key(index), first, square.sizes, square.reason, tuple(others))


def check_readable(rows: list[PreparedRow], part: Part) -> None:
    """Raises UserError where so much cannot be read that something must be wrong."""
    lost = [row for row in rows if is_broken(row.status)]
    last = rows[-MOST_IN_A_ROW:]
    if len(last) == MOST_IN_A_ROW and all(is_broken(row.status) for row in last):
        raise UserError(f"{MOST_IN_A_ROW} pictures in a row of {part.name} cannot be read ({last[-1].status}); fix it")
    if len(lost) >= MOST_IN_A_ROW and len(lost) > MOST_DROPPED * len(part.pictures):
        raise UserError(
            f"{len(lost)} of {len(part.pictures)} pictures of {part.name} cannot be read, more than "
            f"{MOST_DROPPED:.0%}; the last is {escape_line(lost[-1].key)} ({lost[-1].status})"
        )


def _order_for_process(parts: list[Part]) -> list[Part]:
    """Returns the parts in the order for this process of several: its own share first, then what others may leave."""
    rank, size = (
        next((int(os.environ[name]) for name in names if name in os.environ), default)
        for names, default in ((("RANK", "SLURM_ARRAY_TASK_ID"), 0), (("WORLD_SIZE", "SLURM_ARRAY_TASK_COUNT"), 1))
    )
    start = len(parts) * (rank % size) // size
    return parts[start:] + parts[:start]
