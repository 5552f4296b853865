"""The model families: how each is told from its UNet, and what the world's files call it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

FamilyName = Literal["sd1", "sd2", "sdxl"]


@dataclass(frozen=True)
class Family:
    """One layout of the UNet, whatever its size."""

    name: FamilyName
    title: str
    text_width: int
    """Of the released models; others with the same layout have another."""
    unet: Mapping[str, Any]
    """What the released models' UNets set in `UNet2DConditionModel`; for shapes where there are no weights."""

    def omega_of(self, guidance_scale: float) -> float:
        """Returns the paper's ω of diffusers' `guidance_scale`, whose 1 is no guidance. Nothing else converts."""
        return guidance_scale - 1

    def guidance_of(self, omega: float) -> float:
        """Returns diffusers' `guidance_scale` of the paper's ω."""
        return omega + 1


_BLOCKS = {"block_out_channels": (320, 640, 1280, 1280), "layers_per_block": 2, "sample_size": 64}
SD1 = Family("sd1", "Stable Diffusion 1.x", 768, _BLOCKS | {"cross_attention_dim": 768, "attention_head_dim": 8})
SD2 = Family(
    "sd2", "Stable Diffusion 2.x", 1024,
    _BLOCKS | {"cross_attention_dim": 1024, "attention_head_dim": (5, 10, 20, 20), "use_linear_projection": True},
)  # fmt: skip
SDXL = Family(
    "sdxl", "Stable Diffusion XL", 2048,
    {
        "block_out_channels": (320, 640, 1280), "layers_per_block": 2, "sample_size": 128, "cross_attention_dim": 2048,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "attention_head_dim": (5, 10, 20), "transformer_layers_per_block": (1, 2, 10), "use_linear_projection": True,
        "addition_embed_type": "text_time", "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    },
)  # fmt: skip

FAMILIES: dict[FamilyName, Family] = {family.name: family for family in (SD1, SD2, SDXL)}


def family_of(unet: Mapping[str, Any]) -> Family:
    """By the switches in a UNet's configuration, which sizes do not change."""
    if unet.get("addition_embed_type") == "text_time":
        return SDXL
    return SD2 if unet.get("use_linear_projection") else SD1


def title(unet: Mapping[str, Any]) -> str:
    """For people; says so where only the layout is the family's."""
    family, width = family_of(unet), unet.get("cross_attention_dim")
    return family.title if width == family.text_width else f"{family.title}'s layout, text {width} wide"


def modelspec_architecture(family: Family, parameterisation: str) -> str:
    """ModelSpec 1.0.1's name, without what is hung on it."""
    if family is SDXL:
        return "stable-diffusion-xl-v1-base"
    if family is SD2:
        return "stable-diffusion-v2-768-v" if parameterisation == "v_prediction" else "stable-diffusion-v2-512"
    return "stable-diffusion-v1"


def kohya_base(family: Family) -> dict[str, str]:
    """What kohya's files say of their base."""
    version = {"sd1": "sd_v1", "sd2": "sd_v2", "sdxl": "sdxl_base_v1-0"}[family.name]
    return {"ss_base_model_version": version, "ss_v2": str(family is SD2)}
