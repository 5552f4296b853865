"""The few-step model that a distillation goes on from."""

from __future__ import annotations

import dataclasses
import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewstep.errors import UserError
from fewstep.files import has_suffix
from fewstep.method.named import HALVING, METHODS
from fewstep.models.card import LORA_FILE, StudentCard, read_method
from fewstep.models.family import LatentModel
from fewstep.models.loading import load_latent_model
from fewstep.models.model_places import find_exported
from fewstep.models.network import BackboneNetwork, hash_weights
from fewstep.parallel.world import find_mesh, is_spread
from fewstep.recipes.distill import Distill

if TYPE_CHECKING:
    from fewstep.models.lora.file import LoraFile

ROUNDING = 1e-6
"""Bounds what a guidance scale loses that a file's header holds as ω."""


@dataclass(frozen=True)
class Begun:
    """What has learnt already: a network, or what a LoRA's file holds."""

    card: StudentCard
    network: BackboneNetwork | None = None
    lora: LoraFile | None = None
    phases: tuple[int, ...] = ()
    """Numbers of phases to go on for, where they are known."""


def load_begun(config: Distill, teacher: LatentModel) -> Begun:
    """Loads what `--start` names. Raises UserError where it does not fit the teacher, or cannot go on by the method."""
    if config.lora_rank:
        # imported only where a run wants it
        begun: Begun = importlib.import_module("fewstep.runs.begun_adapters").read_adapters(config, teacher)
    else:
        begun = _load_network(config, teacher)
    if begun.card.teacher_sha256 not in (None, hash_weights(teacher.network.backbone)):
        print(f"note: {config.start} was made from other weights than those of {config.teacher}", flush=True)
    was = read_method(begun.card, config.start)
    if METHODS[config.method].states == "own" and was.gamma:
        raise UserError(
            f"{config.method} follows a student from end to end, which {config.start} by {was.name} cannot go; start "
            "from one by any-step or pcm"
        )
    if METHODS[config.method].states != "own" and was.name != config.method:
        asked = f"cannot go on by {config.method}; give --method {was.name}, or tdm"
        raise UserError(f"{config.start} was made by {was.name} and {asked}")
    if config.method == HALVING.name:
        _check_stage(config, begun.card)
    return dataclasses.replace(begun, phases=(config.to_steps,) if config.to_steps else begun.card.phases or ())


def _check_stage(config: Distill, card: StudentCard) -> None:
    """Raises UserError where a student by guided-distill does not paint in twice as many steps as are wanted, or was
    guided otherwise: what guides is in it."""
    made, wanted = (card.phases or (0,))[0], config.to_steps
    if made and made != 2 * wanted:
        advice = f"half of that is --to-steps {made // 2}" if made % 2 == 0 else "that has no half; go on from another"
        raise UserError(f"{config.start} paints in {made} steps and to_steps is {wanted}; {advice}")
    if not wanted:
        return
    known = card.guidance_range or (card.guidance_scale or 0.0,) * 2
    (low, high), (least, most) = config.guidance_range, known
    if low < least - ROUNDING or high > most + ROUNDING:
        raise UserError(
            f"guidance_range is {low:g} to {high:g} and {config.start} knows {least:g} to {most:g}; give "
            f"--guidance-range {least:g} {most:g}, or less"
        )
    if card.guided_from not in (None, config.guided_from):
        raise UserError(
            f"guided_from is {config.guided_from} and {config.start} learnt what guides with {card.guided_from}; give "
            f"--guided-from {card.guided_from}"
        )


def load_student_beside(folder: Path, teacher: LatentModel) -> LatentModel:
    """Loads a student, of which each process holds what it does of the teacher: all, or its part."""
    if not is_spread(teacher.network):
        model = load_latent_model(folder, teacher.device)
        if broken := model.find_broken():
            raise UserError(f"{folder} is broken: NaN or infinity in {broken}; export it anew")
        return model
    spreading: Any = importlib.import_module("fewstep.models.spreading")  # imported only where a run wants it
    spread: LatentModel = spreading.load_spread(folder, teacher.device, mesh=find_mesh(teacher.network))
    return spread


def _load_network(config: Distill, teacher: LatentModel) -> Begun:
    folder = Path(find_exported(config.start))
    if has_suffix(folder) or (folder / LORA_FILE).is_file():
        raise UserError(f"{config.start} is a LoRA, which goes on as one; give its --lora-rank too")
    model = load_student_beside(folder, teacher)
    if not model.is_student:
        raise UserError(f"{config.start} is not a few-step model with an input for guidance; give one")
    if model.family is not teacher.family or model.network.parameterisation != teacher.network.parameterisation:
        raise UserError(f"{config.start} is of another kind than {config.teacher}; give a student of this teacher")
    return Begun(model.card, network=model.network)
