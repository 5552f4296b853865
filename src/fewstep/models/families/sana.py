"""SANA: a flow transformer with linear attention on few latents, each of 32 pixels, read by a language model."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from diffusers import AutoencoderDC, SanaPipeline, SanaSprintPipeline, SanaTransformer2DModel
from torch import Tensor
from transformers import Gemma2Config, Gemma2Model, GemmaTokenizerFast

from fewstep.diffusion.prediction import Cond
from fewstep.errors import UserError
from fewstep.models.card import is_number
from fewstep.models.codec import Codec
from fewstep.models.families.flow_family import FlowFamily, lay_out_loras
from fewstep.models.families.masked_text import TOKENS, MaskedConditioner
from fewstep.models.families.original_transformers import OriginalNames
from fewstep.models.families.transformer import TransformerNetwork
from fewstep.models.families.transformer_checks import check_channels, find_released_name, read_whole_side
from fewstep.models.family import LatentModel
from fewstep.models.network import BackboneNetwork

INSTRUCTION: str = "\n".join(
    inspect.signature(SanaPipeline.__call__).parameters["complex_human_instruction"].default  # what it was trained with
)
"""What stands before a prompt as the language model reads it, and not before the empty condition."""
_BASE: dict[str, Any] = {
    "in_channels": 32, "out_channels": 32, "num_attention_heads": 70, "attention_head_dim": 32, "num_layers": 20,
    "num_cross_attention_heads": 20, "cross_attention_head_dim": 112, "cross_attention_dim": 2240,
    "caption_channels": 2304, "mlp_ratio": 2.5, "sample_size": 32, "patch_size": 1,
}  # fmt: skip
"""1.60 billion weights; a smaller one has 0.59."""
_MOST_PLACES = 256
"""Bounds the side, in latents, of positions that are computed as a transformer is made."""
_MOST_BLOCKS = 200
_SPRINT = re.compile(r"(?<![a-z])sprint(?![a-z])")
_FIRST = tuple(f"blocks.0.mlp.{name}." for name in ("inverted_conv", "depth_conv", "point_conv"))
NAMES = OriginalNames(
    blocks={
        ("blocks", "transformer_blocks"): {
            "attn.qkv": ("attn1.to_q", "attn1.to_k", "attn1.to_v"), "attn.proj": ("attn1.to_out.0",),
            "attn.q_norm": ("attn1.norm_q",), "attn.k_norm": ("attn1.norm_k",),
            "cross_attn.q_linear": ("attn2.to_q",), "cross_attn.kv_linear": ("attn2.to_k", "attn2.to_v"),
            "cross_attn.proj": ("attn2.to_out.0",),
            "cross_attn.q_norm": ("attn2.norm_q",), "cross_attn.k_norm": ("attn2.norm_k",),
            "mlp.inverted_conv.conv": ("ff.conv_inverted",), "mlp.depth_conv.conv": ("ff.conv_depth",),
            "mlp.point_conv.conv": ("ff.conv_point",),
        }
    },
    outside={
        "x_embedder.proj": ("patch_embed.proj",), "t_block.1": ("time_embed.linear",),
        "t_embedder.mlp.0": ("time_embed.emb.timestep_embedder.linear_1",),
        "t_embedder.mlp.2": ("time_embed.emb.timestep_embedder.linear_2",),
        "y_embedder.y_proj.fc1": ("caption_projection.linear_1",),
        "y_embedder.y_proj.fc2": ("caption_projection.linear_2",),
        "attention_y_norm": ("caption_norm",), "final_layer.linear": ("proj_out",),
    },
    tensors={
        "final_layer.scale_shift_table": "scale_shift_table",
        **{f"blocks.{i}.scale_shift_table": f"transformer_blocks.{i}.scale_shift_table" for i in range(_MOST_BLOCKS)},
    },
    unread=("pos_embed", "y_embedder.y_embedding"),
    is_swapped=lambda _module, _blocks: False,
)  # fmt: skip


class DeepCodec(Codec):
    """An autoencoder that makes latents of 32 pixels and has no distribution of them."""

    @property
    def multiple(self) -> int:
        return int(2 ** (len(self.autoencoder.config.encoder_block_out_channels) - 1))

    def read_posterior(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        latent = self.autoencoder.encode(pixels).latent
        return latent, torch.zeros_like(latent)

    @classmethod
    def check_tiny_decoder(cls) -> None:
        raise UserError("no tiny decoder knows the latents of SANA; leave --tiny-decoder out")


class SanaNetwork(TransformerNetwork):
    """`cond` is as `MaskedConditioner` makes it."""

    block_lists = ("transformer_blocks",)

    @property
    def says_side(self) -> bool:
        """Returns False: by its settings the stock pipeline chooses among sizes of its own, and places are counted."""
        return False

    @property
    def time_embedding(self) -> Any:
        return self.transformer.time_embed.emb

    @property
    def embedded_times(self) -> tuple[float, float]:
        return 0.0, 1000.0 * float(self.transformer.config.timestep_scale)

    def ask(self, z_t: Tensor, told: Tensor, cond: Cond, omega: Tensor | None) -> Tensor:  # noqa: ARG002
        _, factor = self.embedded_times
        output: Tensor = self.transformer(
            hidden_states=z_t, timestep=factor * told, encoder_hidden_states=cond["text"].to(z_t.dtype),
            encoder_attention_mask=cond["mask"].to(z_t.dtype), return_dict=False,
        )[0]  # fmt: skip
        return output

    def image_tokens(self, output: Any, height: int, width: int) -> Tensor:
        picture: Tensor = output.transpose(1, 2).unflatten(2, (height, width))
        return picture


LORA = lay_out_loras(
    (
        "attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_out.0", "attn2.to_q", "attn2.to_k", "attn2.to_v",
        "attn2.to_out.0", "ff.conv_inverted", "ff.conv_point",
    ),
    NAMES,
    ("time_embed.emb.timestep_embedder.linear_1", "time_embed.emb.timestep_embedder.linear_2"),
    text_prefixes={"text_encoder": ("lora_te", "lora_te1")},
    embedding_parts={},
    bare_parts=("text_encoder",),
)  # fmt: skip


class Sana(FlowFamily):
    """SANA in both sizes and SANA 1.5, and what people have made of them."""

    name = "sana"
    title = "SANA"
    lora = LORA
    parts = ("transformer", "vae", "text_encoder", "tokenizer", "scheduler")
    pipeline_classes = (SanaPipeline.__name__, SanaSprintPipeline.__name__)
    embeds_guidance = False
    stock_settings: ClassVar[Mapping[str, bool]] = {"use_resolution_binning": False}
    transformer_class = SanaTransformer2DModel
    network_class = SanaNetwork
    autoencoder_class = AutoencoderDC
    codec_class = DeepCodec
    patch = 1
    encoders: ClassVar[Mapping[str, Any]] = {"text_encoder": (Gemma2Model, GemmaTokenizerFast)}
    large = ("text_encoder",)
    keys_begin = _FIRST
    original = NAMES
    released = _BASE
    released_shift = 3.0
    released_codec: ClassVar[Mapping[str, float]] = {"scaling_factor": 0.41407}
    released_side = 1024
    released_latent_channels = 32
    released_multiple = 32
    encoder_bytes = int(6.1 * 2**30)

    def describe(self, network_config: Mapping[str, Any]) -> str:
        return f"{self.title}, {network_config.get('num_layers')} blocks"

    def refuse(self, network_config: Mapping[str, Any], source: str) -> None:
        if network_config.get("guidance_embeds") or _SPRINT.search(find_released_name(source)):
            raise UserError(
                f"{source} is SANA-Sprint, which paints in 1 to 4 steps already and cannot be a teacher; give SANA"
            )
        side, scale = network_config.get("sample_size", 32), network_config.get("interpolation_scale")
        if not (type(side) is int and 0 < side <= _MOST_PLACES):
            raise UserError(f"{source} has sample_size {side!r:.60}; expected a number up to {_MOST_PLACES}")
        if scale is not None and not (is_number(scale) and scale > 0):
            raise UserError(f"{source} has interpolation_scale {scale!r:.60}; expected a number above 0, or none")

    def read_side(self, network_config: Mapping[str, Any], codec_config: Mapping[str, Any]) -> int:
        blocks = codec_config.get("encoder_block_out_channels")
        return read_whole_side(network_config.get("sample_size"), blocks, "the model's transformer or vae")

    def check_parts(self, source: str, parts: Mapping[str, Any]) -> None:
        config, vae = parts["transformer"].config, parts["vae"].config
        check_channels(source, config.in_channels, config.out_channels or config.in_channels, vae.latent_channels)
        if config.patch_size != 1:
            raise UserError(f"{source} has patch_size {config.patch_size!r:.60}; expected 1")
        if not is_number(scale := config.timestep_scale) or scale <= 0:
            raise UserError(f"{source} has timestep_scale {scale!r:.60}; expected a number above 0")
        if config.cross_attention_dim != (width := config.num_attention_heads * config.attention_head_dim):
            raise UserError(f"{source} has cross_attention_dim {config.cross_attention_dim!r:.60}; expected {width}")
        if len(vae.encoder_block_out_channels) != len(vae.decoder_block_out_channels):
            raise UserError(f"{source} has an autoencoder that decodes to another size than it encodes")
        if config.caption_channels != (width := parts["text_encoder"].config.hidden_size):
            raise UserError(
                f"{source} has a transformer for text {config.caption_channels} wide and a text encoder of {width}; "
                "they are of different models"
            )

    def make_conditioner(self, parts: Mapping[str, Any]) -> MaskedConditioner:
        parts["tokenizer"].padding_side = "right"  # as the pipeline has it, whatever was saved
        return MaskedConditioner(parts["tokenizer"], parts["text_encoder"], INSTRUCTION)

    def make_pipeline(self, model: LatentModel, network: BackboneNetwork, scheduler: Any) -> Any:
        text = model.conditioner
        assert isinstance(text, MaskedConditioner)
        return SanaPipeline(
            transformer=network.backbone, scheduler=scheduler, vae=model.codec.autoencoder, text_encoder=text.network,
            tokenizer=text.tokenizer,
        )  # fmt: skip

    def spec_architecture(self, parameterisation: str) -> str:  # noqa: ARG002
        return "sana"

    def kohya_header(self) -> dict[str, str]:
        """Returns nothing: kohya's tools do not know it."""
        return {}

    def random_autoencoder(self) -> Any:
        kinds = ("ResBlock",) * 3 + ("EfficientViTBlock",) * 3
        scales = ((),) * 3 + ((5,),) * 3
        return AutoencoderDC(
            encoder_block_types=kinds, decoder_block_types=kinds, encoder_qkv_multiscales=scales,
            decoder_qkv_multiscales=scales, encoder_layers_per_block=(2, 2, 2, 3, 3, 3),
            decoder_layers_per_block=(3,) * 6, downsample_block_type="conv", upsample_block_type="interpolate",
            **self.released_codec,
        )  # fmt: skip

    def random_encoders(self) -> dict[str, Any]:
        """Makes a reader of two layers: the released one's 26 would say nothing more."""
        letters = ("<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "▁", "\n", *map(chr, range(33, 127)))
        size = Gemma2Config(
            vocab_size=256_000, hidden_size=2304, intermediate_size=9216, num_hidden_layers=2, num_attention_heads=8,
            num_key_value_heads=4, head_dim=256,
        )  # fmt: skip
        tokenizer = GemmaTokenizerFast(vocab={letter: i for i, letter in enumerate(letters)}, merges=[])
        return {"text_encoder": Gemma2Model(size), "tokenizer": tokenizer}

    def shaped_condition(self, batch: int) -> Cond:
        width = self.released["caption_channels"]
        return {"text": torch.randn(batch, TOKENS, width), "mask": torch.ones(batch, TOKENS)}


FAMILIES = {"sana": Sana()}
