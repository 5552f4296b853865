"""Models by name: a bundled one, a diffusers folder, the Hub, or a single file."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import torch

from fewstep import assets
from fewstep.errors import UserError
from fewstep.models.codec import Codec
from fewstep.models.families import list_families, list_parts, recognise_file, recognise_folder
from fewstep.models.family import LatentModel
from fewstep.models.model_files import MODEL_WANTED, find_run, is_hub_id, read_index
from fewstep.models.options import Overrides
from fewstep.precision import Storage


def pick_device(name: str = "auto", number: int = 0) -> torch.device:
    """Returns the named device, or the best there is; of several GPUs the one for process `number`.

    Raises UserError where there is none such.
    """
    device = _pick_device(name)
    if device.type != "cuda" or device.index is not None or not number:
        return device
    return torch.device("cuda", number % torch.cuda.device_count())


def _pick_device(name: str) -> torch.device:
    if name != "auto":
        try:
            device = torch.empty(0, device=name).device
            if device.type in ("cpu", "cuda", "mps"):
                return device
            raise RuntimeError(device.type)
        except (RuntimeError, AssertionError) as error:
            raise UserError(f"device {name!r:.60} cannot be used here: {_explain_device(name)}") from error
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def _explain_device(name: str) -> str:
    """Says why torch has no device of that name here, and what to give."""
    there = ["auto", "cpu"]
    there += ["cuda"] * torch.cuda.is_available() + ["mps"] * torch.backends.mps.is_available()
    kind = name.partition(":")[0]
    if kind == "cuda" and torch.cuda.is_available():
        why = f"there are {torch.cuda.device_count()} GPUs, counted from 0"
    elif kind in ("cuda", "gpu") and torch.version.cuda is None and torch.version.hip is None:
        why = f"torch {torch.__version__} was built without CUDA; install torch's build for CUDA"
    elif kind in ("cuda", "gpu"):
        why = "torch finds no GPU; nvidia-smi tells whether the driver does"
    elif kind == "mps":
        why = "it is the GPU of Apple's machines, and torch finds none"
    else:
        why = "it is no device that fewstep computes on"
    return f"{why}; here give one of {', '.join(there)}"


def load_latent_model(
    source: str | Path, device: torch.device, base_config: str = "", overrides: Overrides | None = None,
    dtype: torch.dtype = torch.float32, home: torch.device | None = None, *, shaped: bool = False,
) -> LatentModel:  # fmt: skip
    """Loads every part on `device`, frozen; raises UserError naming what is missing or not known.

    `source` is `scenes` or `scenes-lcm` (bundled), a diffusers folder, a Hub id or a single-file checkpoint, for which
    `base_config` may be a folder with the family's configurations and tokenizers. `overrides` is what a person says of
    it over its files. Weights are kept in `dtype`, but for an autoencoder that wants fp32; `home` is where they will
    compute, if that is elsewhere. With `shaped` the network's parameters are on no device where that can be, and wait
    for `models.spreading` to fill them.
    """
    overrides = overrides or Overrides()
    storage = Storage(device, dtype, home, shaped and not overrides.base_lora)
    model = _load(source, base_config, overrides, storage)
    if overrides.base_lora:
        # few models are loaded with one
        importlib.import_module("fewstep.models.lora.base_lora").merge_into(model, overrides.base_lora)
    return model


def _load(source: str | Path, base_config: str, overrides: Overrides, storage: Storage) -> LatentModel:
    source = assets.find_folder(source)
    if Path(source).is_file():
        return recognise_file(Path(source)).load_single_file(Path(source), base_config, storage, overrides)
    if base_config:
        if not Path(source).exists():
            raise UserError(f"{source} is not there; a base that a LoRA names is looked for from where you are")
        raise UserError(f"{source} is not a single file and has its own configurations; leave --base-config out")
    folder = find_files(source, overrides)
    index = read_index(folder, source)
    return recognise_folder(folder, index, str(source)).load_folder(folder, str(source), index, storage, overrides)


def load_codec(source: str | Path, device: torch.device, base_config: str = "") -> tuple[Codec, int]:
    """Loads a model's autoencoder alone, in fp32, and returns it with the side in pixels of the model's pictures.

    Of a Hub id no other weights are fetched. Raises UserError.
    """
    place = Path(assets.find_folder(source))
    if place.is_file():
        return recognise_file(place).load_codec(place, base_config, device)
    if not place.is_dir() and is_hub_id(str(source)):
        codecs = {family.codec_part for family in list_families()}
        place = Path(_open("hub").fetch_pipeline(str(source), list_parts(), without=set(list_parts()) - codecs))
    folder = find_files(place if place.is_dir() else source, Overrides())
    index = read_index(folder, source)
    return recognise_folder(folder, index, str(source)).load_codec(folder, base_config, device)


def find_files(source: str | Path, overrides: Overrides, *, weights: bool = True) -> Path:
    """Returns the folder of a model, fetched where `source` is a Hub id: all of it, or what it needs but `weights`."""
    folder = Path(source)
    if folder.is_dir():
        return Path(_open("model_places").find_snapshot(folder)) if (folder / "snapshots").is_dir() else folder
    if folder.name == "model" and (run := find_run(folder.parent)) and not run.ended:
        raise UserError(f"{source} is not there yet: {run.describe()}{run.offer_painting()}")
    if not is_hub_id(str(source)):
        raise UserError(f"{source} is neither a folder nor a file; {MODEL_WANTED}")
    if not weights:
        return Path(_open("hub").fetch_configurations(str(source), list_parts()))
    networks = {family.lora.part for family in list_families()} if overrides.network else set()
    return Path(_open("hub").fetch_pipeline(str(source), list_parts(), without=networks))


def _open(name: str) -> Any:  # which is imported only where something is fetched, or was
    return importlib.import_module(f"fewstep.models.{name}")
