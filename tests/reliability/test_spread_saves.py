"""A state that is spread is saved by all its processes: each writes its rows and holds no more, and a checkpoint counts
when every part of it is there."""

import dataclasses
import hashlib
import json
import os
import shutil
import threading
import time
from pathlib import Path

import pytest
import safetensors.torch
import torch
from diffusers import UNet2DConditionModel
from safetensors import safe_open

from fewstep.data.worlds.scenes import Scenes
from fewstep.errors import UserError
from fewstep.models import scenes_model
from fewstep.models.spreading import copy_spread, load_spread
from fewstep.parallel.world import current_world, gather_tensor, shard
from fewstep.train.checkpoint import Checkpoints, files_of, restore, why_spoilt
from fewstep.train.config import LoopConfig
from fewstep.train.loop import begin, fit
from fewstep.train.parts import SpreadCheckpoints
from fewstep.train.role import Role
from fewstep.train.saving import Saving
from fewstep.train.soundness import why_unfit
from killer import Killer
from miniatures import save_miniature
from peak import Peak
from ranks import exit_codes, run_ranks
from regression import Regression
from small_disk import leave_room, small_disk

GONE = r"closed by peer|reset by peer|Broken pipe"
"""Parts of what gloo says in a process when the first has ended."""
BASE = LoopConfig(
    steps=8, batch_size=12, lr=0.01, ema_decay=0.9, log_every=1, checkpoint_every=4, record_samples=True
)  # fmt: skip


def make_task():
    """Of 16, 16 and one rows, spread where there are several processes: by three of them not evenly."""
    task = Regression()
    if current_world().size > 1:
        for network in (task.student, task.averaged):
            shard(network, [])
    return task


def train(folder, steps=8, at_step=None):
    fit(make_task(), dataclasses.replace(BASE, steps=steps), folder, "test", at_step)


def checkpoint(folder, step):
    return folder / "checkpoints" / f"step-{step:07d}"


def read_whole(found):
    """The state in one process, which is not spread."""
    state = begin(make_task().roles, BASE)
    restore(state, found)
    return state.tensors()


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def losses(folder):
    return [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").open()]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    run_ranks(2, train, folder)
    return folder


def train_and_gather(folder):
    """And writes the weights, average and moments as all processes have them together."""
    task = make_task()
    fit(task, BASE, folder, "test")
    whole = {f"student.{name}": gather_tensor(value.detach()) for name, value in task.student.named_parameters()}
    whole |= {f"averaged.{name}": gather_tensor(value.detach()) for name, value in task.averaged.named_parameters()}
    if current_world().main:
        safetensors.torch.save_file(whole, folder / "whole.safetensors")


def test_parts_are_the_whole_and_any_number_of_processes_reads_them(tmp_path):
    run_ranks(3, train_and_gather, tmp_path)
    last = checkpoint(tmp_path, 8)
    parts = ["state-00001.safetensors", "state-00002.safetensors", "state.safetensors"]
    assert sorted(path.name for path in last.iterdir()) == ["manifest.json", *parts[:2], "state.json", parts[2]]
    rows = [safe_open(last / name, "pt").get_slice("averaged.0.weight").get_shape()[0] for name in sorted(parts)]
    assert rows == [6, 4, 6]
    held, whole = read_whole(last), safetensors.torch.load_file(tmp_path / "whole.safetensors")
    assert len(whole) == 8
    assert same({name: held[name] for name in whole}, whole)
    assert {"optimizer.exp_avg.2.bias", "optimizer.step.2.bias", "losses"} < held.keys()
    run_ranks(2, save_again, tmp_path)
    assert len([*checkpoint(tmp_path, 8).glob("*.safetensors")]) == 2
    assert same(read_whole(checkpoint(tmp_path, 8)), held)


def save_again(folder):
    """Reads a checkpoint, and writes it in its place in as many parts as there are processes."""
    state = begin(make_task().roles, BASE)
    restore(state, checkpoint(folder, 8))
    checkpoints = SpreadCheckpoints(folder / "checkpoints")
    with Saving(checkpoints, 2) as saving:
        saving.save(state)
    current_world().wait()


def test_a_run_goes_on_in_two_processes_in_one_and_in_two_again(undisturbed, tmp_path):
    """From a checkpoint in parts, from one in a single file, as all were before, and with the same losses."""
    for size, steps in ((2, 2), (1, 4), (2, 6), (3, 7), (1, 8)):
        run_ranks(size, train, tmp_path, steps)
        assert len([*checkpoint(tmp_path, steps).glob("*.safetensors")]) == size
    assert losses(tmp_path) == pytest.approx(losses(undisturbed), rel=1e-5)
    assert (tmp_path / "samples.jsonl").read_text() == (undisturbed / "samples.jsonl").read_text()


def train_killed(folder, rank, at):
    """Ends one process at a call of its thread's in the second save."""
    begun = [False]

    def counts():
        return begun[0] and threading.current_thread().name == Saving.THREAD

    def arm(step):
        begun[0] = begun[0] or step == 7

    if current_world().rank == rank:
        Killer(at, counts).arm()
    train(folder, at_step=arm)


@pytest.mark.parametrize(("rank", "every"), [(1, 1), (0, 3)], ids=["the second process", "the first"])
def test_one_killed_in_the_midst_of_a_save_leaves_the_checkpoint_before(undisturbed, tmp_path, rank, every):
    with_4 = tmp_path / "before"
    run_ranks(2, train, with_4, 4)
    before, after = (read_whole(checkpoint(undisturbed, step)) for step in (4, 8))
    at, found = 0, []
    while True:
        folder = shutil.copytree(with_4, tmp_path / str(at))
        codes = exit_codes(2, train_killed, folder, rank, at)
        newest = Checkpoints(folder / "checkpoints").newest()
        found.append(int(newest.name[5:]))
        assert same(read_whole(newest), {4: before, 8: after}[found[-1]])
        if codes == [0, 0]:
            break
        assert codes[rank] == 9
        last, at = folder, at + every
    assert len(found) > 5
    assert found == sorted(found)
    assert set(found) == {4, 8}
    if rank:
        assert found[-2] == 4  # what its last call was before, the first process had not heard of
    run_ranks(2, train, last)
    assert same(read_whole(checkpoint(last, 8)), after)
    assert losses(last) == losses(undisturbed)


def cut(path):
    os.truncate(path, path.stat().st_size - 1)


def turn_a_bit(path):
    content = path.read_bytes()
    path.write_bytes(content[:-9] + bytes([content[-9] ^ 4]) + content[-8:])


def exchange(path):
    """Of the same size, and another part's."""
    shutil.copy(path.with_name("state.safetensors"), path)


def add_one(path):
    shutil.copy(path, path.with_name("state-00002.safetensors"))


@pytest.mark.parametrize("spoil", [os.unlink, cut, turn_a_bit, exchange, add_one], ids=lambda each: each.__name__)
def test_a_part_that_is_missing_or_spoilt_leads_back_to_the_checkpoint_before(undisturbed, tmp_path, spoil, capsys):
    folder = shutil.copytree(undisturbed, tmp_path / "run")
    spoil(checkpoint(folder, 8) / "state-00001.safetensors")
    newest = Checkpoints(folder / "checkpoints").newest()
    assert newest == checkpoint(folder, 4)
    assert "warning: not whole: step-0000008 (" in capsys.readouterr().err
    if spoil is cut:
        run_ranks(2, train, folder)
        assert same(read_whole(checkpoint(folder, 8)), read_whole(checkpoint(undisturbed, 8)))


def test_a_part_that_no_manifest_asks_for_is_missed_all_the_same(undisturbed, tmp_path, capsys):
    """A checkpoint whose hashes are right, of half the rows: it is none of this run, and the one before is."""
    folder = shutil.copytree(undisturbed, tmp_path / "run")
    manifest = checkpoint(folder, 8) / "manifest.json"
    content = json.loads(manifest.read_text())["content"]
    (checkpoint(folder, 8) / "state-00001.safetensors").unlink()
    del content["files"]["state-00001.safetensors"]
    sha256 = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    manifest.write_text(json.dumps({"content": content, "sha256": sha256}, indent=2))
    assert why_spoilt(checkpoint(folder, 8)) is None
    state = begin(make_task().roles, BASE)
    newest = Checkpoints(folder / "checkpoints").newest(lambda found: why_unfit(state, *files_of(found)))
    assert newest == checkpoint(folder, 4)
    said = "of this run: step-0000008 (averaged.0.bias is float32 (8,) and the run's is float32 (16,)); going on from"
    assert said in capsys.readouterr().err
    run_ranks(2, train, folder)
    assert same(read_whole(checkpoint(folder, 8)), read_whole(checkpoint(undisturbed, 8)))


def train_on_a_full_disk(folder, rank):
    """The disk of one process takes nothing from the second save on; the first process says so."""
    main, save_file = current_world().main, safetensors.torch.save_file

    def save(tensors, path):
        if path.parent.name.startswith("step-0000008"):
            path.write_bytes(b"a beginning")
            raise OSError(28, "No space left on device")
        save_file(tensors, path)

    if current_world().rank == rank:
        safetensors.torch.save_file = save
    said = r"No space left on device\); step-0000004 stands whole.*the same command goes on"
    with pytest.raises(UserError, match=said) if main else pytest.raises(RuntimeError, match=GONE):
        train(folder, 12)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_disk_that_is_full_for_one_process_ends_the_run_in_a_line_of_the_first(undisturbed, tmp_path, rank):
    run_ranks(2, train_on_a_full_disk, tmp_path, rank)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-0000004"]
    run_ranks(2, train, tmp_path)
    assert same(read_whole(checkpoint(tmp_path, 8)), read_whole(checkpoint(undisturbed, 8)))


def train_with_a_writer_that_fails(folder):
    """By an error that is none of the disk's."""
    save_file = safetensors.torch.save_file

    def save(tensors, path):
        if path.parent.name.startswith("step-0000008"):
            raise RuntimeError("lost the share")
        save_file(tensors, path)

    main = current_world().main
    if not main:
        safetensors.torch.save_file = save
    with (
        pytest.raises(UserError, match=r"^process 1 could not write its part of \S+: RuntimeError: lost the share")
        if main
        else pytest.raises(RuntimeError, match=GONE)
    ):
        train(folder, 12)


def test_an_error_of_another_kind_is_told_by_the_first_process_too(tmp_path):
    run_ranks(2, train_with_a_writer_that_fails, tmp_path)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-0000004"]


def train_apart(folder):
    rank = current_world().rank
    with pytest.raises(UserError, match=r"^process 1 on \S+ does not see what the first one writes to "):
        train(folder / f"machine-{rank}")
    assert list((folder / f"machine-{rank}/checkpoints").iterdir()) == []


def test_a_run_folder_that_not_all_machines_see_is_refused_before_the_first_update(tmp_path):
    run_ranks(2, train_apart, tmp_path)


def train_while_the_disk_fills_up(folder, pages):
    def fill(step):
        if step == 7 and current_world().main:
            while not checkpoint(folder, 4).exists():
                time.sleep(0.005)
            leave_room(folder.parent, pages)

    said = r"No space left on device\); step-0000004 stands whole"
    with pytest.raises(UserError, match=said) if current_world().main else pytest.raises(RuntimeError, match=GONE):
        train(folder, 12, fill)


def test_on_a_file_system_that_is_full_the_run_ends_and_goes_on_when_there_is_room(undisturbed, tmp_path):
    """A checkpoint takes four pages: two parts, its numbers, its manifest."""
    with small_disk(tmp_path / "small", 1024) as disk:
        for pages in range(4):
            run = disk / str(pages)
            run_ranks(2, train_while_the_disk_fills_up, run, pages)
            assert [path.name for path in (run / "checkpoints").iterdir()] == ["step-0000004"]
            (disk / "filler").unlink()
        run_ranks(2, train, run)
        assert same(read_whole(checkpoint(run, 8)), read_whole(checkpoint(undisturbed, 8)))


def measure(folder, out):
    """Writes the most that this process holds beyond what it had while a state is saved, and while it is restored."""
    network = load_spread(folder, torch.device("cpu")).network.to_student(8)
    role = Role(weights=network, average=copy_spread(network).requires_grad_(False))
    state = begin([role], BASE)
    for parameter in network.parameters():
        parameter.grad = torch.ones_like(parameter)
    state.roles[0].optimizer.step()
    state.roles[0].optimizer.zero_grad()
    tensors = [value for name, value in state.tensors().items() if value.ndim and name != "losses"]
    checkpoints = SpreadCheckpoints(out.parent)
    said = {"state": sum(4 * value.numel() for value in tensors), "largest": max(4 * v.numel() for v in tensors)}
    current_world().wait()
    with Peak() as peak, Saving(checkpoints, 2) as saving:
        saving.save(state)
        saving.finish()
    said["saving"] = peak.most
    del saving
    current_world().wait()
    with Peak() as peak:
        restore(state, out.parent / "step-0000000")
    said["restoring"] = peak.most
    told = current_world().gather(said)
    if current_world().main:
        out.write_text(json.dumps(told))


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the memory of a process is read from /proc")
def test_each_process_copies_and_reads_its_rows_and_no_more(tmp_path):
    tokenizer = scenes_model.build_tokenizer(Scenes().prompt(i)[0] for i in range(300))
    folder = save_miniature("sd15", tokenizer, tmp_path / "wide")
    config = {**UNet2DConditionModel.load_config(folder / "unet"), "block_out_channels": (64, 256)}
    UNet2DConditionModel.from_config({**config, "layers_per_block": 2}).save_pretrained(folder / "unet")
    run_ranks(4, measure, folder, tmp_path / "said.json")
    sizes = [path.stat().st_size for path in (tmp_path / "step-0000000").glob("*.safetensors")]
    for said, size in zip(json.loads((tmp_path / "said.json").read_text()), sizes, strict=True):
        print(said, size)
        assert size <= 1.02 * said["state"] / 4
        assert said["saving"] <= 1.02 * said["state"] / 4 + 24 * 2**20
        # Old moments go when the new ones are there; a module's weights are read, and then taken over.
        assert said["restoring"] <= said["state"] / 4 + 2 * said["largest"] + 24 * 2**20
