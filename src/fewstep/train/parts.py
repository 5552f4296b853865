"""Checkpoints of a state that is spread: every process writes its own rows, and reads no more when a run goes on."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Self

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from fewstep.errors import UserError
from fewstep.files import explain_damage, open_safetensors, refusals_named, sync
from fewstep.parallel.world import TIMEOUT, current_world, find_rows
from fewstep.train.checkpoint import TENSORS_FILE, Checkpoints
from fewstep.train.soundness import list_parts
from fewstep.train.state import RunState


class SpreadCheckpoints(Checkpoints):
    """Keeps those of a run whose state is spread. All its processes save together, each its part; the first one alone
    decides that a checkpoint is whole, and says why not."""

    def __init__(self, folder: Path, configuration: str = "") -> None:
        super().__init__(folder, configuration)
        # The threads that write talk over it, while the run talks over its own.
        self._group = dist.new_group(backend="gloo", timeout=TIMEOUT)

    def make_folder(self) -> None:
        """Makes it, once for all. Raises UserError in every process where one of them does not see what the first one
        put there: another machine's folder of that name would be found out at the first save."""
        super().make_folder()
        probe = self.folder / self._tell(f".seen-{os.getpid()}")[0]
        if current_world().main:
            probe.touch()
        self._tell("")
        blind = [f"process {rank} on {host}" for rank, (host, seen) in
                 enumerate(self._tell((socket.gethostname(), probe.exists()))) if not seen]  # fmt: skip
        if current_world().main:
            probe.unlink()
        if blind:
            raise UserError(
                f"{', '.join(blind)} does not see what the first one writes to {self.folder}; the run folder of a "
                "spread training must lie where all machines see it"
            )

    def pick(self, state: RunState) -> dict[str, Tensor]:
        """Returns its rows of what is spread, where no process before it holds the same; the first one all else too."""
        own = {name: _pick_own(value) for name, value in super().pick(state).items()}
        return {name: value for name, value in own.items() if value is not None}

    def save(self, tensors: dict[str, Tensor], numbers: dict[str, Any], keep: int) -> None:
        if current_world().main:
            super().save(tensors, numbers, keep)
        else:
            draft = self.folder / self._tell("")[0]
            self._write_part(draft / name_part(current_world().rank), tensors)

    def _write_tensors(self, path: Path, tensors: dict[str, Tensor]) -> dict[str, Any]:
        """Has all processes write, and waits for them. Raises OSError where the disk refused what one of them wrote,
        and UserError where one failed otherwise."""
        self._tell(path.parent.name)
        parts = self._write_part(path, tensors)
        for rank, (_, code, reason) in enumerate(parts):
            if code is not None:
                raise OSError(code, reason, str(path))
            if reason:
                raise UserError(f"process {rank} could not write its part of {path.parent.name}: {reason}")
        return {name: measured for written, *_ in parts for name, measured in written.items()}

    def _write_part(self, path: Path, tensors: dict[str, Tensor]) -> list[tuple[dict[str, Any], int | None, str]]:
        """Writes this process's rows, if it keeps some; returns of every process what it has written, and why it could
        not, with the disk's number for that."""
        written, code, reason = {}, None, ""
        try:
            if tensors:
                with refusals_named(path):
                    written = super()._write_tensors(path, tensors)
                    sync(path)
        except OSError as error:
            code, reason = error.errno, error.strerror or str(error)
        except Exception as error:  # the others wait for what this one has to tell
            reason = f"{type(error).__name__}: {error}"
        return self._tell((written, code, reason))

    def _tell(self, message: Any) -> list[Any]:
        """Returns the messages of all processes by rank."""
        told: list[Any] = [None] * current_world().size
        dist.all_gather_object(told, message, group=self._group)
        return told


def name_part(rank: int) -> str:
    """Returns what the file is called with the rows of another process than the first."""
    first = Path(TENSORS_FILE)
    return f"{first.stem}-{rank:05}{first.suffix}"


def _pick_own(value: Tensor) -> Tensor | None:
    if not isinstance(value, DTensor):
        return value if current_world().main else None
    copies = (i for i, placement in enumerate(value.placements) if not placement.is_shard())
    return None if any(map(value.device_mesh.get_local_rank, copies)) else value.to_local()


class Parts:
    """The tensors of a checkpoint, in one file or in several: each of those has rows of what was spread, one after
    another. Read as they are asked for, and opened as safetensors files are."""

    def __init__(self, first: Path) -> None:
        """Opens the files. Raises UserError as `open_safetensors` does."""
        self._held: dict[str, list[tuple[Path, Any]]] = {}
        for path in (first, *list_parts(first)):
            file = open_safetensors(path)
            for name in file.keys():  # noqa: SIM118  # not a mapping
                self._held.setdefault(name, []).append((path, file))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._held.clear()

    def keys(self) -> list[str]:
        """Returns the names of all tensors."""
        return [*self._held]

    def get_tensor(self, name: str) -> Tensor:
        """Reads a tensor whole."""
        if len(self._held[name]) > 1:
            return self.get_rows(name, slice(0, sys.maxsize))
        ((path, file),) = self._held[name]
        with explain_damage(path):
            whole: Tensor = file.get_tensor(name)
        return whole

    def get_rows(self, name: str, rows: slice) -> Tensor:
        """Reads some rows of a tensor, at least one."""
        pieces, before = [], 0
        for path, file in self._held[name]:
            with explain_damage(path):
                held = file.get_slice(name)
                if not (shape := held.get_shape()):
                    raise ValueError(f"{name} has no rows")
                start, stop = max(rows.start - before, 0), min(rows.stop - before, shape[0])
                if start < stop:
                    pieces.append(held[start:stop])
                before += shape[0]
        return torch.cat(pieces)

    def restore(self, state: RunState, numbers: dict[str, Any]) -> None:
        """Has a state take them over, of what is spread every process its own rows."""
        state.restore(_AsSpread(self, state), numbers)


class _AsSpread(Mapping[str, Tensor]):
    """The tensors of a checkpoint, of which those are read by rows that a state has spread."""

    def __init__(self, parts: Parts, state: RunState) -> None:
        self._parts = parts
        self._own: dict[str, Tensor] = {}
        for role in state.roles:
            for begin, module in role.copies.items():
                self._own |= {f"{begin}.{name}": value for name, value in module.state_dict().items()}
            for name, value in role.role.weights.named_parameters():
                moments = (f"{role.file_name('optimizer')}.{moment}.{name}" for moment in ("exp_avg", "exp_avg_sq"))
                self._own |= dict.fromkeys(moments, value)

    def __getitem__(self, name: str) -> Tensor:
        own = self._own.get(name)
        if not isinstance(own, DTensor):
            return self._parts.get_tensor(name)
        local = torch.empty_like(own.to_local(), requires_grad=False)
        if local.numel():
            local.copy_(self._parts.get_rows(name, find_rows(own)))
        return DTensor.from_local(
            local, own.device_mesh, own.placements, run_check=False, shape=own.shape, stride=own.stride()
        )

    def __iter__(self) -> Iterator[str]:
        return iter(self._parts.keys())

    def __len__(self) -> int:
        return len(self._parts.keys())
