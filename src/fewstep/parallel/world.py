"""The process group of a run, one device per process, its collective operations, and networks of which every process
holds a part (FSDP2)."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

from fewstep.errors import UserError

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor import DTensor

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


Distribution = Literal["ddp", "fsdp", "hybrid"]
_ASK = "ask_spread"
"""Names the attribute by which a spread module is asked for something in its midst."""


def count_local() -> int:
    """Returns how many of the run's processes are on this machine: what whoever started them says, or all."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "0")) or current_world().size


def make_mesh(distribution: Distribution) -> DeviceMesh:
    """Returns which processes hold the parts of a network: all of them together, or with `hybrid` those of each
    machine, so that machines exchange gradients alone. All processes call it together.

    Raises UserError where machines have different numbers of processes.
    """
    from torch.distributed.device_mesh import init_device_mesh

    world = current_world()
    here = count_local()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if distribution != "hybrid" or here == world.size:
        return init_device_mesh(device, (world.size,))
    if len({*world.gather(here)}) > 1 or world.size % here:
        raise UserError("--distribution hybrid needs as many processes on every machine; give fsdp, or start so many")
    return init_device_mesh(device, (world.size // here, here), mesh_dim_names=("machines", "parts"))


def find_mesh(module: nn.Module) -> DeviceMesh:
    """Returns that of a module that is spread."""
    spread: Any = next(value for value in module.parameters() if hasattr(value, "full_tensor"))
    mesh: DeviceMesh = spread.device_mesh
    return mesh


def shard(module: nn.Module, blocks: Sequence[nn.Module], mesh: DeviceMesh | None = None) -> None:
    """Leaves each process of a mesh, or of all, a part of every weight; all of a block is put together while it
    computes (FSDP2). What rests in main memory comes to the process's device, a block at a time."""
    # It takes seconds, of which a picture has no need.
    from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method

    if not hasattr(FSDPModule, "set_force_sum_reduction_for_comms"):
        raise UserError(f"--distribution fsdp needs a newer torch than {torch.__version__}; take ddp, or a newer one")
    for part in (*blocks, module):
        # By default the outermost is left whole after a forward pass, and one without a backward pass leaves it so.
        fully_shard(part, mesh=mesh, reshard_after_forward=True)
    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.set_gradient_divide_factor(1.0)
            part.set_force_sum_reduction_for_comms(True)  # gloo has no average
    setattr(module, _ASK, lambda ask: ask())
    register_fsdp_forward_method(module, _ASK)


def ask_spread(module: nn.Module, ask: Callable[[], Any]) -> Any:
    """Returns what `ask` makes of a forward pass of a spread module. From any tensor in it, one from the midst of the
    module too, a backward pass finds the weights put together that it needs."""
    return getattr(module, _ASK)(ask)


def gather_tensor(value: Tensor) -> Tensor:
    """Returns a tensor of which every process holds a part put together in main memory, and any other as it is."""
    if not hasattr(value, "full_tensor"):
        return value
    whole: Tensor = value.full_tensor().cpu()
    return whole


def is_spread(module: nn.Module) -> bool:
    """Returns whether every process holds a part of its weights."""
    return any(hasattr(parameter, "full_tensor") for parameter in module.parameters())


def find_rows(value: DTensor) -> slice:
    """Returns which rows of a tensor this process holds."""
    dim = next(i for i, placement in enumerate(value.placements) if placement.is_shard())
    each = -(-len(value) // value.device_mesh.size(dim))
    start = min(value.device_mesh.get_local_rank(dim) * each, len(value))
    return slice(start, min(start + each, len(value)))


def find_plain_class(module: nn.Module) -> type[nn.Module]:
    """Returns the class that a module had before it was spread."""
    from torch.distributed.fsdp import FSDPModule

    kinds = type(module).__mro__
    return kinds[kinds.index(FSDPModule) + 1] if FSDPModule in kinds else kinds[0]
