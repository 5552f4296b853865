"""Loading what paints: a few-step model, or a base with the LCM-LoRA that makes it one, and all that is hung on it."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path

import torch

from fewstep import assets
from fewstep.diffusion.flow import Flow
from fewstep.errors import UserError
from fewstep.files import read_safetensors_header
from fewstep.models.card import LCM_LORA, STYLE_LORA
from fewstep.models.engines import check_engine, with_engine
from fewstep.models.engines.calibration import PHOTOGRAPHS, SCENES, Calibration, read_prompts
from fewstep.models.family import LatentModel
from fewstep.models.loading import load_latent_model, pick_device
from fewstep.models.lora.adapters import attach
from fewstep.models.lora.few_step import DEFAULT_STEPS, check_told, find_few_step, find_told, read_few_step
from fewstep.models.lora.file import DIFFUSERS_FILE, read_lora
from fewstep.models.lora.source import name_of, source_of
from fewstep.models.model_files import check_asked
from fewstep.models.model_places import find_exported
from fewstep.models.network import hash_weights
from fewstep.models.offload import check_offload, settle
from fewstep.models.options import Engine, Offload, Overrides, check_int8, read_overrides
from fewstep.models.pipeline import Pipeline
from fewstep.models.recognising import recognise_family
from fewstep.models.tiny_decoder import load_tiny_decoder
from fewstep.models.vocabulary import WORDS, read_taught
from fewstep.precision import PaintPrecision, Storage, choose_dtype

logger = logging.getLogger(__name__)


def check_painting(
    source: str | Path, engine: Engine, tiny_decoder: str | Path, precision: PaintPrecision, home: torch.device
) -> None:
    """Raises UserError where a model's family has no place for an engine or a tiny decoder, or the engine does not
    compute there or in that format; before any weights are read."""
    if engine != "torch" or tiny_decoder:
        recognise_family(source).check_painting(engine, tiny_decoder=bool(tiny_decoder))
    check_engine(engine, precision, home)


def load_pipeline(  # noqa: PLR0913  # one call that takes all, as `fewstep.load` does
    source: str | Path, device: str = "auto", loras: Sequence[tuple[Path, float]] = (), base_config: str = "", *,
    engine: Engine = "torch", tiny_decoder: str | Path = "", overrides: Overrides | None = None,
    precision: PaintPrecision = "auto", offload: Offload = "auto", allow_download: bool = False,
    calibration_prompts: str = "",
) -> Pipeline:  # fmt: skip
    """Loads a few-step model from a run folder, a diffusers folder, a Hub id, or a folder with an LCM-LoRA that fewstep
    wrote; or a base for the LCM-LoRA among `loras`, which may be `scenes`, the bundled teacher.

    `loras` are files with their scales, hung on together. `device` is auto, cpu, cuda or mps. `base_config` and
    `overrides` as in `load_latent_model`, `tiny_decoder` as `load_tiny_decoder` takes it. `precision` is what
    networks are kept and compute in; matrix products in fp32 are TF32's on GPUs that have it. `allow_download` lets a
    LoRA's header name what is fetched from the Hub; `calibration_prompts` is a file for precision int8.
    """
    check_int8(engine, precision, calibration_prompts)
    source = find_exported(source)
    lora = Path(source) / DIFFUSERS_FILE
    if lora.is_file():
        header = read_safetensors_header(lora).metadata
        base = header.get("fewstep.teacher")
        if base is None:
            raise UserError(f"{lora} does not say what model it is for; give that as the model and this as a LoRA")
        source, loras = base, [*loras, (lora, 1.0)]
        named = "" if base_config else header.get("fewstep.base_config", "")
        base_config = base_config or named
        said = {name.removeprefix("fewstep."): value for name, value in header.items()}
        own, overrides = overrides or Overrides(), read_overrides({**said, **(overrides or Overrides()).stated()})
        styles = [] if own.base_lora else map(source_of, overrides.base_lora)
        for name in (base, named, "" if own.network else overrides.network, *styles):
            check_asked(name, lora, allowed=allow_download)
    storage = pick_storage(device, engine, precision, offload)
    home = storage.home or storage.device
    check_painting(source, engine, tiny_decoder, precision, home)
    model = load_latent_model(source, storage.device, base_config, overrides, storage.dtype, home)
    if lora.is_file() and header.get("fewstep.method") == STYLE_LORA and len(loras) == 1:
        check_painted_beside(model, lora.parent.parent if lora.parent.name == "model" else lora.parent)
    return finish_pipeline(model, loras, engine, tiny_decoder, precision, offload, home, calibration_prompts)


def pick_storage(device: str, engine: Engine, precision: PaintPrecision, offload: Offload) -> Storage:
    """Returns where and in what a model that paints is kept: on a GPU it is put once it is known whether it fits.

    On a GPU matrix products in fp32 become TF32's.
    """
    chosen = pick_device("cpu" if engine == "openvino" and device == "auto" else device)
    check_offload(offload, chosen)
    loaded = chosen
    if chosen.type == "cuda":
        torch.set_float32_matmul_precision("high")
        loaded = torch.device("cpu")
    # OpenVINO compiles what is in fp32 for the format that it computes in.
    dtype = torch.float32 if engine == "openvino" or precision == "int8" else choose_dtype(precision, chosen)
    return Storage(loaded, dtype, chosen)


def finish_pipeline(  # as load_pipeline
    model: LatentModel, loras: Sequence[tuple[Path, float]], engine: Engine, tiny_decoder: str | Path,
    precision: PaintPrecision, offload: Offload, home: torch.device, calibration_prompts: str = "",
) -> Pipeline:  # fmt: skip
    """Makes the pipeline of a loaded model with all that is given beside it, as `load_pipeline` takes it."""
    if tiny_decoder:
        decoder = load_tiny_decoder(tiny_decoder, home)
        model = dataclasses.replace(model, codec=model.codec.with_tiny_decoder(decoder))
    if loras:
        model = with_loras(model, loras)
    model = settle(model, home, offload)
    calibration = make_calibration(model, calibration_prompts) if precision == "int8" else None
    pipeline = Pipeline(with_engine(model, engine, precision, calibration))
    if calibration is not None:
        pipeline.precision = "int8"
    return pipeline


def make_calibration(model: LatentModel, file: str = "") -> Calibration:
    """Returns what int8 is calibrated on: prompts of a file, or bundled ones that the model knows, painted as ever."""
    words = Pipeline(model).vocabulary
    prompts = read_prompts(file) if file else PHOTOGRAPHS if words is None else SCENES

    def paint(watched: LatentModel, part: Sequence[str], shape: Sequence[int]) -> None:
        pipeline = Pipeline(watched)
        omega = model.family.omega_of(pipeline.guidance_scale)
        steps = min(max(DEFAULT_STEPS, pipeline.steps), pipeline.most_steps())
        pipeline.latents(watched.conditioner.encode(part), range(len(part)), steps, omega, shape=shape)

    return Calibration(prompts, paint)


def check_painted_beside(model: LatentModel, style: Path) -> None:
    """Raises UserError where a style is to be painted with alone, on a base that is no few-step model."""
    if model.is_few_step:
        return
    base = assets.find_name(model.source)
    few_step = assets.SCENES_LCM if base == assets.SCENES else f"FEW-STEP, a few-step model of {base},"
    raise UserError(
        f"{style} is a style LoRA, which does not make {base} a few-step model; paint with both: --model {few_step} "
        f"--lora {style}"
    )


def with_loras(model: LatentModel, loras: Sequence[tuple[Path, float]]) -> LatentModel:
    """Returns `model` with θ + Σ λ_i·ΔW_i in place of θ; an LCM-LoRA among them makes it a few-step model.

    All files are read and checked before the first is hung on. Raises UserError where the base needs an LCM-LoRA and
    nothing says that one of them is.
    """
    files = [read_lora(path, model.parts, model.family.lora) for path, _ in loras]
    hashes = {file.note("teacher_sha256") for file in files} - {None}
    whole = model.network.backbone.dtype == torch.float32  # hashes are of numbers in fp32
    held = hash_weights(model.network.backbone) if hashes and whole else None
    if hashes and not whole:
        logger.info("note: whether LoRAs were made for these very weights is looked at with --precision fp32 alone")
    told = find_told(files, model)
    makes = told or (None if model.is_few_step else find_few_step(files, model))
    few_step = None if makes is None else read_few_step(makes.header, makes.source, model.family)
    if makes is not None:
        check_told(makes)
    for i, (file, (_, scale)) in enumerate(zip(files, loras, strict=True)):
        for line in (file.matched(), *file.notes):
            logger.info(line)
        if held and file.note("teacher_sha256") not in (None, held, model.card.teacher_sha256):
            logger.info(
                f"note: {file.source} was made for other weights than those of {assets.find_name(model.source)}"
            )
        attach(model.parts, file.pairs, f"lora{i}", scale)
        if file is told:
            model.network.load_end(file.end, f"lora{i}", scale)
        for word, vectors in file.embeddings.items():
            model.conditioner.add_word(word, vectors)
    taught = {*(model.card.learnt_words or ()), *(word for file in files for word in read_taught(file.note(WORDS)))}
    model = dataclasses.replace(
        model, card=dataclasses.replace(model.card, learnt_words=tuple(sorted(taught)) or None)
    )  # fmt: skip
    if model.is_few_step:
        if again := next((file for file in files if file.note("method") == LCM_LORA), None):
            logger.warning(
                f"warning: {model.source} is few-step already and {again.source} makes it so a second time, which "
                "distorts pictures; give the base that the LCM-LoRA is for"
            )
        return model
    if makes is None or few_step is None:
        return model
    card, grid = few_step
    if card.shift is not None:  # whatever the base's own is
        model.network.schedule = Flow(model.schedule.num_steps, card.shift)
    name = card.name or name_of(Path(makes.source))
    card = dataclasses.replace(
        card, name=name, resolution=model.card.resolution, learnt_words=model.card.learnt_words
    )  # fmt: skip
    scheduler = {**model.scheduler_config, "original_inference_steps": grid}
    return dataclasses.replace(model, card=card, scheduler_config=scheduler)
