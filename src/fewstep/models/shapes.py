"""Networks that have shapes and no contents, to count what they would need."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from fewstep.diffusion.schedule import Tabulated
from fewstep.method.omega_embedding import OMEGA_WIDTH
from fewstep.models.families import SDXL, Family
from fewstep.models.latent_model import PIXELS_AT_ONCE
from fewstep.models.network import UNetNetwork
from fewstep.models.random_models import TOKENS, random_autoencoder

SCHEDULE = Tabulated.from_config({})
_POOLED = 1280


def shaped_network(family: Family, *, few_step: bool = False) -> UNetNetwork:
    """Of a released model, frozen, on the meta device; a few-step one has an input for ω."""
    omega = {"time_cond_proj_dim": OMEGA_WIDTH} if few_step else {}
    with torch.device("meta"):
        network = UNetNetwork(UNet2DConditionModel(**{**family.unet, **omega}), SCHEDULE, "epsilon")
    network.schedule = SCHEDULE  # not on the meta device
    return network.requires_grad_(False)


def made_fake(modules: list[nn.Module]) -> None:
    """Fake weights in the place of meta ones, shared where those are."""
    made: dict[int, nn.Parameter] = {}
    kept = []  # so that no two have one id
    for module in (inner for outer in modules for inner in outer.modules()):
        for name, old in module._parameters.items():
            if old is not None and old.is_meta:
                kept.append(old)
                fake = torch.empty(old.shape, dtype=old.dtype, device="cpu")
                new = made.setdefault(id(old), nn.Parameter(fake, requires_grad=old.requires_grad))
                module._parameters[name] = new


def shaped_condition(family: Family, batch: int) -> dict[str, Tensor]:
    """Of so many pictures."""
    text = {"text": torch.randn(batch, TOKENS, family.text_width)}
    return text | ({"pooled": torch.randn(batch, _POOLED)} if family is SDXL else {})


@contextlib.contextmanager
def norms_in_fp32(*, enabled: bool) -> Iterator[None]:
    """As CUDA's autocast has them; the CPU's leaves them as they come."""
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


def autoencoder_activations(part: str, count: Callable[[Callable[[], object]], int]) -> int:
    """Bytes, as `count` finds them, of decoding or encoding in fp32 as many pixels as fewstep gives it together."""
    with FakeTensorMode(), torch.no_grad():
        vae = random_autoencoder(SDXL)
        side = math.isqrt(PIXELS_AT_ONCE)
        given = torch.randn(1, 3, side, side) if part == "encode" else torch.randn(1, 4, side // 8, side // 8)
        return count(lambda: getattr(vae, part)(given))
