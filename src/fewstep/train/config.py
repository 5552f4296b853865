"""How a training loop runs, whatever it trains."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar, Literal, Self

from fewstep.data.draws import check_seed
from fewstep.errors import UserError
from fewstep.precision import Precision

TrackerName = Literal["auto", "tensorboard", "wandb", "mlflow"]


def check_values(config: Any) -> None:
    """Refuses NaN and infinity in any field of a configuration dataclass, and what a choice does not offer.

    No comparison would refuse the first, and only the command line the second. Raises UserError.
    """
    hints = typing.get_type_hints(type(config))
    for field in dataclasses.fields(config):
        value, allowed = getattr(config, field.name), _list_choices(hints[field.name])
        for each in value if isinstance(value, tuple) else (value,):
            if isinstance(each, float) and not math.isfinite(each):
                raise UserError(f"{field.name} is {each}; it must be a finite number")
            if allowed and each not in allowed:
                raise UserError(f"{field.name} is {each!r}; allowed: {', '.join(map(str, allowed))}")


def _list_choices(hint: Any) -> tuple[Any, ...]:
    """Returns what a field's Literal, or its tuple of a Literal, offers; nothing for another type."""
    if typing.get_origin(hint) is tuple:
        hint = typing.get_args(hint)[0]
    return typing.get_args(hint) if typing.get_origin(hint) is Literal else ()


def check_at_least(config: Any, least: float, *names: str) -> None:
    """Raises UserError where one of these fields is below `least`."""
    for name in names:
        if getattr(config, name) < least:
            raise UserError(f"{name} is {getattr(config, name)}; it must be at least {least}")


def check_not_negative(config: Any, *names: str) -> None:
    """Raises UserError where one of these fields is below 0."""
    for name in names:
        if getattr(config, name) < 0:
            raise UserError(f"{name} is {getattr(config, name)}; it must not be negative")


def check_given(config: Any, *names: str) -> None:
    """Raises UserError where a recipe leaves one of these fields to the command line, and it is not there."""
    for name in names:
        if not getattr(config, name):
            examples = {
                "data": "a folder of captioned pictures, or the name of a bundled world, such as scenes",
                "teacher": "a diffusers folder, a single file or a Hub id",
                "model": "a diffusers folder, a single file or a Hub id",
            }
            raise UserError(f"{name} is not given: give --{name}, {examples.get(name, 'which has no default')}")


def check_between(config: Any, low: float, high: float, *names: str) -> None:
    """Raises UserError where one of these fields is below `low` or above `high`."""
    for name in names:
        if not low <= getattr(config, name) <= high:
            raise UserError(f"{name} is {getattr(config, name)}; allowed: {low} to {high}")


@dataclass(frozen=True, kw_only=True)
class Optimisation:
    """How a role's weights follow their gradient, and how their average follows them."""

    lr: float = 1e-4
    """Peak learning rate of AdamW."""
    lr_decay: Literal["constant", "cosine", "linear"] = "constant"
    """Course of the learning rate after the warm-up; `cosine` and `linear` end at 0."""
    warmup_steps: int = 0
    """Updates over which the learning rate rises linearly to its peak."""
    optimizer: Literal["adamw", "adamw8bit"] = "adamw"
    """`adamw8bit` (needs fewstep[8bit]) keeps AdamW's moments in 8 bits, a quarter of their memory, but makes every
    update wait for the GPU."""
    weight_decay: float = 0.0
    """Decoupled weight decay of AdamW."""
    beta2: float = 0.999
    """Decay of AdamW's second moment."""
    clip_norm: float = 1.0
    """Largest norm of the whole gradient, above which it is scaled down; 0 switches clipping off."""
    ema_decay: float = 0.0
    """Decay of the averaged weights per update, μ in the papers; 0 keeps no average."""

    def __post_init__(self) -> None:
        check_values(self)
        if self.lr <= 0:
            raise UserError(f"lr is {self.lr}; it must be above 0")
        for name in ("ema_decay", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}; it must be in [0, 1)")
        check_not_negative(self, "weight_decay", "clip_norm", "warmup_steps")


@dataclass(frozen=True, kw_only=True)
class LoopConfig(Optimisation):
    """How long a run is and how it goes on; its optimisation is that of every role which has none of its own."""

    also_named: ClassVar[Mapping[str, str]] = MappingProxyType({"updates": "steps"})
    """Other names of settings, which people are told first."""

    steps: int = 1000
    """Updates of the weights."""
    batch_size: int = 32
    """Samples in one update, over all processes together."""
    accumulation: int = 1
    """Number of parts in which a batch is computed, one after the other. Raise it when memory runs out: the result is
    the same. It must divide --batch-size."""
    precision: Precision = "auto"
    """Number format that networks compute in. `auto` takes bf16 on a GPU that computes in it, fp16 on an older GPU
    (with loss scaling), else fp32."""
    seed: int = 0
    """Seed of the sample order and of every random draw."""
    log_every: int = 10
    """Updates between two lines of metrics.jsonl."""
    checkpoint_every: int = 200
    """Updates between two checkpoints. The last update always writes one."""
    keep_checkpoints: int = 2
    """Number of newest checkpoints that stay on disk; at least 2, in case the newest is damaged."""
    processes: int = 1
    """Training processes to start on this machine, one for each GPU; torchrun starts them itself. A run may be resumed
    with another number."""
    change: tuple[str, ...] = ()
    """Names of settings in which this run may differ from the one in its folder; it goes on with the new values."""
    record_samples: bool = False
    """Write the names of the samples of every update to samples.jsonl."""
    report_to: tuple[TrackerName, ...] = ("auto",)
    """Trackers that are told settings, losses, samples and evaluations: `tensorboard`, `wandb` and `mlflow`, one or
    several. `auto` writes TensorBoard's files where it is installed; the option without a value tells nobody. Each
    needs the package of its name, as fewstep[wandb]; servers and projects are named as wandb and MLflow have it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_seed(self.seed)
        check_at_least(self, 1, "steps", "batch_size", "accumulation", "log_every", "checkpoint_every", "processes")
        check_at_least(self, 2, "keep_checkpoints")
        if self.batch_size % self.accumulation:
            raise UserError(
                f"accumulation {self.accumulation} does not divide batch_size {self.batch_size}; choose a divisor"
            )
        if self.batch_size % self.processes:
            raise UserError(
                f"batch_size {self.batch_size} is not a multiple of {self.processes} processes; give one that is"
            )
        own = tuple(self.also_named.get(name, name) for name in self.change)
        object.__setattr__(self, "change", own)
        unknown = set(self.change) - {field.name for field in dataclasses.fields(self)}
        if unknown:
            raise UserError(f"change names {', '.join(sorted(unknown))}, which is not a setting of this command")

    def with_batch_size(self, batch_size: int) -> Self:
        """Returns the same for another batch; one that was computed in parts, in the fewest that are no larger."""
        most = self.batch_size // self.accumulation if self.accumulation > 1 else batch_size
        parts = next(n for n in range(1, batch_size + 1) if batch_size % n == 0 and batch_size // n <= most)
        return dataclasses.replace(self, batch_size=batch_size, accumulation=parts)

    def count_parts(self, share: int) -> int:
        """Returns the parts in which a process computes its `share` of a batch: the fewest that are no larger than
        batch_size/accumulation."""
        most = self.batch_size // self.accumulation
        return next(parts for parts in range(1, share + 1) if share % parts == 0 and share // parts <= most)


NOT_THE_RUN = (
    "out", "device", "processes", "distribution", "change", "read_ahead", "report_to", "push_to_hub", "license",
    "public", "compile",
)  # fmt: skip
"""Fields of a configuration that say nothing about what is trained."""


def list_settings(config: Any) -> dict[str, Any]:
    """Returns the settings of a configuration dataclass by name, those of one within it as `filters.min_side`; what is
    no number is a text."""
    found: dict[str, Any] = {}
    for name, value in vars(config).items():
        if dataclasses.is_dataclass(value):
            found |= {f"{name}.{inner}": each for inner, each in list_settings(value).items()}
        else:
            plain = value is None or isinstance(value, bool | int | float)
            found[name] = value if plain else " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
    return found


def fingerprint(config: Any) -> str:
    """Returns the hash of a configuration dataclass, without the fields that say nothing about what is trained."""
    values = {name: value for name, value in dataclasses.asdict(config).items() if name not in NOT_THE_RUN}
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()
