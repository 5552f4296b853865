"""The blocks that a network repeats, compiled by torch.compile: each kind of them once for each shape that it meets."""

from __future__ import annotations

import importlib.util
import logging
import os
import shutil
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from fewstep.errors import UserError
from fewstep.models.network import BackboneNetwork
from fewstep.models.options import Compile

_MOST_GRAPHS = 64
"""Bounds the graphs of one kind of block: of its widths, with gradients and without, with adapters and without. After
so many, 8 if torch chooses, the rest is computed uncompiled without a word."""
_HEADS = 64
"""Width of a head where a network's modules do not tell."""
logger = logging.getLogger(__name__)


def check_compile(how: Compile, device: torch.device) -> None:
    """Raises UserError where nothing can be compiled for `device`, or not in that way."""
    if how == "off":
        return
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"--compile is for a CPU or an NVIDIA GPU and this is {device.type}; leave --compile out")
    if how == "graphs" and device.type != "cuda":
        raise UserError("--compile graphs records CUDA graphs, and this is a CPU; give --compile blocks")
    wanted, variable = ("g++", "CXX") if device.type == "cpu" else ("gcc", "CC")
    compiler = os.environ.get(variable) or wanted
    if shutil.which(compiler) is None:
        raise UserError(
            f"--compile needs a C++ compiler and there is no {compiler}; install one (apt install g++), name it in "
            f"{variable}, or leave --compile out"
        )
    if device.type == "cuda" and importlib.util.find_spec("triton") is None:
        raise UserError("--compile needs triton on a GPU: pip install triton, or leave --compile out")


def compile_blocks(networks: Sequence[BackboneNetwork], how: Compile, device: torch.device, dtype: torch.dtype) -> None:
    """Has the repeated blocks of these networks, which share what is compiled, computed by torch.compile from their
    next call on; weights, their names and files stay as they are. `dtype` is what they compute in.

    Compiling happens as a block meets a shape for the first time, and is logged with the seconds that it took. Raises
    UserError where it cannot be.
    """
    check_compile(how, device)
    if how == "off":
        return
    import torch._dynamo  # takes its time, and few runs compile

    torch._dynamo.config.recompile_limit = max(_MOST_GRAPHS, torch._dynamo.config.recompile_limit)
    clock = _Clock()
    for network in networks:
        for block in network.repeated_blocks:
            block.compile(mode="reduce-overhead" if how == "graphs" else None)
        if how == "graphs":
            network.backbone.register_forward_pre_hook(_begin_graphs)
        network.backbone.register_forward_hook(clock.tell)
    logger.info(f"attention: {name_attention(networks[0], device, dtype)}")


def _begin_graphs(_module: nn.Module, _inputs: Any) -> None:
    """Says that what graphs returned in the call before is needed no more: whatever a network returns was computed
    from that outside of them."""
    torch.compiler.cudagraph_mark_step_begin()


class _Clock:
    """Counts what torch compiles, and says so after the call that waited for it."""

    def __init__(self) -> None:
        from torch._dynamo.callback import callback_handler

        self._graphs, self._seconds, self._begun = 0, 0.0, 0.0
        callback_handler.register_start_callback(self._start)
        callback_handler.register_end_callback(self._end)

    def _start(self, _: Any) -> None:
        self._begun = time.perf_counter()

    def _end(self, _: Any) -> None:
        self._graphs, self._seconds = self._graphs + 1, self._seconds + time.perf_counter() - self._begun

    def tell(self, _module: nn.Module, _inputs: Any, _output: Any) -> None:
        """Logs what was compiled since it was last said, as a hook of a network."""
        if self._graphs:
            logger.info(f"compiled {self._graphs} graphs in {self._seconds:.1f} s")
            self._graphs, self._seconds = 0, 0.0


def name_attention(network: BackboneNetwork, device: torch.device, dtype: torch.dtype) -> str:
    """Says which of its backends torch's attention chooses by itself for a network's heads here: flash, efficient,
    cudnn or math, which is the slow one."""
    from torch.nn.attention import SDPBackend

    widths = sorted(
        {
            module.inner_dim // module.heads
            for module in network.backbone.modules()
            if isinstance(getattr(module, "inner_dim", None), int) and isinstance(getattr(module, "heads", None), int)
        }
    )
    by_backend: dict[str, list[int]] = {}
    for width in widths or [_HEADS]:
        head = torch.zeros(1, 1, 64, width, dtype=dtype, device=device)
        chosen = SDPBackend(torch._fused_sdp_choice(head, head, head)).name.lower().removesuffix("_attention")
        by_backend.setdefault(chosen, []).append(width)
    return "; ".join(f"{name} (heads of {', '.join(map(str, own))})" for name, own in by_backend.items())
