"""The number formats that networks compute in, and which of them a device has."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

Precision = Literal["auto", "fp32", "bf16", "fp16"]
PaintPrecision = Literal["auto", "fp32", "bf16", "fp16", "int8"]
"""The same, and what an engine alone can paint in."""
Quantisation = Literal["int8", "nf4"]
"""Fewer bits than a number format has, in which alone what does not learn can be held."""
FrozenPrecision = Literal["auto", "fp32", "bf16", "fp16", "int8", "nf4"]
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_AMPERE = (8, 0)
"""Compute capability from which NVIDIA's GPUs compute in bf16; older ones only imitate it, slower than fp32."""


def choose_dtype(precision: Precision, device: torch.device) -> torch.dtype:
    """Returns the format of that name; `auto` is bf16 on a GPU that computes in it, fp16 on an older one, else fp32."""
    if precision != "auto":
        return _DTYPES[precision]
    if device.type != "cuda":
        return torch.float32
    return torch.bfloat16 if has_bf16(device) else torch.float16


@dataclass(frozen=True)
class Storage:
    """Where a model's weights are kept, and in which format."""

    device: torch.device
    """Where they are loaded to."""
    dtype: torch.dtype = torch.float32
    home: torch.device | None = None
    """Where they will compute, if that is elsewhere."""
    shaped: bool = False
    """Whether the network is shaped alone, where it can be, to be filled once it is spread over processes."""

    @property
    def codec_dtype(self) -> torch.dtype:
        """Returns what an autoencoder that half precision does no harm is kept in: bf16, whose numbers reach as far
        as fp32's, where the device has it."""
        home = self.home or self.device
        if self.dtype == torch.float16 and (home.type != "cuda" or has_bf16(home)):
            return torch.bfloat16
        return self.dtype


def has_bf16(device: torch.device) -> bool:
    """Says whether this GPU, not another of the machine, computes in bf16.

    torch.cuda.is_bf16_supported() would count what is imitated.
    """
    return torch.version.hip is not None or torch.cuda.get_device_capability(device) >= _AMPERE


def name_dtype(dtype: torch.dtype) -> str:
    """Returns what the command line calls a format."""
    return next(name for name, each in _DTYPES.items() if each == dtype)


def autocast(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    """Lets networks compute in `dtype` while it lasts, and norms and sums in fp32; with fp32 it does nothing.

    Without autocast's cache of cast weights: filled by a target that runs without gradient, it would hide the student's
    weights from autograd where the student is its own target.
    """
    half = dtype != torch.float32
    return torch.autocast(device.type, dtype if half else torch.bfloat16, enabled=half, cache_enabled=False)
