"""Where the file of a `--lora` is: here, in a run folder, in a folder that another tool wrote, or on the Hub."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path, PurePath

from fewstep.errors import UserError
from fewstep.files import has_suffix
from fewstep.models.card import LORA_FILE, split_scale
from fewstep.models.hub import fetch
from fewstep.models.lora.header import PEFT_FILE
from fewstep.models.model_files import find_file, find_run
from fewstep.models.model_places import drop_commit, find_snapshot

_PREFERRED = (LORA_FILE, "adapter_model.safetensors")
"""Is what diffusers and peft call the file of a LoRA."""
_HUB = re.compile(r"(?P<repository>[\w-][\w.-]*/[\w-][\w.-]*)(?:/(?P<file>.+))?")
_NAMELESS = ("model", "pytorch_lora_weights", "adapter_model", "lora-kohya")


def parse_lora(given: str) -> tuple[Path, float]:
    """Reads `WHERE` or `WHERE:SCALE`, and finds or fetches the file: WHERE is one, a folder, or HUB-ID[/FILE]."""
    name, colon, number = given.rpartition(":")
    try:
        scale = float(number) if colon else 1.0
    except ValueError as error:
        if not Path(given).exists() and Path(name).exists():
            raise UserError(
                f"--lora {given} has the scale {number}, which is not a number; give {name}:0.8 or the like"
            ) from error
        name, scale = given, 1.0  # the colon belongs to the name
    if not math.isfinite(scale):
        raise UserError(f"--lora {given} has scale {scale:g}; expected a finite number")
    return _find(name if colon and name else given), scale


def source_of(given: str) -> str:
    """Returns where a LoRA is said to be, without its scale."""
    return split_scale(given)[0]


def name_of(path: PurePath) -> str:
    """Returns what people call a LoRA: its file, its folder where every such file has that name, or its repository."""
    parts = drop_commit(path.with_suffix("")).parts
    named = [part for part in parts if part not in (*_NAMELESS, path.anchor)]
    return named[-1] if named else path.stem


def _find(given: str) -> Path:
    if not given.strip():
        raise UserError("--lora is empty; give a file, a folder or a Hub id")
    path = Path(given)
    if path.is_dir():
        path = find_snapshot(path)
        folder = path / "model" if (path / "model").is_dir() else path  # of a run folder
        names = [file.name for file in folder.glob("*.safetensors")]
        if not names and (run := find_run(path)):
            raise UserError(run.describe_as_lora())
        name = _choose(names, given) if names else LORA_FILE
        find_file(folder, name)  # refuses a link out of it
        return folder / name
    found = _HUB.fullmatch(given)
    is_here = path.exists() or Path(path.parts[0] if path.parts else ".").is_dir()
    if found is None or is_here or (found["file"] is None and path.suffix):
        if not path.exists():
            raise UserError(
                f"{given} does not exist; give a LoRA as .safetensors, the folder of a run that made one, or a Hub id"
            )
        return path
    return _fetch(found["repository"], found["file"])


def _choose(names: Sequence[str], where: str) -> str:
    """Chooses the file of a LoRA among those of a folder. Raises UserError where several could be meant."""
    for name in _PREFERRED:
        if name in names:
            return name
    if len(names) == 1:
        return names[0]
    shown = ", ".join(sorted(names)[:5])
    found = f"{len(names)} .safetensors files ({shown})" if names else "no .safetensors file"
    raise UserError(f"{where} has {found}; name the file, as in {where}/FILE.safetensors")


def _fetch(repository: str, file: str | None) -> Path:
    """Fetches one LoRA of a repository, with what peft keeps beside it. Raises UserError."""
    chosen = file or ""

    def choose(names: Sequence[str]) -> list[str]:
        nonlocal chosen
        whole = [name for name in names if has_suffix(Path(name))]
        chosen = file or _choose([name for name in whole if "/" not in name], repository)
        if chosen not in names:
            raise UserError(
                f"{repository} has no file {chosen}; its .safetensors files are: {', '.join(whole) or 'none'}"
            )
        beside = PurePath(chosen).with_name(PEFT_FILE).as_posix()  # the scale may stand there
        return [chosen, *(name for name in names if name == beside)]

    return fetch(repository, choose) / chosen
