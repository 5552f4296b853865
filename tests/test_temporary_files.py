"""Nothing that the tests start writes elsewhere than into the folders of the tests."""

import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from warm_command import FORK, start_server


def _tell(to):
    to.send(tempfile.gettempdir())


def test_temporary_files_of_every_process_stand_among_those_of_the_tests(tmp_path_factory):
    if len(str(tmp_path_factory.getbasetemp())) > 60:
        pytest.skip("no socket could stand in the folders of the tests, whose names are too long")
    start_server()
    receiver, sender = FORK.Pipe(duplex=False)
    warm = FORK.Process(target=_tell, args=(sender,))
    warm.start()
    fresh = subprocess.run(
        [sys.executable, "-c", "import tempfile; print(tempfile.gettempdir())"],
        capture_output=True,
        text=True,
        check=True,
    )
    for folder in (tempfile.gettempdir(), receiver.recv(), fresh.stdout.strip()):
        assert Path(folder).is_relative_to(tmp_path_factory.getbasetemp())
    warm.join()
