"""Students written so that the tools people have can load them."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from diffusers.utils import logging as diffusers_logging
from safetensors.torch import save_file

from fewstep.files import replace_folder
from fewstep.models.card import StudentCard, read_method
from fewstep.models.family import LatentModel
from fewstep.models.model_files import END_FILE
from fewstep.models.network import KEYS, BackboneNetwork
from fewstep.models.parts import write_for_every_version
from fewstep.models.readme import write_model_card
from fewstep.models.stock_scheduler import describe_sampling, make_scheduler


def save_student(folder: Path, teacher: LatentModel, network: BackboneNetwork, card: StudentCard) -> None:
    """Writes the pipeline, `fewstep.json` and the model card; an older export there is replaced whole.

    `card` must hold `grid_size`, and `guidance_scale` and `guidance_range` in diffusers' convention.
    """
    assert card.grid_size is not None
    scheduler = make_scheduler(teacher, read_method(card, teacher.source), card.grid_size)
    card = dataclasses.replace(card, **describe_sampling(teacher, card))
    with replace_folder(folder) as draft:
        save_pipeline(draft, teacher, network, scheduler, few_step=True)
        card.write(draft)
        write_model_card(draft, card)


def save_pipeline(
    draft: Path, model: LatentModel, network: BackboneNetwork, scheduler: Any, *, few_step: bool
) -> None:  # fmt: skip
    """Writes a model around `network`; `few_step` lets the pipeline's own settings say that it paints in few steps.

    What tells the end, where diffusers' class has no place for it, stands in a file and in a pipeline of its own.
    """
    diffusers_logging.disable_progress_bar()
    with network.without_end() as end:
        pipeline = model.family.make_pipeline(model, network, scheduler)
        if few_step:
            pipeline = model.family.mark_few_step(pipeline)
        pipeline.save_pretrained(draft, safe_serialization=True)
    if end:
        held = {f"{KEYS}{name}": value.cpu().contiguous() for name, value in end.items()}
        save_file(held, draft / END_FILE)
    write_for_every_version(draft, model.conditioner.encoders)
    if network.takes_end:
        (draft / "pipeline.py").write_text(model.family.write_any_step_pipeline(network))
