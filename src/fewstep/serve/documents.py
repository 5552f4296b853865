"""JSON of strangers: a picture in it may be long, the rest is short and shallow, so that reading it stalls nobody."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Collection
from functools import partial
from typing import Any, NoReturn

from fewstep.serve.errors import RefusedError

SMALL = 16 << 10
"""Letters up to which a document is parsed where it is, rather than in the pool."""
MOST_LETTERS = 64 << 10
"""Bounds a document without its pictures."""
MOST_NESTING = 32
_MOST_ESCAPES = 1 << 19
"""Backslashes in all: some clients write every slash of base64 with one, which is one letter in 64."""
_BRACKETS = re.compile(r"[\[\]{}]")


def parse_document(text: str, pictures: Collection[str] = (), name: str = "body") -> Any:
    """Parses JSON in which fields called as in `pictures` may be long. Raises RefusedError, which names the document.

    A long one is looked through in small steps first, since the parser itself holds up every other thread.
    """
    if len(text) > MOST_LETTERS:
        _check_structure(text, name)
    try:
        content = json.loads(
            text, parse_constant=_refuse_constant, parse_float=_parse_float,
            object_pairs_hook=partial(_collect_fields, name),
        )  # fmt: skip
    except json.JSONDecodeError as error:
        what = f"it is no JSON ({error.msg})" if text.strip() else "it is empty"
        raise RefusedError(f"the {name} cannot be read: {what}; send a JSON object") from error
    except RecursionError as error:
        raise _refuse_nesting(f"the {name}") from error
    except ValueError as error:  # digits without end
        message = f"the {name} has a number of too many digits, or one that is none; send finite numbers"
        raise RefusedError(message) from error
    parts = content.items() if isinstance(content, dict) else [("", content)]
    left = MOST_LETTERS
    for field, value in parts:
        left -= len(field) + _count_letters(value, left, field or f"the {name}", field in pictures)
        if left < 0:
            at = f"{field[:60]}: {_too_long(name)}" if field else _too_long(name)
            raise RefusedError(at, param=field[:60] or None, status=413, code="body_too_large")
    return content


def _check_structure(text: str, name: str) -> None:
    """Raises RefusedError where much of a document stands outside long strings, or has no end of escapes."""
    if text.count("\\") > _MOST_ESCAPES:
        raise RefusedError(f"the {name} has more than {_MOST_ESCAPES} backslashes; send base64 as it is", status=413)
    outside, escaped, begin, depth = 0, 0, 0, 0
    while begin < len(text):
        quote = text.find('"', begin)
        end = len(text) if quote < 0 else quote
        outside += end - begin + 2
        if outside + escaped > MOST_LETTERS:
            raise RefusedError(_too_long(name), status=413, code="body_too_large")
        for bracket in _BRACKETS.findall(text[begin:end]):
            depth += 1 if bracket in "[{" else -1
            if depth > MOST_NESTING:
                raise _refuse_nesting(f"the {name}")
        begin = end + 1
        while (close := text.find('"', begin)) >= 0 and _is_escaped(text, end + 1, close) and escaped <= MOST_LETTERS:
            escaped, begin = escaped + 1, close + 1
        begin = len(text) if close < 0 else close + 1  # a string without end is no JSON, which the parser says


def _is_escaped(text: str, begin: int, place: int) -> bool:
    """Tells whether an odd number of backslashes stands before a quote of a string that begins at `begin`."""
    count = 0
    while place - count - 1 >= begin and text[place - count - 1] == "\\":
        count += 1
    return count % 2 == 1


def _collect_fields(name: str, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Returns an object of a document. Raises RefusedError for a name that stands in it twice, or has half a letter."""
    fields = dict(pairs)
    if len(fields) < len(pairs):
        twice = Counter(field for field, _ in pairs).most_common(1)[0][0][:60]
        raise RefusedError(f"{twice} stands more than once in one object of the {name}; send it once", param=twice)
    for field in fields:
        check_letters(f"a name in the {name}", field)
    return fields


def check_letters(name: str, text: str) -> None:
    """Raises RefusedError for half a letter, which no answer could hold."""
    if text.isascii():
        return
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = f"\\u{ord(text[error.start]):x}"
        raise RefusedError(f"{name} has half a letter, {half}; send whole ones, in UTF-8", param=name) from error


def _count_letters(value: Any, most: int, name: str, is_picture: bool) -> int:
    """Counts the letters of a value, about; stops above `most`. The strings of a picture's field count as one each.

    Raises RefusedError, which names the value, for half a letter and for what is nested too deeply.
    """
    count, waiting = 0, [(value, 1)]
    while waiting and count <= most:
        item, depth = waiting.pop()
        if depth > MOST_NESTING:
            raise _refuse_nesting(name)
        count += 1
        if isinstance(item, str):
            check_letters(name[:60], item)
            count += 0 if is_picture else len(item)
        elif isinstance(item, dict):
            count += sum(map(len, item))
            waiting += [(each, depth + 1) for each in item.values()]
        elif isinstance(item, list):
            waiting += [(each, depth + 1) for each in item]
    return count


def _too_long(name: str) -> str:
    return f"the {name} is longer than {MOST_LETTERS >> 10} KiB without its pictures; send less"


def _refuse_nesting(name: str) -> RefusedError:
    return RefusedError(f"{name} is nested deeper than {MOST_NESTING} levels; send a flat one")


def _refuse_constant(constant: str) -> NoReturn:
    raise ValueError(constant)


def _parse_float(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(text[:20])
    return number
