"""The account of a run's pictures in its folder: there at the end, whatever became of it in the middle."""

import dataclasses
import json

import pytest
from PIL import Image

from fewstep.commands.distill import distill
from fewstep.commands.finetune import finetune
from fewstep.commands.train_lora import train_lora
from fewstep.errors import UserError
from fewstep.recipes.distill import Distill
from fewstep.recipes.finetune import Finetune
from fewstep.recipes.train_lora import TrainLora
from fewstep.runs.folder import claim_data
from fewstep.train.saving import Saving

SMALL = {"data": "scenes", "steps": 2, "batch_size": 1, "pictures": 4, "checkpoint_every": 1, "device": "cpu"}


@pytest.mark.parametrize(
    ("train", "make", "given"),
    [
        (distill, Distill, {"sample_every": 0}),
        (finetune, Finetune, {"sample_every": 0}),
        (train_lora, TrainLora, {"lora_rank": 2}),
    ],
)
def test_an_account_deleted_in_the_middle_is_written_again(train, make, given, random_teacher, tmp_path, monkeypatch):
    named = {"teacher" if make is Distill else "model": str(random_teacher)}
    config = make(**SMALL, **given, **named, out=tmp_path / "run")
    file, save, seen = config.out / "data.json", Saving.save, []

    def delete(*given):
        seen.append(file.read_text())
        file.unlink()
        save(*given)

    monkeypatch.setattr(Saving, "save", delete)
    train(config)
    assert len(seen) == 2
    assert {file.read_text()} == {*seen}
    assert json.loads(file.read_text())["sources"]["scenes"]["used"] == 4


def test_a_run_that_goes_on_without_its_account_says_so(random_teacher, tmp_path, capsys):
    (tmp_path / "run/checkpoints/step-0000001").mkdir(parents=True)
    config = Distill(teacher=str(random_teacher), out=tmp_path / "run")
    claim_data(config, {}, "abc")
    assert "data.json is gone; the pictures are taken for those that the run began with" in capsys.readouterr().out
    claim_data(config, {}, "abc")
    assert capsys.readouterr().out == ""
    with pytest.raises(UserError, match="are not those that"):
        claim_data(config, {}, "other")
    for content in ("{", "[]", '{"sha": 1}', "[" * 10_000):
        (config.out / "data.json").write_text(content)
        with pytest.raises(UserError, match="is not what a run wrote there"):
            claim_data(config, {}, "abc")


def test_a_run_that_learns_from_little_says_so(random_teacher, tmp_path, capsys):
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    Image.new("RGB", (64, 64), "red").save(pictures / "a.png")
    (pictures / "a.txt").write_text("red")
    for name in "bc":
        (pictures / f"{name}.png").write_bytes(b"none")
    small = {**SMALL, "data": str(pictures), "steps": 1}
    config = TrainLora(**small, lora_rank=2, model=str(random_teacher), out=tmp_path / "run")
    train_lora(dataclasses.replace(config, batch_size=2))
    said = capsys.readouterr().out
    assert f"warning: 2 of the 3 pictures of {pictures} are not used; see above why" in said
    assert "fewer pictures (1) than an update takes (2)" in said
    train_lora(dataclasses.replace(config, out=tmp_path / "other"))
    assert "fewer pictures" not in capsys.readouterr().out
