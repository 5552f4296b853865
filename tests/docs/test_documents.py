"""What the documents say is what the files beside them hold."""

import json
import re
from pathlib import Path

from fewstep.cli import COMMANDS
from fewstep.models.export import score_table

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def test_the_table_of_the_readme_is_the_scores():
    for line in score_table(json.loads((ROOT / "docs/demo/scores.json").read_text())):
        assert line in README
    assert (ROOT / "docs/demo/grid.png").exists()


def test_paths_and_commands_of_the_readme_exist():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert (ROOT / target).exists(), target
    for command in re.findall(r"bin/fewstep ([a-z-]+) ", README):
        assert command in COMMANDS, command
    tree = README[README.index("src/fewstep/\n") : README.index("Imports point down")]
    for name in re.findall(r"^  ([a-z]+)/", tree, re.MULTILINE):
        assert (ROOT / "src" / "fewstep" / name).is_dir(), name
