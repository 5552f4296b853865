"""Files and folders are whole or not there, and safetensors files that cannot be read are named in one line."""

import errno
import io
import os
import signal
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch

from fewstep.errors import UserError
from fewstep.files import (
    append_lines,
    create_new,
    name_draft,
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


REFUSALS = [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EFBIG, errno.EIO]


@pytest.mark.parametrize("number", REFUSALS)
@pytest.mark.parametrize("says", ["Python", "Rust"])
def test_what_a_disk_refuses_names_the_file_that_was_wanted(tmp_path, number, says):
    """Libraries in Rust have exceptions of their own; the file that they had in hand is a draft's."""
    (tmp_path / "a.txt").write_text("old")
    for write in (write_whole, replace_folder):
        with pytest.raises(OSError, match=os.strerror(number)) as caught, write(tmp_path / "a.txt") as draft:  # noqa: PT012
            if says == "Rust":
                raise safetensors.SafetensorError(f"I/O error: {os.strerror(number)} (os error {number})")
            raise OSError(number, os.strerror(number), str(draft / "inside"))
        assert (caught.value.errno, caught.value.filename) == (number, str(tmp_path / "a.txt"))
        assert content(tmp_path) == {"a.txt": "old"}
        assert os.listdir(tmp_path) == ["a.txt"]


def test_another_file_that_cannot_be_read_keeps_its_name(tmp_path):
    with pytest.raises(FileNotFoundError) as caught, write_whole(tmp_path / "a.txt"):
        (tmp_path / "source").read_text()
    assert caught.value.filename == str(tmp_path / "source")


def test_no_link_in_the_place_of_a_draft_is_followed(tmp_path, monkeypatch):
    """Nobody foresees the name of a draft; and should somebody, what it leads to stays as it is."""
    names = {name_draft(tmp_path / "model").name for _ in range(9)}
    assert len(names) == 9
    assert all(name.startswith(f"model.tmp-{socket.gethostname()}-{os.getpid()}-") for name in names)
    foreseen, target = tmp_path / "model.tmp", tmp_path / "target"
    monkeypatch.setattr("fewstep.files.name_draft", lambda _: foreseen)
    for dangling in (False, True):
        for write in (write_whole, replace_folder):
            if not dangling:
                target.write_text("of mine")
            foreseen.symlink_to(target)
            with pytest.raises(FileExistsError), write(tmp_path / "model") as draft:
                draft.write_text("forged")
            assert target.exists() != dangling
            assert dangling or target.read_text() == "of mine"
            foreseen.unlink()
            target.unlink(missing_ok=True)


def test_an_export_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    done = []
    monkeypatch.setattr("fewstep.files.sync", lambda path: done.append(("sync", path.name.split(".tmp")[0])))
    monkeypatch.setattr("fewstep.files._swap", lambda _, folder: done.append(("rename", folder.name)))
    with replace_folder(tmp_path / "model") as draft:
        (draft / "unet").mkdir()
        (draft / "unet" / "weights").write_text("")
        (draft / "index").write_text("")
    *synced, renamed, last = done
    assert sorted(synced) == [("sync", name) for name in ("index", "model", "unet", "weights")]
    assert (renamed, last) == (("rename", "model"), ("sync", tmp_path.name))


def test_new_files_take_the_first_free_name_and_go_where_they_fail(tmp_path):
    paths = [tmp_path / name for name in "abcd"]
    paths[0].write_text("old")
    paths[1].symlink_to(tmp_path / "elsewhere")
    with create_new(paths) as file:
        file.write(b"new")
    assert content(tmp_path) == {"a": "old", "c": "new"}
    with pytest.raises(OSError, match="No space") as caught, create_new(paths) as file:  # noqa: PT012
        file.write(b"ne")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert caught.value.filename == str(paths[3])
    assert content(tmp_path) == {"a": "old", "c": "new"}
    with pytest.raises(FileExistsError), create_new(paths[:3]):
        pass


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="is Linux's")
def test_lines_are_added_all_or_none(tmp_path, monkeypatch):
    append_lines(tmp_path / "log", ["one", "two"])
    with pytest.raises(OSError, match="No space") as caught:
        append_lines(Path("/dev/full"), ["three"])
    assert caught.value.filename == "/dev/full"

    class Half(io.StringIO):
        def writelines(self, lines):
            with open(tmp_path / "log", "a") as file:
                file.write("".join(lines)[:3])
            raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(Path, "open", lambda *_, **__: Half())
    with pytest.raises(OSError, match="No space"):
        append_lines(tmp_path / "log", ["three"])
    monkeypatch.undo()
    assert (tmp_path / "log").read_text() == "one\ntwo\n"


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
