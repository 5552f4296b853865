"""What a name leads to, a run's folder or a model's; and what is read of a model's: files of known names in it, after
links are followed, none of which is code."""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fewstep import assets, documents
from fewstep.documents import load_yaml
from fewstep.errors import UserError
from fewstep.roots import OutsideError, Root

CONFIG_FILE = "config.yaml"
CHECKPOINTS = "checkpoints"
_REPORT = "made_of.json"
"""What an evaluation's folder holds."""


@dataclass(frozen=True)
class RunFolder:
    """The folder of a training, or of an evaluation."""

    folder: Path
    command: str
    """Is `distill`, `finetune`, `train-lora` or `evaluate`."""
    step: int = 0
    """The update of the newest checkpoint; 0 before there is one."""
    steps: int = 0
    ended: bool = True

    @property
    def kind(self) -> str:
        """Names it with its article."""
        return "an evaluation" if self.command == "evaluate" else f"a {self.command} run"

    def describe(self) -> str:
        """Says what it is and, where it has not ended, where it stopped and how it goes on."""
        if self.ended:
            return f"{self.folder} is {self.kind}"
        where = f"at update {self.step} of {self.steps:,}" if self.step else "before its first checkpoint"
        out = shlex.quote(str(self.folder))
        return (
            f"{self.folder} is {self.kind} that stopped {where}; it goes on with: "
            f"fewstep {self.command} {shlex.quote(str(self.folder / CONFIG_FILE))} --out {out}"
        )

    def offer_painting(self) -> str:
        """Says how to paint with it as it is, where it has not ended; empty before its first checkpoint."""
        return f"; paint with it as it is by --model {self.folder}" if self.step and self.makes_few_step else ""

    def describe_as_lora(self) -> str:
        """Says why it holds no LoRA, and what it is good for."""
        if self.command == "evaluate":
            return f"{self.describe()} and holds no LoRA; give the folder of a run that made one"
        if not self.ended:
            return f"{self.describe()}{self.offer_painting()}"
        return f"{self.describe()} and its model is whole, not a LoRA; give it with --model {self.folder}"

    @property
    def makes_few_step(self) -> bool:
        """Tells whether what it makes paints by itself."""
        return self.command in ("distill", "finetune")


def find_run(folder: str | Path) -> RunFolder | None:
    """Returns what a folder is the run of; None where it is of none that this version knows."""
    folder = Path(folder)
    if (folder / _REPORT).is_file():
        return RunFolder(folder, "evaluate")
    try:
        settings = load_yaml(folder / CONFIG_FILE)
    except (OSError, ValueError):
        return None
    command = name_command(settings)
    if command is None:
        return None
    names = (re.fullmatch(r"step-(\d+)", path.name) for path in (folder / CHECKPOINTS).glob("step-*"))
    step = max((int(name[1]) for name in names if name), default=0)
    steps = settings.get("steps")
    return RunFolder(
        folder, command, step, steps if isinstance(steps, int) else 0, ended=(folder / "model").exists()
    )  # fmt: skip


def name_command(settings: Any) -> str | None:
    """Returns the command whose training has these settings, by those that no other has."""
    if not isinstance(settings, dict) or "steps" not in settings:
        return None
    if "teacher" in settings and "skip" in settings:
        return "distill"
    if "model" in settings and "skip" in settings:
        return "finetune"
    return "train-lora" if "model" in settings and "lora_rank" in settings else None


INDEX = "model_index.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
TOKENIZER_FILES = (
    "tokenizer.json", "vocab.json", "merges.txt", TOKENIZER_CONFIG, "special_tokens_map.json", "added_tokens.json",
)  # fmt: skip
CHAT_TEMPLATE = "chat_template.jinja"
SMALL_FILES = frozenset(("config.json", "scheduler_config.json", CHAT_TEMPLATE, *TOKENIZER_FILES))
"""Configurations and vocabularies of the parts of a pipeline; beside them, weights in safetensors alone are read."""
_CODE = ("auto_map", "trust_remote_code", "custom_pipelines", "quantization_config", "use_kernels", "kernel_config")
"""Entries of configurations that have other code fetched or run."""
_OF_TOKENIZER = frozenset(
    (
        "add_bos_token", "add_eos_token", "add_prefix_space", "added_tokens_decoder", "additional_special_tokens",
        "backend", "clean_up_tokenization_spaces", "do_lower_case", "errors", "extra_special_tokens",
        "learnt_captions", "learnt_words", "model_max_length", "padding_side", "tokenizer_class", "truncation_side",
    )
)  # fmt: skip
"""Entries of a tokenizer's configuration that are heeded, with all `…_token`; others name files, or arguments."""


END_FILE = "end.safetensors"
"""What tells a whole model where to land, whose network has no place of its own for that; beside its folders."""


def find_file(folder: Path, name: str) -> Path:
    """Returns where a file of a model's folder lies, or of a part's folder in it.

    Raises UserError where a link leads out of the model's folder, or it is not a regular file; not where it is missing.
    """
    folder = Path(os.path.abspath(folder))
    is_part = (folder.parent / INDEX).is_file()
    root, below = (folder.parent, f"{folder.name}/{name}") if is_part else (folder, name)
    try:
        found = Path(Root(str(root)).resolve(below))
    except OutsideError as error:
        raise UserError(
            f"{folder / name} leads out of the model's folder {root}, which is not followed; put what it leads to there"
        ) from error
    if found.exists() and not found.is_file():
        raise UserError(f"{folder / name} is not a file; fetch the model again")
    return found


def read_json(path: Path, otherwise: str) -> dict[str, Any]:
    """Reads a JSON object of a model's folder. Raises UserError, which begins with `otherwise`, where there is none."""
    return documents.read_json(find_file(path.parent, path.name), otherwise)


MODEL_WANTED = (
    f"give a diffusers folder (with {INDEX}), a run, a single-file .safetensors checkpoint, a Hub id, or "
    f"the name of a bundled model: {' or '.join(assets.MODELS)}"
)


def read_index(folder: Path, source: str | Path) -> dict[str, Any]:
    """Reads the model_index.json of the model that `source` names. Raises UserError where there is none."""
    if not (folder / INDEX).exists():
        if run := find_run(folder):
            raise UserError(f"{run.describe()}; here a whole model is needed: {MODEL_WANTED}")
        raise UserError(f"{source} is not a pipeline: {INDEX} is missing; {MODEL_WANTED}")
    return read_json(folder / INDEX, f"{source} is not a pipeline")


def check_config(config: Mapping[str, Any], where: Path) -> None:
    """Raises UserError where a configuration asks for code of its own, or for networks that are not plain."""
    waiting: list[Any] = [config]
    while waiting:
        value = waiting.pop()
        if isinstance(value, list):
            waiting += value
        if not isinstance(value, dict):
            continue
        waiting += value.values()
        for name, said in value.items():
            fetched = name.endswith("implementation") and "/" in str(said)  # kernels of the Hub are named so
            if (name in _CODE and said) or fetched:
                raise UserError(
                    f"{where} has {name}, which has other code run or other weights read; only plain models of "
                    "diffusers and transformers are"
                )


def check_index(index: Mapping[str, Any], source: str) -> None:
    """Raises UserError where a model_index.json names a class of neither diffusers nor transformers."""
    import diffusers.pipelines

    pipelines = Path(str(diffusers.pipelines.__file__)).parent
    for name, value in index.items():
        library = value[0] if isinstance(value, list) and value else None
        known = library in (None, "diffusers", "transformers")
        if name.startswith("_") or known or _is_pipeline(pipelines, library):
            continue
        raise UserError(
            f"{source} has {name} of {ascii(library)[:80]} in {INDEX}, which is code of its own; only classes of "
            "diffusers and transformers are used"
        )


def _is_pipeline(pipelines: Path, name: Any) -> bool:
    """Says whether diffusers has pipelines of that name, after which it calls their own parts."""
    return isinstance(name, str) and name.isidentifier() and os.path.isdir(pipelines / name)


def stage_tokenizer(folder: Path, place: Path) -> None:
    """Copies what a tokenizer is made of into `place`, with a configuration that names no files. Raises UserError."""
    place.mkdir(parents=True, exist_ok=True)
    for name in TOKENIZER_FILES:
        file = find_file(folder, name)
        if not file.is_file():
            continue
        content = documents.load_bytes(file)
        if name == TOKENIZER_CONFIG:
            content = json.dumps(_clean(documents.parse_json(content), folder / name)).encode()
        (place / name).write_bytes(content)


def _clean(config: Any, where: Path) -> dict[str, Any]:
    if not isinstance(config, dict):
        raise UserError(f"{where} is not a JSON object; fetch the model again")
    check_config(config, where)
    return {name: value for name, value in config.items() if name in _OF_TOKENIZER or name.endswith("_token")}


def stage_configurations(folder: Path, parts: Iterable[str], place: Path) -> None:
    """Copies a pipeline's configurations and tokenizers into `place`, and no weights. Raises UserError."""
    parts = tuple(parts)
    for name in (INDEX, *(f"{part}/{name}" for part in parts for name in ("config.json", "scheduler_config.json"))):
        file = find_file(folder, name)
        if not file.is_file():
            continue
        content = documents.load_json(file)
        check_config(content, folder / name)
        if name == INDEX:
            content = {key: value for key, value in content.items() if key in parts or not isinstance(value, list)}
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_text(json.dumps(content))
    for part in parts:
        if (folder / part).is_dir():
            stage_tokenizer(folder / part, place / part)


def is_hub_id(source: str) -> bool:
    """Says whether a name that is not a path here looks like OWNER/NAME."""
    return source.count("/") == 1 and not source.startswith((".", "/", "~"))


def name_place(source: str) -> str:
    """Returns a path that looks like OWNER/NAME as one that no repository is called, such as `./models/base`."""
    return f"./{source}" if is_hub_id(source) and os.path.exists(source) else source


_LONGEST = 255
"""Bytes of a name on any disk."""


_ALLOW = (
    "name it yourself, or let files name what is fetched with --allow-download; "
    "if it is a path, run this command where the path begins"
)


def check_asked(source: str | None, named_in: object, *, allowed: bool = False, remedy: str = _ALLOW) -> None:
    """Raises UserError where a file names what the person at the terminal neither named nor allowed to be fetched, or
    what nothing is called."""
    if source and any(len(os.fsencode(part)) > _LONGEST for part in Path(source).parts):
        raise UserError(f"{named_in} names {source[:60]}…, which is not a name of a file or of a repository")
    if allowed or not source or os.path.exists(source):
        return
    if "://" not in source and not is_hub_id("/".join(source.split("/")[:2])):  # a LoRA's is OWNER/NAME/FILE
        return
    raise UserError(f"{named_in} names {source}, which is not here and would be fetched; {remedy}")
