"""One module's tensors as a file holds them, cast, brought into the module's shape and checked."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from fewstep.errors import UserError
from fewstep.models.lora.pair import Pair

_MOST_AXES = 8
LARGEST_RANK = 1024
_MOST_KERNEL = 31
LARGEST_SCALE = 64.0
"""Beyond this |alpha/rank| a file is taken for broken."""


def make_pair(
    path: Path, name: str, half: Mapping[str, Tensor], weight: Tensor, find_alpha: Callable[[int], float]
) -> Pair:
    """Returns the checked pair of the module `name`, whose weight is given; `find_alpha` says alpha of a rank.

    Linear modules may be written as 1×1 convolutions and the other way round, and a convolution in three factors.
    Raises UserError.
    """
    if not {"down", "up"} <= half.keys():
        raise UserError(f"{path} is broken: of {name} it holds {', '.join(half)} alone")
    values = {key: read_values(path, f"{key} of {name}", half[key]) for key in half if key != "alpha"}
    down, up = values["down"], values["up"]
    rank = len(down) if down.ndim > 1 else 0
    if "mid" in values and rank:
        down = _join(path, name, values["mid"], down)
    wanted_down, wanted_up = (rank, *weight.shape[1:]), (weight.shape[0], rank, *[1] * (weight.ndim - 2))
    if rank == 0 or not (_fits(down, wanted_down) and _fits(up, wanted_up)):
        raise UserError(
            f"{path} does not fit this base: {name} has {tuple(half['down'].shape)} and {tuple(half['up'].shape)}, "
            f"needed: {('rank', *wanted_down[1:])} and {(wanted_up[0], 'rank', *wanted_up[2:])}".replace("'", "")
        )
    alpha = find_alpha(rank)
    if rank > LARGEST_RANK or not abs(alpha / rank) <= LARGEST_SCALE:
        raise UserError(
            f"{path} has rank {rank} and alpha {alpha:g} at {name}; allowed: ranks up to {LARGEST_RANK} "
            f"and |alpha/rank| up to {LARGEST_SCALE:g}"
        )
    return Pair(down.reshape(wanted_down), up.reshape(wanted_up), alpha, _magnitude(path, name, values, weight))


def read_values(path: Path, what: str, tensor: Tensor) -> Tensor:
    """Returns a tensor of any floats in fp32. Raises UserError for other numbers, and where one is not finite."""
    if tensor.ndim > _MOST_AXES:
        raise UserError(f"{path} is broken: {what} has {tensor.ndim} axes")
    if tensor.is_complex() or not tensor.dtype.is_floating_point:
        raise UserError(
            f"{path} holds {what} as {_name_dtype(tensor)}, of which a LoRA cannot be read: quantised files have their "
            "scales elsewhere; take it in 16 or 32 bits"
        )
    try:
        values = tensor.to(torch.float32)
    except (RuntimeError, NotImplementedError, TypeError) as error:  # packed floats, which torch cannot cast
        raise UserError(
            f"{path} holds {what} as {_name_dtype(tensor)}, which is not read; take it in 16 or 32 bits"
        ) from error
    if not values.isfinite().all():
        raise UserError(f"{path} is broken: NaN or infinity in {what}")
    return values


def read_number(path: Path, what: str, tensor: Tensor) -> float:
    """Returns the one number that a tensor of any shape holds. Raises UserError."""
    if tensor.numel() != 1 or tensor.is_complex() or tensor.dtype == torch.bool:
        raise UserError(f"{path} is broken: {what} is {_name_dtype(tensor)} {tuple(tensor.shape)}, not a number")
    try:
        return float(tensor.to(torch.float64))
    except (RuntimeError, NotImplementedError, TypeError) as error:  # packed floats, which torch cannot cast
        raise UserError(f"{path} is broken: {what} is {_name_dtype(tensor)}, not a number") from error


def _name_dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _fits(tensor: Tensor, wanted: Sequence[int]) -> bool:
    return _strip(tensor.shape) == _strip(wanted)


def _strip(shape: Sequence[int]) -> tuple[int, ...]:
    """Leaves out the last lengths of 1, in which linear modules and 1×1 convolutions differ."""
    kept = tuple(shape)
    while kept and kept[-1] == 1:
        kept = kept[:-1]
    return kept


def _join(path: Path, name: str, mid: Tensor, down: Tensor) -> Tensor:
    """Multiplies A of a convolution `[rank, in, 1, 1]` by the middle factor `[rank, rank, k, k]`."""
    rank = len(down)
    kernel = tuple(mid.shape[2:])
    if (
        mid.ndim != 4
        or tuple(mid.shape[:2]) != (rank, rank)
        or len(_strip(down.shape)) > 2
        or max(kernel) > _MOST_KERNEL
    ):
        raise UserError(
            f"{path} is broken: the three factors of {name} do not fit each other ({tuple(down.shape)}, "
            f"{tuple(mid.shape)})"
        )
    return torch.einsum("rqkl,qi->rikl", mid, down.flatten(1))


def _magnitude(path: Path, name: str, values: Mapping[str, Tensor], weight: Tensor) -> Tensor | None:
    """Returns DoRA's m, if there is one, along the axis that it is for: peft's are along the outputs, kohya's along
    either."""
    found = values.get("dora_scale", values.get("magnitude"))
    if found is None:
        return None
    ones = [1] * (weight.ndim - 2)
    outputs, inputs = (weight.shape[0], 1, *ones), (1, weight.shape[1], *ones)
    if "magnitude" in values:
        fits, shape = found.numel() == weight.shape[0] == max(found.shape, default=0), outputs
    else:
        along_inputs = found.ndim > 1 and found.shape[0] == 1 and weight.shape[0] > 1
        fits, shape = _fits(found, inputs if along_inputs else outputs), (inputs if along_inputs else outputs)
    if not fits:
        raise UserError(
            f"{path} does not fit this base: the magnitude of {name} is {tuple(found.shape)}, needed: {outputs}"
        )
    return found.reshape(shape)
