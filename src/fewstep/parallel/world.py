"""The processes of a run, one device each, and what they tell one another."""

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

_LONGEST = timedelta(hours=6)
"""That others wait for the one which hashes, saves or evaluates."""


@dataclass(frozen=True)
class World:
    """One process alone, or one of several; every method but `share` is called by all of them together."""

    rank: int = 0
    size: int = 1

    @property
    def main(self) -> bool:
        """Whether this is the process that writes and speaks."""
        return self.rank == 0

    def share(self, counters: range) -> range:
        """This process's part of a batch. Raises UserError where the batch cannot be shared evenly."""
        if len(counters) % self.size:
            raise UserError(f"batch_size {len(counters)} is no multiple of {self.size} processes; give one that is")
        each = len(counters) // self.size
        return counters[self.rank * each : (self.rank + 1) * each]

    def sum(self, value: Tensor) -> Tensor:
        """In place, over all processes."""
        if self.size > 1:
            dist.all_reduce(value)
        return value

    def largest(self, number: int) -> int:
        """Of those that the processes give."""
        if self.size > 1:
            value = torch.tensor(number)
            dist.all_reduce(value, dist.ReduceOp.MAX)
            return int(value)
        return number

    def gather(self, message: Any) -> list[Any]:
        """What JSON can hold, from every process in the order of their ranks."""
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
        """Until all are here."""
        if self.size > 1:
            dist.barrier()


@contextlib.contextmanager
def join_world(*, on_gpu: bool = True) -> Iterator[World]:
    """The processes that torchrun started this one with, or this one alone."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield World()
        return
    if on_gpu and torch.cuda.is_available():
        rank, count = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
        if rank >= count:
            raise UserError(f"process {rank} of this machine has no GPU of its own, there are {count}; start so many")
        torch.cuda.set_device(rank)
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, timeout=_LONGEST)
    try:
        yield World(dist.get_rank(), dist.get_world_size())
    finally:
        dist.destroy_process_group()


def current_world() -> World:
    """The one that was joined."""
    if dist.is_available() and dist.is_initialized():
        return World(dist.get_rank(), dist.get_world_size())
    return World()
