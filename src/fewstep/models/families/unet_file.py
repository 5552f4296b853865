"""A UNet that is a file by itself, as interfaces of nodes keep it, by diffusers' names or by Stability's own code's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from diffusers import UNet2DConditionModel

from fewstep.errors import UserError
from fewstep.files import read_safetensors_header
from fewstep.models.families.original_names import OMEGA, find_unet_prefix, original_unet_names
from fewstep.models.families.original_transformers import OriginalNames, load_original, make_shaped
from fewstep.models.families.single_file import MARKS, check_tensors
from fewstep.models.family import Family
from fewstep.models.model_files import read_json
from fewstep.precision import Storage


def load_unet_of_file(family: Family, path: Path, base: Path, storage: Storage) -> Any:
    """Loads the UNet of a single file, which the config.json beside it describes, or else that of the folder `base`.
    Raises UserError."""
    header = read_safetensors_header(path)
    prefix = find_unet_prefix(header.shapes)
    if prefix is None:
        raise UserError(f"{path} holds no UNet, by diffusers' names or those of Stability's own code")
    config, place = _read_config(path, base)
    if not family.recognises(config):
        raise UserError(f"{path} holds no UNet of {family.title}, as its base is ({config.get('_class_name')})")
    if (omega := header.shapes.get(prefix + OMEGA)) is not None and len(omega) == 2:
        config["time_cond_proj_dim"] = omega[1]
    shaped = make_shaped(UNet2DConditionModel, config, place)
    originals = original_unet_names(name for name, _ in shaped.named_modules())
    held = {name.rpartition(".")[0] for name in shaped.state_dict()}
    first = "time_embedding.linear_1"
    # By diffusers' names where the first layer is, so that what else is missing is named as the file would name it.
    spelt = {first} if f"{prefix}{first}.weight" in header.shapes else held
    # What the original has no name for, as a few-step model's guidance, stands among its names by diffusers'.
    names = OriginalNames(blocks={}, outside={originals.get(ours, ours): (ours,) for ours in spelt})
    keys = set(header.shapes).difference(MARKS)
    return load_original(
        path, shaped, place, names, prefix, storage.dtype,
        lambda wanted: check_tensors(path, family, keys, wanted),
    )  # fmt: skip


def _read_config(path: Path, base: Path) -> tuple[dict[str, Any], Path]:
    beside = path.with_name("config.json")
    own = read_json(beside, f"{path} has no configuration") if beside.is_file() else {}
    if own.get("_class_name") == UNet2DConditionModel.__name__:
        return own, beside
    place = base / "unet" / "config.json"
    config = read_json(place, f"{path} is a UNet alone, and {base} describes none")
    return {**config, "time_cond_proj_dim": None}, place
