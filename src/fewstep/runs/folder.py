"""A run folder belongs to one configuration, which it holds in full; the same configuration goes on in it."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import shutil
import subprocess
from pathlib import Path
from typing import Any

import yaml

from fewstep.documents import read_json
from fewstep.errors import UserError
from fewstep.files import remove_abandoned, write_whole
from fewstep.parallel.world import current_world
from fewstep.recipes.plain import MADE_WITH, read_config_file, to_plain
from fewstep.train.config import NOT_THE_RUN

CONFIG_FILE = "config.yaml"


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
        # What an earlier version did not have yet was as it is by default.
        held = {**to_plain(type(config)()), **read_config_file(file)}
        held.pop("change", None)
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
        draft.write_text(yaml.safe_dump({**values, MADE_WITH: made_with()}, sort_keys=False, allow_unicode=True))


def _set_aside(out: Path) -> None:
    """Keeps the configuration and the model of a run that goes on otherwise."""
    number = 1 + len(list(out.glob("config-before-*.yaml")))
    shutil.copyfile(out / CONFIG_FILE, out / f"config-before-{number}.yaml")
    if (out / "model").exists():
        (out / "model").rename(out / f"model-before-{number}")


def finished(out: Path) -> bool:
    """Returns whether the run there has written its model, which it does last and whole; says so."""
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
        held = read_json(file, f"{config.out} does not say which pictures it began with") if file.exists() else {}
        if held and held.get("sha256") != identity and "data" not in config.change:
            raise UserError(
                f"the pictures of {config.data} are not those that {config.out} began with; put them back, choose "
                "another --out, or go on with these: --change data"
            )
        with write_whole(file) as draft:
            draft.write_text(json.dumps({"sha256": identity, "sources": account}, indent=2) + "\n")
    world.wait()


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
