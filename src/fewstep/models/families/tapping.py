"""What a network makes of its inputs on the way, read off its blocks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from fewstep.parallel.world import ask_spread, is_spread


class _DeepEnoughError(Exception):
    """Says that a network need not compute any further."""


def tap(
    network: nn.Module, blocks: Sequence[nn.Module], read: Callable[[Any], Tensor], ask: Callable[[], object]
) -> list[Tensor]:  # fmt: skip
    """Returns what is `read` from each of the `blocks` as `ask` has their network compute, up to the last of them; one
    that is spread computes to its end, where it lets go of what it put together."""
    found: list[Tensor] = []
    spread = is_spread(network)

    def keep(block: nn.Module, _given: Any, output: Any) -> None:
        found.append(read(output))
        if block is blocks[-1] and not spread:
            raise _DeepEnoughError

    hooks = [block.register_forward_hook(keep) for block in blocks]
    try:
        if spread:
            ask_spread(network, lambda: (ask(), found))
        else:
            ask()
    except _DeepEnoughError:
        pass
    finally:
        for hook in hooks:
            hook.remove()
    return found
