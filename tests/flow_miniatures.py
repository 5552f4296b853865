"""Small random flow transformers in the exact layout of each family, with tokenizers made here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderDC,
    AutoencoderKL,
    AutoencoderKLFlux2,
    AutoencoderKLQwenImage,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Transformer2DModel,
    FluxPipeline,
    FluxTransformer2DModel,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
    SanaPipeline,
    SanaTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    ZImagePipeline,
    ZImageTransformer2DModel,
)
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.processors import TemplateProcessing
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    Gemma2Config,
    Gemma2Model,
    GemmaTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Tokenizer,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3Model,
    T5Config,
    T5EncoderModel,
    T5TokenizerFast,
)

from fewstep.models.families.sana import INSTRUCTION

WORDS = ("a", "red", "blue", "green", "yellow", "small", "large", "star", "circle", "square", "and", "of", "on")


def make_t5_tokenizer() -> T5TokenizerFast:
    """Knows a few words and every letter."""
    letters = [chr(code) for code in range(33, 127)]
    pieces = ["<pad>", "</s>", "<unk>", "▁", *(f"▁{word}" for word in WORDS), *letters]
    return T5TokenizerFast(
        vocab=[(piece, -float(i)) for i, piece in enumerate(dict.fromkeys(pieces))], extra_ids=0, model_max_length=512
    )


def make_autoencoder(channels: int, scale: float, shift: float | None) -> AutoencoderKL:
    """Eight pixels a latent."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8,) * 4, layers_per_block=1, norm_num_groups=4, latent_channels=channels, sample_size=64,
        scaling_factor=scale, shift_factor=shift, use_quant_conv=False, use_post_quant_conv=False,
    )  # fmt: skip


def _clip(tokenizer: CLIPTokenizer, width: int, activation: str) -> CLIPTextModelWithProjection:
    config = CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=width, intermediate_size=2 * width, num_hidden_layers=3,
        num_attention_heads=2, max_position_embeddings=tokenizer.model_max_length, projection_dim=width,
        hidden_act=activation, bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    return CLIPTextModelWithProjection(config)


def _t5(tokenizer: Any, width: int) -> T5EncoderModel:
    return T5EncoderModel(
        T5Config(vocab_size=len(tokenizer), d_model=width, d_ff=37, d_kv=8, num_layers=2, num_heads=4)
    )


def save_sd3(tokenizer: CLIPTokenizer, folder: Path, *, t5: bool = True, large: bool = False) -> Path:
    """Writes Stable Diffusion 3.5's layout: medium's with two attentions in the first block, or large's."""
    torch.manual_seed(0)
    third = make_t5_tokenizer()
    parts = {
        "transformer": SD3Transformer2DModel(
            sample_size=8, patch_size=2, in_channels=16, out_channels=16, num_layers=2, attention_head_dim=8,
            num_attention_heads=4, joint_attention_dim=64, caption_projection_dim=32, pooled_projection_dim=40,
            pos_embed_max_size=16, qk_norm="rms_norm", dual_attention_layers=() if large else (0,),
        ),
        "vae": make_autoencoder(16, 1.5305, 0.0609),
        "text_encoder": _clip(tokenizer, 16, "quick_gelu"), "tokenizer": tokenizer,
        "text_encoder_2": _clip(tokenizer, 24, "gelu"), "tokenizer_2": tokenizer,
        "text_encoder_3": _t5(third, 64) if t5 else None, "tokenizer_3": third if t5 else None,
        "scheduler": FlowMatchEulerDiscreteScheduler(shift=3.0),
    }  # fmt: skip
    _settle(parts)
    StableDiffusion3Pipeline(**parts).save_pretrained(folder)
    return folder


def save_flux(tokenizer: CLIPTokenizer, folder: Path) -> Path:
    """Writes FLUX.1 dev's layout, whose times are shifted by the size of its pictures."""
    torch.manual_seed(0)
    second = make_t5_tokenizer()
    clip = _clip(tokenizer, 16, "quick_gelu").config
    parts = {
        "transformer": FluxTransformer2DModel(
            patch_size=1, in_channels=64, num_layers=1, num_single_layers=1, attention_head_dim=16,
            num_attention_heads=2, joint_attention_dim=64, pooled_projection_dim=16, guidance_embeds=True,
            axes_dims_rope=(4, 6, 6),
        ),
        "vae": make_autoencoder(16, 0.3611, 0.1159),
        "text_encoder": CLIPTextModel(clip), "tokenizer": tokenizer,
        "text_encoder_2": _t5(second, 64), "tokenizer_2": second,
        "scheduler": FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
    }  # fmt: skip
    _settle(parts)
    FluxPipeline(**parts).save_pretrained(folder)
    return folder


QWEN_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% if enable_thinking is false %}<think>\n\n</think>\n\n"
    "{% endif %}{% endif %}"
)
"""How Qwen3 puts a conversation, as far as pipelines ask."""


def make_qwen_tokenizer() -> Qwen2Tokenizer:
    """Knows every byte."""
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    words = {piece: i for i, piece in enumerate([*sorted(ByteLevel.alphabet()), *special])}
    tokenizer = Qwen2Tokenizer(vocab=words, merges=[], model_max_length=1024)
    tokenizer.add_special_tokens({"additional_special_tokens": special[1:]})
    tokenizer.chat_template = QWEN_TEMPLATE
    return tokenizer


def make_qwen(tokenizer: Any, width: int, layers: int = 3) -> Qwen3Model:
    return Qwen3Model(
        Qwen3Config(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=48,
            num_hidden_layers=layers,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=8,
            max_position_embeddings=1024,
        )
    )


def save_zimage(_tokenizer: CLIPTokenizer, folder: Path) -> Path:
    """Writes Z-Image's layout."""
    torch.manual_seed(0)
    tokenizer = make_qwen_tokenizer()
    parts = {
        "transformer": ZImageTransformer2DModel(
            dim=64, n_layers=2, n_refiner_layers=1, n_heads=4, n_kv_heads=4, cap_feat_dim=32, axes_dims=[4, 6, 6],
            axes_lens=[1024, 32, 32],
        ),
        "vae": make_autoencoder(16, 0.3611, 0.1159),
        "text_encoder": make_qwen(tokenizer, 32), "tokenizer": tokenizer,
        "scheduler": FlowMatchEulerDiscreteScheduler(shift=6.0),
    }  # fmt: skip
    _settle(parts)
    ZImagePipeline(**parts).save_pretrained(folder)
    return folder


def save_qwen(_tokenizer: CLIPTokenizer, folder: Path) -> Path:
    """Writes Qwen-Image's layout, and the size of its pictures, which that says nowhere."""
    torch.manual_seed(0)
    tokenizer = make_qwen_tokenizer()
    text = {
        "vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 1024,
        "rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 2]}, "bos_token_id": 256, "eos_token_id": 257,
    }  # fmt: skip
    sight = {"depth": 1, "hidden_size": 32, "intermediate_size": 32, "num_heads": 2, "out_hidden_size": 32}
    numbers = torch.rand(2, 16)
    parts = {
        "transformer": QwenImageTransformer2DModel(
            num_layers=2, attention_head_dim=16, num_attention_heads=2, joint_attention_dim=32, axes_dims_rope=(4, 6, 6)
        ),
        "vae": AutoencoderKLQwenImage(
            base_dim=8, dim_mult=[1, 2, 2, 2], num_res_blocks=1, temperal_downsample=[False, True, True],
            latents_mean=(numbers[0] - 0.5).tolist(), latents_std=(numbers[1] + 0.5).tolist(),
        ),
        "text_encoder": Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(text_config=text, vision_config=sight)),
        "tokenizer": tokenizer,
        "scheduler": FlowMatchEulerDiscreteScheduler(
            use_dynamic_shifting=True, max_image_seq_len=8192, max_shift=0.9, shift_terminal=0.02
        ),
    }  # fmt: skip
    _settle(parts)
    QwenImagePipeline(**parts).save_pretrained(folder)
    (folder / "fewstep.json").write_text('{"resolution": 64}')
    return folder


def save_klein(_tokenizer: CLIPTokenizer, folder: Path) -> Path:
    """Writes FLUX.2 klein base's layout, with as many layers of its reader as are read."""
    torch.manual_seed(0)
    tokenizer = make_qwen_tokenizer()
    vae = AutoencoderKLFlux2(
        block_out_channels=(8,) * 4, layers_per_block=1, norm_num_groups=4, latent_channels=8, sample_size=64,
    )  # fmt: skip
    vae.bn.running_mean.normal_()
    vae.bn.running_var.uniform_(0.5, 2)
    text = Qwen3Config(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=16, num_hidden_layers=28, num_attention_heads=1,
        num_key_value_heads=1, head_dim=8, max_position_embeddings=1024,
    )  # fmt: skip
    parts = {
        "transformer": Flux2Transformer2DModel(
            in_channels=32, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
            joint_attention_dim=48, axes_dims_rope=(4, 4, 4, 4), guidance_embeds=False,
        ),
        "vae": vae, "text_encoder": Qwen3ForCausalLM(text), "tokenizer": tokenizer,
        "scheduler": FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
    }  # fmt: skip
    _settle(parts)
    Flux2KleinPipeline(**parts).save_pretrained(folder)
    return folder


def make_gemma_tokenizer() -> GemmaTokenizerFast:
    """Knows every letter and the words of SANA's instruction, and begins as Gemma's does."""
    words = sorted({f"▁{word}" for word in INSTRUCTION.split()})
    merges = list(dict.fromkeys((word[:i], word[i]) for word in words for i in range(1, len(word))))
    pieces = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "▁", "\n", *map(chr, range(33, 127)), *map("".join, merges)]
    tokenizer = GemmaTokenizerFast(vocab={piece: i for i, piece in enumerate(pieces)}, merges=merges)
    tokenizer._tokenizer.post_processor = TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 2)])
    return tokenizer


def save_sana(_tokenizer: CLIPTokenizer, folder: Path) -> Path:
    """Writes SANA's layout, with latents of 32 pixels and the scheduler that it is released with."""
    torch.manual_seed(0)
    tokenizer = make_gemma_tokenizer()
    channels = (8,) * 5 + (32,)
    text = Gemma2Config(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, max_position_embeddings=2048,
    )  # fmt: skip
    parts = {
        "transformer": SanaTransformer2DModel(
            num_layers=2, num_attention_heads=4, attention_head_dim=16, num_cross_attention_heads=4,
            cross_attention_head_dim=16, cross_attention_dim=64, caption_channels=32, sample_size=2,
        ),
        "vae": AutoencoderDC(
            encoder_block_out_channels=channels, decoder_block_out_channels=channels, scaling_factor=0.41407,
            encoder_layers_per_block=(1,) * 6, decoder_layers_per_block=(1,) * 6, encoder_qkv_multiscales=((),) * 6,
            decoder_qkv_multiscales=((),) * 6, downsample_block_type="conv", upsample_block_type="interpolate",
        ),
        "text_encoder": Gemma2Model(text), "tokenizer": tokenizer,
        "scheduler": DPMSolverMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
        ),
    }  # fmt: skip
    _settle(parts)
    SanaPipeline(**parts).save_pretrained(folder)
    return folder


def save_pixart(_tokenizer: CLIPTokenizer, folder: Path) -> Path:
    """Writes PixArt-Σ's layout, which is no flow."""
    torch.manual_seed(0)
    tokenizer = make_t5_tokenizer()
    parts = {
        "transformer": PixArtTransformer2DModel(
            sample_size=8, num_layers=2, num_attention_heads=4, attention_head_dim=8, cross_attention_dim=32,
            in_channels=4, out_channels=8, caption_channels=64, use_additional_conditions=False,
        ),
        "vae": make_autoencoder(4, 0.13025, None), "text_encoder": _t5(tokenizer, 64), "tokenizer": tokenizer,
        "scheduler": DPMSolverMultistepScheduler(),
    }  # fmt: skip
    _settle(parts)
    PixArtSigmaPipeline(**parts).save_pretrained(folder)
    return folder


def _settle(parts: dict[str, Any]) -> None:
    """Ends dropout, and gives the last layers, which begin at zero, something to say."""
    for name, part in parts.items():
        if isinstance(part, torch.nn.Module):
            part.eval().requires_grad_(False)
            if name == "transformer":
                for value in part.parameters():
                    if not value.any():
                        value.normal_(std=0.05)


FLOWS = {
    "sd3": save_sd3, "flux": save_flux, "zimage": save_zimage, "qwen": save_qwen, "klein": save_klein,
    "sana": save_sana,
}  # fmt: skip
"""What writes a miniature of each family."""
TRANSFORMERS = {**FLOWS, "pixart": save_pixart}
"""And of those that are no flows."""
FUSED = ("sd3", "flux", "zimage", "klein", "sana")
"""Those whose first code has q, k and v as one module."""


def to_original(model: Any) -> dict[str, torch.Tensor]:
    """Returns the transformer's tensors as the first code has them, by the names' table read backwards."""
    names, state = model.family.original, model.network.backbone.state_dict()
    blocks = len({name.split(".")[1] for name in state if name.startswith("transformer_blocks.")})
    result = {theirs: state[ours] for theirs, ours in names.tensors.items() if ours in state}
    for theirs, ours in names.list_modules({name.rpartition(".")[0] for name in state}).items():
        for kind in ("weight", "bias"):
            parts = [(module, state[f"{module}.{kind}"]) for module in ours if f"{module}.{kind}" in state]
            if parts:
                said = [
                    torch.cat(each.chunk(2)[::-1]) if names.is_swapped(name, blocks) else each for name, each in parts
                ]
                result[f"{theirs}.{names._kind(ours[0], kind)}"] = torch.cat(said)
    return {name: value.contiguous().clone() for name, value in result.items()}
