"""TensorBoard: event files in the run's own folder."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image
from torch.utils.tensorboard import SummaryWriter

from fewstep.train.tracking import TrackedRun


class Board:
    """Writes `tensorboard/`, and hides there what an interrupted run wrote after its last checkpoint."""

    def __init__(self, run: TrackedRun) -> None:
        threading.excepthook = _pass_over_board
        self._writer = SummaryWriter(str(run.folder / "tensorboard"), purge_step=max(run.start, 1))
        if run.start == 0:
            lines = (f"    {name}: {value}" for name, value in run.settings.items())
            self._writer.add_text("configuration", "\n".join(lines))

    def record(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def show(self, step: int, picture: Path) -> None:
        with Image.open(picture) as image:
            self._writer.add_image("samples", np.asarray(image.convert("RGB")), step, dataformats="HWC")

    def close(self, done: bool) -> None:  # noqa: ARG002  # its files have no word for it
        self._writer.close()


open_tracker = Board


def _pass_over_board(failed: threading.ExceptHookArgs) -> None:
    """Leaves out what the board's thread says of a disk that does not take its file: the next call on the board raises
    it again."""
    board = type(failed.thread).__module__.startswith("tensorboard.")
    if not (board and failed.exc_type and issubclass(failed.exc_type, OSError)):
        threading.__excepthook__(failed)
