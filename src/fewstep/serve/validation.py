"""Says in plain words which field of a request is wrong: what was found in it, and what to send."""

from __future__ import annotations

import difflib
import json
from collections.abc import Collection, Sequence
from typing import Any

from fewstep.serve.errors import RefusedError

MOST_SAID = 60
"""Letters of a value, or of a name, that are said again."""
IN_DOCS = "/docs lists the fields"
_WHOLE, _NUMBER = "a whole number", "a number"
_WANTED = {
    "string_type": "text", "string_unicode": "text",
    "int_type": _WHOLE, "int_parsing": _WHOLE, "int_from_float": _WHOLE, "int_parsing_size": "a smaller whole number",
    "float_type": _NUMBER, "float_parsing": _NUMBER, "finite_number": "a finite number",
    "bool_type": "true or false", "bool_parsing": "true or false",
    "list_type": "a list", "dict_type": "an object of names and values",
}  # fmt: skip
"""What is wanted, by pydantic's type of error."""
_BOUNDS = {
    "greater_than_equal": "at least {ge}", "less_than_equal": "at most {le}", "greater_than": "above {gt}",
    "less_than": "below {lt}", "literal_error": "{expected}", "too_long": "at most {max_length} entries",
    "too_short": "at least {min_length} entries",
}  # fmt: skip
"""The same where it depends on the field, with pydantic's names for the bounds."""


def explain_invalid_fields(
    errors: Sequence[Any], known: Collection[str] = (), place: str = "", listed: str = IN_DOCS
) -> RefusedError:  # fmt: skip
    """Puts pydantic's errors into one sentence, about a misspelt field before one that is missing because of it.

    `known` are the fields that there are, and `listed` says where one reads them; `place` stands before names, where
    the fields are part of another.
    """
    first = next((each for each in errors if each["type"] == "extra_forbidden"), errors[0])
    parts = [str(part)[:MOST_SAID] for part in first["loc"] if part not in ("body", "query", "path")]
    if "UploadFile" in first["msg"]:
        parts = parts[:1]  # a form has its files by name alone
    param = (place + ".".join(parts)).rstrip(".")
    if not param:
        return RefusedError(f"{_name_kind(first['input'])} was sent; send a JSON object ({listed})")
    if first["type"] == "extra_forbidden":
        return refuse_unknown_field(param, known, listed)
    if first["type"] == "missing":
        return RefusedError(f"{param} is missing; send it too ({listed})", param=param)
    return RefusedError(f"{param} is {say(first['input'])}; send {_name_wanted(first)}", param=param)


def refuse_unknown_field(name: str, known: Collection[str], listed: str = IN_DOCS) -> RefusedError:
    """Returns the refusal of a field that a request does not have, with the one of the `known` that may be meant."""
    short = name[:MOST_SAID]
    near = difflib.get_close_matches(short, known, 1)
    remedy = f"did you mean {near[0]}?" if near else "leave it out"
    return RefusedError(f"{short}: there is no such field; {remedy} ({listed})", param=short)


def say(value: object) -> str:
    """Says a value as JSON, shortened; of an object its names alone."""
    if isinstance(value, dict):
        text = ", ".join(map(str, value)) or "{}"
    elif isinstance(value, list):
        text = f"[{', '.join(map(say, value[:MOST_SAID]))}]"
    elif isinstance(value, str):
        text = json.dumps(value[: MOST_SAID + 1], ensure_ascii=False)
    else:
        text = json.dumps(value) if value is None or isinstance(value, bool | int | float) else _name_kind(value)
    return text if len(text) <= MOST_SAID else f"{text[:MOST_SAID]}…"


def _name_wanted(error: Any) -> str:
    wanted: str | None = _WANTED.get(error["type"])
    if wanted is not None:
        is_quoted = isinstance(error["input"], str) and error["type"] in ("int_type", "float_type", "bool_type")
        return f"{wanted}, without quotes" if is_quoted else wanted
    if error["type"] in _BOUNDS:
        return _BOUNDS[error["type"]].format(**error["ctx"])
    if "UploadFile" in error["msg"]:
        return "a file"
    ours = error.get("ctx", {}).get("error")  # a validator's own word for what it wants
    return str(ours) if ours else f"another ({error['msg'].lower()})"


def _name_kind(value: object) -> str:
    kinds = {str: "text", bool: "true or false", int: "a number", float: "a number", list: "a list", type(None): "null"}
    return kinds.get(type(value), "an object" if isinstance(value, dict) else "a file")
