"""Small random models in the exact layout of each family."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPVisionConfig,
)

MEAN, STD = [0.5, 0.4, 0.3], [0.2, 0.3, 0.4]  # of an extractor's preprocessing
FAMILIES = ("sd15", "sd21-base", "sd21", "sdxl")


def save_miniature(family: str, tokenizer: CLIPTokenizer, folder: Path) -> Path:
    """Writes a pipeline of `family`: its classes, its switches, its parameterisation, a few thousand weights."""
    torch.manual_seed(0)
    xl, second = family == "sdxl", family.startswith("sd21")
    text_width, second_width = 16, 24  # readers of single files tell Stable Diffusion XL's encoders by their widths
    parts = {
        "vae": AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
            block_out_channels=(8, 8), layers_per_block=1, latent_channels=4, norm_num_groups=4, sample_size=16,
            scaling_factor=0.13025 if xl else 0.18215,
        ),
        "text_encoder": CLIPTextModel(_text(tokenizer, text_width, "gelu" if second else "quick_gelu")),
        "tokenizer": tokenizer,
        "unet": UNet2DConditionModel(
            sample_size=8, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=text_width + second_width if xl else text_width,
            attention_head_dim=(1, 2) if second or xl else 2, use_linear_projection=second or xl,
            **(_xl_unet(second_width) if xl else {}),
        ),
        "scheduler": DDIMScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False,
            set_alpha_to_one=False, steps_offset=1,
            prediction_type="v_prediction" if family == "sd21" else "epsilon",
        ),
    }  # fmt: skip
    if xl:
        encoder = CLIPTextModelWithProjection(_text(tokenizer, second_width, "gelu"))
        pipeline = StableDiffusionXLPipeline(**parts, text_encoder_2=encoder, tokenizer_2=tokenizer)
    else:
        pipeline = StableDiffusionPipeline(
            **parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False
        )
    pipeline.save_pretrained(folder)
    return folder


def _text(tokenizer: CLIPTokenizer, width: int, activation: str) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=width, intermediate_size=2 * width, num_hidden_layers=3,
        num_attention_heads=2, max_position_embeddings=tokenizer.model_max_length, projection_dim=width,
        hidden_act=activation, bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip


def _xl_unet(pooled_width: int) -> dict[str, object]:
    """Pooled text and six numbers of size and crop, eight wide each, beside the time."""
    return {
        "addition_embed_type": "text_time", "addition_time_embed_dim": 8, "transformer_layers_per_block": (1, 2),
        "projection_class_embeddings_input_dim": pooled_width + 6 * 8,
    }  # fmt: skip


def save_clip(tokenizer: CLIPTokenizer, folder: Path) -> Path:
    """Writes a CLIP of 28 pixels and 16 features, in transformers' layout."""
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = CLIPTextConfig(
        **small, vocab_size=len(tokenizer), max_position_embeddings=32, eos_token_id=tokenizer.eos_token_id,
        bos_token_id=tokenizer.bos_token_id,
    )  # fmt: skip
    vision = CLIPVisionConfig(**small, image_size=28, patch_size=14)
    torch.manual_seed(0)
    config = CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=16)
    CLIPModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    say_preprocessing(folder)
    return folder


def say_preprocessing(folder: Path, **more: object) -> None:
    """As transformers' image processors are saved."""
    (folder / "preprocessor_config.json").write_text(json.dumps({"image_mean": MEAN, "image_std": STD, **more}))
