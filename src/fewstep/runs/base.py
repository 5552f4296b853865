"""The weights that a run trains on top of, or from: the same ones as long as it lasts."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import torch

from fewstep.errors import UserError
from fewstep.files import write_whole
from fewstep.models.card import StudentCard
from fewstep.models.family import LatentModel
from fewstep.models.hashes import weights_sha256
from fewstep.parallel.world import current_world

BASE_FILE = "base.json"
logger = logging.getLogger(__name__)


def claim_base(config: Any, card: StudentCard) -> None:
    """Writes the hash of the base's weights into the run folder, or checks that it is the one already there.

    Raises UserError where it is another, unless `config.change` says that the base may change.
    """
    world = current_world()
    if world.main:
        file, option = config.out / BASE_FILE, "teacher" if hasattr(config, "teacher") else "model"
        held = json.loads(file.read_text())["sha256"] if file.exists() else card.teacher_sha256
        if held != card.teacher_sha256 and option not in config.change:
            raise UserError(
                f"the weights of {card.teacher} are not those that {config.out} began with; put them back, choose "
                f"another --out, or go on with these: --change {option}"
            )
        with write_whole(file) as draft:
            draft.write_text(json.dumps({"base": card.teacher, "sha256": card.teacher_sha256}, indent=2) + "\n")
    world.wait()


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
