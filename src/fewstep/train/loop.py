"""The one training loop: whatever a task's loss is, the updates, the average, the state and the log are these."""

from __future__ import annotations

import contextlib
import importlib
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Self

import torch
from torch import Tensor

from fewstep.data.latents import DroppedPicture
from fewstep.errors import StoppedError, UserError
from fewstep.parallel.world import World, current_world
from fewstep.precision import autocast, choose_dtype
from fewstep.train.checkpoint import Checkpoints, files_of, restore
from fewstep.train.config import LoopConfig, fingerprint, list_settings
from fewstep.train.ledger import Ledger
from fewstep.train.log import RunLog
from fewstep.train.optimisation import Batch, compute_learning_rate, make_optimizer, update, update_averages
from fewstep.train.role import STUDENT, Role
from fewstep.train.saving import Saving, wait_for_writer
from fewstep.train.soundness import why_unfit
from fewstep.train.state import RoleState, RunState, compute_mean_loss
from fewstep.train.task import Task
from fewstep.train.vetoes import FIRST_SCALE, LossScale, Skipping


class Stopping:
    """Notes SIGTERM and the first Ctrl-C while it lasts, and does not obey them; a second Ctrl-C interrupts at once."""

    def __init__(self) -> None:
        self.number = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002  # a handler's signature
        if self.number and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.number = number


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
    state = begin(task.roles, config)
    # imported only where a run's state is spread
    kind = importlib.import_module("fewstep.train.parts").SpreadCheckpoints if state.is_spread else Checkpoints
    checkpoints: Checkpoints = kind(folder / "checkpoints", fingerprint(config))
    checkpoints.make_folder()
    wait_for_writer(checkpoints.folder)
    newest = checkpoints.newest(lambda found: why_unfit(state, *files_of(found))) if world.main else None
    if name := world.gather(newest and newest.name)[0]:  # hashing a large one takes minutes: one process does
        restore(state, checkpoints.folder / name)
        if state.step > config.steps:
            raise UserError(
                f"{folder} has {state.step} updates behind it and steps is {config.steps}; give so many or more"
            )
        if world.main:
            print(f"{title}: goes on after update {state.step} of {config.steps}", file=sys.stderr, flush=True)
        if at_step is not None:
            at_step(state.step)  # may have been cut short
    with contextlib.ExitStack() as stack:
        log = stack.enter_context(_open_log(folder, title, config, state.step)) if world.main else None
        ledger = Ledger(folder, state.counter, samples=config.record_samples) if world.main else None
        stopping = stack.enter_context(Stopping())
        kept = checkpoints if world.main or state.is_spread else None
        saving = stack.enter_context(Saving(kept, config.keep_checkpoints))
        run = _Run(task, config, world, state, saving, log, ledger, stopping)
        while state.step < config.steps:
            run.update()
            if at_step is not None:
                with log.aside() if log else contextlib.nullcontext():
                    at_step(state.step)
        run.finish_saving()


def _open_log(folder: Path, title: str, config: LoopConfig, start: int) -> RunLog:
    return RunLog(folder, title, config.steps, start, config.report_to, list_settings(config))


@dataclass
class _Run:
    """Holds one process's part of a run."""

    task: Task
    config: LoopConfig
    world: World
    state: RunState
    saving: Saving
    log: RunLog | None
    ledger: Ledger | None
    stopping: Stopping

    def update(self) -> None:
        """Does one update, and what is due after it; the host waits for the device only when something is."""
        state, config = self.state, self.config
        self.saving.check()
        counters = do_update(self.task, state, config, self.world)
        if self.ledger and config.record_samples:
            self.ledger.record_samples(state.step, counters, self.task.keys(counters))
        if self.log:
            self.log.advance(state.step)
        stop = self.world.largest(self.stopping.number)
        last = state.step == config.steps
        saving = last or bool(stop) or state.step % config.checkpoint_every == 0
        logging = last or state.step % config.log_every == 0
        if logging or saving:
            self._settle_account()
        if logging:
            if self.log:
                self.log.record(state.step, config.batch_size, _list_metrics(state))
            for role in state.roles:
                role.losses = []
        if saving:  # before anything of `at_step` can fail
            self.saving.save(state)
        if self.log:
            self.log.report(state.step)  # of what is saved, since whoever listens may end it
        if stop and not last:
            self.finish_saving()
            raise StoppedError(state.step, stop)

    def _settle_account(self) -> None:
        """Lists skipped updates and unreadable pictures; raises UserError where there are too many."""
        state, size = self.state, self.config.batch_size
        known = {each["step"] for each in state.skipped}
        losses = state.roles[0].losses  # an update that is left out is so in all roles
        for step, broken in enumerate(torch.isnan(torch.stack(losses)).tolist(), state.step - len(losses) + 1):
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

    def finish_saving(self) -> None:
        """Waits until the last checkpoint is written."""
        self.saving.finish()
        self.world.wait()


def begin(roles: Sequence[Role], config: LoopConfig) -> RunState:
    """Returns the state of a run before its first update. Raises ValueError where roles do not go together."""
    names = [role.name for role in roles]
    if names[0] != STUDENT or len(set(names)) < len(names) or min(role.every for role in roles) > 1:
        raise ValueError(f"roles are {names}; expected {STUDENT!r} first, no name twice, and one with every=1")
    states = []
    for role in roles:
        optimisation = role.optimisation or config
        make = role.make_optimizer or make_optimizer
        states.append(RoleState(role, optimisation, make(role.weights, optimisation)))
    learning = [parameter for state in states for parameter in state.parameters]
    if len(set(learning)) < len(learning):
        raise ValueError(f"two of the roles {names} share a weight that learns; it can follow one loss only")
    device = learning[0].device
    scaling = LossScale(device, FIRST_SCALE) if choose_dtype(config.precision, device) == torch.float16 else None
    return RunState(states, config.steps, Skipping(config.steps, device), scaling=scaling)


Part = Callable[[str], AbstractContextManager[None]]
"""What is entered around a part of an update, by its name: gradients, optimiser, average."""


def do_update(task: Task, state: RunState, config: LoopConfig, world: World, part: Part | None = None) -> range:
    """Applies the gradients of all roles that are due, or of none where something is not finite, and notes the losses.

    Returns the counters of the samples.
    """
    part = part or (lambda _: contextlib.nullcontext())
    due = [each for each in state.roles if each.role.is_due(state.step)]
    counters = range(state.counter, state.counter + config.batch_size)
    with part("gradients"):
        batches = _compute_gradients(task, state, due, config, world)
    with part("optimiser"):
        left_out = update(state, due, batches)
    with part("average"):
        update_averages(due, left_out)
    empty = torch.stack([batch.valid == 0 for batch in batches]).any()
    for each in state.roles:
        loss = batches[due.index(each)].loss if each in due else torch.inf
        lost = torch.where(left_out > 1, torch.inf, torch.nan)  # an overflow is no fault of the data's
        each.losses.append(torch.where(empty, torch.inf, torch.where(left_out > 0, lost, loss)))
    state.step, state.counter = state.step + 1, counters.stop
    return counters


def _compute_gradients(
    task: Task, state: RunState, due: Sequence[RoleState], config: LoopConfig, world: World
) -> list[Batch]:  # fmt: skip
    """Leaves with the weights of every role that is `due` the gradient of its loss, computed in as many parts as the
    configuration says."""
    share = world.share(range(state.counter, state.counter + config.batch_size))
    parts = config.count_parts(len(share))
    part = len(share) // parts
    totals = torch.zeros(len(due), 2, device=state.device)
    dtype = choose_dtype(config.precision, state.device)
    for i in range(parts):
        with contextlib.ExitStack() as stack:
            if i < parts - 1:
                for each in due:
                    stack.enter_context(each.role.without_exchange())
            totals += _add_gradients(task, state, due, share[i * part : (i + 1) * part], config.batch_size, dtype)
    return [Batch(total / valid, valid, config.batch_size / valid) for total, valid in world.sum(totals)]


def _add_gradients(
    task: Task, state: RunState, due: Sequence[RoleState], counters: range, batch_size: int, dtype: torch.dtype
) -> Tensor:  # fmt: skip
    """Adds those of some samples of a batch, computed in `dtype`; returns the sum of their losses and the number of the
    valid ones, `[due, 2]`."""
    losses = task.losses(counters, {each.role.name for each in due})
    found = []
    for each in due:
        with _frozen([other for other in state.roles if other is not each]):
            with autocast(state.device, dtype):
                name, loss = next(losses, (None, None))
            if loss is None or name != each.role.name:
                raise ValueError(f"{type(task).__name__} gave the loss of {name} where {each.role.name} was due")
            total, valid = loss
            share = total / batch_size
            (share if state.scaling is None else share * state.scaling.scale).backward()
        found.append(torch.stack([total.detach().float(), valid.float()]))
    return torch.stack(found)


@contextlib.contextmanager
def _frozen(roles: Sequence[RoleState]) -> Iterator[None]:
    """Lets no gradient be computed for their weights, while it lasts."""
    parameters = [parameter for role in roles for parameter in role.parameters]
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)


def _list_metrics(state: RunState) -> dict[str, float]:
    """Returns what the log has of the updates since its last line: a role that was not due in them is not in it."""
    student = state.roles[0]
    values = {}
    for each in state.roles:
        if state.step // each.role.every > (state.step - len(each.losses)) // each.role.every:
            values["loss" if each is student else f"loss_{each.role.name}"] = compute_mean_loss(each.losses)
    values["lr"] = compute_learning_rate(student.optimisation, state.step - 1, state.steps)
    return values | ({"loss_scale": float(state.scaling.scale)} if state.scaling else {})
