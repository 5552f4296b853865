"""LoRAs, and models that they were merged into, written so that the tools people have can load them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

import diffusers

from fewstep.diffusion.flow import Flow
from fewstep.files import replace_folder
from fewstep.models.card import LCM_LORA, StudentCard, read_method
from fewstep.models.export import save_pipeline
from fewstep.models.family import Family, LatentModel
from fewstep.models.lora.comfyui import WORKFLOW_FILE, make_workflow
from fewstep.models.lora.few_step import DEFAULT_STEPS, read_few_step
from fewstep.models.lora.file import Lora, write_lora
from fewstep.models.network import End
from fewstep.models.options import read_overrides
from fewstep.models.readme import write_model_card
from fewstep.models.stock_scheduler import describe_sampling, make_scheduler, stock_scale
from fewstep.models.vocabulary import WORDS

_TEACHERS_SCHEDULER = "DDIMScheduler"
"""The class of a scheduler whose configuration does not name one of diffusers'."""


def save_merged(folder: Path, model: LatentModel, header: Mapping[str, str]) -> None:
    """Writes `model` as it stands, as a pipeline; `header` is that of the LCM-LoRA merged into it, if any."""
    card = dataclasses.replace(model.card, name=folder.resolve().name)
    if header.get("fewstep.method") == LCM_LORA:
        few_step, grid_size = read_few_step(header, "the LCM-LoRA", model.family)
        if few_step.shift is not None:  # whatever the base's own is
            model.network.schedule = Flow(model.schedule.num_steps, few_step.shift)
        sampling = describe_sampling(model, dataclasses.replace(few_step, grid_size=grid_size))
        scheduler = make_scheduler(model, read_method(few_step, model.source), grid_size)
        steps = few_step.sampling_steps if few_step.sampling_steps != DEFAULT_STEPS else None
        card = dataclasses.replace(
            card, method=LCM_LORA, guidance_scale=few_step.guidance_scale, sampling_steps=steps,
            consistency=few_step.consistency, phases=few_step.phases,
            guidance_range=few_step.guidance_range or card.guidance_range, **sampling,
        )  # fmt: skip
    else:
        kind = str(model.scheduler_config.get("_class_name"))
        known = getattr(diffusers, kind, getattr(diffusers, _TEACHERS_SCHEDULER))
        scheduler = known.from_config(model.scheduler_config)
    with replace_folder(folder) as draft:
        save_pipeline(draft, model, model.network, scheduler, few_step=model.is_student or card.method == LCM_LORA)
        card.write(draft)


def save_combined(
    folder: Path, model: LatentModel, pairs: Lora, header: Mapping[str, str], end: End | None = None
) -> float:
    """Writes LoRAs that are one now, as `write_lora` does; returns the largest difference on reloading."""
    with replace_folder(folder) as draft:
        return write_lora(draft, pairs, header, model.parts, model.family.lora, end)


def save_lora(folder: Path, model: LatentModel, pairs: Lora, card: StudentCard, end: End | None = None) -> float:
    """Writes a LoRA as `write_lora` does, `fewstep.json`, the card and a workflow for ComfyUI; returns the largest
    difference on reloading.

    `card` must hold what a student's does, and `lora_rank`, `lora_alpha` and `teacher_sha256`.
    """
    card = dataclasses.replace(card, **describe_sampling(model, card))
    with replace_folder(folder) as draft:
        difference = write_lora(draft, pairs, lora_header(model, card), model.parts, model.family.lora, end)
        if workflow := make_workflow(model, card):
            (draft / WORKFLOW_FILE).write_text(json.dumps(workflow, indent=1) + "\n")
        card.write(draft)
        write_model_card(draft, card)
    return difference


def _hint(card: StudentCard, family: Family, source: str) -> str:
    """Says which settings of other tools paint as the method's own sampler does, if any do."""
    method, off = read_method(card, source), f"{stock_scale(family, card):g}"
    gamma = method.gamma
    if method.told_end:
        return "fewstep alone, 1 to 8 steps: it tells the network where each lands, for which no other tool has a place"
    if gamma == 1:
        shift = "" if card.shift is None else f"shift {card.shift:g}, "
        return f"LCM sampler, {shift}2 to 8 steps, guidance scale {off}"
    if gamma:
        return f"TCD sampler with eta {gamma:g}, guidance scale {off}"
    steps = card.sampling_steps or DEFAULT_STEPS
    if card.shift is not None:
        return f"Euler with the schedule Simple and shift {card.shift:g}, {steps} steps, guidance scale {off}"
    return f"Euler with the schedule Simple, or DDIM with trailing spacing, {steps} steps, guidance scale {off}"


def _name_scheduler(card: StudentCard, model: LatentModel) -> str:
    method = read_method(card, model.source)
    return method.flow_scheduler if isinstance(model.schedule, Flow) else method.scheduler


def lora_header(model: LatentModel, card: StudentCard) -> dict[str, str]:
    """Returns ModelSpec 1.0.1, kohya's `ss_*`, and what our own loader needs to paint by itself."""
    parameterisation = model.network.parameterisation
    said = {
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": f"{model.family.spec_architecture(parameterisation)}/lora",
        "modelspec.implementation": "https://github.com/huggingface/diffusers",
        "modelspec.title": card.name,
        "modelspec.date": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S"),
        "modelspec.resolution": f"{model.resolution}x{model.resolution}",
        "modelspec.prediction_type": model.family.spec_prediction(parameterisation),
        "ss_network_module": "networks.lora",
        "ss_network_dim": card.lora_rank,
        "ss_network_alpha": card.lora_alpha,
        "ss_learning_rate": card.lr,
        "ss_max_train_steps": card.steps,
        "ss_total_batch_size": card.batch_size,
        "ss_seed": card.seed,
        "fewstep.method": card.method,
        "fewstep.teacher": card.teacher,
        "fewstep.teacher_sha256": card.teacher_sha256,
        **({} if card.base_config is None else {"fewstep.base_config": card.base_config}),
        **{f"fewstep.{name}": value for name, value in read_overrides(card.to_json()).stated().items()},
        **({} if card.learnt_words is None else {f"fewstep.{WORDS}": card.learnt_words}),
        **model.family.kohya_header(),
    }
    if card.method == LCM_LORA:
        assert card.guidance_scale is not None
        said |= {
            "modelspec.usage_hint": _hint(card, model.family, model.source),
            "fewstep.omega": model.family.omega_of(card.guidance_scale),
            "fewstep.original_inference_steps": card.grid_size,
            "fewstep.scheduler": _name_scheduler(card, model),
            "fewstep.steps": card.sampling_steps or DEFAULT_STEPS,
            **({} if card.consistency is None else {"fewstep.consistency": card.consistency}),
        }
        if card.shift is not None:
            said |= {"fewstep.shift": card.shift, "fewstep.sigmas": json.dumps(card.sigmas)}
        if model.family.guided_inside and card.guidance_range is not None:
            said["fewstep.guidance_range"] = ",".join(f"{each:g}" for each in card.guidance_range)
        if card.phases:
            said["fewstep.phases"] = ",".join(map(str, card.phases))
    return {name: spell(value) for name, value in said.items()}


def spell(value: object) -> str:
    """Returns a value as headers hold it; a list is JSON."""
    return json.dumps(value) if isinstance(value, tuple) else str(value)
