"""Reads a command's options from the command line, and writes their help.

An option is a field of a configuration dataclass, and its help the docstring under the field.
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import difflib
import inspect
import io
import itertools
import re
import textwrap
import typing
from collections.abc import Callable
from typing import Annotated, Any

from fewstep.errors import UserError

if typing.TYPE_CHECKING:
    from tyro.constructors import StructConstructorSpec, StructFieldSpec, StructTypeInfo

_FIRST = ("path", "recipe", "prompt", "model", "teacher", "base", "lora", "base_config", "data", "out")
"""Options that stand first in every command's help: what it reads and writes."""
_UNSET = ("", "''", "None")
"""Defaults, as tyro prints them, of options that mean nothing until they are given."""


def parse_arguments(
    default: Any, arguments: list[str], program: str, recipe: str = "", description: str | None = None
) -> Any:  # fmt: skip
    """Returns `default` with the options of the command line. Raises UserError of one line for any mistake."""
    import tyro

    registry = tyro.constructors.ConstructorRegistry()
    registry.struct_rule(list_options)
    box = io.StringIO()
    try:
        with contextlib.redirect_stderr(box):
            return tyro.cli(
                type(default), default=default, args=arguments, prog=program + recipe, description=description,
                registry=registry,
            )  # fmt: skip
    except SystemExit as stop:
        if not stop.code:  # --help
            raise
    message = _one_line(box.getvalue())
    unknown = re.search(r"Unrecognized options: (\S+?)(?:,|$|\s)", message)
    if unknown and unknown[1].startswith("-"):
        options = [f"--{field.name.replace('_', '-')}" for field in dataclasses.fields(default)]
        given = unknown[1].split("=")[0].replace("_", "-")
        raise UserError(f"{given} is not an option of `{program}`{suggest_nearest(given, options)}")
    raise UserError(f"{message}; `{program} --help` lists the options")


def find_option(arguments: list[str], name: str) -> str:
    """Returns what the command line gives an option, before anything is parsed; empty where it does not.

    The recipe, whose values are the defaults of all others, depends on it.
    """
    value = ""
    for word, after in itertools.zip_longest(arguments, arguments[1:], fillvalue=""):
        option, equals, given = word.partition("=")
        if option.replace("_", "-") == f"--{name}":
            value = given if equals else after
    return value


def suggest_nearest(given: str, known: list[str]) -> str:
    """Returns `; did you mean …?` for a word that is nearly one of those known, else nothing."""
    close = difflib.get_close_matches(given, known, n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else ""


def list_options(info: StructTypeInfo) -> StructConstructorSpec | None:
    """Lists a dataclass's options for tyro: what it reads and writes, then its own, then those of its base classes.

    tyro itself would begin with the base classes, and break a docstring's lines where its source does.
    """
    from tyro.constructors import StructConstructorSpec

    if not dataclasses.is_dataclass(info.type) or not dataclasses.is_dataclass(info.default):
        return None
    hints = typing.get_type_hints(info.type, include_extras=True)
    texts: dict[str, str] = {}
    for kind in info.type.__mro__:
        if dataclasses.is_dataclass(kind):
            texts = {**texts, **{name: text for name, text in read_help(kind).items() if name not in texts}}
    names = sorted(texts, key=lambda name: _FIRST.index(name) if name in _FIRST else len(_FIRST))
    options = tuple(_option(name, hints[name], getattr(info.default, name), texts[name]) for name in names)
    return StructConstructorSpec(instantiate=typing.cast(Callable[..., Any], info.type), fields=options)


def read_help(kind: type) -> dict[str, str]:
    """Returns the docstring under each field that the class itself declares, as one paragraph."""
    (definition,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
    assert isinstance(definition, ast.ClassDef)
    texts = {}
    for field, below in itertools.pairwise([*definition.body, ast.Pass()]):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
            text = below.value.value if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant) else ""
            texts[field.target.id] = " ".join(str(text).split())
    return texts


def _option(name: str, hint: Any, default: Any, text: str) -> StructFieldSpec:
    import tyro

    hint = Annotated[hint, tyro.conf.arg(help_behavior_hint=_default_note)]
    kinds = [kind for kind in typing.get_args(typing.get_args(hint)[0]) if kind is not type(None)]
    if default is None and len(kinds) == 1:  # tyro would print that None too
        choices = ("True", "False") if kinds[0] is bool else typing.get_args(kinds[0])
        metavar = f"{{{','.join(map(str, choices))}}}" if choices else kinds[0].__name__.upper()
        hint = Annotated[hint, tyro.conf.arg(metavar=metavar)]
    return tyro.constructors.StructFieldSpec(name=name, type=hint, default=default, helptext=text)


def _default_note(default: str) -> str:
    return "" if default in _UNSET else f"(default: {default})"


def _one_line(box: str) -> str:
    """Returns tyro's boxed message as one line: what stands between its title and its hints."""
    lines = [line.strip(" │|╭╮╰╯├┤─-") for line in box.splitlines()]
    lines = [line for line in lines if line][1:]
    hints = ("Perhaps you meant", "Argument helptext", "For full helptext", "Similar arguments")
    end = next((i for i, line in enumerate(lines) if line.startswith(hints)), len(lines))
    return _in_words(" ".join(lines[:end])).rstrip(".") or "these options cannot be read"


def _in_words(line: str) -> str:
    """Returns Python's words for a bad number, which tyro hands on, as people's."""
    line = re.sub(r"Error parsing (\S+?/)?(--[\w-]+): ", r"\2: ", line)
    line = re.sub(r"no type matching .*<class '\w+'>: ", "", line)
    line = re.sub(r"invalid literal for int\(\) with base 10: ('.*?')", r"\1 is not a whole number", line)
    return re.sub(r"could not convert string to float: ('.*?')", r"\1 is not a number", line)
