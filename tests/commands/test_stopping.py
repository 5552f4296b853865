"""What a command says as it is stopped: what becomes of its work."""

from __future__ import annotations

import dataclasses
import signal
import sys
import time

import pytest

from fewstep.cli import COMMANDS, main
from fewstep.parallel.workers import Workers


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("evaluate", "stopped; what is painted so far is kept, and the same command goes on from there"),
        ("prepare", "stopped; the shards written so far are kept, and the same command goes on from there"),
        ("generate", "stopped; the pictures that it has named are kept"),
        ("bench methods", "stopped; a measurement that is stopped leaves nothing"),
        ("distill", "stopped; the same command goes on from the last checkpoint, if there is one"),
        ("plot", "stopped"),
    ],
)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_both_signals_say_what_becomes_of_the_work(monkeypatch, capfd, number, command, said):
    def stop(*_):
        signal.raise_signal(number)
        pytest.fail("it goes on")

    # Python itself leaves Ctrl-C alone where what began it does, as a shell does in the background.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    monkeypatch.setattr("fewstep.cli._run", stop)
    monkeypatch.setattr("fewstep.parallel.termination.os._exit", sys.exit)
    with pytest.raises(SystemExit) as ended:
        main(command.split())
    signal.signal(signal.SIGINT, before)
    assert ended.value.code == 128 + number
    assert capfd.readouterr().err == f"\nfewstep: {said}\n"


def test_every_long_command_says_it():
    short = {"combine", "convert", "inspect", "plan", "plot", "serve"}  # serve has words of its own
    assert {name for name, command in COMMANDS.items() if not command.interrupted} == short


@dataclasses.dataclass
class Sleeper:
    """Sleeps for as many seconds as a job is."""

    number: int

    def run(self, job: float) -> None:
        time.sleep(job)


def test_an_interrupt_does_not_wait_for_the_jobs_of_workers():
    began = time.monotonic()

    def interrupt():
        with Workers(2, Sleeper, ()) as workers:
            for _ in workers.run_in_turn([0, 600, 600]):
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupt()
    assert time.monotonic() - began < 300
