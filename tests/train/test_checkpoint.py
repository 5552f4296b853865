"""Checkpoints are whole or absent, and a spoilt one is reported."""

import copy

import pytest
import torch
from torch import nn

from fewstep.errors import UserError
from fewstep.train.checkpoint import RunState, list_checkpoints, restore_newest, save_checkpoint
from fewstep.train.config import LoopConfig
from fewstep.train.optimisation import make_optimizer


def make_state(step=0):
    student = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    optimizer = make_optimizer(student, LoopConfig())
    student(torch.randn(4, 2)).sum().backward()
    optimizer.step()
    return RunState(student, copy.deepcopy(student), optimizer, step)


def test_everything_comes_back(tmp_path):
    saved, loaded = make_state(7), make_state()
    save_checkpoint(saved, tmp_path, keep=2)
    assert restore_newest(loaded, tmp_path)
    assert loaded.step == 7
    expected, found = saved.tensors(), loaded.tensors()
    assert expected.keys() == found.keys()
    assert any(name.startswith("optimizer.exp_avg_sq.") for name in found)
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_the_newest_are_kept(tmp_path):
    for step in (1, 2, 10):
        save_checkpoint(make_state(step), tmp_path, keep=2)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-0000002", "step-0000010"]


def test_other_folders_are_not_checkpoints(tmp_path):
    save_checkpoint(make_state(3), tmp_path, keep=1)
    (tmp_path / "step-0000003-backup").mkdir()
    save_checkpoint(make_state(20_000_000), tmp_path, keep=1)
    assert {path.name for path in tmp_path.iterdir()} == {"step-0000003-backup", "step-20000000"}


def test_an_unfinished_draft_is_not_a_checkpoint(tmp_path):
    save_checkpoint(make_state(3), tmp_path, keep=2)
    draft = tmp_path / "step-0000009.tmp-123"
    draft.mkdir()
    state = make_state()
    restore_newest(state, tmp_path)
    assert state.step == 3
    save_checkpoint(make_state(4), tmp_path, keep=2)
    assert not draft.exists()


def test_nothing_to_restore(tmp_path):
    assert not restore_newest(make_state(), tmp_path)


@pytest.mark.parametrize("spoil", ["truncate", "delete", "not json", "not an object"])
def test_a_spoilt_checkpoint_is_named(tmp_path, spoil):
    save_checkpoint(make_state(5), tmp_path, keep=2)
    folder = tmp_path / "step-0000005"
    if spoil == "truncate":
        (folder / "state.safetensors").write_bytes((folder / "state.safetensors").read_bytes()[:-9])
    elif spoil == "delete":
        (folder / "state.safetensors").unlink()
    else:
        (folder / "state.json").write_text("{" if spoil == "not json" else "[]")
    with pytest.raises(UserError, match="step-0000005 cannot be read"):
        restore_newest(make_state(), tmp_path)
