"""What the documents say is what the files beside them hold."""

import json
import re
from pathlib import Path

import pytest

from fewstep.cli import COMMANDS
from fewstep.models.export import score_table

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


@pytest.mark.parametrize(
    ("page", "scores"),
    [
        ("README.md", "demo/scores.json"),
        ("docs/results.md", "scenes-long/scores.json"),
        ("docs/results.md", "demo/spacing.json"),
        ("docs/results.md", "demo/spacing-guidance-2.json"),
        ("docs/teacher.md", "teacher/scores.json"),
    ],
)
def test_tables_are_the_scores(page, scores):
    text = (ROOT / page).read_text()
    for line in score_table(json.loads((ROOT / "docs" / scores).read_text())):
        assert line in text


def test_figures_in_words_are_the_scores():
    scores = json.loads((ROOT / "docs/teacher/scores.json").read_text())
    text = (ROOT / "docs/teacher.md").read_text()
    for name in ("reader_on_real_pictures", "reader_on_reconstructions"):
        assert f"{scores[name]:.2%}" in text


def test_paths_and_commands_of_the_readme_exist():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert (ROOT / target).exists(), target
    for command in re.findall(r"bin/fewstep ([a-z-]+) ", README):
        assert command in COMMANDS, command
    tree = README[README.index("src/fewstep/\n") : README.index("Imports point down")]
    for name in re.findall(r"^  ([a-z]+)/", tree, re.MULTILINE):
        assert (ROOT / "src" / "fewstep" / name).is_dir(), name
