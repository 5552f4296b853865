"""What the documents say is what the files beside them hold."""

import json
import re
from pathlib import Path

import pytest

from fewstep.cli import COMMANDS
from fewstep.models.export import score_table

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


@pytest.mark.parametrize(("document", "scores"), [("README.md", "docs/demo"), ("docs/results.md", "docs/scenes-long")])
def test_tables_are_the_scores(document, scores):
    text = (ROOT / document).read_text()
    for line in score_table(json.loads((ROOT / scores / "scores.json").read_text())):
        assert line in text
    assert (ROOT / scores / "grid.png").exists()


def test_the_scores_reach_what_they_must():
    """The bar of the demo, on the published figures."""
    rows = {
        (row["sampler"], row["steps"]): row for row in json.loads((ROOT / "docs/demo/scores.json").read_text())["rows"]
    }
    whole = rows["teacher", 50]["prompt_accuracy"]
    assert rows["lcm", 4]["prompt_accuracy"] >= 0.93 * whole
    assert rows["lcm", 2]["prompt_accuracy"] >= 0.88 * whole
    for steps in (1, 2, 4):
        for other in ("ddim", "dpm++"):
            assert rows["lcm", steps]["prompt_accuracy"] > rows[other, steps]["prompt_accuracy"]
            assert rows["lcm", steps]["fd"] < rows[other, steps]["fd"]


def test_paths_and_commands_of_the_readme_exist():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert (ROOT / target).exists(), target
    for command in re.findall(r"fewstep ([a-z-]+) ", README):
        assert command in {*COMMANDS, "turns"}, command
    tree = README[README.index("src/fewstep/\n") : README.index("Imports point down")]
    for name in re.findall(r"^  ([a-z]+)/", tree, re.MULTILINE):
        assert (ROOT / "src" / "fewstep" / name).is_dir(), name


def test_studies_hold_their_figures():
    for script in (ROOT / "studies").iterdir():
        if script.suffix in (".py", ".sh"):
            assert "FIGURES" not in script.read_text(), f"{script.name} has no figures in its header"
