"""Learning rate, AdamW whose update can be vetoed on the device, and averaged weights."""

from __future__ import annotations

import math
from typing import Any, NamedTuple, assert_never

import torch
from torch import Tensor, nn

from fewstep.errors import UserError
from fewstep.train.config import LoopConfig
from fewstep.train.skipping import Skipping
from fewstep.train.state import gathered


def learning_rate(config: LoopConfig, step: int) -> float:
    """Learning rate of update number `step`, counted from 0."""
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    progress = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    match config.lr_decay:
        case "constant":
            return config.lr
        case "linear":
            return config.lr * (1 - progress)
        case "cosine":
            return config.lr * 0.5 * (1 + math.cos(math.pi * progress))
        case _:
            assert_never(config.lr_decay)


def make_optimizer(student: nn.Module, config: LoopConfig) -> torch.optim.Optimizer:
    """AdamW over the weights that learn: torch's, fused, because it alone can be vetoed without a host sync, or
    bitsandbytes' with 8-bit moments (arXiv 2110.02861; tensors under 4,096 elements keep theirs in fp32)."""
    learning = [p for p in student.parameters() if p.requires_grad]
    settings: Any = {"lr": config.lr, "betas": (0.9, config.beta2), "weight_decay": config.weight_decay}
    if config.optimizer == "adamw":
        return torch.optim.AdamW(learning, fused=True, **settings)
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError as error:
        raise UserError("optimizer adamw8bit needs bitsandbytes: pip install 'fewstep[8bit]'") from error
    optimizer: torch.optim.Optimizer = AdamW8bit(learning, **settings)
    return optimizer


class Batch(NamedTuple):
    """What an update is made of, over all processes; scalars on the device."""

    loss: Tensor
    """Mean over the valid samples."""
    valid: Tensor
    """How many are."""
    scale: Tensor
    """From the gradient of the sum over the batch's size to that of the mean: 1 where all are valid."""


def update(optimizer: torch.optim.Optimizer, lr: float, clip_norm: float, batch: Batch, skipping: Skipping) -> Tensor:
    """Scales, clips and applies the gradients, or leaves weights and moments alone where `skipping` vetoes it.

    Gives 1 (fp32 scalar on the device) if it was vetoed, for the loss or for the gradient, else 0; the host waits for
    neither, so that it may look late.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    gradients: Any = [p.grad for p in parameters if p.grad is not None]
    torch._foreach_mul_(gradients, batch.scale)
    norm = gathered(nn.utils.get_total_norm(gradients)).to(batch.loss.device)
    vetoed = skipping.veto(batch.loss, norm, batch.valid)
    if clip_norm > 0:
        nn.utils.clip_grads_with_norm_(parameters, clip_norm, norm)
    for group in optimizer.param_groups:
        group["lr"] = lr
    if isinstance(optimizer, torch.optim.AdamW):
        optimizer.found_inf = vetoed  # type: ignore[attr-defined]  # read by the fused kernel
        optimizer.step()
    elif not vetoed:
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return vetoed


@torch.no_grad()
def update_average(averaged: nn.Module, student: nn.Module, decay: float, vetoed: Tensor) -> None:
    """averaged ← μ·averaged + (1 − μ)·student over parameters, unless `vetoed`; buffers are copied."""
    means: list[Tensor] = list(averaged.parameters())
    values: list[Tensor] = list(student.parameters())
    weight = (1 - decay) * (1 - vetoed)
    if vetoed.device.type == "cpu":  # a third of the time: one pass, and no difference kept
        torch._foreach_lerp_(means, values, float(weight))
    else:  # without the host's waiting for `vetoed`
        difference: Any = torch._foreach_sub(values, means)
        torch._foreach_mul_(difference, weight)
        torch._foreach_add_(means, difference)
    for mean, value in zip(averaged.buffers(), student.buffers(), strict=True):
        mean.copy_(value)
