"""Every random draw of a run as a pure function of (seed, stream, sample counter)."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor


def key(seed: int, stream: str, counter: int) -> int:
    """63 bits that name one draw."""
    digest = hashlib.blake2b(f"{seed}/{stream}/{counter}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def generator(seed: int, stream: str, counter: int) -> torch.Generator:
    """A CPU generator of its own for one draw."""
    return torch.Generator().manual_seed(key(seed, stream, counter))


def normal(seed: int, stream: str, counters: Sequence[int], shape: Sequence[int]) -> Tensor:
    """Standard normal fp32 `[len(counters), *shape]`, one independent draw a counter."""
    return torch.stack([torch.randn(tuple(shape), generator=generator(seed, stream, i)) for i in counters])


def uniform(seed: int, stream: str, counters: Sequence[int]) -> Tensor:
    """Uniform in [0, 1), float64 `[len(counters)]`."""
    return torch.tensor([(key(seed, stream, i) >> 10) / 2**53 for i in counters], dtype=torch.float64)
