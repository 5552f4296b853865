"""Converts configurations to what YAML can hold, and back."""

from __future__ import annotations

import dataclasses
import types
import typing
from pathlib import Path
from typing import Any, TypeVar

from fewstep.documents import load_yaml
from fewstep.errors import UserError

_NAMES = {
    int: "a whole number", float: "a number", str: "a text", bool: "true or false", Path: "a path, as text",
    types.NoneType: "nothing",
}  # fmt: skip
"""What people call the types of settings."""
MADE_WITH = "made_with"
"""The key under which a run's versions stand beside its configuration."""
T = TypeVar("T")


def read_config_file(file: Path) -> dict[str, Any]:
    """Reads the fields of a configuration that an earlier run wrote. Raises UserError where the file holds none."""
    try:
        values = load_yaml(file)
    except FileNotFoundError as error:
        raise UserError(f"{file} does not exist; give the config.yaml of an earlier run") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read as YAML ({' '.join(str(error).split())[:160]})") from error
    if not isinstance(values, dict):
        raise UserError(f"{file} holds no configuration; give the config.yaml of an earlier run")
    values.pop(MADE_WITH, None)
    return {str(name): value for name, value in values.items()}


def from_file(kind: type[T], file: str) -> T:
    """Reads the configuration of an earlier run from its config.yaml."""
    return from_plain(kind, read_config_file(Path(file)), file)


def to_plain(config: Any) -> dict[str, Any]:
    """Converts a configuration dataclass to what YAML can hold."""

    def plain(value: Any) -> Any:
        if isinstance(value, Path):
            return str(value)
        if isinstance(value, tuple):
            return [plain(each) for each in value]
        if isinstance(value, dict):
            return {name: plain(each) for name, each in value.items()}
        return value

    values: dict[str, Any] = plain(dataclasses.asdict(config))
    return values


def from_plain(kind: type[T], values: dict[str, Any], source: object) -> T:
    """Makes the configuration dataclass `kind` of what `to_plain` returned; missing fields take their defaults.

    Raises UserError, which names `source`, for an unknown field and for a value of another type.
    """
    hints = typing.get_type_hints(kind)
    values = {getattr(kind, "also_named", {}).get(name, name): value for name, value in values.items()}
    unknown = sorted(values.keys() - hints.keys())
    if unknown:
        raise UserError(f"{source} sets {', '.join(unknown)}, which {kind.__name__} does not have")
    return kind(**{name: _convert(hints[name], value, f"{source}: {name}") for name, value in values.items()})


def _convert(wanted: Any, value: Any, what: str) -> Any:
    """Converts a value that YAML gave to the type of its field; YAML reads 1e-4, without a point, as text."""
    if typing.get_origin(wanted) is typing.Literal:
        if value in typing.get_args(wanted):
            return value
        raise UserError(f"{what} is {value!r}; allowed: {', '.join(map(str, typing.get_args(wanted)))}")
    if typing.get_origin(wanted) is tuple:
        items = typing.get_args(wanted)
        if items[-1] is Ellipsis and isinstance(value, list):
            items = items[:1] * len(value)
        if isinstance(value, list) and len(value) == len(items):
            return tuple(_convert(item, each, what) for item, each in zip(items, value, strict=True))
        raise UserError(f"{what} is {value!r}; expected a list of {len(items)}")
    if isinstance(wanted, type) and dataclasses.is_dataclass(wanted) and isinstance(value, dict):
        return from_plain(wanted, value, what)
    if typing.get_origin(wanted) in (types.UnionType, typing.Union):  # of a type with None
        (kind,) = (each for each in typing.get_args(wanted) if each is not type(None))
        return None if value is None else _convert(kind, value, what)
    if wanted is float and not isinstance(value, bool):
        try:
            return float(value)
        except (TypeError, ValueError):
            pass
    elif wanted is Path and isinstance(value, str):
        return Path(value)
    elif type(value) is wanted:
        return value
    raise UserError(f"{what} is {value!r:.80}; expected {_NAMES.get(wanted, 'something else')}")
