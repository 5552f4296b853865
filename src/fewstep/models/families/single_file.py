"""Single-file checkpoints (`.safetensors` in the layout of Stability's own code), read through diffusers."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fewstep.errors import UserError
from fewstep.files import SafetensorsHeader
from fewstep.models.families import list_families
from fewstep.models.family import Family
from fewstep.models.hub import fetch_configurations
from fewstep.models.model_files import check_index, read_index, read_json, stage_configurations
from fewstep.models.model_places import find_snapshot

logger = logging.getLogger(__name__)

NETWORK, AUTOENCODER = "model.diffusion_model.", "first_stage_model."
_AVERAGED = "model_ema."
"""Before the averaged weights of a training that kept both, whose names have no dots."""
_SPEC_PREDICTIONS = {"v": "v_prediction", "v_prediction": "v_prediction", "epsilon": "epsilon", "eps": "epsilon"}

MARKS: Mapping[str, Mapping[str, Any]] = {
    "v_pred": {"prediction_type": "v_prediction"},
    "ztsnr": {"rescale_betas_zero_snr": True},
}
"""What tensors that are no weights say by their names alone, as a scheduler's configuration says it."""


def check_keys(family: Family, keys: Sequence[str], path: Path) -> None:
    """Raises UserError where a file lacks the network or the autoencoder."""
    missing = [part for part in (NETWORK, AUTOENCODER) if not any(key.startswith(part) for key in keys)]
    if missing:
        raise UserError(f"{path} is no whole {family.title} model: no tensor begins with {missing[0]}")


def find_configurations(family: Family, base_config: str, header: SafetensorsHeader, path: Path) -> Path:
    """Returns the folder with a file's configurations and tokenizers: `base_config`, or the Hub's for what diffusers
    takes the file for. Raises UserError where it is not there, or another family's."""
    folder = find_snapshot(Path(base_config)) if base_config else _fetch_by_kind(family, header, path)
    part = family.lora.part
    config = read_json(
        folder / part / "config.json",
        f"--base-config {folder} has no readable {part}/config.json, as the folder of a diffusers pipeline has",
    )
    check_index(read_index(folder, folder), str(folder))
    if not family.recognises(config):
        other = next((each.title for each in list_families() if each.recognises(config)), "of no family known here")
        raise UserError(f"{path} is {family.title} and --base-config {folder} is {other}")
    return folder


def _fetch_by_kind(family: Family, header: SafetensorsHeader, path: Path) -> Path:
    from diffusers.loaders.single_file_utils import fetch_diffusers_config

    shaped = {name: torch.empty(shape, device="meta") for name, shape in header.shapes.items()}
    try:
        source = str(fetch_diffusers_config(shaped)["pretrained_model_name_or_path"])
        return fetch_configurations(source, family.parts)
    except (UserError, KeyError, ValueError) as error:
        raise UserError(
            f"{path} holds no configurations and tokenizers, and those that it needs are not here ({error}); without a "
            "connection give --base-config, the folder of any diffusers pipeline of this family"
        ) from error


def check_tensors(path: Path, family: Family, keys: Iterable[str], wanted: Mapping[str, Collection[str]]) -> None:
    """Raises UserError where a file lacks tensors of a part, or has some of it left over; both are named.

    `wanted` are the names that the file should hold, by how those of the part begin.
    """
    keys = set(keys)
    for begin, names in wanted.items():
        missing = sorted(name for name in names if begin + name not in keys)
        held = {key.removeprefix(begin) for key in keys if key.startswith(begin)}
        left = sorted(name for name in held.difference(names) if not _is_harmless(name, names))
        for what, found in (("lacks", missing), ("has left over", left)):
            if found:
                some = ", ".join(f"{begin}{name}" for name in found[:3])
                count = f"{len(found)} tensors, such as {some}" if len(found) > 3 else some
                raise UserError(
                    f"{path} does not hold the weights of the {family.title} model that its configuration describes: "
                    f"it {what} {count}; fetch the file again, or give the base or --base-config it was made with"
                )


_HARMLESS = ("position_ids", "logit_scale", "text_projection", "text_projection.weight", "attn_mask")
"""Ends of what text encoders were saved with and are used without."""


def _is_harmless(name: str, wanted: Collection[str]) -> bool:
    if name.endswith(_HARMLESS) or name.startswith("loss."):  # of an autoencoder's own training
        return True
    # Stable Diffusion 2 is told of the last layer but one, and released with the last.
    block, _, rest = name.partition("resblocks.")[2].partition(".")
    return block.isdigit() and f"transformer.resblocks.{int(block) - 1}.{rest}" in wanted


def read_statements(header: SafetensorsHeader) -> dict[str, Any]:
    """Returns what a file says of its schedule and parameterisation, as a scheduler's configuration says it."""
    said: dict[str, Any] = {}
    kind = header.metadata.get("modelspec.prediction_type", "").lower()
    if kind in _SPEC_PREDICTIONS:
        said["prediction_type"] = _SPEC_PREDICTIONS[kind]
    elif header.metadata.get("modelspec.architecture", "").endswith("-v"):
        said["prediction_type"] = "v_prediction"
    for mark in filter(header.shapes.__contains__, MARKS):  # in one order, as a set has none
        said |= MARKS[mark]
    return said


def holds_average(header: SafetensorsHeader) -> bool:
    """Says whether a file holds averaged weights of its whole network beside the others."""
    names = [key for key in header.shapes if key.startswith(NETWORK)]
    return all(_AVERAGED + "".join(name.split(".")[1:]) in header.shapes for name in names)


def load_pipeline_of_file(family: Family, path: Path, folder: Path, kind: Any, **settings: Any) -> Any:
    """Loads the diffusers pipeline of class `kind` that the file holds, with the configurations of `folder`. Raises
    UserError."""
    from diffusers.utils import logging as diffusers_logging

    diffusers_logging.disable_progress_bar()
    try:
        with tempfile.TemporaryDirectory() as place:
            stage_configurations(folder, family.parts, Path(place))
            pipeline = kind.from_single_file(_link(path, Path(place)), config=place, local_files_only=True, **settings)
    except UserError:
        raise
    except Exception as error:  # diffusers, transformers and the Hub each raise their own
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path} cannot be loaded as {family.title} ({reason})") from error
    for name, part in pipeline.components.items():
        if isinstance(part, nn.Module) and any(weight.is_meta for weight in part.parameters()):
            raise UserError(f"{path} is no whole {family.title} model: weights of {name} are missing")
    return pipeline


def _link(path: Path, place: Path) -> str:
    """Returns a file by a name that diffusers takes for safetensors: what ends otherwise it would unpickle."""
    if path.suffix == ".safetensors":
        return str(path)
    link = place / "weights.safetensors"
    link.symlink_to(path.resolve())
    return str(link)


def load_average_of_file(family: Family, path: Path, folder: Path, kind: Any, dtype: torch.dtype) -> Any:
    """Loads the network of class `kind` of the averaged weights in a file, and says so."""
    logger.info(f"note: {path} holds averaged (EMA) weights beside those that they are an average of; they are used")
    return load_part_of_file(family, path, folder / family.lora.part, kind, dtype, extract_ema=True)


def load_part_of_file(
    family: Family, path: Path, config: Path, kind: Any, dtype: torch.dtype, **settings: Any
) -> Any:  # fmt: skip
    """Loads the part of class `kind` whose configuration lies in the folder `config`. Raises UserError."""
    try:
        with tempfile.TemporaryDirectory() as place:
            stage_configurations(config.parent, (config.name,), Path(place))
            return kind.from_single_file(
                _link(path, Path(place)),
                config=place,
                subfolder=config.name,
                torch_dtype=dtype,
                local_files_only=True,
                **settings,
            )
    except UserError:
        raise
    except Exception as error:  # as above
        raise UserError(f"{path} cannot be loaded as {family.title} ({' '.join(str(error).split())[:200]})") from error
