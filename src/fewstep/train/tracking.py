"""Who is told of a run beside its folder: trackers by name, each a file of `trackers/` and a line here."""

from __future__ import annotations

import importlib
import importlib.util
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol

from fewstep.documents import load_json, parse_json
from fewstep.errors import UserError
from fewstep.files import write_whole
from fewstep.train.config import TrackerName
from fewstep.train.ledger import number_in, read_lines

_FILES = {name: f"fewstep.train.trackers.{name}" for name in ("tensorboard", "wandb", "mlflow")}
"""Modules with `open_tracker`, by the name of the tracker, which its package has too."""
EVALUATIONS_FILE = "evaluations.jsonl"
IDENTITIES_FILE = "tracking.json"
"""Holds by which identity a tracker knows the run, so that one that was killed goes on in it."""
_NO_FIGURES = ("step", "steps", "guidance_scale")


class Tracker(Protocol):
    """Takes what a run tells. What it raises is said once, and it is told nothing more."""

    def record(self, step: int, values: Mapping[str, float]) -> None:
        """Takes figures by name."""

    def show(self, step: int, picture: Path) -> None:
        """Takes a PNG file of samples."""

    def close(self, done: bool) -> None:
        """Ends, well or after an error or a signal; a run that is killed does not come to this."""


@dataclass(frozen=True)
class TrackedRun:
    """Says what a tracker is opened for: a run that starts, or goes on, at update `start`."""

    folder: Path
    settings: Mapping[str, Any]
    start: int

    @property
    def name(self) -> str:
        return self.folder.resolve().name

    def recall(self, tracker: str, make: Callable[[], str], *, anew: bool = False) -> str:
        """Returns the run's identity with a tracker; the first time, or `anew`, one is made and kept."""
        file = self.folder / IDENTITIES_FILE
        held = load_json(file) if file.exists() else {}
        held = held if isinstance(held, dict) else {}
        if anew or not isinstance(held.get(tracker), str):
            held[tracker] = make()
            with write_whole(file) as draft:
                draft.write_text(json.dumps(held, indent=2) + "\n")
        return str(held[tracker])


def resolve_names(names: Sequence[TrackerName]) -> list[str]:
    """Puts what `auto` stands for in its place: TensorBoard where it is installed.

    Raises UserError for a tracker whose package is missing.
    """
    for name in names:
        if name != "auto" and importlib.util.find_spec(name) is None:
            raise UserError(f"--report-to {name} needs the package {name}: pip install 'fewstep[{name}]'")
    auto = ["tensorboard"] if importlib.util.find_spec("tensorboard") else []
    return list(dict.fromkeys(each for name in names for each in (auto if name == "auto" else [name])))


class Tracking:
    """Tells all trackers of a run: figures as they come, samples and evaluations as they lie in its folder."""

    def __init__(self, names: Sequence[TrackerName], run: TrackedRun, say: Callable[[str], None]) -> None:
        """Opens those that can be opened. What came after update `run.start` is told again, as it is made again."""
        self._say, self._folder = say, run.folder
        self._shown = self._scored = run.start - 1
        self._trackers: dict[str, Tracker] = {}
        for name in resolve_names(names):
            self._attempt(name, partial(self._open, name, run))

    def _open(self, name: str, run: TrackedRun) -> None:
        self._trackers[name] = importlib.import_module(_FILES[name]).open_tracker(run)

    def record(self, step: int, values: Mapping[str, float]) -> None:
        """Tells the figures of some updates, and what lies in the folder by now."""
        self._tell("record", step, values)
        self.follow()

    def follow(self) -> None:
        """Tells of samples and evaluations that the folder has since the last time."""
        if not self._trackers:
            return
        try:
            evaluations = list(read_evaluations(self._folder))
        except (OSError, ValueError) as error:
            self._say(f"{EVALUATIONS_FILE} cannot be read, and trackers are not told of it ({error})")
            evaluations = []
        for step, values in evaluations:
            if step > self._scored:
                self._tell("record", step, values)
                self._scored = step
        for step, picture in find_samples(self._folder):
            if step > self._shown:
                self._tell("show", step, picture)
                self._shown = step

    def close(self, *, done: bool) -> None:
        """Tells the last, and has every tracker end; `done` where nothing went wrong."""
        self.follow()
        self._tell("close", done)
        self._trackers.clear()

    def _tell(self, method: Literal["record", "show", "close"], *said: Any) -> None:
        for name, tracker in list(self._trackers.items()):
            self._attempt(name, partial(getattr(tracker, method), *said))

    def _attempt(self, name: str, act: Callable[[], None]) -> None:
        """Lets no tracker end a training: its disk, server or library may do what they like."""
        try:
            act()
        except Exception as error:
            self._trackers.pop(name, None)
            why = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            self._say(f"{name} is told nothing more until the run is started again ({why})")


def read_evaluations(folder: Path) -> Iterator[tuple[int, dict[str, float]]]:
    """Yields the update and the figures of every evaluation along a run, as `fd/4` for the distance at 4 steps."""
    file = folder / EVALUATIONS_FILE
    found: dict[int, dict[str, float]] = {}
    for line in read_lines(file) if file.exists() else []:
        step, steps = number_in(line, "step"), number_in(line, "steps")
        if step < 1e15 and steps < 1e15:
            row = parse_json(line)
            figures = {name: row[name] for name in row if isinstance(row[name], float) and name not in _NO_FIGURES}
            values = {name: value for name, value in figures.items() if not name.endswith(("_low", "_high", "_error"))}
            found.setdefault(int(step), {}).update({f"{name}/{steps:g}": value for name, value in values.items()})
    yield from sorted(found.items())


def find_samples(folder: Path) -> list[tuple[int, Path]]:
    """Returns the pictures of samples along a run, with their updates, in order."""
    files = sorted((folder / "samples").glob("step-*.png"))
    return [(int(number), file) for file in files if (number := file.stem.removeprefix("step-")).isdecimal()]
