"""Two commands do not write into one folder: the second is told who has it, and the third goes on."""

import contextlib
import fcntl
import json
import os
import signal
import socket
from pathlib import Path

import pytest

from fewstep.cli import COMMANDS, main
from fewstep.errors import UserError
from fewstep.runs import lock
from fewstep.runs.lock import hold_folder

BOOT = lock._name_boot()


class Writer:
    """Another process that holds a folder, until it is told to end."""

    def __init__(self, folder, sharing=""):
        (ready, say), (hear, self._say) = os.pipe(), os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self._say)
            with hold_folder(folder, sharing):
                os.write(say, b"holds")
                os.read(hear, 1)
            os._exit(0)
        os.close(hear)
        os.close(say)
        assert os.read(ready, 9) == b"holds"
        os.close(ready)

    def end(self, number=0):
        """Lets it come to its end, or sends it a signal."""
        if self.pid:
            os.kill(self.pid, number)
            os.close(self._say)
            os.waitpid(self.pid, 0)
            self.pid = 0


@contextlib.contextmanager
def another_process(folder, sharing=""):
    """Holds the folder meanwhile."""
    writer = Writer(folder, sharing)
    try:
        yield writer
    finally:
        writer.end(signal.SIGKILL)


def write_holder(folder, **values):
    folder.mkdir(exist_ok=True)
    said = {"pid": 2**22 + 5, "host": socket.gethostname(), "boot": BOOT, "since": "then", "sharing": ""} | values
    (folder / ".lock").write_text(json.dumps(said))


def refusal(folder, sharing=""):
    with pytest.raises(UserError) as caught, hold_folder(folder, sharing):
        pass
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_second_is_told_who_has_it_and_the_third_goes_on(tmp_path, capsys):
    folder = tmp_path / "run"
    with another_process(folder) as writer:
        said = f"{folder} is being written by process {writer.pid} on {socket.gethostname()} since "
        assert refusal(folder).startswith(said)
        assert refusal(folder, "shared").startswith(said)
        for command in (["distill"], ["combine", "--lora", "x"]):
            with pytest.raises(SystemExit) as ended:
                main([*command, "--out", str(folder)])
            assert ended.value.code == 2
            _, error = capsys.readouterr()
            assert error.startswith(f"fewstep: error: {said}"), error
            assert error.count("\n") == 1
        writer.end(signal.SIGKILL)
        assert (folder / ".lock").exists()
    with hold_folder(folder):
        assert json.loads((folder / ".lock").read_text())["pid"] == os.getpid()
    assert os.listdir(folder) == []
    with hold_folder(tmp_path / "never" / "written"):
        pass
    assert os.listdir(tmp_path) == ["run"]


def test_whoever_wants_the_same_shares_it(tmp_path):
    with another_process(tmp_path, "these pictures") as writer:
        with hold_folder(tmp_path, "these pictures"):
            assert "is being written by process" in refusal(tmp_path)
            assert "is being written by process" in refusal(tmp_path, "other pictures")
        assert str(writer.pid) in (tmp_path / ".lock").read_text()  # who stays
        with hold_folder(tmp_path, "these pictures"):
            writer.end()
            assert "is being written by" in refusal(tmp_path)
    assert os.listdir(tmp_path) == []


def test_a_command_that_owns_its_folder_says_so():
    """Those that do not are named here, with their folders: one shares it, one never writes a name twice, and two
    write one file, which is whole at any time."""
    folders = {"prepare", "generate", "plot", "convert"}
    for name, command in COMMANDS.items():
        module = command.run.split(":")[0].removeprefix("commands.")
        source = (Path(lock.__file__).parents[1] / "commands" / f"{module}.py").read_text()
        assert command.owns_out == ("config.out" in source and name not in folders), name


def test_a_dry_run_and_the_other_processes_of_a_run_take_none(tmp_path, monkeypatch):
    done = []
    monkeypatch.setattr("fewstep.commands.distill.distill", lambda _: done.append(list(tmp_path.iterdir())))
    main(["distill", "scenes", "--out", str(tmp_path), "--dry-run"])
    main(["distill", "scenes", "--out", str(tmp_path)])
    assert done == [[], [tmp_path / ".lock"]]
    monkeypatch.setattr("fewstep.parallel.world.current_world", lambda: type("Second", (), {"main": False}))
    main(["distill", "scenes", "--out", str(tmp_path)])
    assert done[2] == []


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({}, None),
        ({"host": "elsewhere"}, None),  # a container that is no more, on this machine
        ({"boot": "before"}, None),  # this machine was started anew
        ({"host": "else\x1b[2Jwhere", "boot": "other"}, "on else?[2Jwhere since then, which did not say that it ended"),
        ({"pid": "4"}, None),
        ({"pid": -1}, None),
        ({"more": 1}, None),
    ],
)
def test_what_a_dead_process_left_is_taken_over_and_another_machine_s_is_not(tmp_path, values, said):
    write_holder(tmp_path, **values)
    if said is None:
        with hold_folder(tmp_path):
            pass
        assert os.listdir(tmp_path) == []
    else:
        assert said in (refused := refusal(tmp_path))
        assert refused.endswith(f"delete {tmp_path / '.lock'}, else choose another --out")
        assert os.listdir(tmp_path) == [".lock"]


@pytest.mark.parametrize("content", [b"", b"\xff{", b"[" * 4096, b"{}", b'{"pid": ' + b"9" * 9000])
def test_a_lock_that_cannot_be_read_is_taken_over(tmp_path, content):
    (tmp_path / ".lock").write_bytes(content)
    with hold_folder(tmp_path):
        pass
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("number", [38, 37, 95, 22])  # no such call, no locks left, not supported, invalid
def test_where_the_file_system_has_no_locks_the_text_keeps_others_off(tmp_path, monkeypatch, capsys, number):
    def refuse(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with hold_folder(tmp_path):
        assert "note: nothing can be locked in" in capsys.readouterr().err
    assert os.listdir(tmp_path) == []
    write_holder(tmp_path)  # whose process is gone
    with hold_folder(tmp_path):
        pass
    write_holder(tmp_path, pid=os.getppid())
    assert f"is being written by process {os.getppid()}" in refusal(tmp_path)
    write_holder(tmp_path, host="elsewhere", boot="other")
    assert "by process 4194309 on elsewhere since then, which did not say" in refusal(tmp_path)
    write_holder(tmp_path, pid=os.getppid(), sharing="these")
    with hold_folder(tmp_path, "these"):
        pass


def test_a_forked_child_neither_keeps_nor_ends_the_lock(tmp_path):
    """As a library may fork, or a program around this one."""
    begin, end = os.pipe()
    with hold_folder(tmp_path):
        child = os.fork()
        if child == 0:
            os.close(end)
            os.read(begin, 1)
            os._exit(0)
        os.close(begin)
        assert "is being written by process" in refusal(tmp_path)
    with hold_folder(tmp_path):  # though the child lives
        pass
    os.close(end)
    os.waitpid(child, 0)


def test_a_folder_that_cannot_be_written_and_one_that_goes_meanwhile(tmp_path):
    (tmp_path / "file").write_text("")
    assert refusal(tmp_path / "file") == f"{tmp_path / 'file'} is not a folder; choose another --out"
    assert "cannot be written (Not a directory); fix that, or choose another --out" in refusal(
        tmp_path / "file" / "run"
    )
    (tmp_path / ".lock").symlink_to(tmp_path / "not-to-be-written")
    assert "cannot be written (Too many levels of symbolic links)" in refusal(tmp_path)
    assert not (tmp_path / "not-to-be-written").exists()
    with hold_folder(tmp_path / "gone"):
        (tmp_path / "gone" / ".lock").unlink()
        (tmp_path / "gone").rmdir()


def test_what_a_lock_is_a_second_name_of_is_left(tmp_path):
    (tmp_path / "victim").write_text("mine")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ".lock").hardlink_to(tmp_path / "victim")
    with pytest.raises(UserError, match="is not a lock that fewstep wrote"), hold_folder(tmp_path / "out"):
        pass
    assert (tmp_path / "victim").read_text() == "mine"
