"""The commands as functions: the same configurations, folders and locks as on the command line.

`import fewstep` imports none of this: each name is looked up in `fewstep` when it is first used.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, overload

from fewstep.commands.combine import Combine
from fewstep.commands.combine import combine as run_combine
from fewstep.commands.distill import distill as run_distill
from fewstep.commands.evaluate import evaluate as run_evaluate
from fewstep.commands.finetune import finetune as run_finetune
from fewstep.commands.prepare import prepare as run_prepare
from fewstep.commands.train_lora import train_lora as run_train_lora
from fewstep.errors import UserError
from fewstep.evaluate.cell import Row
from fewstep.evaluate.config import Evaluate
from fewstep.models.libraries import silence
from fewstep.progress import Listener, listen
from fewstep.recipes.distill import Distill
from fewstep.recipes.finetune import Finetune
from fewstep.recipes.given import name_as_given
from fewstep.recipes.named import RECIPES, find_recipe
from fewstep.recipes.plain import from_plain, to_plain
from fewstep.recipes.prepare import Prepare
from fewstep.recipes.train_lora import TrainLora
from fewstep.runs.lock import hold_folder
from fewstep.runs.shortage import explain_out_of_memory

Training = TypeVar("Training", Distill, Finetune, TrainLora)
_CONFIGS = {"evaluate": Evaluate, "combine": Combine, "prepare": Prepare}
"""The configurations of commands that have no recipes."""


@dataclass(frozen=True)
class Run:
    """A training that has ended, in its folder."""

    config: Distill | Finetune | TrainLora
    """The settings that it was made with."""

    @property
    def folder(self) -> Path:
        """Returns the run folder, which also has checkpoints, samples and the log."""
        return self.config.out

    @property
    def model(self) -> Path:
        """Returns the folder of what was trained, for `load`, or for its `loras`."""
        return self.folder / "model"

    def read_log(self) -> list[dict[str, Any]]:
        """Reads the lines of metrics.jsonl: `step`, `loss` and what else was measured at it."""
        return [json.loads(line) for line in (self.folder / "metrics.jsonl").read_text().splitlines()]


@dataclass(frozen=True)
class Report:
    """An evaluation that has ended, in its folder."""

    folder: Path
    """Has results.json, table.md, report.html and grid.png."""
    results: dict[str, Any]
    """What results.json holds."""

    @property
    def rows(self) -> list[Row]:
        """Returns the table, a row for each sampler and number of steps."""
        rows: list[Row] = self.results["rows"]
        return rows

    @property
    def page(self) -> Path:
        """Returns the report as one HTML file."""
        return self.folder / "report.html"

    def find_row(self, sampler: str, steps: int) -> Row:
        """Returns the row of a sampler (`lcm` is the few-step model) and a number of steps. Raises KeyError."""
        for row in self.rows:
            if (row["sampler"], row["steps"]) == (sampler, steps):
                return row
        raise KeyError(f"no row of {sampler} in {steps} steps")


@overload
def configure(command: Literal["distill"], recipe: str = "scenes", **settings: Any) -> Distill: ...
@overload
def configure(command: Literal["finetune"], recipe: str = "scenes", **settings: Any) -> Finetune: ...
@overload
def configure(command: Literal["train-lora"], recipe: str = "scenes", **settings: Any) -> TrainLora: ...
@overload
def configure(command: Literal["evaluate"], **settings: Any) -> Evaluate: ...
@overload
def configure(command: Literal["combine"], **settings: Any) -> Combine: ...
@overload
def configure(command: Literal["prepare"], **settings: Any) -> Prepare: ...
def configure(command: str, recipe: str = "scenes", **settings: Any) -> Any:
    """Makes the configuration of a command: its recipe's settings, or its defaults, with those that are given.

    `settings` are the command's options with `_` for `-`: `configure("distill", "scenes-lora", steps=20,
    out="runs/mine")`. `recipe` is the name of one, or the config.yaml of an earlier run. Raises UserError for a setting
    that the command does not have, and for a value that it does not allow.
    """
    if command in RECIPES:
        default = find_recipe(recipe, command)
    elif command in _CONFIGS:
        default = _CONFIGS[command]()
    else:
        raise UserError(f"{command!r} has no configuration here; known: {', '.join([*RECIPES, *_CONFIGS])}")
    plain = {name: _make_plain(value) for name, value in settings.items()}
    with name_as_given(type(default), plain):
        return from_plain(type(default), to_plain(default) | plain, f"{command} in Python")


def distill(config: Distill, *, progress: Listener | None = None, quiet: bool = False) -> Run:
    """Turns a teacher into a few-step model, as `fewstep distill` does; an interrupted run goes on.

    `progress` is called with a `Progress` after every update, and while pictures are encoded; an exception that it
    raises ends the run, which the same call resumes from its last checkpoint. `quiet` keeps everything off stdout and
    stderr but what `progress` writes itself; for the time of the call that holds for the whole process. The other
    commands take both too.
    """
    return _train(run_distill, config, progress, quiet=quiet)


def finetune(config: Finetune, *, progress: Listener | None = None, quiet: bool = False) -> Run:
    """Fine-tunes a few-step model on pictures, without a teacher, as `fewstep finetune` does."""
    return _train(run_finetune, config, progress, quiet=quiet)


def train_lora(config: TrainLora, *, progress: Listener | None = None, quiet: bool = False) -> Run:
    """Trains a style LoRA, as `fewstep train-lora` does."""
    return _train(run_train_lora, config, progress, quiet=quiet)


def evaluate(config: Evaluate, *, progress: Listener | None = None, quiet: bool = False) -> Report:
    """Scores a few-step model against its teacher's samplers, as `fewstep evaluate` does; an interrupted one goes on.

    With `workers` above 1 it starts processes, so that a script needs its `if __name__ == "__main__":`.
    """
    with _heard(progress, quiet=quiet), hold_folder(config.out), explain_out_of_memory(config):
        return Report(config.out, run_evaluate(config))


def combine(config: Combine) -> Path:
    """Combines LoRAs into one, or merges them into their base, as `fewstep combine` does; returns the folder."""
    with hold_folder(config.out):
        run_combine(config)
    return config.out


def prepare(config: Prepare, *, progress: Listener | None = None, quiet: bool = False) -> Path:
    """Encodes pictures, or walks a teacher, as `fewstep prepare` does; returns the folder, which is a `data`."""
    with _heard(progress, quiet=quiet), explain_out_of_memory(config):
        run_prepare(config)
    return config.out


def _train(
    command: Callable[[Training], None], config: Training, progress: Listener | None, *, quiet: bool
) -> Run:  # fmt: skip
    if config.processes > 1:
        raise UserError(
            f"processes is {config.processes} and a training runs in one process from Python; use the command"
        )
    with _heard(progress, quiet=quiet), _hold(config), explain_out_of_memory(config):
        command(config)
    return Run(config)


@contextlib.contextmanager
def _heard(progress: Listener | None, *, quiet: bool) -> Iterator[None]:
    """Tells `progress` of what goes on in it, in which libraries say nothing of themselves."""
    with listen(progress, quiet=quiet), silence():
        yield


@contextlib.contextmanager
def _hold(config: Distill | Finetune | TrainLora) -> Iterator[None]:
    """Keeps others from writing into the run folder; a dry run writes nothing there."""
    with contextlib.nullcontext() if getattr(config, "dry_run", False) else hold_folder(config.out):
        yield


def _make_plain(value: Any) -> Any:
    """Returns a setting as YAML would have it."""
    if isinstance(value, Path):
        return str(value)
    return [_make_plain(each) for each in value] if isinstance(value, (tuple, list)) else value
