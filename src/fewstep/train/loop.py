"""The one training loop: whatever a task's loss is, the updates, the average, the state and the log are these."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from fewstep.errors import UserError
from fewstep.train.checkpoint import RunState, restore_newest, save_checkpoint
from fewstep.train.config import LoopConfig
from fewstep.train.log import RunLog
from fewstep.train.optimisation import learning_rate, make_optimizer, update, update_average


class Task(Protocol):
    """What is trained, and on what."""

    @property
    def student(self) -> nn.Module:
        """Holds the weights that learn."""

    @property
    def averaged(self) -> nn.Module | None:
        """A copy of `student` that the loop keeps as its moving average, or None."""

    def loss(self, counters: range) -> Tensor:
        """Mean loss over the samples at these counters: a pure function of counters and weights."""
        ...


class NonFiniteLossError(UserError):
    """The loss or its gradient was NaN or infinite; no weight was changed by it."""


def fit(task: Task, config: LoopConfig, folder: Path, title: str, at_step: Callable[[int], None] | None = None) -> None:
    """Trains `task` to `config.steps`, going on from the newest checkpoint in `folder`.

    `at_step(n)` is called after every update n, with the weights of that moment, for sample grids and the like; after a
    restart it is called for the restored update again.
    Raises NonFiniteLossError with weights, moments and average as they were before the broken update.
    """
    folder.mkdir(parents=True, exist_ok=True)
    device = next(task.student.parameters()).device
    state = RunState(task.student, task.averaged, make_optimizer(task.student, config))
    if restore_newest(state, folder / "checkpoints"):
        print(f"{title}: goes on after update {state.step} of {config.steps}", file=sys.stderr, flush=True)
        if at_step is not None:
            at_step(state.step)  # may have been cut short
    broken = torch.zeros((), device=device)
    with RunLog(folder, title, config.steps, state.step) as log:
        while state.step < config.steps:
            state.losses.append(_one_update(task, state, config, broken))
            state.step += 1
            log.advance(state.step)
            due = state.step == config.steps
            logging, saving = (
                due or state.step % config.log_every == 0,
                due or state.step % config.checkpoint_every == 0,
            )
            if logging or saving:  # the host waits for the device here and nowhere else
                _stop_if_broken(state.losses, state.step)
            if logging:
                mean = float(torch.stack(state.losses).mean())
                lr = learning_rate(config, state.step - 1)
                log.record(state.step, config.batch_size, {"loss": mean, "lr": lr})
                state.losses = []
            if saving:  # before anything of `at_step` can fail
                save_checkpoint(state, folder / "checkpoints", config.keep_checkpoints)
            if at_step is not None:
                at_step(state.step)


def _one_update(task: Task, state: RunState, config: LoopConfig, broken: Tensor) -> Tensor:
    """Loss of update `state.step`, detached; its gradient applied unless not finite."""
    part = config.batch_size // config.accumulation
    first = state.step * config.batch_size
    total = torch.zeros_like(broken)
    for i in range(config.accumulation):
        with _autocast(broken.device, config.precision):
            loss = task.loss(range(first + i * part, first + (i + 1) * part)) / config.accumulation
        loss.backward()
        total += loss.detach()
    broken.copy_(torch.maximum(broken, (~torch.isfinite(total)).float()))
    update(state.optimizer, learning_rate(config, state.step), config.clip_norm, broken)
    if state.averaged is not None:
        update_average(state.averaged, state.student, config.ema_decay, broken)
    return torch.where(broken > 0, torch.nan, total)


def computes_in_bf16(device: torch.device, precision: str) -> bool:
    """Whether networks do, by the configuration's `precision`."""
    return precision == "bf16" or (precision == "auto" and device.type == "cuda" and torch.cuda.is_bf16_supported())


def _autocast(device: torch.device, precision: str) -> torch.autocast:
    wanted = computes_in_bf16(device, precision)
    # Without the cache of cast weights: filled by a target that runs without gradient, it would hide the student's
    # weights from autograd where the student is its own target.
    return torch.autocast(device.type, torch.bfloat16, enabled=wanted, cache_enabled=False)


def _stop_if_broken(losses: list[Tensor], step: int) -> None:
    finite = torch.isfinite(torch.stack(losses)).tolist()
    if all(finite):
        return
    bad = step - len(losses) + finite.index(False) + 1
    raise NonFiniteLossError(
        f"the loss of update {bad} is not finite; weights are as before it and the last checkpoint stands: "
        "lower lr, or check the data and the teacher"
    )
