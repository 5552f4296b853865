"""Writes docs/reference/commands.md: every command and option, with its default and its help.

    python tools/commands_page.py          # `make docs` does so before it builds the site

All of it is read from the configuration dataclasses, whose fields are the options and whose docstrings are the help.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import re
import textwrap
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fewstep.cli import COMMANDS
from fewstep.helping import (
    TITLES,
    is_positional,
    read_all_help,
    read_help,
    say_place,
    say_type,
    say_value,
    spell_out,
)
from fewstep.recipes.given import list_aliases
from fewstep.recipes.named import RECIPES

PAGE = Path(__file__).parents[1] / "docs" / "reference" / "commands.md"
WIDTH = 120
HEAD = """\
# Commands and options

<!-- tools/commands_page.py writes this page from the configuration dataclasses: change their docstrings instead. -->

`fewstep COMMAND --help` prints the first of these in a terminal, `--help-all` all of them. An option that takes several
values takes them one after the other (`--steps 1 2 4`); where it may be given several times, its help says so.
`--guidance-scale` is diffusers' everywhere: 1 means no guidance.
"""


def write_page() -> str:
    """Returns the whole page."""
    parts = [HEAD, *(part for name in COMMANDS for part in _write_command(name))]
    return "\n".join(parts)


def _write_command(name: str) -> Iterator[str]:
    command, config = COMMANDS[name], _make_default(name)
    anchor = name.replace(" ", "-")
    yield f"## fewstep {name}\n"
    yield _wrap(f"{command.help[0].upper()}{command.help[1:]}.") + "\n"
    if name in RECIPES:
        yield from _write_recipes(name, config)
    written: set[str] = set()
    for kind in _list_dataclasses(type(config)):
        if kind is not type(config) and (other := _find_command(kind)):
            yield _write_shared(config, kind, other)
            break
        fresh = [each for each in read_help(kind) if each not in written]
        written |= set(fresh)
        if fresh:
            title = "Options" if kind is type(config) else TITLES.get(kind.__name__, kind.__name__)
            yield f"### {title} {{ #{anchor}-{_slug(title)} }}\n"
            yield from (_write_option(config, each, anchor) for each in fresh)


def _write_shared(config: Any, kind: type, other: str) -> str:
    """Says that a command takes all options of another, and which of their defaults are its own."""
    plain = kind()
    own = [
        f"`{_option(field.name)} {say_value(getattr(config, field.name))}`"
        for field in dataclasses.fields(kind)
        if getattr(config, field.name) != getattr(plain, field.name)
    ]
    text = f"It takes [all options of `fewstep {other}`](#fewstep-{other}) too, with these defaults: {', '.join(own)}."
    return _wrap(text) + "\n"


@functools.cache
def _find_command(kind: type) -> str:
    """Returns the command that has this configuration, if one has."""
    return next((name for name in RECIPES if type(_make_default(name)) is kind), "")


def _write_recipes(name: str, config: Any) -> Iterator[str]:
    yield (
        _wrap(
            "The first word may be a recipe, or the `config.yaml` of an earlier run; its values then are the defaults. "
            "Without one it is the recipe of the model's family. What a recipe sets differently from the defaults:"
        )
        + "\n"
    )
    for recipe, make in RECIPES[name].items():
        made = make()
        own = {
            field.name: say_value(getattr(made, field.name))
            for field in dataclasses.fields(config)
            if getattr(made, field.name) != getattr(config, field.name)
        }
        said = [f"`{_option(each)} {value}`" for each, value in own.items() if value]
        said += [f"no `{_option(each)}`, so give one" for each, value in own.items() if not value]
        yield _wrap(f"- `{recipe}`: {', '.join(said) or 'the defaults'}", "  ")
    yield ""


def _write_option(config: Any, name: str, anchor: str) -> str:
    hint = _read_hints(type(config))[name]
    value, text = getattr(config, name), _mark_up(read_all_help(type(config))[name])
    first, *others = map(_option, spell_out(type(config), name))
    spelled = say_place(name, hint) if is_positional(hint) else f"{first} {say_type(hint)}".strip()
    terms = [f"`{each}`" for each in (spelled, *others, *list_aliases(hint))]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        inner = [f"`{_option(name)}.{each.replace('_', '-')}`" for each in read_all_help(type(value))]
        text += f" Options: {', '.join(inner)}."
    elif said := say_value(value):
        text += f" *Default:* `{said}`."
    body = textwrap.indent(_wrap(text, width=WIDTH - 4), "    ")
    return f"{', '.join(terms)} {{ #{anchor}-{name.replace('_', '-')} }}\n:{body[1:]}\n"


@functools.cache
def _read_hints(kind: type) -> dict[str, Any]:
    return typing.get_type_hints(kind, include_extras=True)


def _mark_up(text: str) -> str:
    """Sets options in code, and links the pages that a help names."""
    parts = text.split("`")
    parts[::2] = [re.sub(r"(?<![\w-])--[a-z][\w-]*", r"`\g<0>`", part).replace("<", "&lt;") for part in parts[::2]]
    return re.sub(r"\bdocs/(\w+)\.md\b", r"[\1](../\1.md)", "`".join(parts))


@functools.cache
def _list_dataclasses(kind: type) -> list[type]:
    return [each for each in kind.__mro__ if dataclasses.is_dataclass(each) and read_help(each)]


@functools.cache
def _make_default(name: str) -> Any:
    """Makes a command's configuration with its defaults."""
    place = COMMANDS[name].config
    if not place:
        return type(next(iter(RECIPES[name].values()))())()
    module, _, found = place.partition(":")
    return getattr(importlib.import_module(f"fewstep.{module}"), found)()


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _slug(title: str) -> str:
    return title.lower().replace(" ", "-")


def _wrap(text: str, indent: str = "", width: int = WIDTH) -> str:
    return textwrap.fill(text, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


if __name__ == "__main__":
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(write_page())
