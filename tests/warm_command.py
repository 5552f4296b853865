"""The command in a process of its own, forked from one that has torch and diffusers imported already.

A fresh interpreter imports them for seconds, dozens of times in a run of the tests.
"""

import functools
import importlib
import multiprocessing
import multiprocessing.forkserver
import os
import socket
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

FORK = multiprocessing.get_context("forkserver")
LONGEST = 600


@functools.cache
def start_server() -> None:
    """Starts the process that all others are forked from, and waits until it has imported what they need."""
    before = os.environ.get("PYTHONPATH")
    # The server knows no other way to the folder of the tests, and leaves out in silence what it does not find.
    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), *([before] if before else [])])
    FORK.set_forkserver_preload(["warm_imports"])
    multiprocessing.forkserver.ensure_running()
    if before is None:
        del os.environ["PYTHONPATH"]
    else:
        os.environ["PYTHONPATH"] = before
    first = FORK.Process(target=int)
    first.start()
    first.join()


@dataclass(frozen=True)
class Done:
    """As subprocess.run has it."""

    returncode: int
    stdout: str
    stderr: str


class Warm:
    """A command that goes on; a `daemon` ends with this process.

    `constants` ("module.NAME" → value) are set in its process, to make it smaller than any option does; `env` is its
    environment beside this one's.
    """

    def __init__(self, arguments, cwd=None, constants: Mapping[str, object] | None = None, env=None, daemon=False):
        start_server()
        self._arguments = [*map(str, arguments)]
        self._folder = tempfile.TemporaryDirectory()
        self._files = [str(Path(self._folder.name) / name) for name in ("out", "err")]
        given = (self._arguments, *self._files, str(cwd or Path.cwd()), dict(constants or {}), dict(env or {}))
        self.process = FORK.Process(target=_main, args=given, daemon=daemon)
        self.process.start()

    def wait(self, seconds: float = LONGEST) -> Done:
        """Until it ends; fails after so many seconds."""
        self.process.join(seconds)
        if self.process.is_alive():
            self.process.kill()
            raise TimeoutError(f"fewstep {' '.join(self._arguments)} ran for more than {seconds} s")
        return Done(self.process.exitcode, *self.said())

    def said(self) -> tuple[str, str]:
        """Returns what it has written so far, of what is asked for and of errors."""
        out, err = (Path(file).read_text() if Path(file).exists() else "" for file in self._files)
        return out, err


def run_warm_together(arguments: list[str], count: int) -> list[Done]:
    """Runs `fewstep` with these arguments in so many processes of one run, as torchrun starts them."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(found.getsockname()[1]), "WORLD_SIZE": str(count)}
    ranks = [
        Warm(arguments, env={**where, "LOCAL_WORLD_SIZE": str(count), "RANK": str(rank), "LOCAL_RANK": str(rank)})
        for rank in range(count)
    ]
    return [rank.wait() for rank in ranks]


def _main(
    arguments: list[str], out: str, err: str, cwd: str, constants: dict[str, object], env: dict[str, str]
) -> None:
    for stream, file in ((1, out), (2, err)):
        os.dup2(os.open(file, os.O_CREAT | os.O_WRONLY, 0o644), stream)
    # Python's own streams, which the fork server shares, are bound to these files anew.
    sys.stdout, sys.stderr = (os.fdopen(os.dup(stream), "w", buffering=1) for stream in (1, 2))
    os.chdir(cwd)
    # Else each process imports everything anew; alone in one process, another test may have started the server.
    assert "warm_imports" in sys.modules or "PYTEST_XDIST_WORKER" not in os.environ
    os.environ.update(env)
    for name, value in constants.items():
        module, _, constant = name.rpartition(".")
        assert hasattr(importlib.import_module(module), constant)
        setattr(importlib.import_module(module), constant, value)
    from fewstep.cli import main

    sys.argv[1:] = arguments
    main(arguments)
