"""Fake weights and norms, to count what a network would need without its contents."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from fewstep.models.codec import PIXELS_AT_ONCE
from fewstep.models.family import Family


def make_fake(modules: list[nn.Module]) -> None:
    """Puts fake weights and buffers in the place of meta ones, weights shared where those are."""
    made: dict[int, nn.Parameter] = {}
    kept = []  # so that no two have one id
    for module in (inner for outer in modules for inner in outer.modules()):
        for name, old in module._parameters.items():
            if old is not None and old.is_meta:
                kept.append(old)
                fake = torch.empty(old.shape, dtype=old.dtype, device="cpu")
                new = made.setdefault(id(old), nn.Parameter(fake, requires_grad=old.requires_grad))
                module._parameters[name] = new
        for name, held in module._buffers.items():
            if held is not None and held.is_meta:
                module._buffers[name] = torch.empty(held.shape, dtype=held.dtype, device="cpu")


@contextlib.contextmanager
def norms_in_fp32(*, enabled: bool) -> Iterator[None]:
    """Computes norms in fp32, as CUDA's autocast does; the CPU's leaves them as they come."""
    if not enabled:
        yield
        return
    kept = {name: getattr(nn.functional, name) for name in ("group_norm", "layer_norm")}

    def in_fp32(norm: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def wrapped(x: Tensor, shape: Any, weight: Any = None, bias: Any = None, *rest: Any, **more: Any) -> Tensor:
            scale, shift = (None if each is None else each.float() for each in (weight, bias))
            return norm(x.float(), shape, scale, shift, *rest, **more)

        return wrapped

    for name, norm in kept.items():
        setattr(nn.functional, name, in_fp32(norm))
    try:
        yield
    finally:
        for name, norm in kept.items():
            setattr(nn.functional, name, norm)


def count_autoencoder(family: Family, part: str, count: Callable[[Callable[[], object]], int]) -> int:
    """Returns the bytes, as `count` finds them, of encoding or decoding in fp32 as many pixels as fewstep gives it
    together."""
    with FakeTensorMode(), torch.no_grad():
        vae = family.random_autoencoder()
        side = math.isqrt(PIXELS_AT_ONCE)
        codec = family.make_codec(vae)
        given = torch.randn((1, 3, side, side) if part == "encode" else (1, *codec.shape(side)))
        return count(lambda: getattr(codec, part)(given))
