"""Advice for a run whose device has too little memory."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from fewstep.errors import UserError, is_short_of_memory

_CHANGEABLE = ("accumulation", "gradient_checkpointing", "optimizer")


@contextlib.contextmanager
def explain_out_of_memory(config: Any) -> Iterator[None]:
    """Turns torch's out-of-memory error into a UserError that names the settings of `config` that need less."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_short_of_memory(error):
            raise
        remedies = list(_list_remedies(config))
        if not remedies:
            raise UserError("out of memory with every setting in use that needs less; give a smaller model") from None
        text = ", ".join(remedies)
        names = " ".join(name for name in _CHANGEABLE if f"--{name.replace('_', '-')}" in text)
        raise UserError(
            f"out of memory; these need less: {', '.join(remedies)}. To go on from the last checkpoint with one of "
            f"them add --change {names}. `fewstep plan` says what fits a GPU"
        ) from None


def _list_remedies(config: Any) -> Iterator[str]:
    if config.accumulation < config.batch_size:
        more = next(n for n in range(config.accumulation + 1, config.batch_size + 1) if config.batch_size % n == 0)
        yield f"--accumulation {more} or more (the same result, in more parts)"
    if getattr(config, "gradient_checkpointing", True) is False:
        yield "--gradient-checkpointing"
    if config.optimizer == "adamw":
        yield "--optimizer adamw8bit"
    if getattr(config, "lora_rank", 1) == 0:
        yield "adapters (--lora-rank 64, in a run of their own)"
