"""Every random draw of a run as a pure function of (seed, stream, sample counter)."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

from fewstep.errors import UserError

SEEDS = 2**63
"""How many seeds there are, from 0 on, for every command and for the server."""


def check_seed(seed: int, count: int = 1, name: str = "seed") -> None:
    """Raises UserError unless this seed, and those of `count` pictures or stages from it on, are there."""
    if not 0 <= seed <= SEEDS - count:
        raise UserError(f"{name} is {seed}; allowed: 0 to {SEEDS - count}")


def key(seed: int, stream: str, counter: int) -> int:
    """Returns 63 bits that identify one draw."""
    digest = hashlib.blake2b(f"{seed}/{stream}/{counter}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def generator(seed: int, stream: str, counter: int) -> torch.Generator:
    """Returns a CPU generator that serves this draw alone."""
    return torch.Generator().manual_seed(key(seed, stream, counter))


def normal(seed: int, stream: str, counters: Sequence[int], shape: Sequence[int]) -> Tensor:
    """Draws standard normal fp32 `[len(counters), *shape]`, independently for each counter."""
    return torch.stack([torch.randn(tuple(shape), generator=generator(seed, stream, i)) for i in counters])


def uniform(seed: int, stream: str, counters: Sequence[int]) -> Tensor:
    """Draws uniformly from [0, 1), independently for each counter; float64 `[len(counters)]`."""
    return torch.tensor([(key(seed, stream, i) >> 10) / 2**53 for i in counters], dtype=torch.float64)
