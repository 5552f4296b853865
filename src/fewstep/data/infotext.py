"""AUTOMATIC1111's `parameters` text in a PNG: prompt, negative prompt, and settings as `Name: value, …`."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass

from PIL.PngImagePlugin import PngInfo

_NEGATIVE = "Negative prompt: "
_SETTING = re.compile(r'(?<![\w \-/])[ \-/]*+(\w[\w \-/]*): ("(?:\\.|[^"\\])*+"|[^,]*+)(?:,|$)')
"""Looked for where a run of a name's letters begins: from each letter it would take the square of the time."""


@dataclass(frozen=True)
class Infotext:
    """The prompts and settings that a picture was painted with."""

    prompt: str
    negative_prompt: str
    settings: Mapping[str, str]

    def __str__(self) -> str:
        negative = [_NEGATIVE + self.negative_prompt] if self.negative_prompt else []
        settings = ", ".join(f"{name}: {_quote(value)}" for name, value in self.settings.items())
        return "\n".join([self.prompt, *negative, settings])


def build_png_info(text: str) -> PngInfo:
    """Returns the text chunk in which other tools look for an infotext."""
    info = PngInfo()
    if text.isascii():
        info.add_text("parameters", text)
    else:  # plain text chunks hold Latin-1 only
        info.add_itxt("parameters", text)
    return info


def read_infotext(text: str) -> Infotext:
    """Parses what `str` of an Infotext gives."""
    *lines, last = text.split("\n")
    starts = [i for i, line in enumerate(lines) if line.startswith(_NEGATIVE)]
    end = starts[-1] if starts else len(lines)
    settings = {name: _unquote(value.strip()) for name, value in _SETTING.findall(last)}
    return Infotext("\n".join(lines[:end]), "\n".join(lines[end:]).removeprefix(_NEGATIVE), settings)


def _quote(value: str) -> str:
    return json.dumps(value, ensure_ascii=False) if re.search(r'[,:"\n]', value) or value != value.strip() else value


def _unquote(value: str) -> str:
    if not value.startswith('"'):
        return value
    try:
        plain = str(json.loads(value))
        plain.encode()  # refuses halves of surrogate pairs, which no terminal and no client takes
        return plain
    except ValueError:
        return value
