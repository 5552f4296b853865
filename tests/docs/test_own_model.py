"""The commands of the guide to one's own model, run as they stand, in small."""

import re
import shlex
from pathlib import Path

from PIL import Image

from fewstep.cli import main
from fewstep.data.worlds.scenes import Scenes

PAGE = (Path(__file__).parents[2] / "docs" / "own_model.md").read_text()
SMALL = ["--updates", "2", "--batch-size", "2", "--skip", "20"]


def test_fine_tuning_as_the_guide_says_it(tmp_path, monkeypatch, capsys):
    section = PAGE.partition("## Fine-tune a few-step model")[2].partition("\n## ")[0]
    commands = re.findall(r"^fewstep (.+)$", section.split("```")[1], re.MULTILINE)
    assert [each.split()[0] for each in commands] == ["finetune", "generate", "inspect"]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "PICTURES").mkdir()
    for i in range(8):
        caption, picture = Scenes(seed=1).prompt(i)[0], Image.new("RGB", (80, 64), "red")
        picture.save(tmp_path / "PICTURES" / f"{i}.png")
        (tmp_path / "PICTURES" / f"{i}.txt").write_text(caption)
    for each in commands:
        words = shlex.split(each)
        main([*words, *(SMALL if words[0] == "finetune" else [])])
    assert "done: 2 of 2 updates" in capsys.readouterr().out
    (painted,) = (tmp_path / "pictures").glob("*.png")
    assert Image.open(painted).size == (64, 64)
    assert (tmp_path / "runs" / "tuned" / "autoencoder.png").exists()
