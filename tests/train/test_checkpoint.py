"""Checkpoints are whole or absent, a spoilt one is found out, and no moment is a bad one to be killed in."""

import copy
import hashlib
import json
import os
import re
import shutil

import pytest
import safetensors.torch
import torch
from torch import nn

from fewstep.errors import UserError
from fewstep.train.checkpoint import (
    MANIFEST_FILE,
    NUMBERS_FILE,
    TENSORS_FILE,
    Checkpoints,
    files_of,
    restore,
    why_spoilt,
)
from fewstep.train.config import LoopConfig
from fewstep.train.loop import begin
from fewstep.train.role import Role
from fewstep.train.soundness import why_unfit
from fewstep.train.state import RunState
from fewstep.train.vetoes import Skipping
from killer import Killer

FILES = (TENSORS_FILE, NUMBERS_FILE, MANIFEST_FILE)
STEPS = 1000


def make_state(step=0):
    torch.manual_seed(step)
    student = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    (role,) = begin([Role(weights=student, average=copy.deepcopy(student))], LoopConfig()).roles
    student(torch.randn(4, 2)).sum().backward()
    role.optimizer.step()
    role.losses = [torch.tensor(0.5)]
    skipping = Skipping(STEPS, torch.device("cpu"), in_a_row=1, total=2)
    skipped = [{"step": 1, "samples": ["a", "b"]}]
    return RunState([role], STEPS, skipping, step, 8 * step, skipped)


def save(folder, step, keep=2):
    state = make_state(step)
    folder.mkdir(exist_ok=True)
    Checkpoints(folder, "the configuration").save(state.tensors(), state.numbers(), keep)
    return state


def restored(folder):
    state, newest = make_state(), Checkpoints(folder).newest()
    assert newest is not None
    restore(state, newest)
    return state


def same(one, other):
    first, second = one.tensors(), other.tensors()
    return (
        first.keys() == second.keys()
        and all(torch.equal(first[name], second[name]) for name in first)
        and one.numbers() == other.numbers()
    )


def test_everything_comes_back(tmp_path):
    saved = save(tmp_path, 7)
    assert not same(make_state(), saved)
    loaded = restored(tmp_path)
    assert same(loaded, saved)
    assert (loaded.step, loaded.counter) == (7, 56)
    assert {name.split(".")[0] for name in saved.tensors()} == {"student", "averaged", "optimizer", "losses"}
    assert {"optimizer.step.0.weight", "optimizer.exp_avg.0.weight", "optimizer.exp_avg_sq.1.bias"} <= (
        saved.tensors().keys()
    )
    assert saved.numbers() == {
        "step": 7, "counter": 56, "skipped": [{"step": 1, "samples": ["a", "b"]}], "skipped_in_a_row": 1,
        "skipped_in_all": 2,
    }  # fmt: skip


def test_a_file_with_the_names_of_the_first_version_comes_back_byte_for_byte(tmp_path):
    names = [f"{part}.{name}" for part in ("student", "averaged") for name in ("weight", "bias")]
    names += [f"optimizer.{moment}.{name}" for moment in ("exp_avg", "exp_avg_sq") for name in ("weight", "bias")]
    tensors = {name: torch.full((1, 2) if "weight" in name else (1,), i + 0.5) for i, name in enumerate(names)}
    tensors |= {f"optimizer.step.{name}": torch.tensor(7.0) for name in ("weight", "bias")}
    tensors["losses"] = torch.tensor([0.5, 0.25])
    numbers = {"step": 7, "counter": 56, "skipped": [], "skipped_in_a_row": 0, "skipped_in_all": 0}
    state = begin([Role(weights=nn.Linear(2, 1), average=nn.Linear(2, 1))], LoopConfig())
    state.restore(dict(tensors), dict(numbers))
    Checkpoints(tmp_path).save(state.tensors(), state.numbers(), 2)
    assert (tmp_path / "step-0000007" / TENSORS_FILE).read_bytes() == safetensors.torch.save(tensors)
    assert (tmp_path / "step-0000007" / NUMBERS_FILE).read_text() == json.dumps(numbers)


def test_the_manifest_says_what_is_there(tmp_path):
    save(tmp_path, 7)
    content = json.loads((tmp_path / "step-0000007" / MANIFEST_FILE).read_text())["content"]
    assert content["configuration"] == "the configuration"
    assert content["counter"] == 56
    assert {name: entry["bytes"] for name, entry in content["files"].items()} == {
        name: (tmp_path / "step-0000007" / name).stat().st_size for name in (TENSORS_FILE, NUMBERS_FILE)
    }


def names(folder):
    return [path.name for path in Checkpoints(folder).list()]


def test_the_newest_are_kept(tmp_path):
    for step in (1, 2, 10):
        save(tmp_path, step)
    assert names(tmp_path) == ["step-0000002", "step-0000010"]


def test_spoilt_ones_do_not_count_among_those_that_are_kept(tmp_path):
    for step in (1, 2):
        save(tmp_path, step)
    (tmp_path / "step-0000002" / TENSORS_FILE).write_bytes(b"")
    save(tmp_path, 3)
    assert names(tmp_path) == ["step-0000001", "step-0000002", "step-0000003"]
    save(tmp_path, 4)
    assert names(tmp_path) == ["step-0000003", "step-0000004"]  # what is spoilt goes with what is older


def test_other_folders_are_not_checkpoints(tmp_path):
    save(tmp_path, 3)
    (tmp_path / "step-0000003-backup").mkdir()
    save(tmp_path, 4)
    save(tmp_path, 20_000_000)
    assert {path.name for path in tmp_path.iterdir()} == {"step-0000003-backup", "step-0000004", "step-20000000"}


def test_an_unfinished_draft_is_not_a_checkpoint(tmp_path):
    save(tmp_path, 3)
    draft = tmp_path / "step-0000009.tmp-123"
    shutil.copytree(tmp_path / "step-0000003", draft)
    assert restored(tmp_path).step == 3
    save(tmp_path, 4)
    assert not draft.exists()


def test_a_folder_that_somebody_removed_is_not_made_anew(tmp_path):
    folder = tmp_path / "run" / "checkpoints"
    folder.parent.mkdir()
    save(folder, 1)
    shutil.rmtree(folder.parent)
    state = make_state(2)
    with pytest.raises(UserError, match=r"cannot be written to .* \(No such file or directory\)"):
        Checkpoints(folder).save(state.tensors(), state.numbers(), 2)
    assert not folder.parent.exists()


def test_nothing_to_restore(tmp_path):
    assert Checkpoints(tmp_path).newest() is None


def spoilt_copies(content):
    """Every file cut at several places, and with one bit of it turned at many."""
    for length in sorted({0, 1, len(content) // 2, len(content) - 1}):
        yield content[:length]
    yield content + b"\n"
    for place in range(0, len(content), max(1, len(content) // 200)):
        for bit in (0, 5):
            yield content[:place] + bytes([content[place] ^ 1 << bit]) + content[place + 1 :]


@pytest.mark.parametrize("file", FILES)
def test_any_damage_to_any_file_is_found_out(tmp_path, file):
    save(tmp_path, 5)
    checkpoint = tmp_path / "step-0000005"
    content = (checkpoint / file).read_bytes()
    assert why_spoilt(checkpoint) is None
    for spoilt in spoilt_copies(content):
        (checkpoint / file).write_bytes(spoilt)
        assert why_spoilt(checkpoint) is not None
    (checkpoint / file).unlink()
    assert why_spoilt(checkpoint) is not None


def test_a_file_of_another_size_is_not_hashed(tmp_path):
    save(tmp_path, 5)
    os.truncate(tmp_path / "step-0000005/state.safetensors", 1 << 40)  # a terabyte of nothing
    assert "state.safetensors is damaged" in str(why_spoilt(tmp_path / "step-0000005"))


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("spoil", ["cut", "flip", "delete"])
def test_the_one_before_is_used_and_that_is_said(tmp_path, file, spoil, capsys):
    before = save(tmp_path, 5)
    save(tmp_path, 6)
    path = tmp_path / "step-0000006" / file
    content = path.read_bytes()
    path.unlink()
    if spoil != "delete":
        path.write_bytes(content[:-9] if spoil == "cut" else content[:-9] + bytes([content[-9] ^ 4]) + content[-8:])
    assert same(restored(tmp_path), before)
    assert "warning: not whole: step-0000006 (" in capsys.readouterr().err


def test_if_none_is_whole_it_does_not_begin_anew_in_silence(tmp_path):
    for step in (1, 2):
        save(tmp_path, step)
    for step in (1, 2):
        (tmp_path / f"step-000000{step}" / NUMBERS_FILE).unlink()
    with pytest.raises(UserError, match=r"in .* is whole: step-0000002 \(state.json is missing\), step-0000001"):
        Checkpoints(tmp_path).newest()


def test_a_checkpoint_of_another_model_is_named(tmp_path):
    save(tmp_path, 5)
    other = begin([Role(weights=nn.Linear(2, 3))], LoopConfig())
    with pytest.raises(UserError, match="step-0000005 is whole and not of this run"):
        restore(other, tmp_path / "step-0000005")


@pytest.mark.parametrize("failing", ["mkdir", "save_file", "fsync", "rename"])
def test_what_the_disk_refuses_is_one_clear_error(tmp_path, monkeypatch, failing):
    save(tmp_path, 1)
    before = save(tmp_path, 2)

    def refuse(*_, **__):
        raise OSError(28, "No space left on device")

    owner = safetensors.torch if failing == "save_file" else os
    monkeypatch.setattr(owner, failing, refuse)
    with pytest.raises(UserError, match=r"No space left on device\); step-0000002 stands whole: make room"):
        save(tmp_path, 3)
    monkeypatch.undo()
    assert names(tmp_path) == ["step-0000001", "step-0000002"]
    assert same(restored(tmp_path), before)
    assert not list(tmp_path.glob("*.tmp-*"))


def killed_in_a_save(folder, at):
    """Whether saving checkpoint 4 came to its end with a kill at this call."""
    child = os.fork()
    if child == 0:
        try:
            state = make_state(4)
            tensors, numbers = state.tensors(), state.numbers()
            Killer(at).arm()
            Checkpoints(folder).save(tensors, numbers, keep=2)
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_killed_at_any_call_of_a_save_the_old_or_the_new_one_loads(tmp_path):
    old, new = make_state(3), make_state(4)
    at, found = 0, []
    while True:
        folder = tmp_path / str(at)
        for step in (2, 3):
            save(folder, step)
        finished = killed_in_a_save(folder, at)
        state = restored(folder)
        found.append(state.step)
        assert same(state, old if state.step == 3 else new)
        checkpoints = Checkpoints(folder)
        assert sum(map(checkpoints.is_whole, checkpoints.list())) >= 2
        save(folder, 5)  # and the run goes on as if nothing had been
        assert same(restored(folder), make_state(5))
        assert not list(folder.glob("*.tmp-*"))
        shutil.rmtree(folder)
        if finished:
            break
        at += 1
    assert at > 40  # calls there were
    assert found == sorted(found)
    assert set(found) == {3, 4}


def forge(folder, change):
    """Changes the newest checkpoint and seals it again, so that its hashes are right."""
    checkpoint = Checkpoints(folder).list()[-1]
    tensors = safetensors.torch.load_file(checkpoint / TENSORS_FILE)
    numbers = json.loads((checkpoint / NUMBERS_FILE).read_text())
    change(tensors, numbers)
    safetensors.torch.save_file(tensors, checkpoint / TENSORS_FILE)
    (checkpoint / NUMBERS_FILE).write_text(numbers if isinstance(numbers, str) else json.dumps(numbers))
    files = {
        name: {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        for name in (TENSORS_FILE, NUMBERS_FILE)
        for content in [(checkpoint / name).read_bytes()]
    }
    content = {"configuration": "the configuration", "counter": 48, "files": files}
    sha256 = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    (checkpoint / MANIFEST_FILE).write_text(json.dumps({"content": content, "sha256": sha256}, indent=2))
    assert why_spoilt(checkpoint) is None


WEIGHT, MOMENT = "student.0.weight", "optimizer.exp_avg.0.weight"
FORGED = {
    "another shape": (lambda t, _: t.update({WEIGHT: torch.ones(3, 3)}), r"student.0.weight is float32 \(3, 3\)"),
    "another type": (lambda t, _: t.update({WEIGHT: torch.ones(3, 2, dtype=torch.int32)}), "is of int32"),
    "NaN": (lambda t, _: t.update({WEIGHT: torch.full((3, 2), torch.nan)}), "values that are not finite"),
    "a weight is missing": (lambda t, _: t.pop("averaged.0.bias"), "it lacks averaged.0.bias"),
    "a weight too many": (lambda t, _: t.update({"fake.0": torch.ones(1)}), "no role here has fake.0"),
    "no losses": (lambda t, _: t.pop("losses"), "it lacks losses"),
    "losses without end": (lambda t, _: t.update(losses=torch.ones(7)), r"losses is float32 \(7,\)"),
    "a moment of another shape": (lambda t, _: t.update({MOMENT: torch.ones(5)}), "of no use for float32"),
    "a moment is missing": (lambda t, _: t.pop(MOMENT), "which are no optimiser's moments"),
    "a moment of nothing": (lambda t, _: t.update({"optimizer.step.9": torch.ones(1)}), "optimiser's moments"),
    "steps of eight bits": (
        lambda t, _: t.update({"optimizer.step.0.weight": torch.ones(1, dtype=torch.uint8)}), "which counts nothing"
    ),
    "whole steps": (lambda t, _: t.update({"optimizer.step.0.weight": torch.ones(1).long()}), "which counts nothing"),
    "half steps": (lambda t, _: t.update({"optimizer.step.0.weight": torch.ones(1).half()}), "which counts nothing"),
    "many steps": (lambda t, _: t.update({"optimizer.step.0.weight": torch.ones(4)}), "of no use"),
    "a step that is not a number": (lambda _, n: n.update(step="6"), "state.json has step '6'; expected a count"),
    "another step": (lambda _, n: n.update(step=7), "is of update 7, and its folder is step-0000006"),
    "infinity": (lambda _, n: n.update(counter=float("inf")), "a number in it is Infinity"),
    "a huge number": (lambda _, n: n.update(counter=10**30), "has counter 1000000000"),
    "less than nothing": (lambda _, n: n.update(skipped_in_all=-1), "expected a count"),
    "a number is missing": (lambda _, n: n.pop("skipped_in_a_row"), "has skipped_in_a_row None"),
    "skipped is none": (lambda _, n: n.update(skipped=[{"step": 1}]), "a list of updates with their samples"),
    "a loss scale of 0": (lambda _, n: n.update(loss_scale=0), "has loss_scale 0"),
}  # fmt: skip


@pytest.mark.parametrize("case", FORGED)
def test_a_sealed_one_that_no_run_writes_is_named_and_the_one_before_used(tmp_path, case, capsys):
    change, words = FORGED[case]
    before, state = save(tmp_path, 5), make_state()
    save(tmp_path, 6)
    forge(tmp_path, change)
    newest = Checkpoints(tmp_path).newest(lambda found: why_unfit(state, *files_of(found)))
    assert newest is not None
    restore(state, newest)
    assert same(state, before)
    said = capsys.readouterr().err
    assert "whole and not of this run: step-0000006 (" in said
    assert re.search(words, said)
    assert said.count("\n") == 1


def test_if_none_is_of_the_run_that_is_said_of_each(tmp_path):
    save(tmp_path, 5)
    other = begin([Role(weights=nn.Linear(2, 3))], LoopConfig())
    with pytest.raises(UserError, match=r"no checkpoint .* is of this run: step-0000005 \(it lacks student.weight\)"):
        Checkpoints(tmp_path).newest(lambda found: why_unfit(other, *files_of(found)))
