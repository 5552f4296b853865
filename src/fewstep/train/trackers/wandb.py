"""Weights & Biases: a run of its server, or with WANDB_MODE=offline a folder that `wandb sync` sends later."""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from pathlib import Path

import wandb

from fewstep.train.tracking import TrackedRun

UPDATE = "update"
"""What the figures are drawn over. The server's own counter takes nothing twice, and a run that goes on has to tell
again what came after its last checkpoint."""


class WandbRun:
    """Goes on in the run whose identity stands in the run folder; project and server are wandb's own settings."""

    def __init__(self, run: TrackedRun) -> None:
        # The terminal is the run's own: no bar, no copy of what is printed, and nothing of the code or its repository.
        settings = wandb.Settings(console="off", silent=True, disable_git=True, save_code=False)
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "fewstep"), name=run.name, dir=str(run.folder), resume="allow",
            id=run.recall("wandb", lambda: secrets.token_hex(8)), config=dict(run.settings), settings=settings,
        )  # fmt: skip
        self._run.define_metric("*", step_metric=UPDATE)

    def record(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log({**values, UPDATE: step})

    def show(self, step: int, picture: Path) -> None:
        self._run.log({"samples": wandb.Image(str(picture)), UPDATE: step})

    def close(self, done: bool) -> None:
        self._run.finish(0 if done else 1)


open_tracker = WandbRun
