"""What a run says while it goes on: a bar on a terminal, plain lines when piped, metrics.jsonl always."""

from __future__ import annotations

import contextlib
import json
import math
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from fewstep.documents import parse_json
from fewstep.errors import show
from fewstep.files import append_lines
from fewstep.progress import report
from fewstep.train.config import TrackerName
from fewstep.train.ledger import number_in, read_lines, rewrite
from fewstep.train.tracking import TrackedRun, Tracking

_OF_THE_LINE = ("step", "seconds", "images_per_second")


class RunLog:
    """Records metrics of a run of `steps` updates that starts, or goes on, at update `start`."""

    def __init__(
        self, folder: Path, title: str, steps: int, start: int, report_to: Sequence[TrackerName] = (),
        settings: Mapping[str, Any] | None = None,
    ) -> None:  # fmt: skip
        """Tells the trackers of `report_to` too, and them the run's `settings`."""
        self._path = folder / "metrics.jsonl"
        self._title, self._steps = title, steps
        self._newest: tuple[int, dict[str, Any]] = (0, {})
        self._begun = time.perf_counter()
        self._last = self._first = (self._begun, start)
        self._progress: Progress | None = None
        last = self._forget_after(start)
        self._begun -= last.get("seconds", 0.0)
        self._tracking = Tracking(report_to, TrackedRun(folder, settings or {}, start), self.say)
        if last.get("step") == start:
            self._tracking.record(start, {name: last[name] for name in last if name not in _OF_THE_LINE})
        if sys.stderr.isatty():
            self._progress = Progress(
                TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[note]}"),
                TimeRemainingColumn(), console=Console(stderr=True),
            )  # fmt: skip
            self._task = self._progress.add_task(title, total=steps, completed=start, note="")

    def __enter__(self) -> Self:
        if self._progress:
            self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._progress:
            self._progress.stop()
        self._tracking.close(done=error is None)

    def advance(self, step: int) -> None:
        """Moves the bar; costs nothing when there is none."""
        if self._progress:
            self._progress.update(self._task, completed=step)

    def report(self, step: int) -> None:
        """Tells the program that listens of an update, with its line of metrics where it has one."""
        report(self._title, step, self._steps, self._newest[1] if self._newest[0] == step else None)

    @contextlib.contextmanager
    def aside(self) -> Iterator[None]:
        """Takes the time of what goes on in it, which is no training, out of images a second."""
        begun = time.perf_counter()
        yield
        last, step = self._last
        self._last = (last + time.perf_counter() - begun, step)

    def say(self, message: str) -> None:
        """Tells the person at the terminal."""
        if self._progress:
            self._progress.console.print(f"{self._title}: {show(message)}", markup=False)
        else:
            print(f"{self._title}: {show(message)}", file=sys.stderr, flush=True)

    def record(self, step: int, batch_size: int, values: dict[str, float]) -> None:
        """Writes one line of metrics for the updates since the last one."""
        now = time.perf_counter()
        before, before_step = self._last
        self._last = (now, step)
        rate = (step - before_step) * batch_size / max(now - before, 1e-9)
        begun, start = self._first
        left = (self._steps - step) * (now - begun) / max(1, step - start)  # grids and evaluations too
        line = {"step": step, **values, "images_per_second": round(rate, 2), "seconds": round(now - self._begun, 2)}
        append_lines(self._path, [json.dumps(line)])
        self._newest = (step, line)
        loss = f"loss {values['loss']:.4g}  " if "loss" in values else ""
        note = f"{loss}{rate:.0f} images/s"
        if self._progress:
            self._progress.update(self._task, completed=step, note=note)
        else:
            print(f"{self._title} {step}/{self._steps}  {note}  {left:.0f} s left", file=sys.stderr, flush=True)
        with self.aside():
            self._tracking.record(step, values)

    def _forget_after(self, start: int) -> dict[str, float]:
        """Drops lines that an interrupted run wrote after its last checkpoint: they are written again.

        Returns the numbers of the last of the others.
        """
        if not self._path.exists():
            return {}
        kept = [line for line in read_lines(self._path) if number_in(line, "step") <= start]
        rewrite(self._path, kept)
        names = parse_json(kept[-1]) if kept else {}
        return {name: number for name in names if math.isfinite(number := number_in(kept[-1], name))}
