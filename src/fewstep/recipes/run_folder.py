"""A run folder belongs to one configuration, which it holds in full; the same configuration goes on in it."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import platform
import shutil
import subprocess
import types
import typing
from pathlib import Path
from typing import Any, TypeVar

import yaml

from fewstep.errors import UserError
from fewstep.files import remove_abandoned, write_whole
from fewstep.train.config import NOT_THE_RUN
from fewstep.train.world import current_world

CONFIG_FILE = "config.yaml"
_MADE_WITH = "made_with"
T = TypeVar("T")


def claim_run_folder(out: Path, config: Any) -> None:
    """Writes the resolved `config` into `out`, or checks that it is the one already there.

    Raises UserError when the folder holds something else, naming each field that differs, but for those that
    `config.change` names: with these the run goes on, and what it was and gave before is kept under other names.
    """
    world = current_world()
    if world.main:
        _claim(out, config)
    world.wait()


def _claim(out: Path, config: Any) -> None:
    file = out / CONFIG_FILE
    wanted = to_plain(config)
    changing = wanted.pop("change", ())
    if file.exists():
        held = read_config_file(file)
        names = sorted((held.keys() | wanted.keys()) - set(NOT_THE_RUN))
        different = [name for name in names if held.get(name) != wanted.get(name)]
        refused = [name for name in different if name not in changing]
        if refused:
            said = "; ".join(f"{name} is {held.get(name)} there and {wanted.get(name)} here" for name in refused)
            raise UserError(
                f"{out} already holds another run: {said}; choose another --out, or those settings, or go on with the "
                f"new ones: --change {' '.join(refused)}"
            )
        remove_abandoned(out)
        if different:
            _set_aside(out)
            _write(file, wanted)
        return
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} is not empty and holds no run of fewstep; choose another --out")
    try:
        _write(file, wanted)
    except OSError as error:
        raise UserError(f"{out} cannot be written ({error.strerror}); choose another --out") from error


def _write(file: Path, values: dict[str, Any]) -> None:
    with write_whole(file) as draft:
        draft.write_text(yaml.safe_dump({**values, _MADE_WITH: made_with()}, sort_keys=False, allow_unicode=True))


def _set_aside(out: Path) -> None:
    """The configuration and the model of a run that goes on otherwise."""
    number = 1 + len(list(out.glob("config-before-*.yaml")))
    shutil.copyfile(out / CONFIG_FILE, out / f"config-before-{number}.yaml")
    if (out / "model").exists():
        (out / "model").rename(out / f"model-before-{number}")


def finished(out: Path) -> bool:
    """Whether the run there has written its model, which it does last and whole; says so."""
    done = (out / "model").exists()
    if done:
        print(f"{out} is finished: its model is {out / 'model'}; give another --out to train again", flush=True)
    return done


def claim_data(config: Any, account: dict[str, Any], identity: str) -> None:
    """Writes what became of the pictures of each source into `data.json`, or checks that they are those of the run.

    Raises UserError where they are not, or not the same in every process: what stands where would be another order.
    """
    world = current_world()
    if len(set(world.gather(identity))) > 1:
        raise UserError("the processes do not see the same pictures; begin when all of them are there")
    file = config.out / "data.json"
    if world.main:
        held = json.loads(file.read_text()) if file.exists() else {}
        if held and held["sha256"] != identity and "data" not in config.change:
            raise UserError(
                f"the pictures of {config.data} are not those that {config.out} began with; put them back, choose "
                "another --out, or go on with these: --change data"
            )
        with write_whole(file) as draft:
            draft.write_text(json.dumps({"sha256": identity, "sources": account}, indent=2) + "\n")
    world.wait()


def read_config_file(file: Path) -> dict[str, Any]:
    """The fields of a run's configuration as an earlier run wrote them."""
    try:
        values = yaml.safe_load(file.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{file} cannot be read as YAML ({' '.join(str(error).split())[:120]})") from error
    if not isinstance(values, dict):
        raise UserError(f"{file} holds no configuration; give the config.yaml of an earlier run")
    values.pop(_MADE_WITH, None)
    return {str(name): value for name, value in values.items()}


def from_file(kind: type[T], file: str) -> T:
    """The configuration of an earlier run, from its config.yaml."""
    return from_plain(kind, read_config_file(Path(file)), file)


def to_plain(config: Any) -> dict[str, Any]:
    """A configuration dataclass as what YAML can hold."""

    def plain(value: Any) -> Any:
        if isinstance(value, Path):
            return str(value)
        if isinstance(value, tuple):
            return [plain(each) for each in value]
        if isinstance(value, dict):
            return {name: plain(each) for name, each in value.items()}
        return value

    return plain(dataclasses.asdict(config))  # type: ignore[no-any-return]


def from_plain(kind: type[T], values: dict[str, Any], source: object) -> T:
    """The flat configuration dataclass `kind` that `to_plain` was given; fields left out have their defaults."""
    hints = typing.get_type_hints(kind)
    unknown = sorted(values.keys() - hints.keys())
    if unknown:
        raise UserError(f"{source} sets {', '.join(unknown)}, which {kind.__name__} does not have")
    return kind(**{name: _typed(hints[name], value, f"{source}: {name}") for name, value in values.items()})


def _typed(wanted: Any, value: Any, what: str) -> Any:
    """`value` as YAML gave it, as the type of its field; YAML reads 1e-4, without a point, as text."""
    if typing.get_origin(wanted) is typing.Literal:
        if value in typing.get_args(wanted):
            return value
        raise UserError(f"{what} is {value!r}; allowed are {', '.join(map(str, typing.get_args(wanted)))}")
    if typing.get_origin(wanted) is tuple:
        items = typing.get_args(wanted)
        if items[-1] is Ellipsis and isinstance(value, list):
            items = items[:1] * len(value)
        if isinstance(value, list) and len(value) == len(items):
            return tuple(_typed(item, each, what) for item, each in zip(items, value, strict=True))
        raise UserError(f"{what} is {value!r}; wanted is a list of {len(items)}")
    if isinstance(wanted, type) and dataclasses.is_dataclass(wanted) and isinstance(value, dict):
        return from_plain(wanted, value, what)
    if isinstance(wanted, types.UnionType):  # of a type with None
        (kind,) = (each for each in typing.get_args(wanted) if each is not type(None))
        return None if value is None else _typed(kind, value, what)
    if wanted is float and not isinstance(value, bool):
        try:
            return float(value)
        except (TypeError, ValueError):
            pass
    elif wanted is Path and isinstance(value, str):
        return Path(value)
    elif type(value) is wanted:
        return value
    raise UserError(f"{what} is {value!r}; wanted is one {wanted.__name__}")


def made_with() -> dict[str, str]:
    """Versions of what a run depends on, and the commit when fewstep runs from a checkout."""
    versions = {name: importlib.metadata.version(name) for name in ("fewstep", "torch", "diffusers", "transformers")}
    versions["python"] = platform.python_version()
    if shutil.which("git") is None:
        return versions
    here = Path(__file__).parent
    found = subprocess.run(["git", "-C", here, "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    inside = subprocess.run(["git", "-C", here, "ls-files", __file__], capture_output=True, text=True, check=False)
    if found.returncode == 0 and inside.stdout:
        versions["commit"] = found.stdout.strip()
    return versions
