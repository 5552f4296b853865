"""Learning rate, AdamW whose update can be vetoed on the device, and averaged weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple, assert_never

import torch
from torch import Tensor, nn

from fewstep.errors import UserError
from fewstep.parallel.world import gather_tensor
from fewstep.train.config import Optimisation
from fewstep.train.state import RoleState, RunState
from fewstep.train.vetoes import LossScale


def compute_learning_rate(optimisation: Optimisation, step: int, steps: int) -> float:
    """Returns the learning rate of update number `step` of `steps`, counted from 0."""
    lr, warm_up = optimisation.lr, optimisation.warmup_steps
    if step < warm_up:
        return lr * (step + 1) / warm_up
    progress = (step - warm_up) / max(1, steps - warm_up)
    match optimisation.lr_decay:
        case "constant":
            return lr
        case "linear":
            return lr * (1 - progress)
        case "cosine":
            return lr * 0.5 * (1 + math.cos(math.pi * progress))
        case _:
            assert_never(optimisation.lr_decay)


def make_optimizer(weights: nn.Module, config: Optimisation) -> torch.optim.Optimizer:
    """Makes AdamW over the weights that learn: torch's, fused, because it alone can be vetoed without a host sync, or
    bitsandbytes' with 8-bit moments (arXiv 2110.02861; tensors under 4,096 elements keep theirs in fp32)."""
    learning = [p for p in weights.parameters() if p.requires_grad]
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
    """What a role's update is made of, over all processes; scalars on the device."""

    loss: Tensor
    """Is the mean over the valid samples."""
    valid: Tensor
    """How many are."""
    scale: Tensor
    """Brings the gradient of the sum over the batch's size to that of the mean: 1 where all are valid. Where losses are
    scaled, so are the gradients that it is applied to."""


def update(state: RunState, due: Sequence[RoleState], batches: Sequence[Batch]) -> Tensor:
    """Scales, clips and applies the gradients of all roles that are `due`, or leaves weights and moments of all of them
    alone where `state.skipping` vetoes it, or a gradient has overflowed.

    Returns whether it was left out, fp32 on the device: 0 if not, 1 for a loss or a gradient that is not finite, 2 for
    an overflow, after which a smaller loss scale tries again; the host waits for neither, so that it may look late.
    """
    norms = [_scale_gradients(role, batch, state.scaling) for role, batch in zip(due, batches, strict=True)]
    losses, norm, valid = map(
        torch.stack, ([batch.loss for batch in batches], norms, [batch.valid for batch in batches])
    )
    if state.scaling is None:
        vetoed = left_out = state.skipping.veto(losses, norm, valid)
    else:
        overflow = state.scaling.explains(losses, norm)
        vetoed = torch.maximum(state.skipping.veto(losses, torch.where(overflow > 0, 0.0, norm), valid), overflow)
        state.scaling.follow(overflow, vetoed)
        left_out = vetoed + overflow
    for role, norm in zip(due, norms, strict=True):
        _apply_gradients(role, compute_learning_rate(role.optimisation, state.step, state.steps), norm, vetoed)
    return left_out


def _scale_gradients(role: RoleState, batch: Batch, scaling: LossScale | None) -> Tensor:
    """Makes them those of the mean; returns their norm."""
    gradients: Any = [p.grad for p in role.parameters if p.grad is not None]
    torch._foreach_mul_(gradients, batch.scale if scaling is None else batch.scale / scaling.scale)
    return gather_tensor(nn.utils.get_total_norm(gradients)).to(batch.loss.device)


def _apply_gradients(role: RoleState, lr: float, norm: Tensor, vetoed: Tensor) -> None:
    optimizer = role.optimizer
    if role.optimisation.clip_norm > 0:
        nn.utils.clip_grads_with_norm_(role.parameters, role.optimisation.clip_norm, norm)
    for group in optimizer.param_groups:
        group["lr"] = lr
    if isinstance(optimizer, torch.optim.AdamW):
        optimizer.found_inf = vetoed  # type: ignore[attr-defined]  # read by the fused kernel
        optimizer.step()
    elif not vetoed:
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def update_averages(due: Sequence[RoleState], vetoed: Tensor) -> None:
    """Moves the averages of the roles that are `due`, of those that have some."""
    for each in due:
        role = each.role
        for average, decay in ((role.average, each.optimisation.ema_decay), (role.target, role.target_decay)):
            if average is not None:
                update_average(average, role.weights, decay, vetoed)


@torch.no_grad()
def update_average(average: nn.Module, weights: nn.Module, decay: float, vetoed: Tensor) -> None:
    """Does average ← μ·average + (1 − μ)·weights over parameters, unless `vetoed`; buffers are copied."""
    means: list[Tensor] = list(average.parameters())
    values: list[Tensor] = list(weights.parameters())
    weight = (1 - decay) * (1 - vetoed.clamp(max=1))
    if vetoed.device.type == "cpu":  # a third of the time: one pass, and no difference kept
        torch._foreach_lerp_(means, values, float(weight))
    else:  # without the host's waiting for `vetoed`
        difference: Any = torch._foreach_sub(values, means)
        torch._foreach_mul_(difference, weight)
        torch._foreach_add_(means, difference)
    for mean, value in zip(average.buffers(), weights.buffers(), strict=True):
        mean.copy_(value)
