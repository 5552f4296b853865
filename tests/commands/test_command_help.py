"""What a command's help shows: the options that people need first, each with a sentence, and words that stand alone."""

import dataclasses
import importlib
import re
import time

import pytest

from fewstep.cli import COMMANDS, main
from fewstep.helping import FIRST, read_help
from fewstep.recipes.named import RECIPES


def make_default(name):
    """The configuration of a command as it is without any option."""
    module, _, config = COMMANDS[name].config.partition(":")
    made = getattr(importlib.import_module(f"fewstep.{module}"), config) if config else RECIPES[name]["scenes"]
    return made()


def test_help_is_quick(fewstep_command):
    times = []
    for _ in range(3):
        begun = time.perf_counter()
        done = fewstep_command("--help", fresh=True)
        times.append(time.perf_counter() - begun)
    assert done.returncode == 0
    assert {"demo", "distill", "generate", "train-teacher"} <= set(done.stdout.split())
    assert min(times) < 0.5


@pytest.mark.parametrize("command", ["demo", "distill", "generate", "train-teacher"])
def test_help_of_a_command_explains_every_option(fewstep_command, command):
    done = fewstep_command(command, "--help")
    assert done.returncode == 0
    assert "--out" in done.stdout
    assert done.stderr == ""
    assert f"fewstep {command} --help-all" in done.stdout or command == "train-teacher"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_has_a_sentence_of_its_own(name):
    default = make_default(name)
    shared = [kind for kind in type(default).__mro__ if dataclasses.is_dataclass(kind)]
    texts = {option: text for kind in shared for option, text in read_help(kind).items()}
    assert texts.keys() >= {field.name for field in dataclasses.fields(default)}
    assert [option for option, text in texts.items() if not text.endswith(".")] == []


def read_shown(capsys, *arguments):
    with pytest.raises(SystemExit) as stop:
        main([*arguments])
    assert not stop.value.code
    return capsys.readouterr().out


def list_options(shown):
    return re.findall(r"^  (--[\w.-]+)", shown, re.MULTILINE)


def test_help_begins_with_what_is_read_and_names_no_empty_defaults(capsys):
    lines = read_shown(capsys, "generate", "--help-all")
    assert lines.index("--prompt") < lines.index("--out") < lines.index("--device")
    assert "--guidance-scale X" in lines
    assert "None" not in lines
    assert "(default: )" not in lines


@pytest.mark.parametrize("name", FIRST)
def test_the_options_that_people_need_first_are_ten_at_most_and_there(name):
    named = FIRST[name].split()
    assert set(named) <= {field.name for field in dataclasses.fields(make_default(name))}
    assert len(named) <= 10


def test_help_shows_ten_and_help_all_every_option_in_groups(capsys):
    few, whole = (read_shown(capsys, "distill", each) for each in ("--help", "--help-all"))
    assert len(list_options(few)) == 10
    assert "--updates N" in few
    assert "(also --steps)" in few
    fields = {field.name for field in dataclasses.fields(make_default("distill"))} - {"filters", "steps"}
    assert {f"--{name.replace('_', '-')}" for name in fields} <= set(list_options(whole))
    assert [title for title in ("Pictures:", "The run:", "Optimisation:") if f"\n{title}\n" not in whole] == []
    assert "--filters.min-side" in whole


@pytest.mark.parametrize("name", COMMANDS)
def test_what_a_command_is_for_begins_each_line_at_the_margin_and_fits(name, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    summary = read_shown(capsys, *name.split(), "--help").split("\n\n", 1)[1]
    summary = re.split(r"\n\n(?:The recipes, |[A-Z][^\n]*:\n)", summary)[0]
    assert [line for line in summary.splitlines() if line.startswith(" ") or len(line) > 100] == []


@pytest.mark.parametrize(("command", "words"), [("plot", "RUNS"), ("publish", "SOURCE REPO"), ("convert", "LORA")])
def test_the_usage_has_the_words_that_stand_alone(command, words, capsys):
    assert read_shown(capsys, command, "--help").startswith(f"usage: fewstep {command} {words}")
