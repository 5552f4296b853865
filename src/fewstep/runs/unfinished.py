"""Painting with a run that has not ended, from its newest whole checkpoint."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewstep.errors import UserError
from fewstep.files import open_safetensors
from fewstep.method.named import METHODS
from fewstep.models.card import LCM_LORA, STYLE_LORA, StudentCard
from fewstep.models.family import LatentModel
from fewstep.models.hashes import weights_sha256
from fewstep.models.loading import load_latent_model
from fewstep.models.lora.adapters import attach
from fewstep.models.lora.pair import Lora, Pair
from fewstep.models.options import Engine, Offload
from fewstep.models.pipeline import Pipeline, finish_pipeline, load_pipeline, pick_storage
from fewstep.models.scheduler import Overrides, read_overrides
from fewstep.precision import Precision, Storage
from fewstep.recipes.plain import read_config_file
from fewstep.runs.folder import BASE_FILE, CONFIG_FILE
from fewstep.train.checkpoint import NUMBERS_FILE, TENSORS_FILE, Checkpoints, why_spoilt
from fewstep.train.state import EXPORTED

CHECKPOINTS = "checkpoints"
logger = logging.getLogger(__name__)


def load_painter(  # noqa: PLR0913  # as load_pipeline
    source: str | Path, device: str = "auto", loras: Sequence[tuple[Path, float]] = (), base_config: str = "", *,
    engine: Engine = "torch", tiny_decoder: str | Path = "", overrides: Overrides | None = None,
    precision: Precision = "auto", offload: Offload = "auto",
) -> Pipeline:  # fmt: skip
    """Loads what `load_pipeline` does, and runs that have not ended, or any whole checkpoint of a run."""
    checkpoint = find_checkpoint(Path(source))
    if checkpoint is None:
        return load_pipeline(
            source, device, loras, base_config, engine=engine, tiny_decoder=tiny_decoder, overrides=overrides,
            precision=precision, offload=offload,
        )  # fmt: skip
    storage = pick_storage(device, engine, precision, offload)
    model, home = load_checkpoint(checkpoint, storage, overrides), storage.home or storage.device
    return finish_pipeline(model, loras, engine, tiny_decoder, precision, offload, home)


def find_checkpoint(source: Path) -> Path | None:
    """Returns the newest whole checkpoint of a run without a model, or `source` where it is a checkpoint itself.

    None where it is neither. Raises UserError where there is no whole one.
    """
    if (source / TENSORS_FILE).is_file() and (source.parent.parent / CONFIG_FILE).is_file():
        if why := why_spoilt(source):
            raise UserError(f"{source} is not whole ({why}); give another checkpoint, or the folder of the run")
        return source
    if not (source / CONFIG_FILE).is_file() or (source / "model").exists():
        return None
    newest = Checkpoints(source / CHECKPOINTS).newest()
    if newest is None:
        settings = read_config_file(source / CONFIG_FILE)
        raise UserError(
            f"{source} has not ended and has no checkpoint yet; it writes one every "
            f"{settings.get('checkpoint_every', '?')} updates"
        )
    return newest


def load_checkpoint(checkpoint: Path, storage: Storage, overrides: Overrides | None = None) -> LatentModel:
    """Loads the base of a run with the weights that it would export if it ended at that checkpoint.

    Raises UserError where the base is not there, or is another than the run's.
    """
    run = checkpoint.parent.parent
    settings = read_config_file(run / CONFIG_FILE)
    base = settings.get("teacher") or settings.get("model")
    if not isinstance(base, str):
        raise UserError(f"{run / CONFIG_FILE} names neither a teacher nor a model; it is of no run that paints")
    tensors = _read_exported(checkpoint)
    said = read_overrides({**settings, **(overrides or Overrides()).stated()})
    model = load_latent_model(
        base, storage.device, settings.get("base_config") or "", said, storage.dtype, storage.home
    )
    check_base(run, model)
    step = json.loads((checkpoint / NUMBERS_FILE).read_text())["step"]
    card = _make_card(settings, model, f"{run.resolve().name}, update {step}")
    ended = "" if (run / "model").exists() else " has not ended"
    logger.warning(f"{run}{ended}: painting from {checkpoint.name} of {settings.get('steps', '?')} updates")
    try:
        if settings.get("lora_rank"):
            attach(model.parts, _make_pairs(tensors, settings), "run", 1.0)
            network = model.network
        else:
            side = (settings.get("resolution") or model.resolution) // model.codec.multiple
            network = (
                model.network
                if model.network.takes_omega
                else model.network.to_student(side, told_end=METHODS[settings.get("method", "lcm")].told_end)
            )
            network.load_state_dict(tensors)
            network.backbone.to(storage.dtype)
    except (RuntimeError, AttributeError, KeyError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{checkpoint} does not fit {base}, the base that its run names ({reason})") from error
    network.requires_grad_(False)
    scheduler = model.scheduler_config if card.grid_size is None else {
        **model.scheduler_config, "original_inference_steps": card.grid_size,
    }  # fmt: skip
    return dataclasses.replace(model, network=network, card=card, scheduler_config=scheduler)


def check_base(run: Path, model: LatentModel) -> None:
    """Raises UserError where a run's base has other weights now than the run began with.

    Hashes are of numbers in fp32: of a model that was loaded in half precision it says that nobody looked.
    """
    file = run / BASE_FILE
    if not file.exists():  # a run of an earlier version
        return
    if model.network.backbone.dtype != torch.float32:
        logger.info("note: whether the run began with this very base is looked at with --precision fp32 alone")
    elif json.loads(file.read_text())["sha256"] != weights_sha256(model.network.backbone):
        raise UserError(f"the weights of {model.source} are not those that {run} began with; put them back")


def _read_exported(checkpoint: Path) -> dict[str, Tensor]:
    """Reads what a run exports of its state: the average where it keeps one, else the weights."""
    with open_safetensors(checkpoint / TENSORS_FILE) as file:
        names = list(file.keys())
        for role in EXPORTED:
            if own := [name for name in names if name.startswith(f"{role}.")]:
                return {name.removeprefix(f"{role}."): file.get_tensor(name) for name in own}
    raise UserError(f"{checkpoint} holds no student; an earlier version of fewstep may have written it")


def _make_pairs(tensors: dict[str, Tensor], settings: dict[str, Any]) -> Lora:
    """Makes pairs of what adapters are called in a state."""
    alpha = float(settings.get("lora_alpha") or settings["lora_rank"])
    named = {name.replace("/", "."): value for name, value in tensors.items()}
    return {
        name.split(".lora_A.")[0]: Pair(down.float(), named[name.replace(".lora_A.", ".lora_B.")].float(), alpha)
        for name, down in named.items()
        if ".lora_A." in name
    }


def _make_card(settings: dict[str, Any], model: LatentModel, name: str) -> StudentCard:
    """Makes what would be recorded beside the weights, as far as painting asks for it."""
    if "skip" not in settings:
        return StudentCard(name=name, method=STYLE_LORA, teacher=model.source)
    makes_few_step = settings.get("lora_rank") and not model.network.takes_omega
    low, high = settings["guidance_range"]
    return StudentCard(
        name=name, method=LCM_LORA if makes_few_step else None, teacher=model.source, data=settings.get("data"),
        guidance_scale=settings["guidance_scale"], guidance_range=(low, high),
        grid_size=model.schedule.grid_size(settings["skip"]),
        consistency=None if settings.get("method", "lcm") == "lcm" else settings["method"],
    )  # fmt: skip
