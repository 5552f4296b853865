"""FLUX.2 klein base: a flow transformer on latents that are normalised channel by channel, read by a language model."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers import AutoencoderKLFlux2, Flux2KleinPipeline, Flux2Transformer2DModel
from torch import Tensor
from torch.nn import functional
from transformers import Qwen2Tokenizer, Qwen3Config, Qwen3ForCausalLM

from fewstep.diffusion.flow import Flow
from fewstep.diffusion.prediction import Cond
from fewstep.errors import UserError
from fewstep.models.card import is_number, read_card
from fewstep.models.codec import Codec
from fewstep.models.families.flow_family import FlowFamily, lay_out_loras
from fewstep.models.families.language_text import QWEN_ANSWER, LanguageConditioner, LanguageEncoder
from fewstep.models.families.original_transformers import OriginalNames
from fewstep.models.families.transformer import TransformerNetwork
from fewstep.models.families.transformer_checks import (
    check_axes,
    check_channels,
    find_released_name,
    read_side_of_codec,
)
from fewstep.models.family import LatentModel
from fewstep.models.flow_scheduler import read_flow
from fewstep.models.network import BackboneNetwork
from fewstep.models.options import Overrides
from fewstep.precision import Storage

TOKENS = 512
LAYERS = (9, 18, 27)
"""The hidden states that are the text, side by side."""
TEACHER_STEPS = 50
"""Steps of the base, for which its shift is read: its scheduler shifts less steps further."""
_BASE: dict[str, Any] = {
    "in_channels": 128, "num_layers": 5, "num_single_layers": 20, "attention_head_dim": 128, "num_attention_heads": 24,
    "joint_attention_dim": 7680, "guidance_embeds": False,
}  # fmt: skip
"""3.88 billion weights."""
_DISTILLED = re.compile(r"klein-(?!base)\d+b")
"""The released names of models that paint in four steps already."""
NAMES = OriginalNames(
    blocks={
        ("double_blocks", "transformer_blocks"): {
            "img_attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"), "img_attn.proj": ("attn.to_out.0",),
            "img_attn.norm.query_norm": ("attn.norm_q",), "img_attn.norm.key_norm": ("attn.norm_k",),
            "txt_attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
            "txt_attn.proj": ("attn.to_add_out",), "txt_attn.norm.query_norm": ("attn.norm_added_q",),
            "txt_attn.norm.key_norm": ("attn.norm_added_k",),
            "img_mlp.0": ("ff.linear_in",), "img_mlp.2": ("ff.linear_out",),
            "txt_mlp.0": ("ff_context.linear_in",), "txt_mlp.2": ("ff_context.linear_out",),
        },
        ("single_blocks", "single_transformer_blocks"): {
            "linear1": ("attn.to_qkv_mlp_proj",), "linear2": ("attn.to_out",),
            "norm.query_norm": ("attn.norm_q",), "norm.key_norm": ("attn.norm_k",),
        },
    },
    outside={
        "img_in": ("x_embedder",), "txt_in": ("context_embedder",),
        "time_in.in_layer": ("time_guidance_embed.timestep_embedder.linear_1",),
        "time_in.out_layer": ("time_guidance_embed.timestep_embedder.linear_2",),
        "double_stream_modulation_img.lin": ("double_stream_modulation_img.linear",),
        "double_stream_modulation_txt.lin": ("double_stream_modulation_txt.linear",),
        "single_stream_modulation.lin": ("single_stream_modulation.linear",),
        "final_layer.linear": ("proj_out",), "final_layer.adaLN_modulation.1": ("norm_out.linear",),
    },
    kinds=dict.fromkeys(("attn.norm_q", "attn.norm_k", "attn.norm_added_q", "attn.norm_added_k"), "scale"),
)  # fmt: skip


class KleinCodec(Codec):
    """Latents are those of an autoencoder two by two in one, each of the 128 channels with its own mean and deviation,
    which the autoencoder keeps as a batch norm's."""

    @property
    def multiple(self) -> int:
        return 2 * super().multiple

    @property
    def channels(self) -> int:
        return 4 * super().channels

    @property
    def scale(self) -> float:
        """Returns 1: no number scales all of them."""
        return 1.0

    def check_scale(self) -> None:
        eps, norm = self.autoencoder.config.batch_norm_eps, self.autoencoder.bn
        spread = norm.running_var
        if not (is_number(eps) and eps > 0) or not (spread >= 0).all() or not spread.isfinite().all():
            raise UserError(
                f"the autoencoder has batch_norm_eps {eps!r:.60}, or deviations of its latents that are no numbers "
                "from 0; its file is broken"
            )

    @property
    def _statistics(self) -> tuple[Tensor, Tensor]:
        norm = self.autoencoder.bn
        std: Tensor = (norm.running_var.float() + self.autoencoder.config.batch_norm_eps).sqrt()
        return norm.running_mean.float().view(1, -1, 1, 1), std.view(1, -1, 1, 1)

    def scale_latents(self, mean: Tensor, std: Tensor) -> tuple[Tensor, Tensor]:
        centre, spread = (each.to(mean.device) for each in self._statistics)
        mean, std = functional.pixel_unshuffle(mean, 2), functional.pixel_unshuffle(std, 2)
        return (mean - centre) / spread, std / spread

    def unscale_latents(self, z_0: Tensor, decoder: Any) -> Tensor:  # noqa: ARG002  # there is no other than its own
        centre, spread = (each.to(z_0.device) for each in self._statistics)
        return functional.pixel_shuffle(z_0 * spread + centre, 2)

    @classmethod
    def check_tiny_decoder(cls) -> None:
        raise UserError("no tiny decoder knows the latents of FLUX.2; leave --tiny-decoder out")


class KleinNetwork(TransformerNetwork):
    """`cond` is as `KleinConditioner` makes it."""

    block_lists = ("transformer_blocks", "single_transformer_blocks")

    @property
    def time_embedding(self) -> Any:
        return self.transformer.time_guidance_embed

    def ask(self, z_t: Tensor, told: Tensor, cond: Cond, omega: Tensor | None) -> Tensor:  # noqa: ARG002
        height, width = z_t.shape[-2:]
        one, length = torch.arange(1), cond["text"].shape[1]
        places = torch.cartesian_prod(one, torch.arange(height), torch.arange(width), one)
        order = torch.cartesian_prod(one, one, one, torch.arange(length))
        output: Tensor = self.transformer(
            hidden_states=z_t.flatten(2).transpose(1, 2), timestep=told, guidance=None,
            encoder_hidden_states=cond["text"].to(z_t.dtype), txt_ids=order.to(z_t.device),
            img_ids=places.to(z_t.device), return_dict=False,
        )[0]  # fmt: skip
        v: Tensor = output.transpose(1, 2).unflatten(2, (height, width))
        return v

    def image_tokens(self, output: Any, height: int, width: int) -> Tensor:
        tokens = output[1] if isinstance(output, tuple) else output[:, -height * width :]
        picture: Tensor = tokens.transpose(1, 2).unflatten(2, (height, width))
        return picture


@dataclass(frozen=True)
class KleinConditioner(LanguageConditioner):
    """`{"text": [b, 512, 3·width]}`; padding is read as text is."""

    def pick(self, output: Any, mask: Tensor) -> Cond:  # noqa: ARG002
        return {"text": torch.cat([output.hidden_states[layer] for layer in LAYERS], dim=-1)}


LORA = lay_out_loras(
    (
        "attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0", "attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj",
        "attn.to_add_out", "ff.linear_in", "ff.linear_out", "ff_context.linear_in", "ff_context.linear_out",
        "attn.to_qkv_mlp_proj", "attn.to_out",
    ),
    NAMES,
    ("time_guidance_embed.timestep_embedder.linear_1", "time_guidance_embed.timestep_embedder.linear_2"),
    text_prefixes={"text_encoder": ("lora_te", "lora_te1")},
    embedding_parts={},
    bare_parts=("text_encoder",),
    kohya_modules=NAMES.list_modules,
)  # fmt: skip


class Klein(FlowFamily):
    """FLUX.2 klein base and what people have made of it."""

    name = "klein"
    title = "FLUX.2 klein base"
    lora = LORA
    parts = ("transformer", "vae", "text_encoder", "tokenizer", "scheduler")
    pipeline_classes = (Flux2KleinPipeline.__name__,)
    embeds_guidance = False
    transformer_class = Flux2Transformer2DModel
    network_class = KleinNetwork
    autoencoder_class = AutoencoderKLFlux2
    codec_class = KleinCodec
    patch = 1
    encoders: ClassVar[Mapping[str, Any]] = {"text_encoder": (Qwen3ForCausalLM, Qwen2Tokenizer)}
    large = ("text_encoder",)
    keys_begin = ("double_stream_modulation_img.",)
    original = NAMES
    released = _BASE
    released_shift = 7.55
    released_codec: ClassVar[Mapping[str, float]] = {}
    released_side = 1024
    released_latent_channels = 128
    released_multiple = 16
    encoder_bytes = int(7.8 * 2**30)

    def describe(self, network_config: Mapping[str, Any]) -> str:
        blocks = f"{network_config.get('num_layers')} + {network_config.get('num_single_layers')} blocks"
        return f"{'FLUX.2 dev' if network_config.get('guidance_embeds') else self.title}, {blocks}"

    def load_folder(
        self, folder: Path, source: str, index: Mapping[str, Any], storage: Storage, overrides: Overrides
    ) -> LatentModel:
        if not read_card(folder).method:
            self.refuse_index(index, source)
        return super().load_folder(folder, source, index, storage, overrides)

    def refuse_index(self, index: Mapping[str, Any], source: str) -> None:
        if index.get("is_distilled"):
            raise UserError(
                f"{source} says that it is distilled (is_distilled in model_index.json): it paints in 4 steps already "
                "and cannot be a teacher; give the base"
            )

    def refuse(self, network_config: Mapping[str, Any], source: str) -> None:
        if network_config.get("guidance_embeds"):
            raise UserError(f"{source} is FLUX.2 dev, which is told its guidance (guidance_embeds); give a klein base")
        if _DISTILLED.search(find_released_name(source)):
            raise UserError(f"{source} paints in 4 steps already, by its name, and cannot be a teacher; give the base")

    def read_schedule(self, config: Mapping[str, Any], source: str, tokens: int) -> Flow:
        flow = read_flow(config, source, tokens)
        if not config.get("use_dynamic_shifting"):
            return flow
        return Flow(flow.num_steps, math.exp(_read_mu(tokens)))

    def read_side(self, network_config: Mapping[str, Any], codec_config: Mapping[str, Any]) -> int:  # noqa: ARG002
        return read_side_of_codec(codec_config)

    def check_parts(self, source: str, parts: Mapping[str, Any]) -> None:
        config, vae, text = parts["transformer"].config, parts["vae"].config, parts["text_encoder"].config
        check_channels(source, config.in_channels, config.out_channels or config.in_channels, 4 * vae.latent_channels)
        check_axes(source, "axes_dims_rope", config.axes_dims_rope, config.attention_head_dim, count=4)
        if text.num_hidden_layers < LAYERS[-1]:
            raise UserError(
                f"{source} has a text encoder of {text.num_hidden_layers} layers; its prompts are what {LAYERS[-1]} "
                "layers make of them"
            )
        if config.joint_attention_dim != (width := len(LAYERS) * text.hidden_size):
            raise UserError(
                f"{source} has a transformer for text {config.joint_attention_dim} wide and a text encoder of "
                f"{width // len(LAYERS)}, {width} in {len(LAYERS)} layers; they are of different models"
            )

    def make_conditioner(self, parts: Mapping[str, Any]) -> KleinConditioner:
        return KleinConditioner(LanguageEncoder(parts["tokenizer"], parts["text_encoder"], QWEN_ANSWER, TOKENS))

    def make_pipeline(self, model: LatentModel, network: BackboneNetwork, scheduler: Any) -> Any:
        text = model.conditioner
        assert isinstance(text, KleinConditioner)
        return Flux2KleinPipeline(
            transformer=network.backbone, scheduler=scheduler, vae=model.codec.autoencoder,
            text_encoder=text.reader.network, tokenizer=text.reader.tokenizer,
        )  # fmt: skip

    def mark_few_step(self, pipeline: Any) -> Any:
        pipeline.register_to_config(is_distilled=True)  # by which it is not guided, whatever it is called with
        return pipeline

    def spec_architecture(self, parameterisation: str) -> str:  # noqa: ARG002
        return "Flux.2-klein-4b"

    def kohya_header(self) -> dict[str, str]:
        return {"ss_base_model_version": "flux_2_klein_4b"}

    def random_autoencoder(self) -> Any:
        return AutoencoderKLFlux2()

    def random_encoders(self) -> dict[str, Any]:
        """Makes a reader of as many layers as are read."""
        from tokenizers.pre_tokenizers import ByteLevel

        words = {letter: i for i, letter in enumerate((*ByteLevel.alphabet(), "<|endoftext|>"))}
        size = Qwen3Config(
            vocab_size=151_936, hidden_size=2560, intermediate_size=9728, num_hidden_layers=LAYERS[-1],
            num_attention_heads=32, num_key_value_heads=8, head_dim=128, tie_word_embeddings=True,
        )  # fmt: skip
        return {"text_encoder": Qwen3ForCausalLM(size), "tokenizer": Qwen2Tokenizer(vocab=words, merges=[])}

    def shaped_condition(self, batch: int) -> Cond:
        return {"text": torch.randn(batch, TOKENS, 7680)}


def _read_mu(tokens: int) -> float:
    """Returns FLUX.2's μ for pictures of so many tokens in `TEACHER_STEPS` steps: two lines over the tokens, those of
    10 and of 200 steps, and a line between them over the steps."""
    few, many = 8.73809524e-05 * tokens + 1.89833333, 0.00016927 * tokens + 0.45666666
    if tokens > 4300:
        return many
    slope = (many - few) / 190
    return many + slope * (TEACHER_STEPS - 200)


FAMILIES = {"klein": Klein()}
