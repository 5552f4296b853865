"""Who hears of a training beside its folder: what is settled before it begins, what it shows of its student along the
way, and what is done at its end.

An observer is a file with `make_observer`, and a line in `_OBSERVERS`; it is imported only where a run wants it.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from fewstep.parallel.world import current_world
from fewstep.recipes.consistency import ConsistencyConfig
from fewstep.recipes.pictures import TrainingConfig
from fewstep.runs.material import Material
from fewstep.train.learner import Trainable
from fewstep.train.tracking import resolve_names

_OBSERVERS = {"sample_every": "fewstep.runs.previews", "eval_every": "fewstep.runs.evaluations"}
"""Modules by the setting that says every how many updates they are due; 0 is never."""


@dataclass(frozen=True)
class Observed:
    """What an observer sees."""

    config: ConsistencyConfig
    student: Trainable
    material: Material

    def agree(self, seen: bool) -> bool:
        """Returns what the main process sees, where all of them are here: another may look at a file too late."""
        return bool(current_world().gather(seen)[0]) if self.student.is_spread else seen


def make_observers(observed: Observed) -> Callable[[int], None]:
    """Makes what does, after every update, what is due, once for each update however often the run is started."""
    config = observed.config
    due: list[tuple[int, Any]] = [
        (getattr(config, setting), importlib.import_module(module).make_observer(observed))
        for setting, module in _OBSERVERS.items()
        if getattr(config, setting)
    ]

    def observe(step: int) -> None:
        observed.material.keep(step)
        # Of weights that are spread, all processes paint; else one is enough.
        if not (current_world().main or observed.student.is_spread):
            return
        for every, act in due:
            if step % every == 0 or step == config.steps:
                act(step)

    return observe


Config = TypeVar("Config", bound=TrainingConfig)


def settle_reports(config: Config) -> Config:
    """Returns the configuration with its license, which a terminal may have been asked for. Raises UserError for a
    tracker that is not installed, and where the model could not be sent to the Hub."""
    resolve_names(config.report_to)
    if config.push_to_hub and not getattr(config, "dry_run", False):
        # imported only where a run wants it
        settled: Config = importlib.import_module("fewstep.runs.publishing").prepare_push(config)
        return settled
    return config


def publish_run(config: TrainingConfig, out: Path) -> None:
    """Sends the model to the Hub, where that is asked for. Raises UserError, which says how to do it later."""
    if config.push_to_hub:
        importlib.import_module("fewstep.runs.publishing").push(config, out)
