"""Stable Diffusion 3 and 3.5: a flow transformer, two CLIP encoders, T5 or none, and an autoencoder of 16 channels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from diffusers import SD3Transformer2DModel, StableDiffusion3Pipeline
from torch import Tensor
from transformers import CLIPTextModelWithProjection, CLIPTokenizer, T5EncoderModel, T5TokenizerFast

from fewstep import assets
from fewstep.diffusion.prediction import Cond
from fewstep.errors import UserError
from fewstep.models.conditioner import TextEncoder
from fewstep.models.families.clip import CLIP_G, CLIP_L, CLIP_TOKENS, shape_clip
from fewstep.models.families.flow_family import FlowFamily, lay_out_loras
from fewstep.models.families.original_transformers import SD3_NAMES
from fewstep.models.families.sd3_text import T5_TOKENS, TripleConditioner
from fewstep.models.families.t5 import T5Encoder
from fewstep.models.families.transformer import TransformerNetwork
from fewstep.models.families.transformer_checks import PATCH, check_channels, read_whole_side
from fewstep.models.family import LatentModel
from fewstep.models.network import BackboneNetwork

_CLIPS = ("text_encoder", "text_encoder_2")
_T5 = "text_encoder_3"
_MEDIUM: dict[str, Any] = {
    "sample_size": 128, "patch_size": 2, "in_channels": 16, "num_layers": 24, "attention_head_dim": 64,
    "num_attention_heads": 24, "joint_attention_dim": 4096, "caption_projection_dim": 1536,
    "pooled_projection_dim": 2048, "out_channels": 16, "pos_embed_max_size": 384, "qk_norm": "rms_norm",
    "dual_attention_layers": tuple(range(13)),
}  # fmt: skip
"""Stable Diffusion 3.5 medium, 2.24 billion weights."""
_ENCODERS = (CLIP_L, CLIP_G)


class SD3Network(TransformerNetwork):
    """`cond` is as `TripleConditioner` makes it."""

    block_lists = ("transformer_blocks",)

    def ask(self, z_t: Tensor, told: Tensor, cond: Cond, omega: Tensor | None) -> Tensor:  # noqa: ARG002
        output: Tensor = self.transformer(
            hidden_states=z_t, timestep=1000 * told, encoder_hidden_states=cond["text"].to(z_t.dtype),
            pooled_projections=cond["pooled"].to(z_t.dtype), return_dict=False,
        )[0]  # fmt: skip
        return output

    def image_tokens(self, output: Any, height: int, width: int) -> Tensor:
        patch = self.transformer.config.patch_size
        _text, tokens = output
        picture: Tensor = tokens.transpose(1, 2).unflatten(2, (height // patch, width // patch))
        return picture

    @property
    def time_embedding(self) -> Any:
        return self.transformer.time_text_embed


_BLOCK = (
    "attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0", "attn2.to_q", "attn2.to_k", "attn2.to_v", "attn2.to_out.0",
    "attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj", "attn.to_add_out", "ff.net.0.proj", "ff.net.2",
    "ff_context.net.0.proj", "ff_context.net.2",
)  # fmt: skip
LORA = lay_out_loras(
    _BLOCK,
    SD3_NAMES,
    ("time_text_embed.timestep_embedder.linear_1", "time_text_embed.timestep_embedder.linear_2"),
    text_prefixes={"text_encoder": ("lora_te1",), "text_encoder_2": ("lora_te2",), _T5: ("lora_te3",)},
    embedding_parts={"clip_l": "text_encoder", "clip_g": "text_encoder_2"},
    bare_parts=(_T5,),
)  # fmt: skip


class StableDiffusion3(FlowFamily):
    """All sizes of both versions: their layouts are one."""

    name = "sd3"
    title = "Stable Diffusion 3"
    lora = LORA
    parts = ("transformer", "vae", *_CLIPS, _T5, "tokenizer", "tokenizer_2", "tokenizer_3", "scheduler")
    pipeline_classes = (StableDiffusion3Pipeline.__name__,)
    embeds_guidance = False
    transformer_class = SD3Transformer2DModel
    network_class = SD3Network
    encoders: ClassVar[Mapping[str, Any]] = {
        **dict.fromkeys(_CLIPS, (CLIPTextModelWithProjection, CLIPTokenizer)), _T5: (T5EncoderModel, T5TokenizerFast),
    }  # fmt: skip
    optional = large = (_T5,)
    keys_begin = ("joint_blocks.",)
    original = SD3_NAMES
    released = _MEDIUM
    released_shift = 3.0
    released_codec: ClassVar[Mapping[str, float]] = {"scaling_factor": 1.5305, "shift_factor": 0.0609}
    released_side = 1024
    released_latent_channels = 16
    encoder_bytes = int(12.3 * 2**30)

    def describe(self, network_config: Mapping[str, Any]) -> str:
        version = "3.5" if network_config.get("qk_norm") else "3"
        return f"Stable Diffusion {version}, {network_config.get('num_layers')} blocks"

    def read_side(self, network_config: Mapping[str, Any], codec_config: Mapping[str, Any]) -> int:
        return read_whole_side(
            network_config.get("sample_size"), codec_config.get("block_out_channels"), "the model's transformer"
        )

    def largest_side(self, network_config: Mapping[str, Any], multiple: int) -> float:
        return int(network_config["pos_embed_max_size"] * network_config["patch_size"]) * multiple

    def check_parts(self, source: str, parts: Mapping[str, Any]) -> None:
        config, vae = parts["transformer"].config, parts["vae"].config
        if config.patch_size != PATCH or not config.pos_embed_max_size:
            raise UserError(
                f"{source} has patch_size {config.patch_size!r:.60} and pos_embed_max_size "
                f"{config.pos_embed_max_size!r:.60}; expected {PATCH} and a number of places"
            )
        check_channels(source, config.in_channels, config.out_channels, vae.latent_channels)
        clips = [parts[name].config for name in _CLIPS]
        if (pooled := sum(each.projection_dim for each in clips)) != config.pooled_projection_dim:
            raise UserError(
                f"{source} has a transformer for pooled text {config.pooled_projection_dim} wide and text encoders of "
                f"{pooled}; they are of different models"
            )
        widths = [sum(each.hidden_size for each in clips), *([parts[_T5].config.d_model] if _T5 in parts else [])]
        if max(widths) > config.joint_attention_dim or (_T5 in parts and widths[1] != config.joint_attention_dim):
            raise UserError(
                f"{source} has a transformer for text {config.joint_attention_dim} wide and text encoders of "
                f"{' and '.join(map(str, widths))}; they are of different models"
            )

    def make_conditioner(self, parts: Mapping[str, Any]) -> TripleConditioner:
        first, second = (TextEncoder(parts[name.replace("text_encoder", "tokenizer")], parts[name]) for name in _CLIPS)
        third = T5Encoder(parts["tokenizer_3"], parts[_T5], T5_TOKENS) if _T5 in parts else None
        return TripleConditioner(first, second, third, parts["transformer"].config.joint_attention_dim)

    def make_pipeline(self, model: LatentModel, network: BackboneNetwork, scheduler: Any) -> Any:
        text = model.conditioner
        assert isinstance(text, TripleConditioner)
        return StableDiffusion3Pipeline(
            transformer=network.backbone, scheduler=scheduler, vae=model.codec.autoencoder,
            text_encoder=text.first.network, tokenizer=text.first.tokenizer, text_encoder_2=text.second.network,
            tokenizer_2=text.second.tokenizer, text_encoder_3=text.third and text.third.network,
            tokenizer_3=text.third and text.third.tokenizer,
        )  # fmt: skip

    def spec_architecture(self, parameterisation: str) -> str:  # noqa: ARG002
        return "stable-diffusion-3"

    def kohya_header(self) -> dict[str, str]:
        return {"ss_base_model_version": "sd3"}

    def random_encoders(self) -> dict[str, Any]:
        """Makes no T5, whose 4.76 billion weights would say nothing more."""
        tokenizer = CLIPTokenizer.from_pretrained(assets.scenes_teacher() / "tokenizer", model_max_length=CLIP_TOKENS)
        sizes = zip(_CLIPS, _ENCODERS, strict=True)
        networks = {name: CLIPTextModelWithProjection(shape_clip(size)) for name, size in sizes}
        return {**networks, "tokenizer": tokenizer, "tokenizer_2": tokenizer}

    def shaped_condition(self, batch: int) -> Cond:
        return {
            "text": torch.randn(batch, CLIP_TOKENS + T5_TOKENS, 4096),
            "pooled": torch.randn(batch, sum(size["projection_dim"] for size in _ENCODERS)),
        }


FAMILIES = {"sd3": StableDiffusion3()}
