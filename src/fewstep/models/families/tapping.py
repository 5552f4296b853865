"""What a network makes of its inputs on the way, read off its blocks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn


class _DeepEnoughError(Exception):
    """Says that a network need not compute any further."""


def tap(blocks: Sequence[nn.Module], read: Callable[[Any], Tensor], ask: Callable[[], object]) -> list[Tensor]:
    """Returns what is `read` from each of the `blocks` as `ask` has the network compute, up to the last of them."""
    found: list[Tensor] = []

    def keep(block: nn.Module, _given: Any, output: Any) -> None:
        found.append(read(output))
        if block is blocks[-1]:
            raise _DeepEnoughError

    hooks = [block.register_forward_hook(keep) for block in blocks]
    try:
        ask()
    except _DeepEnoughError:
        pass
    finally:
        for hook in hooks:
            hook.remove()
    return found
