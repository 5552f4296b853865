"""Full-size models of each family with random weights, for measuring what takes no training to measure."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from fewstep import assets
from fewstep.method.omega_embedding import OMEGA_WIDTH
from fewstep.models.families import SD2, SDXL, Family
from fewstep.models.latent_model import LatentModel, assemble

TOKENS = 77
"""That the released models read."""
_LARGE = {
    "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
    "projection_dim": 768,
}  # fmt: skip
_HUGE = {
    "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 23, "num_attention_heads": 16,
    "projection_dim": 1024, "hidden_act": "gelu",
}  # fmt: skip
_GIANT = {
    "hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 20,
    "projection_dim": 1280, "hidden_act": "gelu",
}  # fmt: skip
_SCHEDULER = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def random_model(family: Family, device: torch.device, **unet: Any) -> LatentModel:
    """A teacher in that family's released layout and size, in fp32 and frozen; `unet` changes its UNet's settings."""
    text = CLIPTextModel(_text(_HUGE if family is SD2 else _LARGE))
    tokenizer = CLIPTokenizer.from_pretrained(assets.scenes_teacher() / "tokenizer", model_max_length=TOKENS)
    parts = {
        "unet": UNet2DConditionModel(**{**family.unet, **unet}), "vae": random_autoencoder(family),
        "text_encoder": text, "tokenizer": tokenizer,
    }  # fmt: skip
    if family is SDXL:
        parts |= {"text_encoder_2": CLIPTextModelWithProjection(_text(_GIANT)), "tokenizer_2": tokenizer}
    for part in parts.values():
        if isinstance(part, torch.nn.Module):
            part.eval().requires_grad_(False)
    return assemble("random weights", parts, dict(_SCHEDULER), device, details={}, zero_null_cond=family is SDXL)


def random_student(family: Family, device: torch.device, resolution: int = 0) -> LatentModel:
    """A few-step model of that family; `resolution` in pixels, else the family's own."""
    size = {"sample_size": resolution // 8} if resolution else {}
    return random_model(family, device, time_cond_proj_dim=OMEGA_WIDTH, **size)


def random_autoencoder(family: Family) -> AutoencoderKL:
    """The one that all families share but for its scale."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(128, 256, 512, 512), layers_per_block=2, latent_channels=4, sample_size=512,
        scaling_factor=0.13025 if family is SDXL else 0.18215,
    )  # fmt: skip


def _text(size: dict[str, Any]) -> CLIPTextConfig:
    return CLIPTextConfig(vocab_size=49408, max_position_embeddings=TOKENS, **size)
