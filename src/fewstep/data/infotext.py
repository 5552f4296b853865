"""AUTOMATIC1111's `parameters` text in a PNG: prompt, negative prompt, and settings as `Name: value, …`."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass

from PIL.PngImagePlugin import PngInfo

_NEGATIVE = "Negative prompt: "
_LINES = "Prompt lines"
"""The setting that tells how many lines the prompt has, where a line of the prompts looks as if it began the negative
one."""
_COMMAND = re.compile(r"(?<!\\)\([^()]*:\s*\d*\.?\d+\s*\)|\bBREAK\b|\bAND\b|\[[^\[\]]*:[^\[\]]*\]")
_TAG = re.compile(r"<(?:lora|lyco|hypernet):[^<>]*>", re.IGNORECASE)
READ_AS_WORDS = "the prompt is read as it stands: (word:1.2), [a:b:0.5], BREAK and AND are no commands here"
_SETTING = re.compile(r'(?<![\w \-/])[ \-/]*+(\w[\w \-/]*): ("(?:\\.|[^"\\])*+"|[^,]*+)(?:,|$)')
"""Looked for where a run of a name's letters begins: from each letter it would take the square of the time."""


def warn_of_commands(prompt: str) -> list[str]:
    """Returns what to say of a prompt with A1111's commands in it, which are read as words."""
    tags = [f"{tag[:60]} in the prompt is read as words; give LoRAs with --lora" for tag in _TAG.findall(prompt)[:1]]
    return [*tags, *([READ_AS_WORDS] if has_commands(prompt) else [])]


def has_commands(prompt: str) -> bool:
    """Tells whether a prompt weights, joins or schedules its words in A1111's way."""
    return _COMMAND.search(prompt) is not None


@dataclass(frozen=True)
class Infotext:
    """The prompts and settings that a picture was painted with."""

    prompt: str
    negative_prompt: str
    settings: Mapping[str, str]

    def __str__(self) -> str:
        negative = [_NEGATIVE + self.negative_prompt] if self.negative_prompt else []
        lines = "\n".join([self.prompt, *negative]).split("\n")
        own = self.prompt.count("\n") + 1
        told = {} if _count_prompt(lines) == own else {_LINES: str(own)}
        settings = ", ".join(f"{name}: {_quote(value)}" for name, value in {**self.settings, **told}.items())
        return "\n".join([*lines, settings])


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
    settings = {name: _unquote(value.strip()) for name, value in _SETTING.findall(last)}
    end = _count_prompt(lines, settings.pop(_LINES, ""))
    return Infotext("\n".join(lines[:end]), "\n".join(lines[end:]).removeprefix(_NEGATIVE), settings)


def _count_prompt(lines: list[str], told: str = "") -> int:
    """Returns how many lines are the prompt's: as many as the settings tell, or all before the last that looks like the
    beginning of a negative prompt."""
    starts = [i for i, line in enumerate(lines) if line.startswith(_NEGATIVE)]
    if re.fullmatch("[0-9]{1,9}", told) and int(told) in (*starts, len(lines)):
        return int(told)
    return starts[-1] if starts else len(lines)


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
