"""All of a run that changes while it goes on: named tensors and a few numbers, from which it goes on bit for bit."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from fewstep.parallel.world import is_spread
from fewstep.train.config import Optimisation
from fewstep.train.role import STUDENT, Role
from fewstep.train.vetoes import LossScale, Skipping

_STUDENTS_NAMES = {"weights": "student", "average": "averaged"}
EXPORTED = (_STUDENTS_NAMES["average"], _STUDENTS_NAMES["weights"])
"""What names begin with of the tensors that a run exports: the average's where there is one."""


@dataclass(eq=False)
class RoleState:
    """Holds a role in the midst of a run."""

    role: Role
    optimisation: Optimisation
    optimizer: torch.optim.Optimizer
    losses: list[Tensor] = field(default_factory=list)
    """One for every update since the last line of the log: NaN where it was left out, infinite where the role was not
    due or there was nothing to learn from."""

    @property
    def parameters(self) -> list[Tensor]:
        """Returns those that learn."""
        return [parameter for group in self.optimizer.param_groups for parameter in group["params"]]

    def file_name(self, what: str) -> str:
        """Returns what its weights, average, target, optimizer or losses are called in a checkpoint."""
        return _STUDENTS_NAMES.get(what, what) if self.role.name == STUDENT else f"{self.role.name}.{what}"

    @property
    def copies(self) -> dict[str, nn.Module]:
        """Returns its weights and those of their averages that there are, by what they are called in a checkpoint."""
        role = self.role
        given = {"weights": role.weights, "average": role.average, "target": role.target}
        return {self.file_name(what): module for what, module in given.items() if module is not None}

    def tensors(self) -> dict[str, Tensor]:
        """Returns every tensor of it under a name that says what it is."""
        optimizer = self.file_name("optimizer")
        named: dict[str, Tensor] = {}
        for begin, module in self.copies.items():
            named |= {f"{begin}.{name}": value for name, value in module.state_dict().items()}
        for name, parameter in self.role.weights.named_parameters():
            for moment, value in self.optimizer.state.get(parameter, {}).items():
                # bitsandbytes counts in Python, and its weights share tables of levels, which no file can.
                given = torch.tensor(value) if isinstance(value, int) else value
                named[f"{optimizer}.{moment}.{name}"] = given.clone() if moment.startswith("qmap") else given
        named[self.file_name("losses")] = torch.stack(self.losses) if self.losses else torch.zeros(0)
        return named

    def restore(self, tensors: Mapping[str, Tensor], device: torch.device) -> None:
        """Takes over what `tensors` gave."""
        for begin, module in self.copies.items():
            module.load_state_dict(_pick_part(tensors, begin))
        moments: dict[str, dict[str, Tensor]] = {}
        for key, value in _pick_part(tensors, self.file_name("optimizer")).items():
            moment, name = key.split(".", 1)
            moments.setdefault(name, {})[moment] = value
        self.optimizer.state.clear()
        for name, parameter in self.role.weights.named_parameters():
            if name in moments:
                self.optimizer.state[parameter] = {m: _fit_moment(parameter, v) for m, v in moments[name].items()}
        self.losses = list(tensors[self.file_name("losses")].to(device))


@dataclass
class RunState:
    """Sample order and randomness follow from `counter` alone."""

    roles: Sequence[RoleState]
    steps: int
    """Updates of the whole run."""
    skipping: Skipping
    step: int = 0
    """Updates so far."""
    counter: int = 0
    """Samples so far."""
    skipped: list[dict[str, Any]] = field(default_factory=list)
    """Updates that were left out because they were not finite: their step, and their pictures."""
    scaling: LossScale | None = None
    """Where networks compute in fp16."""

    @property
    def device(self) -> torch.device:
        return self.roles[0].parameters[0].device

    def tensors(self) -> dict[str, Tensor]:
        """Returns every tensor under its name in a checkpoint."""
        return {name: value.detach() for role in self.roles for name, value in role.tensors().items()}

    @property
    def is_spread(self) -> bool:
        """Tells whether processes hold parts of it."""
        return any(is_spread(module) for role in self.roles for module in role.copies.values())

    def numbers(self) -> dict[str, Any]:
        """Returns all else, as JSON holds it."""
        in_a_row, total = self.skipping.counts()
        return {
            "step": self.step, "counter": self.counter, "skipped": list(self.skipped),
            "skipped_in_a_row": in_a_row, "skipped_in_all": total, **(self.scaling.numbers() if self.scaling else {}),
        }  # fmt: skip

    def restore(self, tensors: Mapping[str, Tensor], numbers: dict[str, Any]) -> None:
        """Takes over a saved state, of which every tensor must have its place. Raises KeyError or RuntimeError."""
        known = [name for role in self.roles for name in (*role.copies, role.file_name("optimizer"))]
        losses = [role.file_name("losses") for role in self.roles]
        for name in tensors:
            if name not in losses and not name.startswith(tuple(f"{each}." for each in known)):
                raise KeyError(f"no role here has {name}")
        device = self.device
        for role in self.roles:
            role.restore(tensors, device)
        self.step, self.counter = int(numbers["step"]), int(numbers["counter"])
        self.skipped = list(numbers["skipped"])
        self.skipping = Skipping(
            self.steps, device, int(numbers["skipped_in_a_row"]), int(numbers["skipped_in_all"])
        )  # fmt: skip
        if self.scaling and "loss_scale" in numbers:  # a run may go on in another precision
            self.scaling = LossScale(device, numbers["loss_scale"], numbers["updates_at_loss_scale"])


def _pick_part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Reads those whose names begin so, and no others."""
    return {name.removeprefix(f"{prefix}."): tensors[name] for name in tensors if name.startswith(f"{prefix}.")}


def _fit_moment(parameter: Tensor, saved: Tensor) -> Tensor | int:
    """Returns it as the optimiser holds it. AdamW's kernels walk memory, not strides: a moment must lie as its
    parameter does (channels last, say)."""
    if saved.dtype == torch.int64:
        return int(saved)
    if saved.shape != parameter.shape or isinstance(saved, DTensor):
        return saved.to(parameter.device)
    return torch.empty_like(parameter, dtype=saved.dtype, requires_grad=False).copy_(saved)


def compute_mean_loss(losses: list[Tensor]) -> float:
    """Returns the mean of those that are finite; NaN if none is."""
    values = [value for value in torch.stack(losses).tolist() if math.isfinite(value)]
    return sum(values) / len(values) if values else math.nan
