"""How a training loop runs, whatever it trains."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import typing
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from fewstep.errors import UserError


def check_values(config: Any) -> None:
    """Refuses NaN and infinity in any field of a configuration dataclass, and what a choice does not offer.

    No comparison would refuse the first, and only the command line the second. Raises UserError.
    """
    hints = typing.get_type_hints(type(config))
    for field in dataclasses.fields(config):
        value, allowed = getattr(config, field.name), _choices(hints[field.name])
        for each in value if isinstance(value, tuple) else (value,):
            if isinstance(each, float) and not math.isfinite(each):
                raise UserError(f"{field.name} is {each}; it must be a finite number")
            if allowed and each not in allowed:
                raise UserError(f"{field.name} is {each!r}; allowed are {', '.join(map(str, allowed))}")


def _choices(hint: Any) -> tuple[Any, ...]:
    """Returns what a field's Literal, or its tuple of a Literal, offers; nothing for another type."""
    if typing.get_origin(hint) is tuple:
        hint = typing.get_args(hint)[0]
    return typing.get_args(hint) if typing.get_origin(hint) is Literal else ()


def check_seed(seed: int, count: int = 1) -> None:
    """Refuses what torch's generators cannot hold, for `count` seeds from this one on."""
    if not -(2**63) <= seed <= 2**63 - count:
        raise UserError(f"seed is {seed}; allowed are whole numbers of 64 bits, with sign")


_IN_0_1 = (lambda value: 0 <= value < 1, "in [0, 1)")
_RANGES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "lr": (lambda value: value > 0, "above 0"),
    "ema_decay": _IN_0_1,
    "beta2": _IN_0_1,
    **dict.fromkeys(("weight_decay", "clip_norm", "warmup_steps"), (lambda value: value >= 0, "at least 0")),
    **dict.fromkeys(
        ("steps", "batch_size", "accumulation", "log_every", "checkpoint_every", "processes"),
        (lambda value: value >= 1, "at least 1"),
    ),
    "keep_checkpoints": (lambda value: value >= 2, "at least 2"),
}
"""What the fields of these classes allow, and how that is said."""


def _check_ranges(config: Any) -> None:
    for field in dataclasses.fields(config):
        allows, said = _RANGES.get(field.name, (lambda _: True, ""))
        if not allows(value := getattr(config, field.name)):
            raise UserError(f"{field.name} is {value}; it must be {said}")


@dataclass(frozen=True, kw_only=True)
class Optimisation:
    """How a role's weights follow their gradient, and how their average follows them."""

    lr: float = 1e-4
    """AdamW's peak learning rate."""
    lr_decay: Literal["constant", "cosine", "linear"] = "constant"
    """Shape of the learning rate after the warm-up; cosine and linear end at zero."""
    warmup_steps: int = 0
    """Updates over which the learning rate rises linearly to `lr`."""
    optimizer: Literal["adamw", "adamw8bit"] = "adamw"
    """adamw8bit keeps AdamW's moments in 8 bits (fewstep[8bit]): a quarter of their memory; the host then waits for the
    device at every update."""
    weight_decay: float = 0.0
    """AdamW's decoupled weight decay."""
    beta2: float = 0.999
    """AdamW's second-moment decay."""
    clip_norm: float = 1.0
    """Largest global gradient norm; 0 switches clipping off."""
    ema_decay: float = 0.0
    """Decay μ of the averaged weights per update; 0 keeps no average."""

    def __post_init__(self) -> None:
        check_values(self)
        _check_ranges(self)


@dataclass(frozen=True, kw_only=True)
class LoopConfig(Optimisation):
    """How long a run is and how it goes on; its optimisation is that of every role which has none of its own."""

    steps: int = 1000
    """Updates of the weights."""
    batch_size: int = 32
    """Samples per update."""
    accumulation: int = 1
    """Parts that a batch is computed in; more parts need less memory. Divides `batch_size`."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """What networks compute in; `auto` is bf16 on a GPU that has it, fp32 on a CPU."""
    seed: int = 0
    """Sample order and every random draw follow from it."""
    log_every: int = 10
    """Updates between two lines of `metrics.jsonl`."""
    checkpoint_every: int = 200
    """Updates between two checkpoints; the last update is always checkpointed."""
    keep_checkpoints: int = 2
    """Newest whole checkpoints that stay on disk; at least 2, should the newest turn out to be spoilt."""
    processes: int = 1
    """Processes on this machine, one for each GPU; torchrun starts them itself. `batch_size` is that of all together. A
    run may go on with another number."""
    change: tuple[str, ...] = ()
    """Settings, by name, in which this run may differ from the one that the folder holds, and goes on with the new
    value."""
    record_samples: bool = False
    """Write the names of every update's samples to samples.jsonl."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_seed(self.seed)
        if self.batch_size % self.accumulation:
            raise UserError(
                f"accumulation {self.accumulation} does not divide batch_size {self.batch_size}; choose a divisor"
            )
        unknown = set(self.change) - {field.name for field in dataclasses.fields(self)}
        if unknown:
            raise UserError(f"change names {', '.join(sorted(unknown))}, which is no setting of this command")

    def parts(self, share: int) -> int:
        """Returns the parts in which a process computes its `share` of a batch: the fewest that are no larger than
        batch_size/accumulation."""
        most = self.batch_size // self.accumulation
        return next(parts for parts in range(1, share + 1) if share % parts == 0 and share // parts <= most)


NOT_THE_RUN = ("out", "device", "processes", "distribution", "change")
"""Fields of a configuration that say nothing about what is trained."""


def fingerprint(config: Any) -> str:
    """Returns the hash of a configuration dataclass, without the fields that say nothing about what is trained."""
    values = {name: value for name, value in dataclasses.asdict(config).items() if name not in NOT_THE_RUN}
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()
