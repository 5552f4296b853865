"""Checkpoints that do not stop the run: a thread writes them from a copy of the state while training goes on."""

from __future__ import annotations

import threading
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor

from fewstep.train.checkpoint import Checkpoints
from fewstep.train.state import RunState

_writers: dict[Path, threading.Thread] = {}  # by the folder that each writes to


def wait_for_writer(folder: Path) -> None:
    """Waits for what an interrupted run of this process still writes to `folder`.

    In a notebook the process outlives the run, and whoever starts it again does so while the thread is at work.
    """
    if (thread := _writers.pop(folder.resolve(), None)) is not None:
        thread.join()


class Saving:
    """Saves the states of one run, one at a time.

    All processes of the run have one, and where its state is spread all write; one that is given no `checkpoints`
    writes nothing. What the thread raises is raised by the next call here.
    """

    THREAD = "checkpoint"
    """Is what a thread that writes is called."""

    def __init__(self, checkpoints: Checkpoints | None, keep: int) -> None:
        self._checkpoints, self._keep = checkpoints, keep
        self._copies: dict[str, Tensor] = {}  # in main memory, where the next copy takes their place
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Waits for what is being written, but where somebody interrupts who has asked before."""
        if kind is None:
            self.finish()
        elif not issubclass(kind, KeyboardInterrupt):
            self._join()

    def save(self, state: RunState) -> None:
        """Begins to write the state of this moment, and returns when it is copied; waits for the one before first."""
        self.finish()
        if self._checkpoints is None:
            return
        self._copies = {
            name: _copy(value, self._copies.get(name)) for name, value in self._checkpoints.pick(state).items()
        }
        self._thread = threading.Thread(
            target=self._write, args=(self._checkpoints, state.numbers()), name=self.THREAD, daemon=True
        )  # fmt: skip
        _writers[self._checkpoints.folder.resolve()] = self._thread
        self._thread.start()

    @property
    def is_writing(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def check(self) -> None:
        """Raises what a thread that has ended meanwhile raised."""
        if not self.is_writing:
            self.finish()

    def finish(self) -> None:
        """Waits until what has been begun is on the disk."""
        self._join()
        if (error := self._error) is not None:
            self._error = None
            raise error

    def _join(self) -> None:
        if self._thread is not None and self._checkpoints is not None:
            wait_for_writer(self._checkpoints.folder)
            self._thread = None

    def _write(self, checkpoints: Checkpoints, numbers: dict[str, Any]) -> None:
        try:
            checkpoints.save(self._copies, numbers, self._keep)
        except BaseException as error:  # raised again where the run can end
            self._error = error


def _copy(value: Tensor, before: Tensor | None) -> Tensor:
    """Returns a copy in main memory, in the place of the one before where it has the same form.

    Its memory is not pinned: torch rounds that up to powers of two, and a copy from a card in a few seconds rather than
    in one is nothing beside the minutes between two checkpoints.
    """
    if before is None or before.shape != value.shape or before.dtype != value.dtype:
        before = torch.empty(value.shape, dtype=value.dtype, device="cpu")
    return before.copy_(value)
