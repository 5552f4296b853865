"""JSON and YAML of strangers end in their values or in a few words, and what is printed of them moves no cursor."""

import logging
import math
import os
import time

import pytest
import yaml

from fewstep.documents import DocumentError, load_json, load_yaml, parse_json, read_json
from fewstep.errors import SCREEN, ShownFormatter, UserError, show

JSON = {
    "deep": ("[" * 100 + "]" * 100, "nested too deeply"),
    "so deep that Python gives up": ('{"a":' * 10**5, "nested too deeply"),
    "many digits": ("9" * 41, "has 41 digits"),
    "endless digits": ("9" * 10**6, "has 1000000 digits"),
    "too large": ("[1e999]", "1e999, is too large"),
    "infinity": ("-Infinity", "is -Infinity"),
    "no JSON": ("{", "it is no JSON"),
    "no text": (b"\xff\xff", "it is no JSON"),
}


@pytest.mark.parametrize("case", JSON)
def test_json_that_is_refused(case):
    text, words = JSON[case]
    with pytest.raises(DocumentError, match=words):
        parse_json(text)


def test_json_that_is_read():
    """What transformers writes for a tokenizer without a limit, and a metric without a value."""
    assert parse_json('{"model_max_length": 1000000000000000019884624838656}') == {"model_max_length": int(1e30)}
    assert math.isnan(parse_json("[NaN]")[0])
    assert parse_json("[" * 60 + "]" * 60)


def test_sizes_are_looked_at_before_a_file_is_parsed(tmp_path):
    large, pipe = tmp_path / "large.json", tmp_path / "pipe.json"
    with large.open("wb") as file:
        file.truncate(2**30)
    os.mkfifo(pipe)
    with pytest.raises(DocumentError, match="more than 64 MiB"):
        load_json(large)
    with pytest.raises(DocumentError, match="more than 1 MiB"):
        load_yaml(large)
    with pytest.raises(DocumentError, match="not a plain file"):
        load_json(pipe)
    with pytest.raises(UserError, match=r"x: large\.json cannot be read"):
        read_json(large, "x")


BOMB = "a0: &a [x]\n" + "".join(f"a{n}: &a{n} [{', '.join(['*a'] * 9)}]\n" for n in range(1, 9))
YAML = {
    "a bomb of anchors": (BOMB, r"anchors and aliases .* line 1"),
    "an alias": ("a: 1\nb: *a\n", "anchors and aliases|alias"),
    "a tag": ("a: !!python/object:os.system x", "tags"),
    "a tag that PyYAML trips over": ("a: !!int ''", "tags"),
    "deep": ("[" * 10**4, "nested too deeply"),
    "deep by indenting": ("- " * 500 + "x", "nested too deeply"),
    "no number": ("a: 0x_", "no YAML that is read"),
    "many digits": (f"a: {'1' * 50}", "more than 40 digits"),
    "endless digits": (f"a: {'1' * 5000}", "no YAML that is read"),
    "infinity": ("a: [.inf]", "a number in it is inf"),
    "no key": ("? [a]\n: b", "no YAML that is read"),
    "a control character": ("a: \x07", "no YAML that is read"),
}


@pytest.mark.parametrize("case", YAML)
def test_yaml_that_is_refused(case, tmp_path):
    text, words = YAML[case]
    (tmp_path / "x.yaml").write_text(text)
    begun = time.process_time()
    with pytest.raises(DocumentError, match=words) as caught:
        load_yaml(tmp_path / "x.yaml")
    assert time.process_time() - begun < 1
    assert len(str(caught.value)) < SCREEN


def test_yaml_that_is_read_is_read_as_before(tmp_path):
    held = {"lr": 1e-4, "steps": 3, "mix": ["a::0.5"], "teacher": "scenes", "ema": None, "flip": True, "name": "01"}
    (tmp_path / "x.yaml").write_text(yaml.safe_dump(held) + "day: 2024-01-01\n")
    assert load_yaml(tmp_path / "x.yaml") == {**held, "day": "2024-01-01"}


def test_what_a_terminal_would_obey_is_made_visible():
    told = "\x1b]0;owned\x07 \x9b31m \u202egnp.exe \udcff café 🙂 \r"
    assert show(told) == r"\x1b]0;owned\x07 \x9b31m \u202egnp.exe \udcff café 🙂 \r"
    assert show("two\nlines") == "two\nlines"
    show(told).encode()


def test_an_error_is_shown_so_whoever_prints_it():
    assert str(UserError("no \x1b[31mmodel")) == r"no \x1b[31mmodel"


def test_long_messages_are_cut_in_the_middle():
    shown = show(f"begin {'x' * 10**7} end")
    assert len(shown) < 1.1 * SCREEN
    assert shown.startswith("begin x")
    assert "letters left out" in shown
    assert shown.endswith("x end")


def test_the_log_shows_names_so_too():
    record = logging.LogRecord("fewstep", logging.INFO, "", 0, "note: %s", ("\x1b[2J",), None)
    assert ShownFormatter("%(message)s").format(record) == r"note: \x1b[2J"
