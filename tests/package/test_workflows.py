"""The workflows ask for what there is: targets, Pythons that are promised, and no rights that they do not need."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / ".github/workflows").glob("*.yml"))
WORKFLOWS = {file.stem: yaml.safe_load(file.read_text()) for file in FILES}


def list_steps(workflow):
    return [step for job in workflow["jobs"].values() for step in job["steps"]]


@pytest.mark.parametrize("name", WORKFLOWS)
def test_every_target_of_make_is_there(name):
    targets = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)[1].split()
    commands = [step["run"] for step in list_steps(WORKFLOWS[name]) if step.get("run", "").startswith("make ")]
    assert commands
    assert {target for command in commands for target in command.split()[1:]} <= {*targets}


@pytest.mark.parametrize("name", WORKFLOWS)
def test_a_job_may_only_read_unless_it_says_so(name):
    assert WORKFLOWS[name]["permissions"] == {"contents": "read"}
    writers = {job for job, each in WORKFLOWS[name]["jobs"].items() if "write" in str(each.get("permissions"))}
    assert writers <= {"publish"}
    for step in list_steps(WORKFLOWS[name]):
        if step.get("uses", "").startswith("actions/checkout@"):
            assert step["with"]["persist-credentials"] is False


def test_the_suite_runs_on_the_oldest_python_that_is_promised_and_on_newer_ones():
    pythons = WORKFLOWS["tests"]["jobs"]["suite"]["strategy"]["matrix"]["python"]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["requires-python"] == f">={pythons[0]}"
    assert len(pythons) > 1
