"""Bytes of tensors that distillation holds on Stable Diffusion 1.5's shapes: two networks, or one with adapters.

    python studies/lora_memory.py        # seconds; on the meta device, so it needs no memory itself

Figures: 67,252,224 parameters in adapters of rank 64 on 278 modules; full distillation 19.21 GiB, LoRA with teacher and
student apart 7.41 GiB, LoRA with one base 4.20 GiB (0.57 of that). Held are weights of student, teacher and, in full
distillation, average, gradients, and AdamW's two moments, all in fp32; activations, the same in all, are not counted.
"""

from __future__ import annotations

import torch
from diffusers import UNet2DConditionModel

from fewstep.diffusion.schedule import Tabulated
from fewstep.models.families.stable_diffusion import LORA, SD1
from fewstep.models.families.unet import UNetNetwork
from fewstep.models.lora.adapters import AdaptedNetwork

FP32, MOMENTS = 4, 2


def main() -> None:
    with torch.device("meta"):
        unet = UNet2DConditionModel(**SD1.unet)  # type: ignore[arg-type]
    whole = sum(parameter.numel() for parameter in unet.parameters())
    network = UNetNetwork(unet.requires_grad_(False), Tabulated.from_config({}).to("cpu"), "epsilon")
    adapted = AdaptedNetwork(network, 64, 64.0, LORA.targets)
    adapters = sum(parameter.numel() for parameter in adapted.weights.parameters())
    modules = len(list(adapted.weights.parameters())) // 2
    print(f"UNet {whole:,} parameters; adapters {adapters:,} on {modules} modules")
    # student, teacher, average; then gradients and moments of what learns
    full = FP32 * (3 * whole + (1 + MOMENTS) * whole)
    two_networks = FP32 * (2 * whole + adapters + (1 + MOMENTS) * adapters)
    one_base = FP32 * (whole + adapters + (1 + MOMENTS) * adapters)
    for name, held in {
        "full distillation": full,
        "LoRA, teacher and student apart": two_networks,
        "LoRA, one base": one_base,
    }.items():
        print(f"{name:32} {held / 2**30:6.2f} GiB   {held / two_networks:.2f} of the two networks")


if __name__ == "__main__":
    main()
