"""Painting with a run that has not ended, from its newest whole checkpoint."""

from __future__ import annotations

import dataclasses
import itertools
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from fewstep.documents import read_json
from fewstep.errors import UserError
from fewstep.files import explain_damage
from fewstep.method.named import NamedMethod
from fewstep.method.times import PHASE
from fewstep.models.card import LCD, LCM_LORA, MAX_STEPS, STYLE_LORA, StudentCard, is_number, read_method
from fewstep.models.family import LatentModel
from fewstep.models.loading import load_latent_model
from fewstep.models.lora.adapters import attach
from fewstep.models.lora.pair import Lora, Pair
from fewstep.models.lora.source import source_of
from fewstep.models.model_files import CHECKPOINTS, CONFIG_FILE, check_asked, find_run
from fewstep.models.network import BackboneNetwork, hash_weights, pick_end
from fewstep.models.options import Engine, Offload, Overrides, check_int8, read_overrides
from fewstep.models.pipeline import Pipeline
from fewstep.models.pipeline_loading import check_painting, finish_pipeline, load_pipeline, pick_storage
from fewstep.models.vocabulary import parse_texts
from fewstep.precision import PaintPrecision, Storage
from fewstep.recipes.plain import read_config_file
from fewstep.runs.folder import BASE_FILE
from fewstep.train.checkpoint import NUMBERS_FILE, TENSORS_FILE, Checkpoints, why_spoilt
from fewstep.train.soundness import find_fault_in_values, open_tensors, read_numbers
from fewstep.train.state import EXPORTED

_MOST = 2**31
"""No setting of a run comes near it."""
logger = logging.getLogger(__name__)


def load_painter(  # noqa: PLR0913  # as load_pipeline
    source: str | Path, device: str = "auto", loras: Sequence[tuple[Path, float]] = (), base_config: str = "", *,
    engine: Engine = "torch", tiny_decoder: str | Path = "", overrides: Overrides | None = None,
    precision: PaintPrecision = "auto", offload: Offload = "auto", allow_download: bool = False,
    calibration_prompts: str = "",
) -> Pipeline:  # fmt: skip
    """Loads what `load_pipeline` does, and runs that have not ended, or any whole checkpoint of a run."""
    check_int8(engine, precision, calibration_prompts)
    storage = pick_storage(device, engine, precision, offload)
    home = storage.home or storage.device
    loaded: dict[Path, LatentModel] = {}

    def why_unfit(checkpoint: Path) -> str | None:
        loaded.clear()
        try:
            loaded[checkpoint] = load_checkpoint(
                checkpoint, storage, overrides, allow_download=allow_download,
                check=lambda base: check_painting(base, engine, tiny_decoder, precision, home),
            )  # fmt: skip
        except UnfitError as error:
            return str(error)
        return None

    checkpoint = find_checkpoint(Path(source), why_unfit)
    if checkpoint is None:
        return load_pipeline(
            source, device, loras, base_config, engine=engine, tiny_decoder=tiny_decoder, overrides=overrides,
            precision=precision, offload=offload, allow_download=allow_download,
            calibration_prompts=calibration_prompts,
        )  # fmt: skip
    if loaded[checkpoint].card.method == STYLE_LORA and not loras and not loaded[checkpoint].is_few_step:
        run = find_run(checkpoint.parent.parent)
        said = run.describe() if run else str(source)
        raise UserError(f"{said}; a style paints beside a few-step model, with --lora, once it has ended")
    return finish_pipeline(
        loaded[checkpoint], loras, engine, tiny_decoder, precision, offload, home, calibration_prompts
    )


class UnfitError(UserError):
    """A checkpoint whose hashes are right, and whose contents are not of its run."""


def find_checkpoint(source: Path, why_unfit: Callable[[Path], str | None] = lambda _: None) -> Path | None:
    """Returns the newest whole checkpoint of a run without a model, or `source` where it is a checkpoint itself.

    `why_unfit` says why a whole one is of no use. None where it is neither. Raises UserError where there is none of
    use.
    """
    if (source / TENSORS_FILE).is_file() and (source.parent.parent / CONFIG_FILE).is_file():
        why = f"is not whole ({spoilt})" if (spoilt := why_spoilt(source)) else why_unfit(source)
        if why:
            raise UserError(f"{source} {why}; give another checkpoint, or the folder of the run")
        return source
    if not (source / CONFIG_FILE).is_file() or (source / "model").exists():
        return None
    newest = Checkpoints(source / CHECKPOINTS).newest(why_unfit)
    if newest is None and (run := find_run(source)):
        raise UserError(f"{run.describe()}, and paints from its first checkpoint on")
    if newest is None:
        settings = read_config_file(source / CONFIG_FILE)
        raise UserError(
            f"{source} has not ended and has no checkpoint yet; it writes one every "
            f"{settings.get('checkpoint_every', '?')} updates"
        )
    return newest


def load_checkpoint(
    checkpoint: Path, storage: Storage, overrides: Overrides | None = None, *, allow_download: bool = False,
    check: Callable[[str], None] = lambda _: None,
) -> LatentModel:  # fmt: skip
    """Loads the base of a run with the weights that it would export if it ended at that checkpoint.

    `check` may refuse the base by its name, before it is loaded. Raises UserError where the base is not there, or is
    another than the run's.
    """
    run = checkpoint.parent.parent
    settings = _Settings(run / CONFIG_FILE)
    base = settings.text("teacher") or settings.text("model")
    if not base:
        raise UserError(f"{run / CONFIG_FILE} names neither a teacher nor a model; it is of no run that paints")
    tensors, step = _read_exported(checkpoint)
    own = overrides or Overrides()
    said = read_overrides({**settings.held, **own.stated()})
    styles = [] if own.base_lora else map(source_of, said.base_lora)
    for name in (base, settings.text("base_config"), "" if own.network else said.network, *styles):
        check_asked(name, run / CONFIG_FILE, allowed=allow_download)
    check(base)
    model = load_latent_model(base, storage.device, settings.text("base_config"), said, storage.dtype, storage.home)
    check_base(run, model)
    if settings.text("teacher") and (side := int(settings.number("resolution", 0))):
        model.take_side(side)
    card = _make_card(settings, model, f"{run.resolve().name}, update {step}")
    try:
        network = _put_in(model, tensors, settings, storage)
    except (RuntimeError, AttributeError, KeyError, ValueError, TypeError, IndexError, AssertionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UnfitError(f"does not fit {base}, the base that its run names ({reason})") from error
    ended = "" if (run / "model").exists() else " has not ended"
    logger.warning(f"{run}{ended}: painting from {checkpoint.name} of {settings.held.get('steps', '?')} updates")
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
    held = read_json(file, f"{run} does not say which base it began with").get("sha256")
    if model.network.backbone.dtype != torch.float32:
        logger.info("note: whether the run began with this very base is looked at with --precision fp32 alone")
    elif held != hash_weights(model.network.backbone):
        raise UserError(f"the weights of {model.source} are not those that {run} began with; put them back")


def _put_in(model: LatentModel, tensors: dict[str, Tensor], settings: _Settings, storage: Storage) -> BackboneNetwork:
    """Returns the network of a model with what its run has learnt. Raises many an error where that is of another."""
    if rank := settings.number("lora_rank", 0):
        named = {name.replace("/", "."): value for name, value in tensors.items()}
        attach(model.parts, _make_pairs(named, settings.number("lora_alpha", 0) or rank), "run", 1.0)
        if end := pick_end(named):
            model.network.load_end(end, "run", 1.0)
        return model.network
    side = int(settings.number("resolution", 0)) or model.resolution
    side //= model.codec.multiple
    told_end = settings.method().told_end
    network = model.network if model.is_student else model.network.to_student(side, told_end=told_end)
    network.load_state_dict(tensors)
    network.backbone.to(storage.dtype)
    return network


class _Settings:
    """The settings of a run, as far as painting with it asks for them. Raises UserError for one of another kind."""

    def __init__(self, file: Path) -> None:
        self.held, self._file = read_config_file(file), file
        base = file.parent / BASE_FILE
        self._base = read_json(base, f"{base} cannot be read") if base.exists() else {}

    def text(self, name: str) -> str:
        """Returns a text, empty where there is none."""
        if not isinstance(value := self.held.get(name) or "", str):
            raise UserError(f"{self._file} has {name} {value!r:.60}; expected a text")
        return value

    def number(self, name: str, least: float) -> float:
        """Returns a number, 0 where there is none."""
        value = self.held.get(name) or 0
        if not is_number(value) or not least <= value < _MOST:
            raise UserError(f"{self._file} has {name} {value!r:.60}; expected a number, {least:g} or more")
        return float(value)

    def phase(self) -> int | None:
        """Returns the number of steps that a run for one number of phases paints in."""
        if to_steps := int(self.number("to_steps", 0)):
            return to_steps
        if self.method().end is not PHASE:
            return None
        held = self.held.get("phases") or self._base.get("phases") or self.method().phases
        if not isinstance(held, list | tuple) or not all(type(each) is int and 1 <= each <= MAX_STEPS for each in held):
            raise UserError(f"{self._file} has phases {held!r:.60}; expected a list of whole numbers")
        return int(held[0])

    def taught(self) -> tuple[str, ...] | None:
        """Returns the words that the run teaches beyond those of its text encoder."""
        return tuple(parse_texts(self._base.get("learnt_words"))) or None

    def method(self) -> NamedMethod:
        """Returns the consistency method, of what went on by another the one that it began by."""
        began = self._base.get("consistency")
        name = began if isinstance(began, str) else self.text("method")
        return read_method(StudentCard(consistency=name or None), str(self._file))

    def range(self, name: str) -> tuple[float, float]:
        """Returns two numbers."""
        value = self.held.get(name)
        if not isinstance(value, list) or len(value) != 2 or not all(map(is_number, value)):
            raise UserError(f"{self._file} has {name} {value!r:.60}; expected two numbers")
        return float(value[0]), float(value[1])


def _read_exported(checkpoint: Path) -> tuple[dict[str, Tensor], int]:
    """Reads what a run exports of its state, the average where it keeps one, else the weights; and after which update.

    Raises UnfitError.
    """
    try:
        step = read_numbers(checkpoint / NUMBERS_FILE)["step"]
        with explain_damage(checkpoint / TENSORS_FILE), open_tensors(checkpoint / TENSORS_FILE) as file:
            names = list(file.keys())
            role = next((each for each in EXPORTED if any(name.startswith(f"{each}.") for name in names)), None)
            tensors = {name: file.get_tensor(name) for name in names if role and name.startswith(f"{role}.")}
    except UserError as error:
        raise UnfitError(f"is not of a run: {error}") from error
    if not tensors:
        raise UnfitError("holds no student; an earlier version of fewstep may have written it")
    if fault := next(filter(None, itertools.starmap(find_fault_in_values, tensors.items())), None):
        raise UnfitError(f"has what no run writes: {fault}")
    return {name.partition(".")[2]: value for name, value in tensors.items()}, step


def _make_pairs(named: dict[str, Tensor], alpha: float) -> Lora:
    """Makes pairs of adapters by their names in the network."""
    return {
        name.split(".lora_A.")[0]: Pair(down.float(), named[name.replace(".lora_A.", ".lora_B.")].float(), alpha)
        for name, down in named.items()
        if ".lora_A." in name
    }


def _make_card(settings: _Settings, model: LatentModel, name: str) -> StudentCard:
    """Makes what would be recorded beside the weights, as far as painting asks for it."""
    if "skip" not in settings.held:
        return StudentCard(
            name=name, method=STYLE_LORA, teacher=model.source, resolution=model.card.resolution,
            learnt_words=settings.taught(),
        )  # fmt: skip
    rank = settings.number("lora_rank", 0)
    makes_few_step = rank and not model.is_student
    notes_side = not rank and not model.network.says_side  # else the network says it
    return StudentCard(
        name=name, method=LCM_LORA if makes_few_step else LCD, teacher=model.source,
        data=settings.text("data") or None, guidance_scale=settings.number("guidance_scale", 0),
        guidance_range=settings.range("guidance_range"),
        grid_size=model.schedule.grid_size(int(settings.number("skip", 1))),
        consistency=None if settings.method().name == "lcm" else settings.method().name,
        sampling_steps=settings.phase(),
        resolution=(int(settings.number("resolution", 0)) if notes_side else 0) or model.card.resolution,
        learnt_words=settings.taught(),
    )  # fmt: skip
