"""Who hears of a training beside its folder: what is settled before it begins, and what is done at its end."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TypeVar

from fewstep.recipes.pictures import TrainingConfig
from fewstep.train.tracking import resolve_names

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
