"""Networks of which every process of a run holds a part (FSDP2)."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from fewstep.errors import UserError
from fewstep.parallel.world import current_world

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor


def shard(module: nn.Module, blocks: Sequence[nn.Module], whole: set[nn.Parameter] | None = None) -> None:
    """Leaves each process a part of every weight but those that stay `whole`; all of a block is put together while it
    computes (FSDP2). What rests in main memory comes to the process's device, a block at a time."""
    from torch.distributed.fsdp import FSDPModule, fully_shard  # seconds, of which a picture has no need

    if not hasattr(FSDPModule, "set_force_sum_reduction_for_comms"):
        raise UserError(f"--distribution fsdp needs a newer torch than {torch.__version__}; take ddp, or a newer one")
    for part in (*blocks, module):
        # By default the outermost is left whole after a forward pass, and one without a backward pass leaves it so.
        fully_shard(part, reshard_after_forward=True, ignored_params=whole)
    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.set_gradient_divide_factor(1.0)
            part.set_force_sum_reduction_for_comms(True)  # gloo has no average


def gather_tensor(value: Tensor) -> Tensor:
    """Returns a tensor of which every process holds a part put together in main memory, and any other as it is."""
    if not hasattr(value, "full_tensor"):
        return value
    whole: Tensor = value.full_tensor().cpu()
    return whole


def is_spread(module: nn.Module) -> bool:
    """Returns whether every process holds a part of its weights."""
    return any(hasattr(parameter, "full_tensor") for parameter in module.parameters())


def local_size() -> int:
    """Returns how many of the run's processes are on this machine: what whoever started them says, or all."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "0")) or current_world().size


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
