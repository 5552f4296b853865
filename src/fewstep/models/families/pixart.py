"""PixArt-Σ: a transformer that predicts noise on a table of betas, read by T5 with a mask."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers import AutoencoderKL, PixArtSigmaPipeline, PixArtTransformer2DModel
from torch import Tensor
from transformers import T5Config, T5EncoderModel, T5TokenizerFast

from fewstep.diffusion.prediction import Cond
from fewstep.errors import UserError
from fewstep.models.card import is_number
from fewstep.models.families.flow_family import TransformerFamily, lay_out_loras
from fewstep.models.families.masked_text import TOKENS, MaskedConditioner
from fewstep.models.families.original_transformers import OriginalNames
from fewstep.models.families.transformer import TransformerNetwork
from fewstep.models.families.transformer_checks import PATCH, read_whole_side
from fewstep.models.family import LatentModel
from fewstep.models.network import BackboneNetwork
from fewstep.models.options import Overrides
from fewstep.models.scheduler import read_schedule, settle_schedule

_BASE: dict[str, Any] = {
    "in_channels": 4, "out_channels": 8, "num_layers": 28, "num_attention_heads": 16, "attention_head_dim": 72,
    "cross_attention_dim": 1152, "sample_size": 128, "caption_channels": 4096, "interpolation_scale": 2,
    "use_additional_conditions": False,
}  # fmt: skip
"""0.61 billion weights."""
_FORMER = "Transformer2DModel"
"""The class that released transformers name, of which diffusers makes its own by its norm."""
_MOST_PLACES = 256
"""Bounds the side, in latents, of positions that are computed as a transformer is made."""
_MOST_BLOCKS = 200
NAMES = OriginalNames(
    blocks={
        ("blocks", "transformer_blocks"): {
            "attn.qkv": ("attn1.to_q", "attn1.to_k", "attn1.to_v"), "attn.proj": ("attn1.to_out.0",),
            "cross_attn.q_linear": ("attn2.to_q",), "cross_attn.kv_linear": ("attn2.to_k", "attn2.to_v"),
            "cross_attn.proj": ("attn2.to_out.0",), "mlp.fc1": ("ff.net.0.proj",), "mlp.fc2": ("ff.net.2",),
        }
    },
    outside={
        "x_embedder.proj": ("pos_embed.proj",), "t_block.1": ("adaln_single.linear",),
        "t_embedder.mlp.0": ("adaln_single.emb.timestep_embedder.linear_1",),
        "t_embedder.mlp.2": ("adaln_single.emb.timestep_embedder.linear_2",),
        "y_embedder.y_proj.fc1": ("caption_projection.linear_1",),
        "y_embedder.y_proj.fc2": ("caption_projection.linear_2",), "final_layer.linear": ("proj_out",),
    },
    tensors={
        "final_layer.scale_shift_table": "scale_shift_table",
        **{f"blocks.{i}.scale_shift_table": f"transformer_blocks.{i}.scale_shift_table" for i in range(_MOST_BLOCKS)},
    },
    unread=("pos_embed", "y_embedder.y_embedding"),
    is_swapped=lambda _module, _blocks: False,
)  # fmt: skip


class PixArtNetwork(TransformerNetwork):
    """`cond` is as `MaskedConditioner` makes it."""

    block_lists = ("transformer_blocks",)

    @property
    def says_side(self) -> bool:
        """Returns False: by its settings the stock pipeline chooses among sizes of its own, and places are counted."""
        return False

    @property
    def time_embedding(self) -> Any:
        return self.transformer.adaln_single.emb

    def tell_time(self, t: Tensor) -> Tensor:
        return t.float()

    def ask(self, z_t: Tensor, told: Tensor, cond: Cond, omega: Tensor | None) -> Tensor:  # noqa: ARG002
        output: Tensor = self.transformer(
            hidden_states=z_t, timestep=told, encoder_hidden_states=cond["text"].to(z_t.dtype),
            encoder_attention_mask=cond["mask"].to(z_t.dtype),
            added_cond_kwargs={"resolution": None, "aspect_ratio": None}, return_dict=False,
        )[0]  # fmt: skip
        return output[:, : z_t.shape[1]]  # what follows is a variance, which no sampler here asks for

    def image_tokens(self, output: Any, height: int, width: int) -> Tensor:
        picture: Tensor = output.transpose(1, 2).unflatten(2, (height // PATCH, width // PATCH))
        return picture


LORA = lay_out_loras(
    (
        "attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_out.0", "attn2.to_q", "attn2.to_k", "attn2.to_v",
        "attn2.to_out.0", "ff.net.0.proj", "ff.net.2",
    ),
    NAMES,
    ("adaln_single.emb.timestep_embedder.linear_1", "adaln_single.emb.timestep_embedder.linear_2"),
    text_prefixes={"text_encoder": ("lora_te", "lora_te1")},
    embedding_parts={},
    bare_parts=("text_encoder",),
)  # fmt: skip


class PixArtSigma(TransformerFamily):
    """PixArt-Σ in all its sizes, and what people have made of them."""

    name = "pixart"
    title = "PixArt-Σ"
    lora = LORA
    parts = ("transformer", "vae", "text_encoder", "tokenizer", "scheduler")
    pipeline_classes = (PixArtSigmaPipeline.__name__,)
    embeds_guidance = False
    stock_loras = False
    stock_settings: ClassVar[Mapping[str, bool]] = {"use_resolution_binning": False}
    transformer_class = PixArtTransformer2DModel
    encoders: ClassVar[Mapping[str, Any]] = {"text_encoder": (T5EncoderModel, T5TokenizerFast)}
    large = ("text_encoder",)
    keys_begin = ("blocks.0.cross_attn.kv_linear.",)
    original = NAMES
    released = _BASE
    released_codec: ClassVar[Mapping[str, float]] = {"scaling_factor": 0.13025}
    released_side = 1024
    released_latent_channels = 4
    encoder_bytes = int(9.2 * 2**30)

    def recognises(self, network_config: Mapping[str, Any]) -> bool:
        former = network_config.get("_class_name") == _FORMER and network_config.get("norm_type") == "ada_norm_single"
        return former or super().recognises(network_config)

    def recognises_keys(self, keys: Sequence[str], path: Path) -> bool:
        """Looks for more than `keys_begin`, as SANA's attention is called alike: for the feed-forward layers, or what
        diffusers calls the times' layers."""
        return super().recognises_keys(keys, path) and any(
            ".mlp.fc1." in f".{key}" or "adaln_single." in key for key in keys
        )

    def describe(self, network_config: Mapping[str, Any]) -> str:
        return f"{self.title}, {network_config.get('num_layers')} blocks"

    def refuse(self, network_config: Mapping[str, Any], source: str) -> None:
        side, scale = network_config.get("sample_size", 128), network_config.get("interpolation_scale")
        if not (type(side) is int and 0 < side <= _MOST_PLACES):
            raise UserError(f"{source} has sample_size {side!r:.60}; expected a number up to {_MOST_PLACES}")
        told = network_config.get("use_additional_conditions")
        if told or (told is None and side == _BASE["sample_size"]):
            raise UserError(
                f"{source} is told the sizes of its pictures (use_additional_conditions), as PixArt-α is; give a "
                f"{self.title}"
            )
        if scale is not None and not (is_number(scale) and scale > 0):
            raise UserError(f"{source} has interpolation_scale {scale!r:.60}; expected a number above 0, or none")

    @property
    def released_scheduler(self) -> Mapping[str, Any]:
        return {"beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "linear", "prediction_type": "epsilon"}

    def settle(self, config: dict[str, Any], source: str, overrides: Overrides) -> dict[str, Any]:
        config = settle_schedule(config, source, overrides)
        read_schedule(config, source)
        return config

    def make_network(self, transformer: Any, config: Mapping[str, Any], source: str, tokens: int) -> PixArtNetwork:  # noqa: ARG002
        return PixArtNetwork(transformer, *read_schedule(config, source))

    def read_side(self, network_config: Mapping[str, Any], codec_config: Mapping[str, Any]) -> int:
        side, blocks = network_config.get("sample_size"), codec_config.get("block_out_channels")
        return read_whole_side(side, blocks, "the model's transformer or vae")

    def check_parts(self, source: str, parts: Mapping[str, Any]) -> None:
        config, vae = parts["transformer"].config, parts["vae"].config
        if config.patch_size != PATCH:
            raise UserError(f"{source} has patch_size {config.patch_size!r:.60}; expected {PATCH}")
        given, returned = config.in_channels, config.out_channels or config.in_channels
        if given != vae.latent_channels or returned not in (given, 2 * given):
            raise UserError(
                f"{source} has a transformer of {given} input and {returned} output channels and latents of "
                f"{vae.latent_channels}; expected the noise of these, and a variance or none"
            )
        if config.cross_attention_dim != (width := config.num_attention_heads * config.attention_head_dim):
            raise UserError(f"{source} has cross_attention_dim {config.cross_attention_dim!r:.60}; expected {width}")
        if config.caption_channels != (width := parts["text_encoder"].config.d_model):
            raise UserError(
                f"{source} has a transformer for text {config.caption_channels} wide and a text encoder of {width}; "
                "they are of different models"
            )

    def make_conditioner(self, parts: Mapping[str, Any]) -> MaskedConditioner:
        return MaskedConditioner(parts["tokenizer"], parts["text_encoder"])

    def make_pipeline(self, model: LatentModel, network: BackboneNetwork, scheduler: Any) -> Any:
        text = model.conditioner
        assert isinstance(text, MaskedConditioner)
        return PixArtSigmaPipeline(
            transformer=network.backbone, scheduler=scheduler, vae=model.codec.autoencoder, text_encoder=text.network,
            tokenizer=text.tokenizer,
        )  # fmt: skip

    def spec_architecture(self, parameterisation: str) -> str:  # noqa: ARG002
        return "pixart-sigma-xl-2"

    def spec_prediction(self, parameterisation: str) -> str:
        return {"v_prediction": "v"}.get(parameterisation, parameterisation)

    def kohya_header(self) -> dict[str, str]:
        """Returns nothing: kohya's tools do not know it."""
        return {}

    def random_autoencoder(self) -> Any:
        return AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(128, 256, 512, 512), layers_per_block=2, latent_channels=4, sample_size=1024,
            **self.released_codec,
        )  # fmt: skip

    def random_encoders(self) -> dict[str, Any]:
        """Makes a reader of two layers: the released one's 24 would say nothing more."""
        pieces = ("<pad>", "</s>", "<unk>", "▁", *map(chr, range(33, 127)))
        tokenizer = T5TokenizerFast(vocab=[(piece, -float(i)) for i, piece in enumerate(pieces)], extra_ids=0)
        size = T5Config(
            vocab_size=32_128, d_model=4096, d_kv=64, d_ff=10_240, num_layers=2, num_heads=64,
            feed_forward_proj="gated-gelu",
        )  # fmt: skip
        return {"text_encoder": T5EncoderModel(size), "tokenizer": tokenizer}

    def shaped_condition(self, batch: int) -> Cond:
        width = self.released["caption_channels"]
        return {"text": torch.randn(batch, TOKENS, width), "mask": torch.ones(batch, TOKENS)}


FAMILIES = {"pixart": PixArtSigma()}
