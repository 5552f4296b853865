"""What is read of a model's folder: files of known names in it, after links are followed, none of which is code."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from fewstep import assets, documents
from fewstep.errors import UserError
from fewstep.models.run_folder import find_run
from fewstep.roots import OutsideError, Root

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


def find_exported(source: str | Path) -> str | Path:
    """Returns the model of a run folder, and anything else as it is."""
    exported = Path(source) / "model"
    return exported if exported.is_dir() and not (Path(source) / INDEX).exists() else source


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
