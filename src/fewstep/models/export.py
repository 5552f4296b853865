"""A student written as a diffusers folder that every tool with LatentConsistencyModelPipeline can load."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import diffusers
from diffusers import (
    LatentConsistencyModelPipeline,
    LCMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
)
from diffusers.utils import logging as diffusers_logging
from torch import nn

from fewstep import assets
from fewstep.files import replace_folder
from fewstep.models.families import kohya_base, modelspec_architecture
from fewstep.models.latent_model import LatentModel
from fewstep.models.lora.file import DIFFUSERS_FILE, LCM_LORA, STYLE_LORA, Lora, write_lora
from fewstep.models.network import UNetNetwork

_SCHEDULE_DEFAULTS = {
    "num_train_timesteps": 1000, "beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "linear",
    "trained_betas": None, "prediction_type": "epsilon", "rescale_betas_zero_snr": False,
}  # fmt: skip


def save_student(
    folder: Path, teacher: LatentModel, network: nn.Module, grid_size: int, details: Mapping[str, Any]
) -> None:
    """Writes the pipeline, `fewstep.json` (`details`) and the model card; an older export there is replaced whole.

    `details` must hold `guidance_scale` (the default) and `guidance_range`, in diffusers' convention.
    """
    assert isinstance(network, UNetNetwork)
    pipeline = _pipeline(teacher, network, _lcm_scheduler(teacher, grid_size))
    with replace_folder(folder) as draft:
        pipeline.save_pretrained(draft, safe_serialization=True)
        (draft / "fewstep.json").write_text(json.dumps(dict(details), indent=2) + "\n")
        (draft / "README.md").write_text(model_card(details))


def save_merged(folder: Path, model: LatentModel, header: Mapping[str, str]) -> None:
    """Writes `model` as it stands, as a pipeline; `header` is that of the LCM-LoRA merged into it, if any."""
    few_step = header.get("fewstep.method") == LCM_LORA
    if few_step:
        scheduler = _lcm_scheduler(model, int(header.get("fewstep.original_inference_steps", 50)))
    else:
        scheduler = getattr(diffusers, model.scheduler_config["_class_name"]).from_config(model.scheduler_config)
    details = dict(model.details) | {"name": folder.resolve().name}
    if few_step:
        details |= {"method": LCM_LORA, "guidance_scale": model.family.guidance_of(float(header["fewstep.omega"]))}
    with replace_folder(folder) as draft:
        _pipeline(model, model.network, scheduler).save_pretrained(draft, safe_serialization=True)
        (draft / "fewstep.json").write_text(json.dumps(details, indent=2) + "\n")


def _lcm_scheduler(model: LatentModel, grid_size: int) -> LCMScheduler:
    # What a file leaves out has one default here (DDIM's, as diffusers has it) and another in LCMScheduler.
    schedule = {key: model.scheduler_config.get(key, default) for key, default in _SCHEDULE_DEFAULTS.items()}
    # What sampling starts from; our own sampler follows the same rule.
    return LCMScheduler(**schedule, original_inference_steps=grid_size, clip_sample=False, set_alpha_to_one=False)


def _pipeline(model: LatentModel, network: UNetNetwork, scheduler: Any) -> Any:
    """A pipeline of the class that people load such a model with."""
    diffusers_logging.disable_progress_bar()
    parts = {
        "vae": model.vae, "text_encoder": model.text_encoder, "tokenizer": model.tokenizer, "unet": network.unet,
        "scheduler": scheduler,
    }  # fmt: skip
    if model.text_encoder_2 is not None:
        second = {"text_encoder_2": model.text_encoder_2, "tokenizer_2": model.tokenizer_2}
        return StableDiffusionXLPipeline(**parts, **second, force_zeros_for_empty_prompt=model.zero_null_cond)
    takes_guidance = network.unet.config.time_cond_proj_dim is not None
    kind = LatentConsistencyModelPipeline if takes_guidance else StableDiffusionPipeline
    return kind(**parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False)


def save_combined(folder: Path, model: LatentModel, pairs: Lora, header: Mapping[str, str]) -> float:
    """Writes LoRAs that are one now, in both spellings; returns the largest difference on reloading."""
    with replace_folder(folder) as draft:
        return write_lora(draft, pairs, header, model.parts)


def save_lora(folder: Path, model: LatentModel, pairs: Lora, details: Mapping[str, Any]) -> float:
    """Writes a LoRA in both spellings, `fewstep.json` and the card; returns the largest difference on reloading.

    `details` as for `save_student`, with `grid_size`, `lora_rank`, `lora_alpha` and `teacher_sha256`.
    """
    with replace_folder(folder) as draft:
        difference = write_lora(draft, pairs, lora_header(model, details), model.parts)
        (draft / "fewstep.json").write_text(json.dumps(dict(details), indent=2) + "\n")
        (draft / "README.md").write_text(model_card(details))
    return difference


def lora_header(model: LatentModel, details: Mapping[str, Any]) -> dict[str, str]:
    """ModelSpec 1.0.1, kohya's `ss_*`, and what our own loader needs to paint by itself."""
    architecture = modelspec_architecture(model.family, model.network.parameterisation)
    said = {
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": f"{architecture}/lora",
        "modelspec.implementation": "https://github.com/huggingface/diffusers",
        "modelspec.title": details["name"],
        "modelspec.date": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S"),
        "modelspec.resolution": f"{model.resolution}x{model.resolution}",
        "modelspec.prediction_type": {"v_prediction": "v"}.get(model.network.parameterisation, "epsilon"),
        "ss_network_module": "networks.lora",
        "ss_network_dim": details["lora_rank"],
        "ss_network_alpha": details["lora_alpha"],
        "ss_learning_rate": details["lr"],
        "ss_max_train_steps": details["steps"],
        "ss_total_batch_size": details["batch_size"],
        "ss_seed": details["seed"],
        "fewstep.method": details["method"],
        "fewstep.teacher": details["teacher"],
        "fewstep.teacher_sha256": details["teacher_sha256"],
        **({"fewstep.base_config": details["base_config"]} if "base_config" in details else {}),
        **kohya_base(model.family),
    }
    if details["method"] == LCM_LORA:
        said |= {
            "modelspec.usage_hint": "LCM sampler, 2 to 8 steps, guidance scale 1",
            "fewstep.omega": model.family.omega_of(details["guidance_scale"]),
            "fewstep.original_inference_steps": details["grid_size"],
            "fewstep.scheduler": "LCMScheduler",
            "fewstep.steps": 4,
        }
    return {name: str(value) for name, value in said.items()}


_KINDS = {
    "LCD": (
        "A Latent Consistency Model (arXiv 2310.04378) distilled with fewstep",
        "latent-consistency-model, few-step",
    ),
    "LCF": (
        "A Latent Consistency Model (arXiv 2310.04378) fine-tuned with fewstep",
        "latent-consistency-model, few-step",
    ),
    LCM_LORA: ("An LCM-LoRA (arXiv 2311.05556) distilled with fewstep", "lora, lcm-lora, few-step"),
    STYLE_LORA: ("A style as a LoRA, trained with fewstep", "lora"),
}


_ORIGIN = {"LCF": "started from", STYLE_LORA: "base"}


def model_card(details: Mapping[str, Any], scores: Sequence[str] = ()) -> str:
    """The card in Markdown: where the model comes from, how it is used, what it scored."""
    what, tags = _KINDS[details["method"]]
    lora, few_step = "lora_rank" in details, details["method"] != STYLE_LORA
    training = "{steps} steps of {batch_size}".format(**details)
    training += ", solver {solver}, skip {skip}".format(**details) if few_step else ""
    lines = [
        "---",
        "library_name: diffusers",
        "pipeline_tag: text-to-image",
        f"tags: [{tags}, fewstep]",
        "---",
        "",
        f"# {details['name']}",
        "",
        f"{what}{': 1 to 8 steps in place of 50' if few_step else ''}.",
        "",
        "| | |",
        "|---|---|",
        f"| {_ORIGIN.get(details['method'], 'teacher')} | {details['teacher']} |",
        f"| data | {details['data']} |",
        f"| training | {training} |",
        *([f"| guidance | {_guidance(details)} |"] if few_step else []),
        *(["| rank, alpha | {lora_rank}, {lora_alpha:g} |".format(**details)] if lora else []),
        "",
        "```python",
        *(_lora_usage(details) if lora else _usage(details)),
        "```",
    ]
    if few_step:
        lines += ["", "A negative prompt has no effect: guidance is inside the network."]
    if scores:
        lines += ["", "## Scores", "", *scores]
    return "\n".join(lines) + "\n"


def _guidance(details: Mapping[str, Any]) -> str:
    low, high = details["guidance_range"]
    scale = f"{details['guidance_scale']:g}"
    if details["method"] == LCM_LORA:
        return f"diffusers' `guidance_scale` {scale} (ω + 1), built in"
    return f"diffusers' `guidance_scale` {low:g} to {high:g} (ω + 1), {scale} by default"


def _usage(details: Mapping[str, Any]) -> list[str]:
    return [
        "from diffusers import DiffusionPipeline",
        "",
        'pipe = DiffusionPipeline.from_pretrained("this folder")',
        f'image = pipe("a prompt", num_inference_steps=4, guidance_scale={details["guidance_scale"]:g}).images[0]',
    ]


def _lora_usage(details: Mapping[str, Any]) -> list[str]:
    few_step = details["method"] == LCM_LORA
    scheduler = [
        f"lcm = dict(original_inference_steps={details.get('grid_size')})",
        "pipe.scheduler = LCMScheduler.from_config(pipe.scheduler.config, **lcm)",
    ]
    bundled = details["teacher"] == assets.SCENES
    base = "assets.scenes_teacher()" if bundled else f'"{details["teacher"]}"'
    return [
        "from diffusers import DiffusionPipeline" + (", LCMScheduler" if few_step else ""),
        *(["from fewstep import assets"] if bundled else []),
        "",
        f"pipe = DiffusionPipeline.from_pretrained({base})",
        *(scheduler if few_step else []),
        f'pipe.load_lora_weights("this folder", weight_name="{DIFFUSERS_FILE}")',
        'image = pipe("a prompt"' + (", num_inference_steps=4, guidance_scale=1" if few_step else "") + ").images[0]",
    ]
