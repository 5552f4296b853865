"""LoRAs that are merged into a model as it is loaded: a style that is part of a teacher."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from fewstep.errors import UserError
from fewstep.models.family import LatentModel
from fewstep.models.lora.combining import merge
from fewstep.models.lora.file import read_lora
from fewstep.models.lora.source import parse_lora

logger = logging.getLogger(__name__)


def merge_into(model: LatentModel, given: Sequence[str]) -> None:
    """Merges LoRAs, each with its scale after a colon, into a model's weights. Raises UserError."""
    found = [parse_lora(each) for each in given]
    files = [read_lora(path, model.parts, model.family.lora) for path, _ in found]
    for file in files:
        if file.end or file.embeddings:
            what = "tells its base where to land" if file.end else "brings a word along"
            raise UserError(f"{file.source} {what}, which cannot be merged into weights; give it with --lora")
        for line in (f"{file.matched()}; merged into {model.source}", *file.notes):
            logger.info(line)
    merge(model.parts, [(file.pairs, scale) for file, (_, scale) in zip(files, found, strict=True)])
