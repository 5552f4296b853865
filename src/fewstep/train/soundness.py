"""Whether a checkpoint, whose hashes only say that it is as it was written, is one that its run could have written."""

from __future__ import annotations

import importlib
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.documents import read_json
from fewstep.errors import UserError
from fewstep.files import explain_damage, open_safetensors
from fewstep.train.state import RunState

_MOST = 2**53
"""Counts are below it: up to there a float holds every whole number."""
_FLOATS = (torch.float32, torch.float64)
_COUNTED = (*_FLOATS, torch.int64)
_TORCHS = {"step", "exp_avg", "exp_avg_sq"}
_IN_8_BITS = {"step", "state1", "state2", "absmax1", "absmax2", "qmap1", "qmap2"}
"""What AdamW keeps of a parameter, torch's and bitsandbytes'."""


def why_unfit(state: RunState, tensors: Path, numbers: Path) -> str | None:
    """Returns what is wrong with a checkpoint's two files for a run that has that state, or None.

    One tensor at a time is in memory.
    """
    try:
        found, wanted = read_numbers(numbers), _Wanted(state)
        with explain_damage(tensors), open_tensors(tensors) as file:
            names = list(file.keys())
            faults = (wanted.find_fault(name, file.get_tensor(name), found["step"]) for name in names)
            return next(filter(None, itertools.chain(wanted.list_lacks(names), faults)), None)
    except UserError as error:
        return str(error)


class _Wanted:
    """What a state's tensors must be."""

    def __init__(self, state: RunState) -> None:
        self._weights: dict[str, Tensor] = {}
        self._parameters: dict[str, dict[str, nn.Parameter]] = {}
        """Holds parameters by how the names of their optimiser's tensors begin."""
        self._of_torch: set[str] = set()
        """Holds how they begin where the optimiser is torch's AdamW, which counts its steps in floats."""
        self._losses = {role.file_name("losses") for role in state.roles}
        for role in state.roles:
            for begin, module in role.copies.items():
                self._weights |= {f"{begin}.{name}": value for name, value in module.state_dict().items()}
            self._parameters[role.file_name("optimizer")] = dict(role.role.weights.named_parameters())
        self._own = tuple(f"{role.file_name('optimizer')}." for role in state.roles if role.role.make_optimizer)
        """Holds how the tensors begin of optimisers that roles brought, of which some weights have one moment alone."""

    def list_lacks(self, names: list[str]) -> Iterator[str]:
        """Yields what a file with tensors of these names lacks."""
        held = set(names)
        yield from (f"it lacks {name}" for name in (*self._weights, *self._losses) if name not in held)
        moments: dict[str, set[str]] = {}
        for begin, moment, parameter in filter(None, map(self._split, names)):
            moments.setdefault(f"{begin}.{parameter}", set()).add(moment)
        self._of_torch = {parameter for parameter, found in moments.items() if found == _TORCHS}
        for parameter, found in moments.items():
            one = found == {"exp_avg"} and parameter.startswith(self._own)
            if found != _TORCHS and not one and not {"step", "state1", "state2"} <= found <= _IN_8_BITS:
                yield f"of {parameter} it has {', '.join(sorted(found))}, which are no optimiser's moments"

    def find_fault(self, name: str, tensor: Tensor, step: int) -> str | None:
        """Returns what is wrong with one of its tensors, after that update."""
        if name in self._losses:
            fits = tensor.ndim == 1 and tensor.is_floating_point() and len(tensor) <= step
            return None if fits else f"{name} is {_describe(tensor)}"
        if (own := self._weights.get(name)) is not None:
            if tensor.shape != own.shape:
                return f"{name} is {_describe(tensor)} and the run's is {_describe(own)}"
            return find_fault_in_values(name, tensor) if own.is_floating_point() else None
        if (split := self._split(name)) is None:
            return f"no role here has {name}"
        begin, moment, of = split
        parameter = self._parameters[begin].get(of)
        if parameter is None:
            return f"{name} is of no weight"
        if moment == "step" and tensor.dtype not in (_FLOATS if f"{begin}.{of}" in self._of_torch else _COUNTED):
            return f"{name} is {_describe(tensor)}, which counts nothing"
        return _find_fault_in_moment(moment, tensor, parameter, name)

    def _split(self, name: str) -> tuple[str, str, str] | None:
        """Returns the optimiser, the moment and the parameter of an optimiser's tensor."""
        for begin in self._parameters:
            if name.startswith(f"{begin}."):
                moment, _, parameter = name.removeprefix(f"{begin}.").partition(".")
                return begin, moment, parameter
        return None


def list_parts(tensors: Path) -> list[Path]:
    """Returns the files beside the first that hold more rows of a checkpoint's tensors, in their order."""
    return sorted(tensors.parent.glob(f"{tensors.stem}-{'[0-9]' * 5}{tensors.suffix}"))


def open_tensors(tensors: Path, *, spread: bool = False) -> Any:
    """Opens a checkpoint's as `open_safetensors` does; all its parts, where the state was or will be `spread`."""
    if spread or list_parts(tensors):
        return importlib.import_module("fewstep.train.parts").Parts(tensors)
    return open_safetensors(tensors)


def read_numbers(file: Path) -> dict[str, Any]:
    """Reads the numbers of a state. Raises UserError naming one that no run writes."""
    held = read_json(file, f"{file.parent} is not of a run")
    for name in ("step", "counter", "skipped_in_a_row", "skipped_in_all"):
        if type(held.get(name)) is not int or not 0 <= held[name] < _MOST:
            raise UserError(f"{file.name} has {name} {held.get(name)!r:.60}; expected a count")
    if f"step-{held['step']:07d}" != file.parent.name:
        raise UserError(f"{file.name} is of update {held['step']}, and its folder is {file.parent.name}")
    skipped = held.get("skipped")
    if not isinstance(skipped, list) or not all(map(_is_skipped, skipped)):
        raise UserError(f"{file.name} has skipped {skipped!r:.60}; expected a list of updates with their samples")
    scale, since = held.get("loss_scale", 1.0), held.get("updates_at_loss_scale", 0)
    if not isinstance(scale, int | float) or not 0 < scale < 2.0**127 or type(since) is not int or since < 0:
        raise UserError(f"{file.name} has loss_scale {scale!r:.60} for {since!r:.60} updates; expected numbers")
    return held


def _is_skipped(entry: object) -> bool:
    if not isinstance(entry, dict) or type(entry.get("step")) is not int or not 0 <= entry["step"] < _MOST:
        return False
    samples = entry.get("samples")
    return isinstance(samples, list) and all(isinstance(each, str) for each in samples)


def find_fault_in_values(name: str, tensor: Tensor) -> str | None:
    """Returns why a tensor's values are none of a weight's, or None."""
    if not tensor.is_floating_point():
        return f"{name} is of {str(tensor.dtype).removeprefix('torch.')}"
    try:
        return None if tensor.isfinite().all() else f"{name} has values that are not finite"
    except (RuntimeError, NotImplementedError):  # packed floats, which torch stores and does not compute with
        return f"{name} is of {str(tensor.dtype).removeprefix('torch.')}"


def _find_fault_in_moment(moment: str, tensor: Tensor, parameter: Tensor, name: str) -> str | None:
    if moment == "step":
        fits = tensor.numel() == 1 and 0 <= float(tensor) < _MOST
    elif moment in _TORCHS:
        alike = tensor.shape == parameter.shape and tensor.dtype == parameter.dtype
        fits = alike and find_fault_in_values(name, tensor) is None
    else:  # in blocks, with the levels of 8 bits beside them
        fits = tensor.numel() <= max(256, parameter.numel()) and not tensor.is_complex()
    return None if fits else f"{name} is {_describe(tensor)}, of no use for {_describe(parameter)}"


def _describe(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"
