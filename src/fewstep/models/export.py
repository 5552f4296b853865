"""A student written as a diffusers folder that every tool with LatentConsistencyModelPipeline can load."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffusers import LatentConsistencyModelPipeline, LCMScheduler
from diffusers.utils import logging as diffusers_logging
from torch import nn

from fewstep.models.latent_model import LatentModel
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
    # What a file leaves out has one default here (DDIM's, as diffusers has it) and another in LCMScheduler.
    schedule = {key: teacher.scheduler_config.get(key, default) for key, default in _SCHEDULE_DEFAULTS.items()}
    # What sampling starts from; our own sampler follows the same rule.
    scheduler = LCMScheduler(**schedule, original_inference_steps=grid_size, clip_sample=False, set_alpha_to_one=False)
    pipeline = LatentConsistencyModelPipeline(
        vae=teacher.vae,
        text_encoder=teacher.text_encoder,
        tokenizer=teacher.tokenizer,
        unet=network.unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    draft = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(draft, ignore_errors=True)
    diffusers_logging.disable_progress_bar()
    pipeline.save_pretrained(draft, safe_serialization=True)
    (draft / "fewstep.json").write_text(json.dumps(dict(details), indent=2) + "\n")
    (draft / "README.md").write_text(model_card(details))
    shutil.rmtree(folder, ignore_errors=True)
    draft.rename(folder)


def model_card(details: Mapping[str, Any], scores: Mapping[str, Any] | None = None) -> str:
    """The card in Markdown: where the model comes from, how it is used, what it scored."""
    low, high = details["guidance_range"]
    scale = f"{details['guidance_scale']:g}"
    lines = [
        "---",
        "library_name: diffusers",
        "pipeline_tag: text-to-image",
        "tags: [latent-consistency-model, few-step, fewstep]",
        "---",
        "",
        f"# {details['name']}",
        "",
        "A Latent Consistency Model (arXiv 2310.04378) distilled with fewstep: 1 to 8 steps in place of 50.",
        "",
        "| | |",
        "|---|---|",
        f"| teacher | {details['teacher']} |",
        f"| data | {details['data']} |",
        "| training | {steps} steps of {batch_size}, solver {solver}, skip {skip} |".format(**details),
        f"| guidance | diffusers' `guidance_scale` {low:g} to {high:g} (ω + 1), {scale} by default |",
        "",
        "```python",
        "from diffusers import DiffusionPipeline",
        "",
        'pipe = DiffusionPipeline.from_pretrained("this folder")',
        f'image = pipe("a prompt", num_inference_steps=4, guidance_scale={scale}).images[0]',
        "```",
        "",
        "A negative prompt has no effect: guidance is inside the network.",
    ]
    if scores:
        lines += ["", "## Scores", "", *score_table(scores)]
    return "\n".join(lines) + "\n"


def score_table(scores: Mapping[str, Any]) -> list[str]:
    """`scores.json` as the lines of a Markdown table."""
    columns = list(scores["rows"][0])
    lines = ["| " + " | ".join(column.replace("_", " ") for column in columns) + " |", "|" + "---|" * len(columns)]
    return lines + ["| " + " | ".join(_cell(row[column]) for column in columns) + " |" for row in scores["rows"]]


def _cell(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
