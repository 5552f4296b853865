"""Peak memory of one update of every recipe for full-size models, counted on tensors that have shapes and no contents.

    python studies/memory.py        # ten minutes on one core; needs no GPU and little memory

Figures: docs/memory.md; sd15 19.9 GiB, sdxl 56.1, their LoRAs 5.5 and 11.6. One whole update is run, teacher, target,
student, backward pass and all, and every tensor's bytes are followed from its making to its end (torch's fake tensors);
AdamW's moments are added. Networks compute in bf16 under autocast, norms in fp32 as on CUDA. Not counted: CUDA's own
context (about 0.5 GiB), fragmentation, autoencoder and text encoders, and latents kept on the device (`keep_gib`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import time
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fewstep.consistency.distance import pseudo_huber
from fewstep.consistency.omega_embedding import OMEGA_WIDTH
from fewstep.consistency.path import Sample, TeacherPath
from fewstep.consistency.step import Method, consistency_losses
from fewstep.diffusion.prediction import Network
from fewstep.diffusion.schedule import Schedule
from fewstep.models.adapters import TARGET_MODULES, AdaptedNetwork
from fewstep.models.families import SD1, SD2, SDXL, Family
from fewstep.models.latent_model import PIXELS_AT_ONCE
from fewstep.models.network import UNetNetwork
from fewstep.recipes import named
from fewstep.recipes.distill import Distill
from fewstep.train.learner import Learner, whole

GIB = 2**30
MOMENTS = {"adamw": 8, "adamw8bit": 2}
"""Bytes of both, per weight that learns."""
SHAPES = {"sd15": (SD1, 64), "sd21-base": (SD2, 64), "sd21": (SD2, 96), "sdxl": (SDXL, 128)}
"""Family and side of the latents."""
TOKENS, POOLED = 77, 1280
SCHEDULE = Schedule.from_config({})


@dataclass(frozen=True, kw_only=True)
class Study:
    out: Path = Path("docs/memory.json")
    """Where the figures go."""


def main(study: Study) -> None:
    rows: list[dict[str, Any]] = []
    for name, (family, side) in SHAPES.items():
        for recipe in (name, f"{name}-lora"):
            for config in variants(named.find_recipe(recipe)):
                key = {"recipe": recipe, "part": part_of(config), "checkpointing": config.gradient_checkpointing}
                begun = time.perf_counter()
                rows.append({**key, **peak(config, family, side)})
                print(rows[-1], f"{time.perf_counter() - begun:.0f} s", flush=True)
    study.out.write_text(json.dumps(rows, indent=1) + "\n")
    print(table(rows))
    for rank in (0, 64):  # what tests/slow measures of a real process
        config = Distill(batch_size=1, ema_decay=0.0, lora_rank=rank, guidance_range=(8.5, 8.5), guidance_scale=8.5)
        print(f"64 pixels in fp32, rank {rank}: {peak(config, SD1, 8, in_bf16=False)}")
    for part in ("encode", "decode"):
        print(f"activations of the autoencoder, {part}: {autoencoder(part):.1f} GiB")


def part_of(config: Distill) -> int:
    """Pictures that go through the networks together."""
    return config.batch_size // config.accumulation


def variants(recipe: Distill) -> list[Distill]:
    """The recipe, and one picture at a time, with checkpointing and without."""
    alone = dataclasses.replace(recipe, accumulation=recipe.batch_size)
    return [
        dataclasses.replace(config, gradient_checkpointing=checkpointing)
        for config in (recipe, alone)
        for checkpointing in (True, False)
    ]


def peak(config: Distill, family: Family, side: int, *, in_bf16: bool = True) -> dict[str, float]:
    """GiB of one update in the midst of a run, whole and of weights alone."""
    with torch.device("meta"):  # peft moves what it makes, which fake tensors do not allow
        learner, teacher, modules = networks(config, family)
    with FakeTensorMode(allow_non_fake_inputs=True), norms_in_fp32(enabled=in_bf16):
        made_fake(modules)
        null = {name: value[:1] for name, value in condition(family, 1).items()}
        path = TeacherPath(teacher, SCHEDULE, null)
        method = Method(SCHEDULE, path, pseudo_huber(config.huber_c))
        sample = sample_of(family, side, part_of(config))
        live = LiveBytes()
        for weights in modules:
            for tensor in (*weights.parameters(), *weights.buffers()):
                live.see(tensor)
        held = live.now
        with live:
            for _ in range(min(2, config.accumulation)):  # the second part finds the first one's gradients
                with torch.autocast("cpu", torch.bfloat16, enabled=in_bf16, cache_enabled=False):
                    loss = consistency_losses(method, learner.student, learner.answering, sample).mean()
                loss.backward()
    learning = sum(p.numel() for p in learner.weights.parameters() if p.requires_grad)
    moments = MOMENTS[config.optimizer] * learning
    return {"gib": round((live.most + moments) / GIB, 2), "weights_gib": round(held / GIB, 2)}


def table(rows: list[dict[str, Any]]) -> str:
    """In Markdown, as docs/memory.md has it."""
    found = {(row["recipe"], row["part"], row["checkpointing"]): row["gib"] for row in rows}
    lines = [
        "| recipe | pictures together | GiB | without checkpointing | one at a time | so, without checkpointing |",
        "|---|---|---|---|---|---|",
    ]
    for recipe in (name + kind for name in SHAPES for kind in ("", "-lora")):
        part = part_of(named.find_recipe(recipe))
        cells = [f"{found[recipe, p, c]:.1f}" for p in (part, 1) for c in (True, False)]
        lines.append(f"| `{recipe}` | {part} | {' | '.join(cells)} |")
    return "\n".join(lines)


def autoencoder(part: str) -> float:
    """GiB of activations in fp32, of as many pixels as fewstep gives it together."""
    with FakeTensorMode(), torch.no_grad():
        vae = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(128, 256, 512, 512), layers_per_block=2, latent_channels=4,
        )  # fmt: skip
        side = math.isqrt(PIXELS_AT_ONCE)
        given = torch.randn(1, 3, side, side) if part == "encode" else torch.randn(1, 4, side // 8, side // 8)
        with LiveBytes() as live:
            getattr(vae, part)(given)
    return live.most / GIB


class LiveBytes(TorchDispatchMode):
    """Bytes of the storages that are alive, now and at most. (torch's own MemTracker refuses frozen weights.)"""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self._seen: set[int] = set()

    def see(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._seen:
            return
        self._seen.add(key)
        self.now += size
        self.most = max(self.most, self.now)
        weakref.finalize(storage, self._gone, key, size)

    def _gone(self, key: int, size: int) -> None:
        self._seen.remove(key)
        self.now -= size

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self.see(tensor)
        return result


def networks(config: Distill, family: Family) -> tuple[Learner, Network, list[nn.Module]]:
    """What learns, its teacher, and all that has weights; the base in bf16."""
    unet = UNet2DConditionModel(**family.unet).requires_grad_(False)  # type: ignore[arg-type]
    base = network_of(unet)
    if config.lora_rank:
        adapted = AdaptedNetwork(base, config.lora_rank, float(config.lora_rank), TARGET_MODULES, torch.bfloat16)
        learner, learning = Learner(weights=adapted.weights, student=adapted.student), unet
        teacher: Network = adapted.teacher
        modules: list[nn.Module] = [unet, adapted.weights]
    else:
        learning = UNet2DConditionModel(**family.unet, time_cond_proj_dim=OMEGA_WIDTH)  # type: ignore[arg-type]
        learner = whole(network_of(learning), ema=config.ema_decay > 0)
        teacher = base.to(torch.bfloat16)
        modules = [unet, learner.weights, *([learner.averaged] if learner.averaged else [])]
    if config.gradient_checkpointing:
        learning.train()
        learning.enable_gradient_checkpointing()
    return learner, teacher, modules


def network_of(unet: UNet2DConditionModel) -> UNetNetwork:
    network = UNetNetwork(unet, SCHEDULE, "epsilon")
    network.schedule = SCHEDULE  # not on the meta device
    return network


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


def condition(family: Family, batch: int) -> dict[str, Tensor]:
    text = {"text": torch.randn(batch, TOKENS, family.text_width)}
    return text | ({"pooled": torch.randn(batch, POOLED)} if family is SDXL else {})


def sample_of(family: Family, side: int, batch: int) -> Sample:
    latents = torch.randn(2, batch, 4, side, side)
    t = torch.zeros(batch, dtype=torch.long)
    return Sample(latents[0], condition(family, batch), t, t, latents[1], torch.zeros(batch))


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


if __name__ == "__main__":
    main(tyro.cli(Study))
