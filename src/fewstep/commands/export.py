"""`fewstep export`: an any-step model as a LoRA that other tools paint with, learnt from the model's own steps."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import ClassVar

from fewstep.commands.distill import distill
from fewstep.data.draws import check_seed
from fewstep.data.worlds.scene import LOOKS
from fewstep.errors import UserError
from fewstep.models.card import MAX_STEPS, StudentCard, read_card
from fewstep.models.model_files import check_asked, find_run
from fewstep.models.model_places import find_exported
from fewstep.models.options import DeviceOptions, ModelOptions, read_overrides
from fewstep.recipes.choosing import choose_recipe
from fewstep.recipes.distill import Distill
from fewstep.train.config import check_at_least, check_between, check_given, check_not_negative


@dataclass(frozen=True, kw_only=True)
class Export(ModelOptions, DeviceOptions):
    """Makes a LoRA of an any-step model, for ComfyUI, A1111 and stock diffusers, which cannot tell a network where to
    land: it learns the model's own steps, at one number of them and one guidance scale.

    It is `fewstep distill --method pcm --follow MODEL`, which has more settings.
    """

    also_named: ClassVar[Mapping[str, str]] = MappingProxyType({"updates": "steps"})

    model: str = ""
    """The any-step model: the folder of its run, or of the model itself."""
    base: str = ""
    """The model that the LoRA is for. By default the teacher that the any-step model was made from, as its record says.
    --base-config and the options beside it are this model's."""
    phases: int = 4
    """Number of steps that the LoRA paints in."""
    guidance_scale: float = 0.0
    """Guidance scale that the LoRA has built in, in diffusers' convention; 0 takes what the model paints with when none
    is given."""
    data: str = ""
    """Captions to learn from: a .txt file with a prompt on each line, or captioned pictures, which are not looked at.
    By default the bundled world's, where the model learnt from it."""
    lora_rank: int = 64
    """Rank of the LoRA, and its alpha."""
    steps: int = 400
    """Updates of the LoRA."""
    batch_size: int = 0
    """Pictures in one update; 0 takes that of the recipe for a LoRA of the base's family."""
    lr: float = 0.0
    """Learning rate; 0 takes that of the same recipe."""
    seed: int = 0
    """Seed of the sample order and of every random draw."""
    out: Path = Path("exported")
    """Run folder; the LoRA is in its folder `model`. Give the same command again to resume an interrupted run."""

    def __post_init__(self) -> None:
        check_seed(self.seed)
        check_at_least(self, 1, "lora_rank", "steps")
        check_not_negative(self, "guidance_scale", "batch_size", "lr")
        check_between(self, 1, MAX_STEPS, "phases")


def export(config: Export) -> None:
    """Distils the LoRA into `config.out / "model"`."""
    check_given(config, "model")
    run = find_run(config.model)
    if run and not run.ended:
        raise UserError(f"{run.describe()}; a LoRA is made of it once it has ended")
    folder = Path(find_exported(config.model))
    if not folder.is_dir():
        raise UserError(f"{config.model} is not a folder of a run or of a model; give one by any-step")
    distill(as_distillation(config, read_card(folder)))


def as_distillation(config: Export, card: StudentCard) -> Distill:
    """Returns the run that makes the LoRA of a model with that card. Raises UserError for what it leaves open."""
    base, data = config.base or card.teacher, config.data or card.data
    if base is None:
        raise UserError(f"{config.model} does not say which base it was made from; give it with --base")
    if not config.data and data not in LOOKS:
        raise UserError(f"{config.model} learnt from {data}; give captions to make the LoRA by, with --data")
    base_config, said = config.base_config, config.stated()
    if not config.base:  # then what the base was read with holds as well
        base_config = base_config or card.base_config or ""
        held = read_overrides({**card.to_json(), **said})
        said = held.stated()
        for named in (base, "" if config.base_config else base_config, "" if config.network else held.network):
            check_asked(named, config.model, remedy=f"name it yourself, with --base {base}")
    scale = config.guidance_scale or card.guidance_scale
    if scale is None:
        raise UserError(f"{config.model} does not say at which guidance it paints; give --guidance-scale")
    recipe: Distill = choose_recipe(
        "distill", str(base), base_config, lora=True, prediction=str(said.get("prediction_type", ""))
    ).config
    if config.batch_size:
        recipe = recipe.with_batch_size(config.batch_size)
    return dataclasses.replace(
        recipe, method="pcm", follow=config.model, phases=(config.phases,), teacher=str(base), base_config=base_config,
        data=str(data), lora_rank=config.lora_rank, guidance_range=(scale, scale), guidance_scale=scale,
        steps=config.steps, lr=config.lr or recipe.lr, warmup_steps=min(recipe.warmup_steps, config.steps // 10),
        seed=config.seed, device=config.device, out=config.out, **said,
    )  # fmt: skip
