"""The one training loop: whatever a task's loss is, the updates, the average, the state and the log are these."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from fewstep.data.latents import DroppedPicture
from fewstep.errors import StoppedError, UserError
from fewstep.parallel.world import World, current_world
from fewstep.train.checkpoint import Checkpoints, restore
from fewstep.train.config import LoopConfig, fingerprint
from fewstep.train.ledger import Ledger
from fewstep.train.log import RunLog
from fewstep.train.optimisation import Batch, learning_rate, make_optimizer, update, update_average
from fewstep.train.skipping import Skipping
from fewstep.train.state import RunState, mean_loss
from fewstep.train.stopping import Stopping
from fewstep.train.task import Task

__all__ = ["NonFiniteLossError", "Task", "computes_in_bf16", "fit", "gradients"]


class NonFiniteLossError(UserError):
    """Too many losses or gradients were NaN or infinite; no weight was changed by them."""


def fit(task: Task, config: LoopConfig, folder: Path, title: str, at_step: Callable[[int], None] | None = None) -> None:
    """Trains `task` to `config.steps`, going on from the newest whole checkpoint in `folder`.

    `at_step(n)` is called after every update n, with the weights of that moment, for sample grids and the like; after a
    restart it is called for the restored update again.
    Raises NonFiniteLossError with weights, moments and average as they were before the last broken update, StoppedError
    after a signal.
    """
    world = current_world()
    world.share(range(config.batch_size))
    folder.mkdir(parents=True, exist_ok=True)
    skipping = Skipping(config.steps, next(task.student.parameters()).device)
    state = RunState(task.student, task.averaged, make_optimizer(task.student, config), skipping)
    checkpoints = Checkpoints(folder / "checkpoints", fingerprint(config))
    newest = checkpoints.newest() if world.main else None
    if name := world.gather(newest and newest.name)[0]:  # hashing a large one takes minutes: one process does
        restore(state, checkpoints.folder / name, config.steps)
        if state.step > config.steps:
            raise UserError(
                f"{folder} has {state.step} updates behind it and steps is {config.steps}; give so many or more"
            )
        if world.main:
            print(f"{title}: goes on after update {state.step} of {config.steps}", file=sys.stderr, flush=True)
        if at_step is not None:
            at_step(state.step)  # may have been cut short
    with contextlib.ExitStack() as stack:
        log = stack.enter_context(RunLog(folder, title, config.steps, state.step)) if world.main else None
        ledger = Ledger(folder, state.counter, samples=config.record_samples) if world.main else None
        run = _Run(task, config, world, state, checkpoints, log, ledger, stack.enter_context(Stopping()))
        while state.step < config.steps:
            run.update()
            if at_step is not None:
                with log.aside() if log else contextlib.nullcontext():
                    at_step(state.step)


@dataclass
class _Run:
    """One process's part of a run."""

    task: Task
    config: LoopConfig
    world: World
    state: RunState
    checkpoints: Checkpoints
    log: RunLog | None
    ledger: Ledger | None
    stopping: Stopping

    def update(self) -> None:
        """One update, and what is due after it; the host waits for the device only when something is."""
        state, config = self.state, self.config
        counters = range(state.counter, state.counter + config.batch_size)
        state.losses.append(_one_update(self.task, state, config, self.world, counters))
        state.step, state.counter = state.step + 1, counters.stop
        if self.ledger and config.record_samples:
            self.ledger.record_samples(state.step, counters, self.task.keys(counters))
        if self.log:
            self.log.advance(state.step)
        stop = self.world.largest(self.stopping.number)
        last = state.step == config.steps
        saving = last or bool(stop) or state.step % config.checkpoint_every == 0
        logging = last or state.step % config.log_every == 0
        if logging or saving:
            self._account()
        if logging:
            values = {"loss": mean_loss(state.losses), "lr": learning_rate(config, state.step - 1)}
            if self.log:
                self.log.record(state.step, config.batch_size, values)
            state.losses = []
        if saving:  # before anything of `at_step` can fail
            self._save()
        if stop and not last:
            raise StoppedError(state.step, stop)

    def _account(self) -> None:
        """Lists skipped updates and unreadable pictures; raises UserError where there are too many."""
        state, size = self.state, self.config.batch_size
        known = {each["step"] for each in state.skipped}
        first = state.step - len(state.losses) + 1
        for step, broken in enumerate(torch.isnan(torch.stack(state.losses)).tolist(), first):
            if not broken or step in known:
                continue
            start = state.counter - (state.step - step + 1) * size
            keys = list(self.task.keys(range(start, start + size)))
            if state.skipping.ends_with([each["step"] for each in state.skipped]):
                break  # nothing moved any more after that one
            state.skipped.append({"step": step, "samples": keys})
            if self.log:
                shown = ", ".join(keys[:3]) + (f" and {len(keys) - 3} more" if len(keys) > 3 else "")
                self.log.say(f"the loss of update {step} is not finite, it was left out ({shown})")
        if state.skipping.halted():
            raise NonFiniteLossError(
                f"the loss of update {state.skipped[-1]['step']} is not finite, {len(state.skipped)} so far; weights "
                "are as before it and the last checkpoint stands: lower lr, or check the data and the teacher"
            )
        parts = self.world.gather([vars(each) for each in self.task.dropped()])
        dropped = [DroppedPicture(**each) for part in parts for each in part]
        if self.ledger:
            self.ledger.record(state.counter, sorted(dropped, key=lambda each: each.counter))

    def _save(self) -> None:
        tensors, numbers = self.state.tensors(keep=self.world.main), self.state.numbers()
        if self.world.main:
            self.checkpoints.save(tensors, numbers, self.config.keep_checkpoints)
        self.world.wait()


def _one_update(task: Task, state: RunState, config: LoopConfig, world: World, counters: range) -> Tensor:
    """Mean loss over the valid samples of all processes, detached; its gradient applied unless not finite."""
    batch = gradients(task, state.student, config, world, counters)
    vetoed = update(state.optimizer, learning_rate(config, state.step), config.clip_norm, batch, state.skipping)
    if state.averaged is not None:
        update_average(state.averaged, state.student, config.ema_decay, vetoed)
    # Infinite where there was nothing to learn from.
    return torch.where(batch.valid == 0, torch.inf, torch.where(vetoed > 0, torch.nan, batch.loss))


def gradients(task: Task, student: nn.Module, config: LoopConfig, world: World, counters: range) -> Batch:
    """Leaves the gradient of a batch with the weights, computed in as many parts as the configuration says."""
    share = world.share(counters)
    parts = config.parts(len(share))
    part = len(share) // parts
    device = next(student.parameters()).device
    totals = torch.zeros(2, device=device)
    for i in range(parts):
        with task.without_exchange() if i < parts - 1 else contextlib.nullcontext():
            with _autocast(device, config.precision):
                total, valid = task.loss(share[i * part : (i + 1) * part])
            (total / config.batch_size).backward()
            totals += torch.stack([total.detach().float(), valid.float()])
    total, valid = world.sum(totals)
    return Batch(total / valid, valid, config.batch_size / valid)


def computes_in_bf16(device: torch.device, precision: str) -> bool:
    """Whether networks do, by the configuration's `precision`."""
    return precision == "bf16" or (precision == "auto" and device.type == "cuda" and torch.cuda.is_bf16_supported())


def _autocast(device: torch.device, precision: str) -> torch.autocast:
    wanted = computes_in_bf16(device, precision)
    # Without the cache of cast weights: filled by a target that runs without gradient, it would hide the student's
    # weights from autograd where the student is its own target.
    return torch.autocast(device.type, torch.bfloat16, enabled=wanted, cache_enabled=False)
