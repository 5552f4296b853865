"""What becomes of the fields of other programs' requests: none is dropped without a word (`fields.yaml`)."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from fewstep.serve.errors import RefusedError

Request = Literal["txt2img", "img2img", "options", "generations", "edits", "lora tag"]
Treatment = Literal["obeyed", "refused", "noted", "harmless"]
_MOST_NAMES = 20
"""Unknown fields that are named in a note."""
_MOST_LETTERS = 60
"""Letters of a value, or of a name, that are said again."""


@dataclass(frozen=True)
class FieldRule:
    """What becomes of one field."""

    treatment: Treatment
    why: str
    neutral: tuple[Any, ...]
    """Values that ask for nothing."""

    def asks_for_nothing(self, value: object) -> bool:
        return value is None or any(_fold(value) == _fold(each) for each in self.neutral)


@functools.cache
def read_rules(request: Request) -> dict[str, FieldRule]:
    """Reads the rules of one kind of request, by the field's name."""
    rules: dict[str, FieldRule] = {}
    for group in yaml.safe_load((Path(__file__).parent / "fields.yaml").read_text()):
        if request in group["requests"]:
            fields = group["fields"]
            for name in fields:
                neutral = tuple(fields[name]) if isinstance(fields, dict) else ()
                rules[name] = FieldRule(group["treatment"], group.get("why", ""), neutral)
    return rules


def review(request: Request, body: Mapping[str, Any], place: str = "") -> list[str]:
    """Returns the notes on what will not be obeyed. Raises RefusedError for a field that is refused.

    `place` stands before the fields' names, where the body is part of another.
    """
    rules, notes, unknown = read_rules(request), list[str](), list[str]()
    for name, value in body.items():
        rule = rules.get(name)
        if rule is None:
            unknown.append(name)
        elif rule.treatment == "refused" and not rule.asks_for_nothing(value):
            raise RefusedError(f"{place}{name}: {rule.why}", param=f"{place}{name}")
        elif rule.treatment == "noted" and not rule.asks_for_nothing(value):
            notes.append(f"{place}{name} {_say(value)} has no effect: {rule.why}")
    return [*notes, *_note_unknown(unknown, place)]


def refuse_unknown(request: Request, names: Iterable[str]) -> None:
    """Raises RefusedError for a field that the request does not have."""
    for name in names:
        if name not in read_rules(request):
            short = name[:_MOST_LETTERS]
            raise RefusedError(f"{short}: there is no such field", param=short)


def list_defaults(request: Request) -> dict[str, Any]:
    """Lists what holds here of the fields that are noted."""
    rules = read_rules(request)
    return {
        name: rule.neutral[0] if rule.neutral else None for name, rule in rules.items() if rule.treatment == "noted"
    }


def _note_unknown(names: list[str], place: str) -> list[str]:
    if not names:
        return []
    said = ", ".join(place + name[:_MOST_LETTERS] for name in names[:_MOST_NAMES])
    more = f" and {len(names) - _MOST_NAMES} others" if len(names) > _MOST_NAMES else ""
    return [f"not known here and without effect: {said}{more}"]


def _say(value: object) -> str:
    """Says a value as JSON, shortened; of an object its names alone."""
    text = ", ".join(map(str, value)) if isinstance(value, dict) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _MOST_LETTERS else f"{text[:_MOST_LETTERS]}…"


def _fold(value: object) -> object:
    return value.casefold() if isinstance(value, str) else value
