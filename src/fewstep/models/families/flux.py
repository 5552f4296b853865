"""FLUX.1 dev: a flow transformer on packed latents that is told its guidance, CLIP for a pooled text, and T5."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from diffusers import FluxPipeline, FluxTransformer2DModel
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer, T5EncoderModel, T5TokenizerFast

from fewstep import assets
from fewstep.diffusion.prediction import Cond
from fewstep.errors import UserError
from fewstep.models.conditioner import TextEncoder
from fewstep.models.families.clip import CLIP_L, CLIP_TOKENS, shape_clip
from fewstep.models.families.flow_family import FlowFamily, lay_out_loras
from fewstep.models.families.original_transformers import FLUX_NAMES, XLABS_NAMES
from fewstep.models.families.packing import pack, unpack
from fewstep.models.families.t5 import T5Encoder
from fewstep.models.families.transformer import TransformerNetwork
from fewstep.models.families.transformer_checks import check_axes, check_channels, read_side_of_codec
from fewstep.models.family import LatentModel
from fewstep.models.network import BackboneNetwork

T5_TOKENS = 512
"""How many of T5's tokens stock pipelines read."""
_DEV: dict[str, Any] = {
    "patch_size": 1, "in_channels": 64, "num_layers": 19, "num_single_layers": 38, "attention_head_dim": 128,
    "num_attention_heads": 24, "joint_attention_dim": 4096, "pooled_projection_dim": 768, "guidance_embeds": True,
    "axes_dims_rope": (16, 56, 56),
}  # fmt: skip
"""11.9 billion weights."""


class FluxNetwork(TransformerNetwork):
    """`cond` is as `FluxConditioner` makes it; ω is an input of the teacher too, and None is no guidance, ω = 0."""

    block_lists = ("transformer_blocks", "single_transformer_blocks")

    @property
    def takes_omega(self) -> bool:
        return True

    @property
    def time_embedding(self) -> Any:
        return self.transformer.time_text_embed

    def ask(self, z_t: Tensor, told: Tensor, cond: Cond, omega: Tensor | None) -> Tensor:
        height, width = z_t.shape[-2:]
        guidance = torch.ones(len(z_t), device=z_t.device) if omega is None else omega.float() + 1
        places = torch.cartesian_prod(torch.arange(1), torch.arange(height // 2), torch.arange(width // 2))
        output: Tensor = self.transformer(
            hidden_states=pack(z_t), timestep=told, guidance=guidance, pooled_projections=cond["pooled"].to(z_t.dtype),
            encoder_hidden_states=cond["text"].to(z_t.dtype), txt_ids=z_t.new_zeros(cond["text"].shape[1], 3),
            img_ids=places.to(z_t), return_dict=False,
        )[0]  # fmt: skip
        return unpack(output, height, width)

    def image_tokens(self, output: Any, height: int, width: int) -> Tensor:
        _text, tokens = output
        picture: Tensor = tokens.transpose(1, 2).unflatten(2, (height // 2, width // 2))
        return picture


@dataclass(frozen=True)
class FluxConditioner:
    """`{"text": [b, 512, width], "pooled": [b, width of CLIP]}`."""

    clip: TextEncoder
    t5: T5Encoder

    @property
    def encoders(self) -> dict[str, nn.Module]:
        return {"text_encoder": self.clip.network, "text_encoder_2": self.t5.network}

    @property
    def readers(self) -> tuple[Any, ...]:
        return (self.clip, self.t5)

    def with_encoders(self, encoders: Mapping[str, nn.Module]) -> FluxConditioner:
        clip = dataclasses.replace(self.clip, network=encoders["text_encoder"])
        return FluxConditioner(clip, dataclasses.replace(self.t5, network=encoders["text_encoder_2"]))

    @property
    def limit(self) -> int:
        return self.t5.limit

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> Cond:
        device = next(self.clip.network.parameters()).device
        with torch.autocast(device.type, enabled=False):
            pooled = self.clip.run(prompts, hidden_states=False).pooler_output
            return {"text": self.t5.run(prompts).to(pooled.dtype), "pooled": pooled}

    def tell_sizes(self, sizes: Sequence[Sequence[int]]) -> Cond:  # noqa: ARG002  # this network is told none
        return {}

    def null(self) -> Cond:
        return self.encode([""])

    def add_word(self, word: str, vectors: Mapping[str, Tensor]) -> None:
        self.clip.add_word(word, vectors["text_encoder"])

    def count_tokens(self, prompt: str) -> int:
        return min(self.t5.counts(prompt) - self.t5.counts(""), self.limit)

    def truncates(self, prompt: str) -> bool:
        return self.t5.truncates(prompt)


_LAYOUT = lay_out_loras(
    (
        "attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0", "attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj",
        "attn.to_add_out", "ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj", "ff_context.net.2", "proj_mlp",
        "proj_out",
    ),
    FLUX_NAMES,
    ("time_text_embed.timestep_embedder.linear_1", "time_text_embed.timestep_embedder.linear_2"),
    text_prefixes={"text_encoder": ("lora_te", "lora_te1"), "text_encoder_2": ("lora_te2",)},
    embedding_parts={"clip_l": "text_encoder"},
    bare_parts=("text_encoder_2",),
    kohya_modules=FLUX_NAMES.list_modules,
)  # fmt: skip
LORA = dataclasses.replace(
    _LAYOUT, original_modules=lambda held: {**FLUX_NAMES.list_modules(held), **XLABS_NAMES.list_modules(held)}
)


class Flux(FlowFamily):
    """FLUX.1 dev and what people have made of it."""

    name = "flux"
    title = "FLUX.1 dev"
    lora = LORA
    parts = ("transformer", "vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "scheduler")
    pipeline_classes = (FluxPipeline.__name__,)
    guided_inside = True
    transformer_class = FluxTransformer2DModel
    network_class = FluxNetwork
    encoders: ClassVar[Mapping[str, Any]] = {
        "text_encoder": (CLIPTextModel, CLIPTokenizer),
        "text_encoder_2": (T5EncoderModel, T5TokenizerFast),
    }
    large = ("text_encoder_2",)
    keys_begin = ("vector_in.",)
    original = FLUX_NAMES
    released = _DEV
    released_shift = 3.16
    released_codec: ClassVar[Mapping[str, float]] = {"scaling_factor": 0.3611, "shift_factor": 0.1159}
    released_side = 1024
    released_latent_channels = 16
    encoder_bytes = int(9.7 * 2**30)

    def describe(self, network_config: Mapping[str, Any]) -> str:
        blocks = f"{network_config.get('num_layers')} + {network_config.get('num_single_layers')} blocks"
        return f"{self.title if network_config.get('guidance_embeds') else 'FLUX.1 schnell'}, {blocks}"

    def refuse(self, network_config: Mapping[str, Any], source: str) -> None:
        if not network_config.get("guidance_embeds"):
            raise UserError(
                f"{source} is FLUX.1 schnell, or another FLUX without an input for guidance (guidance_embeds): schnell "
                "paints in 4 steps already and cannot be a teacher; give FLUX.1 dev, or a fine-tune of it"
            )

    def read_side(self, network_config: Mapping[str, Any], codec_config: Mapping[str, Any]) -> int:  # noqa: ARG002
        return read_side_of_codec(codec_config)

    def check_parts(self, source: str, parts: Mapping[str, Any]) -> None:
        config, vae = parts["transformer"].config, parts["vae"].config
        packed = config.out_channels or config.in_channels
        check_channels(source, config.in_channels, packed, 4 * vae.latent_channels)
        check_axes(source, "axes_dims_rope", config.axes_dims_rope, config.attention_head_dim)
        for name, width, wanted in (
            ("pooled text", parts["text_encoder"].config.hidden_size, config.pooled_projection_dim),
            ("text", parts["text_encoder_2"].config.d_model, config.joint_attention_dim),
        ):
            if width != wanted:
                raise UserError(
                    f"{source} has a transformer for {name} {wanted} wide and a text encoder of {width}; they are of "
                    "different models"
                )

    def make_conditioner(self, parts: Mapping[str, Any]) -> FluxConditioner:
        return FluxConditioner(
            TextEncoder(parts["tokenizer"], parts["text_encoder"]),
            T5Encoder(parts["tokenizer_2"], parts["text_encoder_2"], T5_TOKENS),
        )

    def make_pipeline(self, model: LatentModel, network: BackboneNetwork, scheduler: Any) -> Any:
        text = model.conditioner
        assert isinstance(text, FluxConditioner)
        return FluxPipeline(
            transformer=network.backbone, scheduler=scheduler, vae=model.codec.autoencoder,
            text_encoder=text.clip.network, tokenizer=text.clip.tokenizer, text_encoder_2=text.t5.network,
            tokenizer_2=text.t5.tokenizer,
        )  # fmt: skip

    def spec_architecture(self, parameterisation: str) -> str:  # noqa: ARG002
        return "flux-1-dev"

    def kohya_header(self) -> dict[str, str]:
        return {"ss_base_model_version": "flux1"}

    def random_encoders(self) -> dict[str, Any]:
        """Makes a T5 of two layers: the released one's 24 would say nothing more."""
        from transformers import T5Config

        words = assets.scenes_teacher() / "tokenizer"
        tokenizer = CLIPTokenizer.from_pretrained(words, model_max_length=CLIP_TOKENS)
        t5 = T5Config(vocab_size=32128, d_model=4096, d_ff=10240, d_kv=64, num_layers=2, num_heads=64)
        return {
            "text_encoder": CLIPTextModel(shape_clip(CLIP_L)), "tokenizer": tokenizer,
            "text_encoder_2": T5EncoderModel(t5), "tokenizer_2": tokenizer,
        }  # fmt: skip

    def shaped_condition(self, batch: int) -> Cond:
        return {"text": torch.randn(batch, T5_TOKENS, 4096), "pooled": torch.randn(batch, 768)}


FAMILIES = {"flux": Flux()}
