"""A run's state on disk: written whole or not at all, read back bit for bit."""

from __future__ import annotations

import json
import os
import re
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn

from fewstep.errors import UserError


@dataclass
class RunState:
    """All that changes while a run goes on; sample order and randomness follow from `step` alone."""

    student: nn.Module
    averaged: nn.Module | None
    optimizer: torch.optim.Optimizer
    step: int = 0
    losses: list[Tensor] = field(default_factory=list)
    """Of the updates since the last line of the log."""

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor of the state under a name that says what it is."""
        named = {f"student.{name}": value for name, value in self.student.state_dict().items()}
        if self.averaged is not None:
            named |= {f"averaged.{name}": value for name, value in self.averaged.state_dict().items()}
        for name, parameter in self.student.named_parameters():
            for moment, value in self.optimizer.state.get(parameter, {}).items():
                # bitsandbytes counts in Python, and its weights share tables of levels, which no file can.
                whole = torch.tensor(value) if isinstance(value, int) else value
                named[f"optimizer.{moment}.{name}"] = whole.clone() if moment.startswith("qmap") else whole
        named["losses"] = torch.stack(self.losses) if self.losses else torch.zeros(0)
        return {name: value.detach().contiguous() for name, value in named.items()}

    def restore(self, tensors: dict[str, Tensor], step: int) -> None:
        """Takes over a saved state; every tensor must have its place."""

        def part(prefix: str) -> dict[str, Tensor]:
            return {n.removeprefix(prefix): v for n, v in tensors.items() if n.startswith(prefix)}

        self.student.load_state_dict(part("student."))
        if self.averaged is not None:
            self.averaged.load_state_dict(part("averaged."))
        moments: dict[str, dict[str, Tensor]] = {}
        for name, value in part("optimizer.").items():
            moment, parameter = name.split(".", 1)
            moments.setdefault(parameter, {})[moment] = value
        self.optimizer.state.clear()
        for name, value in self.student.named_parameters():
            if name in moments:
                self.optimizer.state[value] = {m: _moment(value, v) for m, v in moments[name].items()}
        self.losses = list(tensors["losses"].to(next(self.student.parameters()).device))
        self.step = step


def _moment(parameter: Tensor, saved: Tensor) -> Tensor | int:
    """As the optimiser holds it. AdamW's kernels walk memory, not strides: a moment must lie as its parameter does
    (channels last, say)."""
    if saved.dtype == torch.int64:
        return int(saved)
    if saved.shape != parameter.shape:
        return saved.to(parameter.device)
    return torch.empty_like(parameter, dtype=saved.dtype, requires_grad=False).copy_(saved)


def save_checkpoint(state: RunState, folder: Path, keep: int) -> None:
    """Writes `folder/step-N`; older ones beyond `keep` go only after the new one is whole."""
    final = folder / f"step-{state.step:07d}"
    draft = folder / f"{final.name}.tmp-{os.getpid()}"
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    safetensors.torch.save_file(state.tensors(), draft / "state.safetensors")
    (draft / "state.json").write_text(json.dumps({"step": state.step}))
    for path in (draft / "state.safetensors", draft / "state.json", draft):
        _sync(path)
    if final.exists():
        shutil.rmtree(final)
    draft.rename(final)
    _sync(folder)
    for old in list_checkpoints(folder)[:-keep]:
        shutil.rmtree(old)
    for unfinished in folder.glob("step-*.tmp-*"):
        shutil.rmtree(unfinished, ignore_errors=True)


def list_checkpoints(folder: Path) -> list[Path]:
    """Whole checkpoints, oldest first."""
    found = ((re.fullmatch(r"step-(\d+)", path.name), path) for path in folder.glob("step-*"))
    return [path for _, path in sorted((int(match[1]), path) for match, path in found if match)]


def restore_newest(state: RunState, folder: Path) -> bool:
    """Restores the newest checkpoint in `folder`; False when there is none."""
    checkpoints = list_checkpoints(folder)
    if not checkpoints:
        return False
    newest = checkpoints[-1]
    try:
        step = int(json.loads((newest / "state.json").read_text())["step"])
        state.restore(safetensors.torch.load_file(newest / "state.safetensors"), step)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, safetensors.SafetensorError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"checkpoint {newest} cannot be read ({reason}); delete it to go on from an older one, or, if an earlier "
            "version of fewstep wrote it, choose another --out"
        ) from error
    return True


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
