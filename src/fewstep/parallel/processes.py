"""Starts the same command in several processes of this machine, as torchrun does, and ends all when one fails."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

LAUNCHER = "FEWSTEP_LAUNCHER"
"""Names the environment variable with the id of the process that started this one."""
MODULE = "fewstep"
_POLL = 0.05
_GRACE = 10.0
"""Seconds for the other processes to exit after one was stopped by a signal and has saved its state."""
OTHER_GONE = 75
"""Exit status of a process that could not go on because another had exited."""


class Processes:
    """Ranks 0 to n − 1; rank 0 writes to the terminal, the others to files, which are printed if they fail."""

    def __init__(self, count: int, arguments: Sequence[str], folder: Path) -> None:
        shared = {
            "WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(_find_free_port()), LAUNCHER: str(os.getpid()),
        }  # fmt: skip
        # Too many threads per process cost more than too few.
        shared["OMP_NUM_THREADS"] = os.environ.get("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // count)))
        self._logs = [folder / str(rank) for rank in range(count)]
        self._running: list[subprocess.Popen[bytes]] = []
        for rank in range(count):
            own = {**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}
            with self._logs[rank].open("wb") as file:
                self._running.append(
                    subprocess.Popen(
                        [sys.executable, "-m", MODULE, *arguments], env=own, start_new_session=True,
                        stderr=None if rank == 0 else file,
                    )
                )  # fmt: skip

    def forward_signal(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002  # signature of a signal handler
        """Sends a signal on to all processes."""
        for process in self._running:
            if process.poll() is None:
                process.send_signal(number)

    def wait(self) -> int:
        """Waits for all processes. Returns 0, or the status of the first that failed, after printing its output."""
        while self._first_failed() is None and any(process.poll() is None for process in self._running):
            time.sleep(_POLL)
        failed = self._first_failed()
        if failed is None:
            return 0
        # A process that finds another gone may exit before that other does.
        until = time.monotonic() + _GRACE
        while self._running[failed].returncode == OTHER_GONE and time.monotonic() < until:
            if all(process.poll() is not None for process in self._running):
                break
            time.sleep(_POLL)
            failed = self._first_failed() or 0
        status = self._running[failed].returncode
        stopped = status in (128 + signal.SIGTERM, 128 + signal.SIGINT)
        if failed and not stopped:
            sys.stderr.write(f"process {failed} of {len(self._running)} failed:\n{self._logs[failed].read_text()}")
        self._end(_GRACE if stopped else 0)
        return status if status > 0 else 128 - status

    def _first_failed(self) -> int | None:
        """Returns the rank of a process that failed, preferably not of one that only found another gone."""
        failed = [rank for rank, process in enumerate(self._running) if process.poll()]
        return min(failed, key=lambda rank: self._running[rank].returncode == OTHER_GONE, default=None)

    def _end(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        for process in self._running:
            while process.poll() is None and time.monotonic() < until:
                time.sleep(_POLL)
            process.kill()
            process.wait()


def launch(count: int, arguments: Sequence[str]) -> int:
    """Runs `fewstep` with these arguments in `count` processes, and returns the exit status."""
    with tempfile.TemporaryDirectory() as folder:
        processes = Processes(count, arguments, Path(folder))
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, processes.forward_signal)
        return processes.wait()


def _find_free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])
