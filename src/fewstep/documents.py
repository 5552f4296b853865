"""Reads JSON and YAML that strangers wrote, within limits: of size, nesting and numbers, and without YAML's aliases."""

from __future__ import annotations

import codecs
import json
import math
import re
import stat
from pathlib import Path
from typing import Any, ClassVar, NoReturn

from fewstep.errors import UserError

_MOST_JSON, _MOST_YAML = 64 * 2**20, 2**20
"""Bytes. Vocabularies are the largest JSON that models have, of some MiB; a configuration has a few KiB."""
_MOST_NESTED = 64
"""Lists and objects within each other."""
_MOST_DIGITS = 40
"""Bounds a whole number: transformers writes 10^30 where it means that a tokenizer has no limit."""
_NOT_CLIPPED = re.compile(rb'"lambda_min_clipped"\s*:\s*-Infinity\s*,')
"""What diffusers writes, its own default, into the configurations of DPM-Solvers, though JSON has no such number."""


def name_encoding(content: bytes) -> str:
    """Returns how a text is to be decoded: as the mark that it begins with says, else as UTF-8."""
    return "utf-16" if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"


class DocumentError(ValueError):
    """Says in a few words why a file is not read."""


def load_json(file: Path) -> Any:
    """Reads any JSON value. Raises DocumentError, or OSError where the file cannot be opened."""
    return parse_json(_NOT_CLIPPED.sub(b"", load_bytes(file, _MOST_JSON)))


def read_json(path: Path, otherwise: str) -> dict[str, Any]:
    """Reads a JSON object. Raises UserError, which begins with `otherwise`, where there is none."""
    try:
        content = load_json(path)
    except FileNotFoundError as error:
        raise UserError(f"{otherwise}: {path.name} is missing") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{otherwise}: {path.name} cannot be read ({error})") from error
    if not isinstance(content, dict):
        raise UserError(f"{otherwise}: {path.name} is not a JSON object")
    return content


def parse_json(text: str | bytes) -> Any:
    """Parses any JSON value; numbers in it are finite, or NaN. Raises DocumentError."""
    if len(text) > _MOST_JSON:
        raise DocumentError(f"it has {len(text):,} letters, at most {_MOST_JSON:,} are read")
    try:
        value = json.loads(text, parse_int=_parse_whole, parse_float=_parse_float, parse_constant=_parse_constant)
    except RecursionError as error:
        raise DocumentError("lists and objects are nested too deeply") from error
    except DocumentError:
        raise
    except ValueError as error:  # UnicodeDecodeError among them
        raise DocumentError(f"it is no JSON: {error}") from error
    _check_nesting(value)
    return value


def _parse_whole(digits: str) -> int:
    if len(digits) > _MOST_DIGITS:
        raise DocumentError(f"a number in it has {len(digits)} digits")
    return int(digits)


def _parse_float(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise DocumentError(f"a number in it, {digits[:20]}, is too large")
    return value


def _parse_constant(name: str) -> float:
    if name != "NaN":  # which is what a metric without a value is written as
        raise DocumentError(f"a number in it is {name}")
    return math.nan


def _check_nesting(value: Any) -> None:
    level, depth = [value], 0
    while level := [
        inner
        for each in level
        if isinstance(each, list | dict)
        for inner in (each.values() if isinstance(each, dict) else each)
        if isinstance(inner, list | dict)
    ]:
        depth += 1
        if depth > _MOST_NESTED:
            raise DocumentError("lists and objects are nested too deeply")


def load_yaml(file: Path) -> Any:
    """Reads plain YAML. Raises DocumentError, or OSError where the file cannot be opened."""
    content = load_bytes(file, _MOST_YAML)
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        raise DocumentError(f"it is no YAML that is read: {error}") from error
    return parse_yaml(text)


def parse_yaml(text: str) -> Any:
    """Parses plain YAML: lists, mappings, texts, numbers, true, false and null; a date is text. Raises
    DocumentError."""
    import yaml

    try:
        _check_events(text)
        value = yaml.load(text, _plain_loader())
    except DocumentError:
        raise
    except (yaml.YAMLError, ValueError, OverflowError, RecursionError) as error:  # numbers that are none, as `0x_`
        raise DocumentError(_explain_yaml(error)) from error
    _check_numbers(value)
    return value


def _explain_yaml(error: Exception) -> str:
    """Says in words where a text is no YAML, and what is wrong there."""
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
    if mark is None or not problem:
        return f"it is no YAML that is read: {error}"
    said = next((words for begin, words in _YAML_PROBLEMS.items() if problem.startswith(begin)), problem)
    return f"it is no YAML that is read: line {mark.line + 1}: {said}"


_YAML_PROBLEMS = {
    "mapping values are not allowed": "write one setting a line, as steps: 300; put a text with colons in quotes",
    "did not find expected ',' or ']'": "a bracket [ is not closed",
    "did not find expected ',' or '}'": "a brace { is not closed",
    "expected ',' or ']'": "a bracket [ is not closed",
    "expected ',' or '}'": "a brace { is not closed",
    "found character that cannot start any token": "it begins with a tab or another letter that YAML keeps for itself; "
    "indent with spaces",
    "found character '\\t'": "it begins with a tab; indent with spaces",
    "could not find expected ':'": "a setting is followed by a colon and a space, as in steps: 300",
    "did not find expected key": "it stands at another depth than the lines above; all settings begin at the left",
    "found unexpected end of stream": "a quotation mark is not closed",
}
"""What libyaml says of the mistakes that people make, by how it begins, in words."""


def _plain_loader() -> Any:
    import yaml

    class Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]  # of C, where it was built
        yaml_implicit_resolvers: ClassVar[Any] = {
            letter: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith((":timestamp", ":merge"))]
            for letter, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
        }

    return Loader


def _check_events(text: str) -> None:
    """Raises DocumentError for what makes much of little: a name for a part of the document, its use, and depth."""
    import yaml

    depth = 0
    for event in yaml.parse(text, _plain_loader()):
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
            _refuse_at(event, "anchors and aliases (& and *) are not read")
        if getattr(event, "tag", None) not in (None, "!"):
            _refuse_at(event, "tags (!) are not read")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > _MOST_NESTED:
            _refuse_at(event, "lists and mappings are nested too deeply")


def _refuse_at(event: Any, reason: str) -> NoReturn:
    raise DocumentError(f"{reason}, and line {event.start_mark.line + 1} has them")


def _check_numbers(value: Any) -> None:
    waiting = [value]
    while waiting:
        each = waiting.pop()
        if isinstance(each, dict):
            waiting += [*each.keys(), *each.values()]
        elif isinstance(each, list):
            waiting += each
        elif isinstance(each, float) and not math.isfinite(each):
            raise DocumentError(f"a number in it is {each}")
        elif isinstance(each, int) and abs(each) >= 10**_MOST_DIGITS:
            raise DocumentError(f"a number in it has more than {_MOST_DIGITS} digits")


def load_bytes(file: Path, most: int = _MOST_JSON) -> bytes:
    """Reads a whole file of at most so many bytes. Raises DocumentError, or OSError where it cannot be opened."""
    if stat.S_ISFIFO(mode := file.stat().st_mode) or stat.S_ISSOCK(mode) or stat.S_ISCHR(mode):
        raise DocumentError("it is not a plain file")  # and may never end
    with file.open("rb") as opened:
        content = opened.read(most + 1)
    if len(content) > most:
        raise DocumentError(f"it has more than {most / 2**20:.0f} MiB")
    return content
