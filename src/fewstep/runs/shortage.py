"""What to do where a device has too little memory, in words: the one place where running out of it is explained."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from fewstep.errors import UserError, is_short_of_memory

_CHANGEABLE = ("accumulation", "gradient_checkpointing", "optimizer", "frozen_precision", "precision", "keep_gib")


@contextlib.contextmanager
def explain_out_of_memory(config: Any) -> Iterator[None]:
    """Turns an out-of-memory error, wherever in a command it comes up, into a UserError that names the settings of
    `config` that need less."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_short_of_memory(error):
            raise
        trains = hasattr(config, "accumulation")
        remedies = list(_list_remedies_of_training(config) if trains else _list_remedies_of_painting(config))
        if not remedies:
            raise UserError("out of memory with every setting in use that needs less; give a smaller model") from None
        text = ", ".join(remedies)
        names = [name for name in _CHANGEABLE if f"--{name.replace('_', '-')}" in text]
        resume = (
            f". To go on from the last checkpoint, if there is one, with one of them add --change {' '.join(names)}. "
            "`fewstep plan` says what fits a GPU"
            if trains and names
            else ""
        )
        raise UserError(f"out of memory; these need less: {text}{resume}") from None


def _list_remedies_of_training(config: Any) -> Iterator[str]:
    if config.accumulation < config.batch_size:
        more = next(n for n in range(config.accumulation + 1, config.batch_size + 1) if config.batch_size % n == 0)
        yield f"--accumulation {more} or more (the same result, in more parts)"
    if getattr(config, "gradient_checkpointing", True) is False:
        yield "--gradient-checkpointing"
    if config.optimizer == "adamw":
        yield "--optimizer adamw8bit"
    if getattr(config, "lora_rank", 1) == 0:
        yield "adapters (--lora-rank 64, in a run of their own)"
    if getattr(config, "lora_rank", 0) and config.frozen_precision not in ("int8", "nf4"):
        yield "--frozen-precision nf4"
    if config.precision == "fp32":
        yield "--precision bf16"


def _list_remedies_of_painting(config: Any) -> Iterator[str]:
    """Lists those of a command that paints or encodes: its settings are named alike in all of them."""
    for name in ("batch_size", "batch"):
        if (size := getattr(config, name, 1)) != 1:
            less = f"{size // 2} or less" if size else "1"
            yield f"--{name.replace('_', '-')} {less} (fewer pictures together)"
    if getattr(config, "precision", "bf16") in ("auto", "fp32"):
        yield "--precision bf16"
    if getattr(config, "offload", "on") != "on" and getattr(config, "device", "cpu") != "cpu":
        yield "--offload on (slower)"
    if getattr(config, "workers", 1) > 1:
        yield "--workers 1"
    if getattr(config, "device", "cpu") != "cpu":
        yield "--device cpu"
