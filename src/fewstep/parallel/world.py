"""The process group of a run, one device per process, and its collective operations."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from fewstep.errors import UserError

TIMEOUT = timedelta(hours=6)
"""Bounds the wait for a process that hashes, saves or evaluates."""


@dataclass(frozen=True)
class World:
    """This process among those of a run; all processes must call every method but `share` together."""

    rank: int = 0
    size: int = 1

    @property
    def main(self) -> bool:
        """Tells whether this is the process that writes files and prints."""
        return self.rank == 0

    def share(self, counters: range) -> range:
        """Returns this process's part of a batch. Raises UserError where the batch cannot be shared evenly."""
        if len(counters) % self.size:
            raise UserError(f"batch_size {len(counters)} is not a multiple of {self.size} processes; give one that is")
        each = len(counters) // self.size
        return counters[self.rank * each : (self.rank + 1) * each]

    def sum(self, value: Tensor) -> Tensor:
        """Sums in place over all processes."""
        if self.size > 1:
            dist.all_reduce(value)
        return value

    def largest(self, number: int) -> int:
        """Returns the largest of the numbers that the processes pass."""
        if self.size > 1:
            value = torch.tensor(number)
            dist.all_reduce(value, dist.ReduceOp.MAX)
            return int(value)
        return number

    def gather(self, message: Any) -> list[Any]:
        """Returns the messages of all processes by rank; a message is anything that JSON can hold."""
        if self.size == 1:
            return [message]
        own = torch.frombuffer(bytearray(json.dumps(message).encode()), dtype=torch.uint8)
        length = torch.tensor([len(own)])
        lengths = [torch.zeros_like(length) for _ in range(self.size)]
        dist.all_gather(lengths, length)
        longest = int(max(lengths))
        padded = torch.nn.functional.pad(own, (0, longest - len(own)))
        parts = [torch.zeros(longest, dtype=torch.uint8) for _ in range(self.size)]
        dist.all_gather(parts, padded)
        return [
            json.loads(part[: int(n)].numpy().tobytes()) for part, n in zip(parts, lengths, strict=True)
        ]  # fmt: skip

    def wait(self) -> None:
        """Waits until all processes have come here."""
        if self.size > 1:
            dist.barrier()


@contextlib.contextmanager
def join_world(*, on_gpu: bool = True) -> Iterator[World]:
    """Joins the processes that torchrun started, if any. Raises UserError where there are more of them than GPUs."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield World()
        return
    if on_gpu and torch.cuda.is_available():
        rank, count = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
        if rank >= count:
            raise UserError(f"process {rank} of this machine has no GPU of its own, there are {count}; start so many")
        torch.cuda.set_device(rank)
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, timeout=TIMEOUT)
    try:
        yield World(dist.get_rank(), dist.get_world_size())
    finally:
        dist.destroy_process_group()


def current_world() -> World:
    """Returns the process group that was joined, or this process alone."""
    if dist.is_available() and dist.is_initialized():
        return World(dist.get_rank(), dist.get_world_size())
    return World()
