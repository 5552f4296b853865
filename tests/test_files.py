"""Files and folders are whole or not there, and safetensors files that cannot be read are named in one line."""

import os
import signal
import socket
import stat
import subprocess
import sys

import pytest
import safetensors.torch
import torch

from fewstep.errors import UserError
from fewstep.files import (
    open_safetensors,
    read_safetensors,
    read_safetensors_header,
    remove_abandoned,
    replace_folder,
    write_whole,
)

MODES = {0o022: 0o644, 0o027: 0o640, 0o002: 0o664}
"""What others may do with a new file, by umask."""


def content(folder):
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(params=MODES)
def umask(request):
    held = os.umask(request.param)
    yield request.param
    os.umask(held)


def finished_process():
    """The id of a process that is no more."""
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    return child.pid


def test_a_file_is_replaced_and_its_folder_made(tmp_path):
    file = tmp_path / "deep" / "er" / "a.txt"
    for text in ("old", "new"):
        with write_whole(file, durable=text == "new") as draft:
            draft.write_text(text)
            assert draft.parent == file.parent
        assert content(tmp_path) == {"deep/er/a.txt": text}


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_failed_write_leaves_the_old_file_and_no_draft(tmp_path, error):
    (tmp_path / "a.txt").write_text("old")
    with pytest.raises(type(error)), write_whole(tmp_path / "a.txt") as draft:  # noqa: PT012
        draft.write_text("ne")
        raise error
    assert content(tmp_path) == {"a.txt": "old"}


def test_a_failed_write_leaves_the_old_folder_and_no_draft(tmp_path):
    with replace_folder(tmp_path / "model") as draft:
        (draft / "a.txt").write_text("old")
    with pytest.raises(RuntimeError), replace_folder(tmp_path / "model") as draft:  # noqa: PT012
        (draft / "a.txt").write_text("new")
        raise RuntimeError
    assert content(tmp_path) == {"model/a.txt": "old"}
    assert os.listdir(tmp_path) == ["model"]


def test_a_folder_is_replaced_with_all_that_it_held(tmp_path):
    for name in ("old", "new"):
        with replace_folder(tmp_path / "deep" / "model") as draft:
            (draft / f"{name}.txt").write_text(name)
    assert content(tmp_path) == {"deep/model/new.txt": "new"}
    assert os.listdir(tmp_path / "deep") == ["model"]


def test_a_folder_that_came_meanwhile_stays_if_so_wanted(tmp_path):
    with replace_folder(tmp_path / "graph", keep_existing=True) as draft:
        (draft / "a.txt").write_text("slow")
        (tmp_path / "graph").mkdir()
        (tmp_path / "graph" / "a.txt").write_text("fast")
    assert content(tmp_path) == {"graph/a.txt": "fast"}
    assert os.listdir(tmp_path) == ["graph"]


WRITER = """
import sys
from pathlib import Path
from fewstep.files import write_whole

with write_whole(Path(sys.argv[1])) as draft:
    draft.write_text(sys.argv[2] * 3)
    print(draft.name, flush=True)
    sys.stdin.readline()
"""


def writing(file, text):
    """A process half way through writing, and the name of its draft."""
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, file, text], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    return writer, writer.stdout.readline().strip()


def test_two_processes_do_not_meet(tmp_path):
    file = tmp_path / "a.txt"
    (one, first), (two, second) = writing(file, "1"), writing(file, "2")
    assert content(tmp_path) == {first: "111", second: "222"}
    for writer, text in ((two, "222"), (one, "111")):
        writer.communicate("\n", timeout=60)
        assert writer.returncode == 0
        assert file.read_text() == text
    assert os.listdir(tmp_path) == ["a.txt"]


def test_the_draft_of_a_killed_process_goes_and_that_of_a_living_one_stays(tmp_path):
    file = tmp_path / "a.txt"
    (killed, _), (living, draft) = writing(file, "1"), writing(file, "2")
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    (tmp_path / "b.tmp-another.machine-1-2").write_text("not ours to judge")
    remove_abandoned(tmp_path)
    assert content(tmp_path) == {draft: "222", "b.tmp-another.machine-1-2": "not ours to judge"}
    living.communicate("\n", timeout=60)
    assert file.read_text() == "222"


def test_a_new_folder_removes_what_a_killed_process_left_of_it_and_nothing_else(tmp_path):
    end = f".tmp-{socket.gethostname()}-{finished_process()}-7"
    for name in ("model", "model.tmp", "other"):
        (tmp_path / f"{name}{end}").mkdir()
    with replace_folder(tmp_path / "model"):
        pass
    assert sorted(os.listdir(tmp_path)) == ["model", f"model.tmp{end}", f"other{end}"]


def test_others_may_read_what_the_umask_lets_them(tmp_path, umask):
    with write_whole(tmp_path / "a.safetensors") as draft:
        safetensors.torch.save_file({"a": torch.zeros(1)}, draft)
    with replace_folder(tmp_path / "model") as draft:
        (draft / "unet").mkdir()
        safetensors.torch.save_file({"a": torch.zeros(1)}, draft / "unet" / "a.safetensors")
    for file in (tmp_path / "a.safetensors", tmp_path / "model" / "unet" / "a.safetensors"):
        assert stat.S_IMODE(file.stat().st_mode) == MODES[umask]


READERS = [read_safetensors, read_safetensors_header, open_safetensors]


def test_what_was_saved_is_read(tmp_path):
    file = tmp_path / "a.safetensors"
    tensors = {"b": torch.randn(2, 3), "a": torch.arange(4).bfloat16(), "c": torch.tensor(7)}
    safetensors.torch.save_file(tensors, file, {"made": "here"})
    found, header = read_safetensors(file), read_safetensors_header(file)
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)
    assert (header.shapes, header.metadata) == ({"b": (2, 3), "a": (4,), "c": ()}, {"made": "here"})
    assert header.parameters == 6 + 4 + 1
    assert torch.equal(open_safetensors(file).get_slice("b")[1], tensors["b"][1])


@pytest.mark.parametrize("read", READERS)
def test_a_damaged_file_is_named_in_one_line(tmp_path, read):
    file = tmp_path / "a.safetensors"
    safetensors.torch.save_file({"a": torch.randn(100)}, file)
    whole = file.read_bytes()
    spoilt = (b"", whole[:5], whole[:40], whole[:-1], whole[:9] + b"x" + whole[10:], b"<html>404</html>" * 50)
    for content in (*spoilt, b"\xff" * 200):
        file.write_bytes(content)
        with pytest.raises(UserError) as caught:
            read(file, advice="bake it again")
        said = str(caught.value)
        assert said.startswith(f"{file} is damaged or not a safetensors file (")
        assert said.endswith("; bake it again")
        assert "\n" not in said
    file.write_bytes(whole)
    read(file)


@pytest.mark.parametrize("read", READERS)
def test_what_is_no_safetensors_file_is_named(tmp_path, read):
    torch.save({"a": torch.zeros(3)}, tmp_path / "model.ckpt")
    (tmp_path / "folder.safetensors").mkdir()
    for name, said in {
        "absent.safetensors": "is not a file; fetch or write it again",
        "folder.safetensors": "is not a file; fetch or write it again",
        "model.ckpt": "is not a .safetensors file; no other kind is read, convert it first",
    }.items():
        with pytest.raises(UserError) as caught:
            read(tmp_path / name)
        assert str(caught.value) == f"{tmp_path / name} {said}"


def test_reading_the_help_needs_no_torch():
    code = "import sys, fewstep.files; sys.exit('torch' in sys.modules or 'safetensors' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
