"""The parts of a diffusers folder, loaded from safetensors alone, and made sure of."""

from __future__ import annotations

import importlib
import json
import math
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers import PreTrainedModel

from fewstep.documents import load_json
from fewstep.errors import UserError, show
from fewstep.files import read_safetensors, write_whole
from fewstep.models.config_sizes import check_sizes
from fewstep.models.model_files import CHAT_TEMPLATE, TOKENIZER_CONFIG, find_file, read_json, stage_tokenizer
from fewstep.models.weight_files import check_floats, choose_weights, stage_weights

_NAMES_OF_VERSION_5 = {r"^(embeddings|encoder|final_layer_norm)\.": r"text_model.\1."}
"""transformers 5 writes a CLIPTextModel's tensors without the prefix that transformers 4 looks for; itself, it reads
both."""
_NOT_NEEDED = ("position_ids", "text_projection.weight")
"""Ends of the names of tensors that may be left over: numbers 0, 1, 2 … that older versions saved, and a projection
that a text encoder used without it was saved with."""


def load_weights(kind: Any, folder: Path, dtype: torch.dtype = torch.float32, *, shaped: bool = False) -> Any:
    """Loads a network of a class of diffusers or transformers in `dtype`, frozen. Raises UserError naming what does not
    fit. One that is only `shaped`, where that can be, waits for `models.spreading` to fill it."""
    of_transformers = issubclass(kind, PreTrainedModel)
    settings: dict[str, Any] = {"dtype": dtype, "ignore_mismatched_sizes": True}
    if not of_transformers:
        settings = {"torch_dtype": dtype}
    elif _IS_VERSION_4 and kind.__name__.startswith("CLIPText"):
        settings["key_mapping"] = _NAMES_OF_VERSION_5
    chosen = choose_weights((path.name for path in folder.iterdir()), str(folder))
    try:
        with tempfile.TemporaryDirectory() as draft:
            stage_weights(folder, chosen, "model" if of_transformers else "diffusion_pytorch_model", Path(draft))
            check_sizes(kind, Path(draft), folder)
            files = [folder / name for name in chosen.names] if shaped else []  # by names that say what they are
            if files and (waiting := _leave_empty(kind, Path(draft), files, dtype)) is not None:
                waiting.register_to_config(_name_or_path=str(folder))
                _check_norms(waiting, folder)
                return waiting.eval().requires_grad_(False)
            part, report = kind.from_pretrained(
                draft, use_safetensors=True, local_files_only=True, output_loading_info=True, **settings
            )
    except UserError as error:
        raise UserError(str(error).replace(draft, str(folder))) from error
    except Exception as error:  # the libraries raise nearly anything where a configuration is odd
        raise _not_loaded(folder, kind, error) from error
    if of_transformers:
        part.name_or_path = part.config.name_or_path = str(folder)
    else:
        part.register_to_config(_name_or_path=str(folder))
    check_report(report, str(folder), kind.__name__)
    _check_norms(part, folder)
    for name in chosen.names:
        check_floats(folder / name)
    return part.eval().requires_grad_(False)


def _leave_empty(kind: Any, staged: Path, files: Sequence[Path], dtype: torch.dtype) -> Any | None:
    # imported only where a run spreads its network
    return importlib.import_module("fewstep.models.spreading").shape_network(kind, staged, files, dtype)


_IS_VERSION_4 = int(transformers.__version__.split(".")[0]) < 5


def _check_norms(network: nn.Module, folder: Path) -> None:
    """Raises UserError for norms whose least deviation is not a number, which would be found out as they compute."""
    for module in network.modules():
        eps = getattr(module, "eps", 0) if isinstance(module, nn.LayerNorm | nn.GroupNorm) else 0
        eps = getattr(module, "variance_epsilon", eps)  # as transformers' own norms call it
        if type(eps) not in (int, float) or not 0 <= eps < math.inf:
            raise UserError(f"{folder}/config.json has norms with an eps of {eps!r:.60}; expected a small number")


def put(part: Any, device: torch.device) -> Any:
    """Puts a part on a device, unless it waits to be filled."""
    return part if any(value.is_meta for value in part.parameters()) else part.to(device)


def check_report(report: Mapping[str, Any], where: str, kind: str) -> None:
    """Raises UserError where a library's loading report says that weights and network are not of each other."""
    left = [name for name in report["unexpected_keys"] if not name.endswith(_NOT_NEEDED)]
    mismatched = [_mismatch(each) for each in report["mismatched_keys"]]
    said = [
        f"{what} {_listed(names)}"
        for what, names in (
            ("it lacks", report["missing_keys"]), ("it has left over", left), ("of another shape are", mismatched),
            ("", report["error_msgs"]),
        )
        if names
    ]  # fmt: skip
    if said:
        raise UserError(
            f"{where} does not hold the weights of the {kind} that its config.json describes: {'; '.join(said)}; fetch "
            "or export the model again"
        )


def _listed(names: Iterable[Any], most: int = 3) -> str:
    names = sorted(" ".join(str(name).split()) for name in names)
    if len(names) <= most:
        return f"{', '.join(names)}"
    return f"{len(names)} tensors, such as {', '.join(names[:most])}"


def _mismatch(found: Any) -> str:
    if isinstance(found, str):  # transformers 4 gives names alone
        return found
    name, held, wanted = found
    return f"{name} {_write_size(held)} for {_write_size(wanted)}"


def _write_size(size: Any) -> str:
    return "×".join(map(str, size)) or "1"


def load_tokenizer(kind: Any, folder: Path) -> Any:
    """Loads a tokenizer of a class of transformers. Raises UserError where it is none, or holds no vocabulary."""
    _check_vocabulary(folder)
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        if (folder / name).is_file():
            _check_names(folder / name)
    try:
        with tempfile.TemporaryDirectory() as draft:
            place = Path(draft)
            stage_tokenizer(folder, place)
            if _IS_VERSION_4:
                write_vocabulary(place)
            tokenizer = kind.from_pretrained(place, local_files_only=True)
            tokenizer.name_or_path = str(folder)
            return tokenizer
    except UserError:
        raise
    except Exception as error:  # tokenizers raises bare Exception for a broken file
        raise _not_loaded(folder, kind, error) from error


def keep_chat_template(tokenizer: Any, folder: Path) -> None:
    """Has a tokenizer write out again how its folder puts a conversation, which is code that is not run here."""
    config = folder / TOKENIZER_CONFIG
    said = read_json(config, f"{folder} is not a tokenizer").get("chat_template") if config.is_file() else None
    if (file := find_file(folder, CHAT_TEMPLATE)).is_file():
        try:
            said = file.read_text("utf-8")
        except ValueError as error:
            raise UserError(f"{file} is not text in UTF-8; fetch or export the model again") from error
    if isinstance(said, str):
        tokenizer.chat_template = said


def _check_vocabulary(folder: Path) -> None:
    """Raises UserError where a folder lacks what its tokenizer would then be empty without."""
    if (folder / "tokenizer.json").is_file():
        return
    for name in ("vocab.json", "merges.txt"):
        if not (folder / name).is_file():
            raise UserError(
                f"{folder} has no tokenizer.json and no {name}, so it has no vocabulary; fetch the model again"
            )


def _check_names(file: Path) -> None:
    """Raises UserError where a name in a file would be printed by tokenizers, which does not know it, and moves the
    terminal's cursor."""
    waiting: list[Any] = [read_json(file, f"{file.parent} is not a tokenizer")]
    while waiting:
        each = waiting.pop()
        waiting += [*each.values()] if isinstance(each, dict) else each if isinstance(each, list) else []
        if isinstance(each, dict) and (odd := next((name for name in each if show(name) != name), None)):
            raise UserError(f"{file} has an entry {odd!r:.60}, which is not a name; fetch the model again")


def check_tokenizer(tokenizer: Any, encoder_config: Any, where: str) -> None:
    """Raises UserError where a tokenizer's words or lengths are not those of its text encoder."""
    words, known = len(tokenizer), int(encoder_config.vocab_size)
    spare = _SPARE if known < _LARGE else 8 * _SPARE
    if words > known or words <= known - spare:
        raise UserError(
            f"{where} has {words} tokens and its text encoder knows {known}; give the tokenizer that the text encoder "
            "was trained with"
        )
    if tokenizer.pad_token_id is None:
        raise UserError(f"{where} names no pad_token; set it in tokenizer_config.json to the one it was trained with")
    length = tokenizer.model_max_length
    if not str(encoder_config.model_type).startswith("clip"):
        if not isinstance(length, int | float):
            raise UserError(f"{where} has model_max_length {length!r:.60} in tokenizer_config.json; expected a number")
        return  # others read as much as they are given, which their families say
    places = int(encoder_config.max_position_embeddings)
    if type(length) is not int:
        raise UserError(f"{where} has model_max_length {length!r:.60} in tokenizer_config.json; set it to {places}")
    if length > places:
        said = f"reads up to {length} tokens" if length < 10**9 else "says no model_max_length in tokenizer_config.json"
        raise UserError(f"{where} {said} and its text encoder has {places} places; set model_max_length to {places}")
    if length < 3:
        raise UserError(f"{where} reads up to {length} tokens; a prompt has two beside its own")


_LARGE = 100_000
"""Tokens from which on a table is a language model's, rounded up to more."""
_SPARE = 128
"""Fewer rows than this a text encoder may have without a token: tables are rounded up, and tokens taken out again."""


def write_for_every_version(folder: Path, encoders: Iterable[str]) -> None:
    """Writes the text encoders and tokenizers of a pipeline once more, so that transformers 4 and 5 both read them."""
    for place in (folder / encoder for encoder in encoders if _is_clip(folder / encoder)):
        for file in sorted(place.glob("*.safetensors")):
            tensors = {_name_in_full(name): value for name, value in read_safetensors(file).items()}
            _write(file, tensors)
        for file in sorted(place.glob("*.safetensors.index.json")):
            index = json.loads(file.read_text())
            index["weight_map"] = {_name_in_full(name): shard for name, shard in index["weight_map"].items()}
            file.write_text(json.dumps(index, indent=2))
    for place in sorted(folder.glob("tokenizer*/")):
        write_vocabulary(place)


def _is_clip(folder: Path) -> bool:
    return str(load_json(folder / "config.json").get("model_type")).startswith("clip")


def _write(file: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    from safetensors.torch import save_file

    with write_whole(file) as draft:
        save_file(dict(tensors), draft, metadata={"format": "pt"})


def _name_in_full(name: str) -> str:
    return name if name.startswith(("text_model.", "text_projection.")) else f"text_model.{name}"


def write_vocabulary(folder: Path) -> None:
    """Writes vocab.json and merges.txt, where transformers 4 looks, from tokenizer.json, if that is all there is."""
    whole = folder / "tokenizer.json"
    if (
        not whole.is_file()
        or load_json(whole)["model"]["type"] != "BPE"
        or ((folder / "vocab.json").is_file() and (folder / "merges.txt").is_file())
    ):
        return
    model = load_json(whole)["model"]
    (folder / "vocab.json").write_text(json.dumps(model["vocab"], ensure_ascii=False))
    lines = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{line}\n" for line in lines))


def _not_loaded(folder: Path, kind: type, error: Exception) -> UserError:
    told = " ".join(str(error).split()).partition(" If you want to instead")[0]  # what a caller of diffusers may do
    reason = told[:200].rstrip(".") or type(error).__name__
    return UserError(f"{folder} cannot be loaded as {kind.__name__}: {reason}; fetch or export the model again")
