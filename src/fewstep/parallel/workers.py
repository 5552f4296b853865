"""Worker processes of one thread each, which on a CPU finish many jobs sooner than one process of many threads."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Protocol, Self

import torch

from fewstep.errors import UserError


class JobRunner(Protocol):
    """What a worker process needs for its jobs."""

    def run(self, job: Any) -> Any:
        """Runs one job, writes its result to a file, and returns what is to be said of it."""


_RUNNER: list[JobRunner] = []  # of this process, once it has started


class Workers:
    """`count` processes, each with its own runner `make(*arguments, number)`, numbered from 0.

    Where processes can be forked from a server that has imported the modules named by `preload` and that of `make`,
    these are imported once for all, and held in memory once.
    """

    def __init__(
        self, count: int, make: Callable[..., JobRunner], arguments: tuple[Any, ...], preload: Sequence[str] = ()
    ) -> None:
        context = multiprocessing.get_context(_choose_start_method())
        if context.get_start_method() == "forkserver":
            context.set_forkserver_preload([*preload, make.__module__])
        started = context.Value("i", 0)
        self._pool = ProcessPoolExecutor(count, context, initializer=_start, initargs=(started, make, arguments))

    def run(self, jobs: Sequence[Any]) -> list[Any]:
        """Runs all jobs, and returns what the runners did. Raises as `run_in_turn` does."""
        return list(self.run_in_turn(jobs))

    def run_in_turn(self, jobs: Sequence[Any]) -> Iterator[Any]:
        """Runs all jobs, and yields what the runners did, in their order. Raises what a worker raised, and UserError
        where one was killed."""
        try:
            yield from self._pool.map(_run, jobs)
        except BrokenProcessPool as error:
            raise UserError(
                "a worker process was killed, perhaps for lack of memory; give fewer --workers, and the same command "
                "goes on"
            ) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None and issubclass(kind, KeyboardInterrupt):  # somebody waits for the end, not for the jobs
            for process in [*(self._pool._processes or {}).values()]:
                process.kill()
        self._pool.shutdown(cancel_futures=True)


def _choose_start_method() -> Literal["forkserver", "spawn"]:
    """Chooses a fork server on Linux, whose libraries bear a fork after their import, as those of macOS do not."""
    # The server listens at a file in the temporary folder, and the kernel takes no name of more than 107 letters.
    short = len(tempfile.gettempdir()) < 70
    return "forkserver" if sys.platform == "linux" and short else "spawn"


def _start(started: Any, make: Callable[..., JobRunner], arguments: tuple[Any, ...]) -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None  # since this is a worker
    _exit_after(parent.join)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the main one ends the others
    sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115  # for good: the main process prints the same
    torch.set_num_threads(1)
    with started.get_lock():
        number, started.value = started.value, started.value + 1
    _RUNNER.append(make(*arguments, number))


def exit_with_parent(parent: int) -> None:
    """Makes this process exit within a second of its parent, even where that was killed."""

    def wait() -> None:
        while os.getppid() == parent:
            time.sleep(1)

    _exit_after(wait)


def _exit_after(wait: Callable[[], None]) -> None:
    def watch() -> None:
        wait()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _run(job: Any) -> Any:
    return _RUNNER[0].run(job)


@contextlib.contextmanager
def use_one_thread() -> Iterator[None]:
    """Limits torch to one thread, as in a worker, so that results round alike."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def count_cores() -> int:
    """Counts the CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
