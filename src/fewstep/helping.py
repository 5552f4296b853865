"""The help of a command: the options that people need first, or all of them in groups.

An option is a field of a configuration dataclass, and its help the docstring under the field.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import itertools
import shutil
import textwrap
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from fewstep.recipes.given import list_aliases

FIRST: Mapping[str, str] = {
    "demo": "out steps n batch_size seed device",
    "distill": "teacher data out method lora_rank steps batch_size guidance_range guidance_scale dry_run",
    "evaluate": "model lora teacher data out steps n samplers guidance_scale device",
    "generate": "prompt model lora out steps seed count guidance_scale init_image strength",
    "combine": "base lora out merged",
    "export": "model base data out phases guidance_scale lora_rank steps batch_size device",
    "finetune": "model data out lora_rank steps batch_size lr guidance_scale dry_run device",
    "prepare": "model data out resolution buckets trajectories batch_size workers std device",
    "serve": "model lora host port device precision offload engine",
    "train-lora": "model data out lora_rank steps batch_size lr resolution caption_lines device",
}
"""The options that people need first, ten at most, by command; of others all are shown."""
_LONE = {
    "distill": "[RECIPE]", "finetune": "[RECIPE]", "train-lora": "[RECIPE]", "generate": "[PROMPT]",
    "inspect": "[PATH]", "convert": "LORA", "plot": "RUNS …", "publish": "SOURCE REPO",
}  # fmt: skip
"""Words that need no option before them."""
TITLES = {
    "Distill": "Distillation", "ConsistencyConfig": "How it learns", "TrainingConfig": "Training",
    "PictureOptions": "Pictures", "TrajectoryOptions": "Trajectories", "LoopConfig": "The run",
    "Optimisation": "Optimisation", "SingleFileOptions": "Single files", "Overrides": "What a model does not say",
    "DeviceOptions": "Device", "PainterOptions": "Painting", "FewStepOptions": "Few-step model",
    "LoraOptions": "LoRAs", "ExecutorOptions": "Who does the work", "ModelOptions": "Model", "Comparison": "Comparison",
}  # fmt: skip
"""What groups of options are called, by the class that declares them."""
_KINDS = {int: "N", float: "X", str: "TEXT", Path: "PATH", bool: ""}
_FEW = 12
"""Options that are shown all at once."""
_WIDEST = 100
_COLUMN = 24


@functools.cache
def read_help(kind: type) -> dict[str, str]:
    """Returns the docstring under each field that the class itself declares, as one paragraph."""
    (definition,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
    assert isinstance(definition, ast.ClassDef)
    texts = {}
    for field, below in itertools.pairwise([*definition.body, ast.Pass()]):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
            text = below.value.value if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant) else ""
            texts[field.target.id] = " ".join(str(text).split())
    return {name: text for name, text in texts.items() if name in {each.name for each in dataclasses.fields(kind)}}


def read_all_help(kind: type) -> dict[str, str]:
    """Returns the help of all options of a configuration, a base class's where it has none of its own."""
    texts: dict[str, str] = {}
    for each in kind.__mro__:
        if dataclasses.is_dataclass(each):
            texts = {**texts, **{name: text for name, text in read_help(each).items() if name not in texts}}
    return texts


def read_summary(kind: type) -> str:
    """Returns what a configuration is for: its docstring, whose paragraphs are laid out anew for the terminal."""
    width = min(_WIDEST, shutil.get_terminal_size((_WIDEST, 24)).columns)
    paragraphs = inspect.cleandoc(str(kind.__doc__)).split("\n\n")
    return "\n\n".join(textwrap.fill(each, max(width, 30), break_on_hyphens=False) for each in paragraphs)


def write_help(config: Any, program: str, description: str, *, whole: bool) -> str:
    """Returns the help of a command with these defaults: all options, or those that people need first.

    `program` is `fewstep COMMAND`.
    """
    command = program.removeprefix("fewstep ")
    texts = read_all_help(type(config))
    few = [name for name in FIRST.get(command, "").split() if name in texts]
    lone = f"{_LONE[command]} " if command in _LONE else ""
    parts = [f"usage: {program} {lone}[options]", description]
    if whole or not few or len(texts) <= _FEW:
        parts += [
            f"{title}:\n" + "\n".join(_write_option(config, name, texts[name]) for name in names)
            for title, names in list_groups(type(config))
        ]
    else:
        parts.append("The options that people need first:\n" + "\n".join(
            _write_option(config, name, texts[name]) for name in few
        ))  # fmt: skip
        parts.append(f"There are {len(texts) - len(few)} more: {program} --help-all")
    return "\n\n".join(parts)


def list_groups(kind: type) -> Iterator[tuple[str, list[str]]]:
    """Yields the options of a configuration by the class that declares them, its own first."""
    written: set[str] = set()
    for each in kind.__mro__:
        if not dataclasses.is_dataclass(each):
            continue
        if fresh := [name for name in read_help(each) if name not in written]:
            written |= set(fresh)
            yield "Options" if each is kind else TITLES.get(each.__name__, each.__name__), fresh


def _write_option(config: Any, name: str, text: str) -> str:
    """Writes an option with its help beside it, or below where it is long; a group's inner ones after it."""
    hint, value = typing.get_type_hints(type(config), include_extras=True)[name], getattr(config, name)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        inner = ((f"{name}.{each}", read_all_help(type(value))[each]) for each in read_all_help(type(value)))
        return "\n".join([_lay_out(name.replace("_", " "), text), *(_lay_out(spell(n), t) for n, t in inner)])
    names = [spell(each) for each in spell_out(type(config), name)]
    term = say_place(name, hint) if is_positional(hint) else f"{names[0]} {say_type(hint)}".strip()
    said = say_value(value)
    also = [*names[1:], *list_aliases(hint)]
    if also:
        text += f" (also {', '.join(also)})"
    if said:
        text += f" (default: {said})"
    return _lay_out(term, text)


def _lay_out(term: str, text: str) -> str:
    width = min(_WIDEST, shutil.get_terminal_size((_WIDEST, 24)).columns) - _COLUMN
    lines = textwrap.wrap(text, max(width, 30), break_long_words=False, break_on_hyphens=False) or [""]
    indent = " " * _COLUMN
    beside = f"  {term}"
    if len(beside) >= _COLUMN - 1:
        return "\n".join([beside, *(f"{indent}{line}" for line in lines)])
    return "\n".join([f"{beside:<{_COLUMN}}{lines[0]}", *(f"{indent}{line}" for line in lines[1:])])


def spell(name: str) -> str:
    """Returns an option as the command line has it."""
    return f"--{name.replace('_', '-')}"


def spell_out(kind: type, name: str) -> Sequence[str]:
    """Returns the names of an option, the one that people are told first."""
    others = [other for other, meant in getattr(kind, "also_named", {}).items() if meant == name]
    return [*others, name]


def say_place(name: str, hint: Any) -> str:
    """Returns what a word without an option before it is called: the field's name, with … where several may come."""
    return name.upper() + (" …" if say_type(hint).endswith("…") else "")


def is_positional(hint: Any) -> bool:
    """Tells whether a value stands without an option before it."""
    import tyro

    return any(extra is tyro.conf.Positional for extra in typing.get_args(hint)[1:])


def say_type(hint: Any) -> str:
    """Says what follows an option: its choices, or what kind of value."""
    if typing.get_origin(hint) is Annotated:
        hint = typing.get_args(hint)[0]
    origin, items = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return "|".join(map(str, items))
    if origin in (types.UnionType, typing.Union):
        return say_type(next(item for item in items if item is not type(None)))
    if origin is tuple:
        return f"{say_type(items[0])} …" if items[-1] is Ellipsis else " ".join(map(say_type, items))
    return _KINDS.get(hint, "")


def say_value(value: Any) -> str:
    """Says a default; nothing where an option means nothing until it is given."""
    if value is None or value in ("", ()):
        return ""
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, tuple):
        return " ".join(say_value(each) for each in value)
    return f"{value:g}" if isinstance(value, float) else str(value)
