"""Every reader of files that strangers write, by what it reads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random

import readers_of_data
import readers_of_flows
import readers_of_models
import readers_of_runs
from corpus import Corpus

from fewstep.data.sources.base import DroppedError
from fewstep.errors import UserError
from fewstep.serve.errors import RefusedError

REFUSALS = (UserError, DroppedError, RefusedError)
"""What readers say no with."""


@dataclass(frozen=True)
class Reader:
    """Damages copies of true files in an empty folder, and reads them."""

    weight: int
    """How often it is drawn, beside the others."""
    read: Callable[[Corpus, Path, Random], object]


READERS = {
    "safetensors header": Reader(60, readers_of_models.read_header),
    "LoRA": Reader(160, readers_of_models.read_loras),
    "model folder": Reader(50, readers_of_models.read_model_folder),
    "whole model": Reader(4, readers_of_models.read_whole_model),
    "single file": Reader(25, readers_of_models.read_single_file),
    "flow folder": Reader(20, readers_of_flows.read_flow_folder),
    "flow in a file": Reader(15, readers_of_flows.read_flow_file),
    "LoRA of a flow": Reader(60, readers_of_flows.read_flow_loras),
    "scheduler": Reader(60, readers_of_models.read_scheduler),
    "card": Reader(40, readers_of_models.read_cards),
    "tokenizer": Reader(30, readers_of_models.read_tokenizers),
    "configuration": Reader(120, readers_of_runs.read_config),
    "sealed checkpoint": Reader(90, readers_of_runs.read_checkpoints),
    "lines of a run": Reader(50, readers_of_runs.read_lines_of_a_run),
    "prepared latents": Reader(60, readers_of_runs.read_prepared),
    "prepared trajectories": Reader(40, readers_of_runs.read_trajectories),
    "folder of pictures": Reader(60, readers_of_data.read_folder),
    "parquet": Reader(60, readers_of_data.read_parquet),
    "tar": Reader(60, readers_of_data.read_tar),
    "picture": Reader(100, readers_of_data.read_picture),
    "settings": Reader(80, readers_of_data.read_settings),
    "painted picture": Reader(60, readers_of_data.read_painted),
    "tiny decoder": Reader(20, readers_of_models.read_tiny_decoder),
    "shard index": Reader(15, readers_of_runs.read_index),
}
"""By what they read."""
