"""A run folder belongs to one configuration, which it holds in full; the same configuration goes on in it."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import shutil
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

from fewstep.documents import load_json, read_json
from fewstep.errors import UserError
from fewstep.files import is_vacant, remove_abandoned, write_whole
from fewstep.method.named import METHODS
from fewstep.models.card import StudentCard
from fewstep.models.model_files import CONFIG_FILE, find_run, name_command
from fewstep.parallel.world import current_world
from fewstep.recipes.plain import MADE_WITH, read_config_file, to_plain
from fewstep.train.config import NOT_THE_RUN

BASE_FILE = "base.json"
_FIXED = ("lora_rank", "optimizer")
"""Settings on which the shapes in a checkpoint depend, so that a run keeps them."""


def refuse_others(out: Path) -> None:
    """Raises UserError where a folder is there that has something in it, and no run.

    The main process looks: to another, which may come late, what the main one has begun to write would be another's.
    """
    if not current_world().main:
        return
    if not (out / CONFIG_FILE).exists() and not is_vacant(out):
        run = find_run(out)
        holds = "is not empty and holds no run of fewstep" if run is None else f"is {run.kind}"
        raise UserError(f"{out} {holds}; choose another --out")


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
        read = read_config_file(file)
        _check_kind(out, read, wanted)
        held = {**to_plain(type(config)()), **read}
        held.pop("change", None)
        for each in (held, wanted):
            _name_values(each)
        names = sorted((held.keys() | wanted.keys()) - set(NOT_THE_RUN))
        different = [name for name in names if held.get(name) != wanted.get(name)]
        refused = [name for name in different if name not in changing]
        if kept := [name for name in different if _is_kept(name, held, wanted)]:
            said = "; ".join(f"{name} is {held.get(name)} there and {wanted.get(name)} here" for name in kept)
            raise UserError(
                f"{out} already holds another run, and what it has learnt fits no other: {said}; choose another --out, "
                f"or give {'them' if len(kept) > 1 else 'it'} as there"
            )
        if refused:
            said = "; ".join(f"{name} is {held.get(name)} there and {wanted.get(name)} here" for name in refused)
            raise UserError(
                f"{out} already holds another run: {said}; choose another --out, or those settings, or go on with the "
                f"new ones: --change {' '.join(refused)}"
            )
        if _list_helpers(held) != _list_helpers(wanted):
            raise UserError(
                f"{out} has checkpoints of a run with {_list_helpers(held)} and this is one with "
                f"{_list_helpers(wanted)}; choose another --out"
            )
        remove_abandoned(out)
        if different:
            _set_aside(out)
            _write(file, wanted)
        return
    refuse_others(out)
    try:
        _write(file, wanted)
    except OSError as error:
        raise UserError(f"{out} cannot be written ({error.strerror}); fix that, or choose another --out") from error


def _check_kind(out: Path, said: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Raises UserError where a folder is of a run of another command."""
    there, here = name_command(dict(said)), name_command(dict(wanted))
    if there and here and there != here:
        raise UserError(f"{out} is a {there} run, and this is `fewstep {here}`; choose another --out")


def _is_kept(name: str, held: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    """Tells whether a setting in which two runs differ is one that a run cannot change: what it has kept would not
    fit."""
    one, other = held.get(name), wanted.get(name)
    if name in ("ema_decay", "target_decay"):  # there is an average, or none
        return bool(one) != bool(other)
    if name == "method":
        methods = [METHODS.get(str(each)) for each in (one, other)]
        return len({each.told_end for each in methods if each is not None}) > 1
    return name in _FIXED


def _list_helpers(settings: Mapping[str, Any]) -> str:
    """Names what learns beside the student, which can neither join a run nor leave it."""
    named = METHODS.get(str(settings.get("method")))
    beside = {"a fake score": named is not None and named.states == "own", "heads": bool(settings.get("adversarial"))}
    return " and ".join(name for name, learns in beside.items() if learns) or "a student alone"


def _name_values(settings: dict[str, Any]) -> None:
    """Puts what `auto` stands for in its place: runs of earlier versions have it named."""
    named = METHODS.get(str(settings.get("method")))
    if named is not None and "distance" in settings:
        settings["distance"] = named.choose_distance(str(settings["distance"]))
        settings["loss_weight"] = named.choose_weight(str(settings["loss_weight"]))


def _write(file: Path, values: dict[str, Any]) -> None:
    with write_whole(file) as draft:
        draft.write_text(yaml.safe_dump({**values, MADE_WITH: list_versions()}, sort_keys=False, allow_unicode=True))


def _set_aside(out: Path) -> None:
    """Keeps the configuration and the model of a run that goes on otherwise."""
    number = 1 + len(list(out.glob("config-before-*.yaml")))
    with write_whole(out / f"config-before-{number}.yaml") as draft:
        shutil.copyfile(out / CONFIG_FILE, draft)
    if (out / "model").exists():
        (out / "model").rename(out / f"model-before-{number}")


def tell_finished(out: Path) -> bool:
    """Returns whether the run there has written its model, which it does last and whole; says so."""
    done = (out / "model").exists()
    if done:
        print(f"{out} is finished: its model is {out / 'model'}; give another --out to train again", flush=True)
    return done


def claim_data(config: Any, account: dict[str, Any], identity: str) -> Callable[[int], None]:
    """Writes what became of the pictures of each source into `data.json`, or checks that they are those of the run.

    Returns what writes it again where it was deleted meanwhile, to be called after every update. Raises UserError where
    the pictures are others, or not the same in every process: what stands where would be another order.
    """
    world = current_world()
    if len(set(world.gather(identity))) > 1:
        raise UserError("the processes do not see the same pictures; begin when all of them are there")
    file = config.out / "data.json"

    def write() -> None:
        with write_whole(file) as draft:
            draft.write_text(json.dumps({"sha256": identity, "sources": account}, indent=2) + "\n")

    def keep(step: int) -> None:
        due = step % config.checkpoint_every == 0 or step == config.steps
        if due and world.main and not file.exists():
            write()

    if world.main:
        held = _read_identity(file)
        if held is None and any((config.out / "checkpoints").glob("step-*")):
            print(f"note: {file} is gone; the pictures are taken for those that the run began with", flush=True)
        if held not in (None, identity) and "data" not in config.change:
            raise UserError(
                f"the pictures of {config.data} are not those that {config.out} began with; put them back, choose "
                "another --out, or go on with these: --change data"
            )
        write()
    world.wait()
    return keep


def _read_identity(file: Path) -> str | None:
    """Returns the hash of a run's pictures; None where it is not there. Raises UserError for another kind of file."""
    try:
        return str(load_json(file)["sha256"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{file} is not what a run wrote there; delete it, and it is written again") from error


def claim_base(config: Any, card: StudentCard) -> None:
    """Writes the hash of the base's weights into the run folder, or checks that it is the one already there; and by
    which method a student was made that goes on by another.

    Raises UserError where it is another, unless `config.change` says that the base may change.
    """
    world = current_world()
    if world.main:
        file, option = config.out / BASE_FILE, "teacher" if hasattr(config, "teacher") else "model"
        said = read_json(file, f"{config.out} does not say which base it began with") if file.exists() else {}
        _check_followed(config, card, said)
        held = said.get("sha256", card.teacher_sha256)
        if held != card.teacher_sha256 and option not in config.change:
            raise UserError(
                f"the weights of {card.teacher} are not those that {config.out} began with; put them back, choose "
                f"another --out, or go on with these: --change {option}"
            )
        with write_whole(file) as draft:
            began = {"consistency": card.consistency} if card.refined_by else {}
            # What is not in the configuration was that of a model that goes on, or the method's.
            phases = {"phases": list(card.phases)} if card.phases and not config.phases else {}
            followed = {} if card.followed_sha256 is None else {"followed_sha256": card.followed_sha256}
            taught = {} if card.learnt_words is None else {"learnt_words": list(card.learnt_words)}
            said = {"base": card.teacher, "sha256": card.teacher_sha256, **began, **phases, **followed, **taught}
            draft.write_text(json.dumps(said, indent=2) + "\n")
    world.wait()


def _check_followed(config: Any, card: StudentCard, said: dict[str, Any]) -> None:
    """Raises UserError where a run follows a student that is another now, unless `config.change` says that it may."""
    held = said.get("followed_sha256", card.followed_sha256)
    if held != card.followed_sha256 and not {"start", "follow"} & set(config.change):
        option = "follow" if config.follow else "start"
        raise UserError(
            f"the weights of {card.followed} are not those that {config.out} began with; put them back, choose another "
            f"--out, or go on with these: --change {option}"
        )


def list_versions() -> dict[str, str]:
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
