"""What becomes of the fields of other programs' requests: none is dropped without a word (`fields.yaml`)."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import TypeAdapter, ValidationError

from fewstep.serve.errors import RefusedError
from fewstep.serve.sdapi_fields import Number
from fewstep.serve.validation import MOST_SAID, explain_invalid_fields, refuse_unknown_field, say

Request = Literal["txt2img", "img2img", "options", "generations", "edits", "lora tag"]
Treatment = Literal["obeyed", "refused", "noted", "harmless"]
_MOST_NAMES = 20
"""Unknown fields that are named in a note."""
_KINDS: dict[str, TypeAdapter[Any]] = {
    "text": TypeAdapter(str), "boolean": TypeAdapter(bool), "number": TypeAdapter(Number),
    "list": TypeAdapter(list[Any]), "object": TypeAdapter(dict[str, Any]),
}  # fmt: skip
"""What a value may be, read as leniently as the fields that are obeyed."""
_NAMES = {str: "text", bool: "boolean", int: "number", float: "number", list: "list", dict: "object"}
"""Is the same by the type of a neutral value."""


@dataclass(frozen=True)
class FieldRule:
    """What becomes of one field."""

    treatment: Treatment
    why: str
    neutral: tuple[Any, ...]
    """Values that ask for nothing."""
    kind: str | None
    """What its values are, a name of `_KINDS`; None where nobody says."""

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
                kind = group.get("kind") or (_NAMES[type(neutral[0])] if neutral else None)
                rules[name] = FieldRule(group["treatment"], group.get("why", ""), neutral, kind)
    return rules


def review(request: Request, body: Mapping[str, Any], place: str = "") -> list[str]:
    """Returns the notes on what will not be obeyed. Raises RefusedError for a field that is refused or of a wrong kind.

    `place` stands before the fields' names, where the body is part of another.
    """
    rules, notes, unknown = read_rules(request), list[str](), list[str]()
    for name, value in body.items():
        rule = rules.get(name)
        if rule is not None and rule.kind is not None and value is not None:
            _check_kind(f"{place}{name}", value, rule.kind)
        if rule is None:
            unknown.append(name)
        elif rule.treatment == "refused" and not rule.asks_for_nothing(value):
            raise RefusedError(f"{place}{name}: {rule.why}", param=f"{place}{name}")
        elif rule.treatment == "noted" and not rule.asks_for_nothing(value):
            notes.append(f"{place}{name} {say(value)} has no effect: {rule.why}")
    return [*notes, *_note_unknown(unknown, place)]


def _check_kind(name: str, value: object, kind: str) -> None:
    """Raises RefusedError for a value that the field cannot have in the program that it is of."""
    try:
        _KINDS[kind].validate_python(value)
    except ValidationError as error:
        raise explain_invalid_fields([{**error.errors()[0], "loc": ()}], place=name) from error


def refuse_unknown(request: Request, names: Iterable[str]) -> None:
    """Raises RefusedError for a field that the request does not have."""
    for name in names:
        if name not in read_rules(request):
            raise refuse_unknown_field(name, read_rules(request))


def list_defaults(request: Request) -> dict[str, Any]:
    """Lists what holds here of the fields that are noted."""
    rules = read_rules(request)
    return {
        name: rule.neutral[0] if rule.neutral else None for name, rule in rules.items() if rule.treatment == "noted"
    }


def _note_unknown(names: list[str], place: str) -> list[str]:
    if not names:
        return []
    said = ", ".join(place + name[:MOST_SAID] for name in names[:_MOST_NAMES])
    more = f" and {len(names) - _MOST_NAMES} others" if len(names) > _MOST_NAMES else ""
    return [f"not known here and without effect: {said}{more}"]


def _fold(value: object) -> object:
    return value.casefold() if isinstance(value, str) else value
