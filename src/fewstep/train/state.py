"""All of a run that changes while it goes on: named tensors and a few numbers, from which it goes on bit for bit."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from fewstep.train.skipping import Skipping


@dataclass
class RunState:
    """Sample order and randomness follow from `counter` alone."""

    student: nn.Module
    averaged: nn.Module | None
    optimizer: torch.optim.Optimizer
    skipping: Skipping
    step: int = 0
    """Updates so far."""
    counter: int = 0
    """Samples so far."""
    skipped: list[dict[str, Any]] = field(default_factory=list)
    """Updates that were left out because they were not finite: their step, and their pictures."""
    losses: list[Tensor] = field(default_factory=list)
    """Of the updates since the last line of the log."""

    def tensors(self, *, keep: bool = True) -> dict[str, Tensor]:
        """Every tensor under a name that says what it is, whole. All processes call it together, and those that do not
        `keep` them get none: what is spread is put together one tensor at a time, and leaves the device."""
        named = {f"student.{name}": value for name, value in self.student.state_dict().items()}
        if self.averaged is not None:
            named |= {f"averaged.{name}": value for name, value in self.averaged.state_dict().items()}
        for name, parameter in self.student.named_parameters():
            for moment, value in self.optimizer.state.get(parameter, {}).items():
                # bitsandbytes counts in Python, and its weights share tables of levels, which no file can.
                given = torch.tensor(value) if isinstance(value, int) else value
                named[f"optimizer.{moment}.{name}"] = given.clone() if moment.startswith("qmap") else given
        named["losses"] = torch.stack(self.losses) if self.losses else torch.zeros(0)
        whole = ((name, gathered(value.detach()).contiguous()) for name, value in named.items())
        return {name: value for name, value in whole if keep}

    def numbers(self) -> dict[str, Any]:
        """All else, as JSON holds it."""
        in_a_row, total = self.skipping.counts()
        return {
            "step": self.step, "counter": self.counter, "skipped": self.skipped,
            "skipped_in_a_row": in_a_row, "skipped_in_all": total,
        }  # fmt: skip

    def restore(self, tensors: dict[str, Tensor], numbers: dict[str, Any], steps: int) -> None:
        """Takes over a saved state, of which every tensor must have its place; `steps` are those of the whole run."""
        _load(self.student, _part(tensors, "student."))
        if self.averaged is not None:
            _load(self.averaged, _part(tensors, "averaged."))
        moments: dict[str, dict[str, Tensor]] = {}
        for key, value in _part(tensors, "optimizer.").items():
            moment, name = key.split(".", 1)
            moments.setdefault(name, {})[moment] = value
        self.optimizer.state.clear()
        for name, parameter in self.student.named_parameters():
            if name in moments:
                self.optimizer.state[parameter] = {m: _moment(parameter, v) for m, v in moments[name].items()}
        device = next(self.student.parameters()).device
        self.losses = list(tensors["losses"].to(device))
        self.step, self.counter = int(numbers["step"]), int(numbers["counter"])
        self.skipped = list(numbers["skipped"])
        self.skipping = Skipping(
            steps, device, int(numbers["skipped_in_a_row"]), int(numbers["skipped_in_all"])
        )  # fmt: skip


def gathered(value: Tensor) -> Tensor:
    """A tensor of which every process holds a part, put together in main memory; any other as it is."""
    return value.full_tensor().cpu() if isinstance(value, DTensor) else value


def is_spread(module: nn.Module) -> bool:
    """Whether every process holds a part of its weights."""
    return any(isinstance(parameter, DTensor) for parameter in module.parameters())


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _load(module: nn.Module, saved: dict[str, Tensor]) -> None:
    own = module.state_dict()
    module.load_state_dict({name: _as(own[name], value) if name in own else value for name, value in saved.items()})


def _as(own: Tensor, saved: Tensor) -> Tensor:
    """`saved` shared out among the processes as `own` is."""
    if not isinstance(own, DTensor):
        return saved
    return distribute_tensor(saved.to(own.device), own.device_mesh, own.placements)


def _moment(parameter: Tensor, saved: Tensor) -> Tensor | int:
    """As the optimiser holds it. AdamW's kernels walk memory, not strides: a moment must lie as its parameter does
    (channels last, say)."""
    if saved.dtype == torch.int64:
        return int(saved)
    if saved.shape != parameter.shape:
        return saved.to(parameter.device)
    if isinstance(parameter, DTensor):
        return _as(parameter, saved)
    return torch.empty_like(parameter, dtype=saved.dtype, requires_grad=False).copy_(saved)


def mean_loss(losses: list[Tensor]) -> float:
    """Of those that are finite; NaN if none is."""
    values = [value for value in torch.stack(losses).tolist() if math.isfinite(value)]
    return sum(values) / len(values) if values else math.nan
