"""Z-Image: a flow transformer on text and picture in one sequence, read by a language model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from diffusers import ZImagePipeline, ZImageTransformer2DModel
from torch import Tensor
from transformers import Qwen2Tokenizer, Qwen3Config, Qwen3Model

from fewstep.diffusion.prediction import Cond
from fewstep.errors import UserError
from fewstep.models.card import is_number
from fewstep.models.families.flow_family import FlowFamily, lay_out_loras
from fewstep.models.families.language_text import QWEN_TURN, LanguageConditioner, LanguageEncoder, pad
from fewstep.models.families.original_transformers import OriginalNames
from fewstep.models.families.transformer import TransformerNetwork
from fewstep.models.families.transformer_checks import (
    PATCH,
    check_axes,
    check_channels,
    find_released_name,
    read_side_of_codec,
)
from fewstep.models.family import LatentModel
from fewstep.models.network import BackboneNetwork

TOKENS = 512
_BASE: dict[str, Any] = {
    "all_patch_size": (2,), "all_f_patch_size": (1,), "in_channels": 16, "dim": 3840, "n_layers": 30,
    "n_refiner_layers": 2, "n_heads": 30, "n_kv_heads": 30, "cap_feat_dim": 2560, "axes_dims": [32, 48, 48],
    "axes_lens": [1024, 512, 512],
}  # fmt: skip
"""6.15 billion weights."""
_BLOCK = {
    "attention.qkv": ("attention.to_q", "attention.to_k", "attention.to_v"), "attention.out": ("attention.to_out.0",),
    "attention.q_norm": ("attention.norm_q",), "attention.k_norm": ("attention.norm_k",),
    **{
        name: (name,)
        for name in (
            "feed_forward.w1", "feed_forward.w2", "feed_forward.w3", "attention_norm1", "attention_norm2", "ffn_norm1",
            "ffn_norm2", "adaLN_modulation.0",
        )
    },
}  # fmt: skip
_LISTS = ("noise_refiner", "context_refiner", "layers")
NAMES = OriginalNames(
    blocks={(name, name): _BLOCK for name in _LISTS},
    outside={
        "x_embedder": ("all_x_embedder.2-1",), "final_layer.linear": ("all_final_layer.2-1.linear",),
        "final_layer.adaLN_modulation.1": ("all_final_layer.2-1.adaLN_modulation.1",),
        **{name: (name,) for name in ("t_embedder.mlp.0", "t_embedder.mlp.2", "cap_embedder.0", "cap_embedder.1")},
    },
    tensors={"x_pad_token": "x_pad_token", "cap_pad_token": "cap_pad_token"},
    is_swapped=lambda _module, _blocks: False,
)  # fmt: skip


class ZImageNetwork(TransformerNetwork):
    """`cond` is as `ZImageConditioner` makes it. Its time runs from noise to data, and so does its velocity."""

    block_lists = _LISTS
    tapped = ("layers",)

    @property
    def time_embedding(self) -> Any:
        return self.transformer.t_embedder

    @property
    def embedded_times(self) -> tuple[float, float]:
        scale = float(self.transformer.config.t_scale)
        return scale, -scale

    @property
    def width(self) -> int:
        return int(self.transformer.config.dim)

    def ask(self, z_t: Tensor, told: Tensor, cond: Cond, omega: Tensor | None) -> Tensor:  # noqa: ARG002
        texts = list(cond["text"].to(z_t.dtype))
        if "mask" in cond:  # padding would be read as text is
            texts = [text[held] for text, held in zip(texts, cond["mask"] > 0, strict=True)]
        given = list(z_t.unsqueeze(2))  # with an axis of frames
        answers: list[Tensor] = self.transformer(given, 1 - told, texts, return_dict=False)[0]
        return -torch.stack(answers).squeeze(2)

    def image_tokens(self, output: Any, height: int, width: int) -> Tensor:
        picture: Tensor = output[:, : height * width // 4].transpose(1, 2).unflatten(2, (height // 2, width // 2))
        return picture


@dataclass(frozen=True)
class ZImageConditioner(LanguageConditioner):
    """`{"text": [b, 512, width], "mask": [b, 512]}`."""

    def pick(self, output: Any, mask: Tensor) -> Cond:
        return pad(output.hidden_states[-2], mask)


LORA = lay_out_loras(
    (
        "attention.to_q", "attention.to_k", "attention.to_v", "attention.to_out.0", "feed_forward.w1",
        "feed_forward.w2", "feed_forward.w3",
    ),
    NAMES,
    ("t_embedder.mlp.0", "t_embedder.mlp.2"),
    text_prefixes={"text_encoder": ("lora_te", "lora_te1")},
    embedding_parts={},
    bare_parts=("text_encoder",),
    kohya_modules=lambda modules: {module: (module,) for module in modules},  # as its trainers do
)  # fmt: skip


class ZImage(FlowFamily):
    """Z-Image and what people have made of it."""

    name = "zimage"
    title = "Z-Image"
    lora = LORA
    parts = ("transformer", "vae", "text_encoder", "tokenizer", "scheduler")
    pipeline_classes = (ZImagePipeline.__name__,)
    embeds_guidance = False
    transformer_class = ZImageTransformer2DModel
    network_class = ZImageNetwork
    encoders: ClassVar[Mapping[str, Any]] = {"text_encoder": (Qwen3Model, Qwen2Tokenizer)}
    large = ("text_encoder",)
    keys_begin = ("cap_embedder.", "noise_refiner.")
    original = NAMES
    released = _BASE
    released_shift = 6.0
    released_codec: ClassVar[Mapping[str, float]] = {"scaling_factor": 0.3611, "shift_factor": 0.1159}
    released_side = 1024
    released_latent_channels = 16
    encoder_bytes = int(7.8 * 2**30)

    def omega_of(self, guidance_scale: float) -> float:
        """Returns it as it is: here 0 is no guidance."""
        return guidance_scale

    def guidance_of(self, omega: float) -> float:
        """Returns it as it is."""
        return omega

    def describe(self, network_config: Mapping[str, Any]) -> str:
        return f"{self.title}, {network_config.get('n_layers')} blocks"

    def refuse(self, network_config: Mapping[str, Any], source: str) -> None:
        if network_config.get("siglip_feat_dim") is not None:
            raise UserError(f"{source} is told pictures too (siglip_feat_dim); give a text-to-image model")
        names = (source, str(network_config.get("_name_or_path", "")))
        if any("turbo" in find_released_name(name) for name in names):
            raise UserError(
                f"{source} is called a Turbo, which paints in 8 steps already and cannot be a teacher; give the base"
            )

    def read_side(self, network_config: Mapping[str, Any], codec_config: Mapping[str, Any]) -> int:  # noqa: ARG002
        return read_side_of_codec(codec_config)

    def largest_side(self, network_config: Mapping[str, Any], multiple: int) -> float:
        return int(min(network_config["axes_lens"][1:]) * PATCH) * multiple

    def check_parts(self, source: str, parts: Mapping[str, Any]) -> None:
        config, vae = parts["transformer"].config, parts["vae"].config
        check_channels(source, config.in_channels, config.in_channels, vae.latent_channels)
        check_axes(source, "axes_dims", config.axes_dims, config.dim // config.n_heads)
        if "2-1" not in parts["transformer"].all_x_embedder:
            raise UserError(f"{source} has all_patch_size {config.all_patch_size!r:.60}; 2 is to be among them")
        places = config.axes_lens
        if not (isinstance(places, list | tuple) and all(type(each) is int for each in places)) or places[0] <= TOKENS:
            raise UserError(f"{source} has axes_lens {places!r:.60}; the first must be above {TOKENS}, as prompts want")
        for name in ("t_scale", "rope_theta"):
            if not is_number(config[name]) or config[name] <= 0:
                raise UserError(f"{source} has {name} {config[name]!r:.60}; expected a number above 0")
        if config.cap_feat_dim != (width := parts["text_encoder"].config.hidden_size):
            raise UserError(
                f"{source} has a transformer for text {config.cap_feat_dim} wide and a text encoder of {width}; they "
                "are of different models"
            )

    def make_conditioner(self, parts: Mapping[str, Any]) -> ZImageConditioner:
        return ZImageConditioner(LanguageEncoder(parts["tokenizer"], parts["text_encoder"], QWEN_TURN, TOKENS))

    def make_pipeline(self, model: LatentModel, network: BackboneNetwork, scheduler: Any) -> Any:
        text = model.conditioner
        assert isinstance(text, ZImageConditioner)
        return ZImagePipeline(
            transformer=network.backbone, scheduler=scheduler, vae=model.codec.autoencoder,
            text_encoder=text.reader.network, tokenizer=text.reader.tokenizer,
        )  # fmt: skip

    def spec_architecture(self, parameterisation: str) -> str:  # noqa: ARG002
        return "Z-Image"

    def kohya_header(self) -> dict[str, str]:
        return {"ss_base_model_version": "z_image"}

    def random_encoders(self) -> dict[str, Any]:
        """Makes a reader of two layers: the released one's 36 would say nothing more."""
        from tokenizers.pre_tokenizers import ByteLevel

        words = {letter: i for i, letter in enumerate((*ByteLevel.alphabet(), "<|endoftext|>"))}
        size = Qwen3Config(
            vocab_size=151_936, hidden_size=2560, intermediate_size=9728, num_hidden_layers=2, num_attention_heads=32,
            num_key_value_heads=8, head_dim=128,
        )  # fmt: skip
        return {"text_encoder": Qwen3Model(size), "tokenizer": Qwen2Tokenizer(vocab=words, merges=[])}

    def shaped_condition(self, batch: int) -> Cond:
        return {"text": torch.randn(batch, TOKENS, 2560)}  # with no mask, whose sums would have to be known


FAMILIES = {"zimage": ZImage()}
