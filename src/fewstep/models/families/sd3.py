"""Stable Diffusion 3 and 3.5: a flow transformer, two CLIP encoders, T5 or none, and an autoencoder of 16 channels."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, SD3Transformer2DModel, StableDiffusion3Pipeline
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPTokenizer, T5EncoderModel, T5TokenizerFast

from fewstep import assets
from fewstep.diffusion.flow import Flow
from fewstep.diffusion.prediction import Cond
from fewstep.errors import UserError
from fewstep.models.card import StudentCard, read_card
from fewstep.models.codec import Codec
from fewstep.models.conditioner import TextEncoder
from fewstep.models.families.sd3_text import T5_TOKENS, T5Encoder, TripleConditioner
from fewstep.models.families.transformer import TransformerNetwork
from fewstep.models.family import Family, LatentModel, LoraLayout
from fewstep.models.flow_scheduler import read_flow
from fewstep.models.model_files import read_json
from fewstep.models.network import BackboneNetwork
from fewstep.models.parts import check_tokenizer, load_tokenizer, load_weights
from fewstep.models.scheduler import Overrides
from fewstep.precision import Storage

logger = logging.getLogger(__name__)

_CLIPS = ("text_encoder", "text_encoder_2")
_T5 = "text_encoder_3"
_ALL = ("transformer", "vae", *_CLIPS, _T5, "tokenizer", "tokenizer_2", "tokenizer_3", "scheduler")
_OPTIONAL = (_T5, "tokenizer_3")
"""Parts that people leave out, T5 being larger than all the rest."""
_T5_DTYPE = torch.bfloat16
"""What T5 is kept in on a GPU, as it was released: in fp32 its 4.76 billion weights would fill a card."""
CLIP_TOKENS = 77
_PIXELS = 8
"""Pixels a latent, of the released autoencoder."""
_SHIFT = 3.0
_MEDIUM: dict[str, Any] = {
    "sample_size": 128, "patch_size": 2, "in_channels": 16, "num_layers": 24, "attention_head_dim": 64,
    "num_attention_heads": 24, "joint_attention_dim": 4096, "caption_projection_dim": 1536,
    "pooled_projection_dim": 2048, "out_channels": 16, "pos_embed_max_size": 384, "qk_norm": "rms_norm",
    "dual_attention_layers": tuple(range(13)),
}  # fmt: skip
"""Stable Diffusion 3.5 medium, 2.24 billion weights."""
_ENCODERS: tuple[dict[str, Any], ...] = (
    {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
     "projection_dim": 768},
    {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 20,
     "projection_dim": 1280, "hidden_act": "gelu"},
)  # fmt: skip


class SD3Network(TransformerNetwork):
    """`cond` is as `TripleConditioner` makes it."""

    block_lists = ("transformer_blocks",)

    def velocity(self, z_t: Tensor, sigma: Tensor, cond: Cond, omega: Tensor | None) -> Tensor:  # noqa: ARG002
        output: Tensor = self.transformer(
            hidden_states=z_t, timestep=1000 * sigma, encoder_hidden_states=cond["text"].to(z_t.dtype),
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
LORA = LoraLayout(
    part="transformer",
    targets=_BLOCK,
    prefixes={
        "transformer": ("lora_transformer", "lora_unet"), "text_encoder": ("lora_te1",),
        "text_encoder_2": ("lora_te2",), _T5: ("lora_te3",),
    },
    original_names=lambda _modules: {},
    original_prefixes=(),
    former_names=lambda _part, _module: (),
    embedding_parts={"clip_l": "text_encoder", "clip_g": "text_encoder_2"},
    time_mlp="time_text_embed.timestep_embedder",
    bare_parts=(_T5,),
    portable=True,
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class StableDiffusion3(Family):
    """All sizes of both versions: their layouts are one."""

    name: str = "sd3"
    title: str = "Stable Diffusion 3"
    lora: LoraLayout = LORA
    parts: tuple[str, ...] = _ALL
    pipeline_classes: tuple[str, ...] = (StableDiffusion3Pipeline.__name__,)
    is_flow: bool = True
    embeds_guidance: bool = False
    embeds_end: bool = False
    released_side: int = 1024
    released_latent_channels: int = 16
    encoder_bytes: int = int(12.3 * 2**30)

    def describe(self, network_config: Mapping[str, Any]) -> str:
        version = "3.5" if network_config.get("qk_norm") else "3"
        return f"Stable Diffusion {version}, {network_config.get('num_layers')} blocks"

    def is_few_step(self, network_config: Mapping[str, Any]) -> bool:  # noqa: ARG002  # no network of it has the input
        return False

    def read_side(self, network_config: Mapping[str, Any], codec_config: Mapping[str, Any]) -> int:
        side, blocks = network_config.get("sample_size", 0), codec_config.get("block_out_channels", ())
        if type(side) is not int or not 0 < side < 2**12 or not isinstance(blocks, list | tuple) or len(blocks) > 16:
            raise UserError(
                f"the model's transformer has sample_size {side!r:.60} and its vae block_out_channels {blocks!r:.60}; "
                "a number and a list are wanted"
            )
        return side << max(0, len(blocks) - 1)

    def recognises(self, network_config: Mapping[str, Any]) -> bool:
        known: str = SD3Transformer2DModel.__name__
        return bool(network_config.get("_class_name") == known)

    def recognises_keys(self, keys: Sequence[str], path: Path) -> bool:
        begins = ("model.diffusion_model.joint_blocks.", "joint_blocks.")
        if not any(key.startswith(begins) for key in keys):
            return False
        raise UserError(
            f"{path} holds a transformer of {self.title}, whose single files are not read yet; give a diffusers folder"
        )

    def load_folder(
        self, folder: Path, source: str, index: Mapping[str, Any], storage: Storage, overrides: Overrides
    ) -> LatentModel:
        _refuse_overrides(overrides, source)
        config = read_json(folder / "scheduler" / "scheduler_config.json", f"{source} has no scheduler")
        named = index.get("scheduler") or [None, None]
        config = {"_class_name": named[-1], **config} if isinstance(named, list) and named[-1] else config
        read_flow(config, source, tokens=1)  # before the weights, which take their time
        absent = {part for part in _OPTIONAL if index.get(part) in (None, [None, None])}
        parts = _load_parts(self, folder, source, absent, storage)
        return self.assemble(source, parts, config, storage.device, card=read_card(folder))

    def load_single_file(self, path: Path, base_config: str, storage: Storage, overrides: Overrides) -> LatentModel:
        raise AssertionError(f"{path}, {base_config}, {storage}, {overrides}: `recognises_keys` refuses them")

    def load_codec(self, place: Path, base_config: str, device: torch.device) -> tuple[Codec, int]:  # noqa: ARG002
        autoencoder = load_weights(AutoencoderKL, assets.find_part(place, "vae"))
        network = read_json(place / "transformer" / "config.json", f"{place} is not a whole pipeline")
        codec = Codec(autoencoder.to(device, memory_format=torch.channels_last))
        return codec, self.read_side(network, autoencoder.config)

    def assemble(
        self, source: str, parts: Mapping[str, Any], scheduler_config: dict[str, Any], device: torch.device, *,
        card: StudentCard | None = None,
    ) -> LatentModel:  # fmt: skip
        """Checks that the parts fit each other, and puts them on `device`."""
        _check_parts(source, parts)
        transformer = parts["transformer"]
        codec = Codec(parts["vae"].to(device, memory_format=torch.channels_last))
        first, second = (
            TextEncoder(parts[name.replace("text_encoder", "tokenizer")], parts[name].to(device)) for name in _CLIPS
        )
        third = T5Encoder(parts["tokenizer_3"], parts[_T5].to(device)) if _T5 in parts else None
        width = transformer.config.joint_attention_dim
        tokens = (transformer.config.sample_size // transformer.config.patch_size) ** 2
        return LatentModel(
            source=source,
            family=self,
            network=SD3Network(transformer.to(device), read_flow(scheduler_config, source, tokens)),
            codec=codec,
            conditioner=TripleConditioner(first, second, third, width),
            scheduler_config=scheduler_config,
            card=card or StudentCard(),
        )

    def make_pipeline(self, model: LatentModel, network: BackboneNetwork, scheduler: Any) -> Any:
        text = model.conditioner
        assert isinstance(text, TripleConditioner)
        return StableDiffusion3Pipeline(
            transformer=network.backbone, scheduler=scheduler, vae=model.codec.autoencoder,
            text_encoder=text.first.network, tokenizer=text.first.tokenizer, text_encoder_2=text.second.network,
            tokenizer_2=text.second.tokenizer, text_encoder_3=text.third and text.third.network,
            tokenizer_3=text.third and text.third.tokenizer,
        )  # fmt: skip

    def write_any_step_pipeline(self) -> str:
        raise AssertionError("no whole model of it is told where to land")

    def spec_architecture(self, parameterisation: str) -> str:  # noqa: ARG002
        return "stable-diffusion-3"

    def spec_prediction(self, parameterisation: str) -> str:  # noqa: ARG002
        return "flow"

    def kohya_header(self) -> dict[str, str]:
        return {"ss_base_model_version": "sd3"}

    def random_model(self, device: torch.device, *, few_step: bool = False, side: int = 0) -> LatentModel:  # noqa: ARG002
        """Makes it without T5, whose 4.76 billion weights would say nothing more."""
        tokenizer = CLIPTokenizer.from_pretrained(assets.scenes_teacher() / "tokenizer", model_max_length=CLIP_TOKENS)
        settings = {**_MEDIUM, **({"sample_size": side // _PIXELS} if side else {})}
        parts: dict[str, Any] = {
            "transformer": SD3Transformer2DModel(**settings), "vae": self.random_autoencoder(),
            **{name: CLIPTextModelWithProjection(_clip(size)) for name, size in zip(_CLIPS, _ENCODERS, strict=True)},
            "tokenizer": tokenizer, "tokenizer_2": tokenizer,
        }  # fmt: skip
        for part in parts.values():
            if isinstance(part, nn.Module):
                part.eval().requires_grad_(False)
        scheduler = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": _SHIFT}
        return self.assemble("random weights", parts, scheduler, device)

    def random_autoencoder(self) -> AutoencoderKL:
        return AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(128, 256, 512, 512), layers_per_block=2, latent_channels=16, sample_size=1024,
            scaling_factor=1.5305, shift_factor=0.0609, use_quant_conv=False, use_post_quant_conv=False,
        )  # fmt: skip

    def shaped_network(self, *, few_step: bool = False) -> SD3Network:  # noqa: ARG002  # a student has the same shapes
        with torch.device("meta"):
            transformer = SD3Transformer2DModel(**_MEDIUM)
        return SD3Network(transformer, Flow(shift=_SHIFT)).requires_grad_(False)

    def shaped_condition(self, batch: int) -> Cond:
        return {
            "text": torch.randn(batch, CLIP_TOKENS + T5_TOKENS, 4096),
            "pooled": torch.randn(batch, sum(size["projection_dim"] for size in _ENCODERS)),
        }


def _refuse_overrides(overrides: Overrides, source: str) -> None:
    """Raises UserError for what is said over the files of a model and means nothing to a flow."""
    for option, value in overrides.stated().items():
        raise UserError(
            f"{source} is a flow, for which --{option.replace('_', '-')} {value} means nothing; leave it out"
        )


def _load_parts(family: Family, folder: Path, source: str, absent: Iterable[str], storage: Storage) -> dict[str, Any]:
    """Loads every part of a folder but its scheduler and those that are `absent`."""
    places = {part: assets.find_part(folder, part) for part in family.parts if part not in absent}
    for part, place in places.items():
        if not place.is_dir():
            raise UserError(f"{source} is not a whole pipeline: it has no folder {part}/")
    dtype = storage.dtype
    if dtype == torch.float16:
        logger.info(f"note: {source} overflows in fp16 and is kept in fp32; bf16 (--precision bf16) takes half of that")
        dtype = torch.float32
    vae = read_json(places["vae"] / "config.json", f"{source} has no autoencoder")
    parts: dict[str, Any] = {
        "transformer": load_weights(SD3Transformer2DModel, places["transformer"], dtype),
        "vae": load_weights(AutoencoderKL, places["vae"], torch.float32 if vae.get("force_upcast", True) else dtype),
    }
    on_gpu = (storage.home or storage.device).type == "cuda"
    for name in (name for name in (*_CLIPS, _T5) if name in places):
        tokenizer = name.replace("text_encoder", "tokenizer")
        kinds: tuple[Any, Any] = (
            (T5EncoderModel, T5TokenizerFast) if name == _T5 else (CLIPTextModelWithProjection, CLIPTokenizer)
        )
        parts[name] = load_weights(kinds[0], places[name], _T5_DTYPE if name == _T5 and on_gpu else dtype)
        parts[tokenizer] = load_tokenizer(kinds[1], places[tokenizer])
        check_tokenizer(parts[tokenizer], parts[name].config, str(places[tokenizer]))
    return parts


def _check_parts(source: str, parts: Mapping[str, Any]) -> None:
    """Raises UserError where the parts do not fit each other, or make a model that is told more than a prompt."""
    config, vae = parts["transformer"].config, parts["vae"].config
    if not (type(config.sample_size) is int and 0 < config.sample_size < 2**12):
        raise UserError(f"{source} has sample_size {config.sample_size!r:.60} in transformer/config.json; a number is "
                        "wanted")  # fmt: skip
    if config.in_channels != vae.latent_channels or config.out_channels != vae.latent_channels:
        raise UserError(
            f"{source} has a transformer of {config.in_channels} input and {config.out_channels} output channels and "
            f"latents of {vae.latent_channels}; give a text-to-image model"
        )
    clips = [parts[name].config for name in _CLIPS]
    if (pooled := sum(each.projection_dim for each in clips)) != config.pooled_projection_dim:
        raise UserError(
            f"{source} has a transformer for pooled text {config.pooled_projection_dim} wide and text encoders of "
            f"{pooled}; they are of different models"
        )
    if sum(each.hidden_size for each in clips) > config.joint_attention_dim:
        raise UserError(
            f"{source} has a transformer for text {config.joint_attention_dim} wide and wider text encoders"
        )
    if _T5 in parts and parts[_T5].config.d_model != config.joint_attention_dim:
        raise UserError(
            f"{source} has a transformer for text {config.joint_attention_dim} wide and a T5 of "
            f"{parts[_T5].config.d_model}; they are of different models"
        )


def _clip(size: Mapping[str, Any]) -> CLIPTextConfig:
    return CLIPTextConfig(vocab_size=49408, max_position_embeddings=CLIP_TOKENS, **size)


FAMILIES = {"sd3": StableDiffusion3()}
