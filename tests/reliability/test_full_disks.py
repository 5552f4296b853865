"""A disk that is full, or not to be written, ends a command in one line; nothing half written stays, and it goes on."""

import errno
import shutil
from pathlib import Path

import pytest
import torch

from fewstep import files
from fewstep.cli import main
from fewstep.files import replace_folder
from fewstep.models.loading import load_latent_model
from fewstep.models.lora.export import save_combined, save_merged
from fewstep.models.lora.pair import Pair
from small_disk import files_of, leave_room, small_disk


@pytest.fixture(scope="module")
def disk(tmp_path_factory):
    with small_disk(tmp_path_factory.mktemp("disks") / "small", 6 * 1024) as folder:
        yield folder


@pytest.fixture
def room(disk):
    """Fills the disk but for some pages; empties it at the end."""
    yield lambda pages: leave_room(disk, pages)
    for path in disk.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()


@pytest.fixture(scope="module")
def model(tiny):
    return load_latent_model(str(tiny), torch.device("cpu"))


def run_ended(capsys, *arguments):
    """Runs a command; returns the line that it ended in, or nothing where it came to its end."""
    status = 0
    try:
        main([*map(str, arguments)])
    except SystemExit as ending:
        status = ending.code
    said = capsys.readouterr().err.splitlines()
    (line,) = [each for each in said if each.startswith("fewstep: error: ")] or [""]
    assert status == (2 if line else 0)
    assert not any("Traceback" in each for each in said)
    return line


@pytest.mark.parametrize("pages", [2, 8, 20, 40, 60])
def test_an_export_on_a_full_disk_leaves_the_one_before(model, disk, room, pages):
    with replace_folder(disk / "model") as draft:
        (draft / "before.txt").write_text("before")
    before = files_of(disk)
    filler = room(pages)
    with pytest.raises(OSError, match="No space left on device") as caught:
        save_merged(disk / "model", model, {})
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(disk / "model"))
    assert files_of(disk) == before
    filler.unlink()
    save_merged(disk / "model", model, {})
    load_latent_model(str(disk / "model"), torch.device("cpu"))


@pytest.mark.parametrize("pages", [0, 1])
def test_a_lora_on_a_full_disk(model, disk, room, pages):
    name = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    size = model.parts["unet"].get_submodule(name.removeprefix("unet.")).weight.shape
    pairs = {name: Pair(torch.randn(8, size[1]), torch.randn(size[0], 8), 8.0)}
    filler = room(pages)
    with pytest.raises(OSError, match="No space left on device"):
        save_combined(disk / "lora", model, pairs, {})
    assert files_of(disk) == {}
    filler.unlink()
    assert save_combined(disk / "lora", model, pairs, {}) == 0


@pytest.mark.parametrize("spelling", ["peft", "kohya"])
@pytest.mark.parametrize("pages", [0, 1, 2])
def test_a_conversion_on_a_full_disk_writes_all_or_nothing(tiny, model, disk, room, tmp_path, capsys, spelling, pages):
    name = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    size = model.parts["unet"].get_submodule(name.removeprefix("unet.")).weight.shape
    save_combined(tmp_path / "lora", model, {name: Pair(torch.randn(64, size[1]), torch.randn(size[0], 64), 64.0)}, {})
    out = disk / ("converted" if spelling == "peft" else "converted.safetensors")
    command = ("convert", tmp_path / "lora", "--to", spelling, "--base", tiny, "--out", out)
    filler = room(pages)
    assert "No space left on device" in run_ended(capsys, *command)
    assert files_of(disk) == {}
    filler.unlink()
    assert not run_ended(capsys, *command)
    held = {"adapter_config.json", "adapter_model.safetensors"} if spelling == "peft" else {"converted.safetensors"}
    assert {Path(each).name for each in files_of(disk)} - {"converted"} == held


def run(tiny, photos, out, *more):
    return (
        "distill", "scenes", "--teacher", tiny, "--data", photos, "--resolution", 16, "--out", out, "--steps", 4,
        "--batch-size", 4, "--sample-every", 2, "--checkpoint-every", 2, "--keep-gib", 1, "--guidance-range", 2, 5,
        "--guidance-scale", 3, "--log-every", 1, *more,
    )  # fmt: skip


def test_a_run_goes_on_when_there_is_room_again(tiny, photos, disk, room, tmp_path, capsys):
    """The disk is full at the first checkpoint, then at a picture, then at the model."""
    command, said = run(tiny, photos, disk / "run"), []
    for pages in (6, 350, 420):
        filler = room(pages)
        said.append(run_ended(capsys, *command))
        assert not list(disk.rglob(f"*{files.DRAFT_MARK}*"))
        assert not list(disk.rglob(files.LOCK_FILE))
        filler.unlink()
    assert all("No space left on device" in line and "the same command goes on" in line for line in said)
    assert not run_ended(capsys, *command)
    assert not run_ended(capsys, *run(tiny, photos, tmp_path / "undisturbed"))
    mine, theirs = (files_of(folder / "model") for folder in (disk / "run", tmp_path / "undisturbed"))
    assert mine.keys() == theirs.keys()
    assert all(mine[name] == theirs[name] for name in mine if name.endswith(".safetensors"))


def test_prepared_shards_and_pictures_on_a_full_disk(tiny, photos, disk, room, capsys):
    prepare = ("prepare", "--model", tiny, "--data", photos, "--resolution", 16, "--workers", 1, "--part", 20,
               "--out", disk / "latents")  # fmt: skip
    for pages in (0, 2, 7):
        filler = room(pages)
        assert "No space left on device" in run_ended(capsys, *prepare)
        assert not list(disk.rglob(f"*{files.DRAFT_MARK}*"))
        assert not list(disk.rglob(files.LOCK_FILE))
        filler.unlink()
    assert not run_ended(capsys, *prepare)
    assert run_ended(capsys, *prepare) == ""
    generate = ("generate", "--out", disk / "pictures", "--prompt", "a red circle", "--steps", 1)
    filler = room(0)
    assert "pictures cannot be written (No space left on device)" in run_ended(capsys, *generate)
    assert list((disk / "pictures").iterdir()) == []
    filler.unlink()
    assert not run_ended(capsys, *generate)
