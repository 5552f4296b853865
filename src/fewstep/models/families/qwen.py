"""Qwen-Image: a flow transformer on latents of a video autoencoder, guided at the same length, read by Qwen2.5-VL."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from diffusers import AutoencoderKLQwenImage, QwenImagePipeline, QwenImageTransformer2DModel
from torch import Tensor
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, Qwen2Tokenizer

from fewstep.diffusion.prediction import Cond, Prediction
from fewstep.errors import UserError
from fewstep.models.card import is_number
from fewstep.models.codec import Codec
from fewstep.models.families.flow_family import FlowFamily, lay_out_loras
from fewstep.models.families.language_text import LanguageConditioner, LanguageEncoder, pad
from fewstep.models.families.original_transformers import OriginalNames
from fewstep.models.families.packing import pack, unpack
from fewstep.models.families.transformer import TransformerNetwork
from fewstep.models.families.transformer_checks import check_axes, check_channels, find_released_name
from fewstep.models.family import LatentModel
from fewstep.models.network import BackboneNetwork

TOKENS = 512
SIDE = 1024
"""Is the side of the pictures that stock pipelines paint; no file says it."""
_RELEASED: dict[str, Any] = {"num_layers": 60, "num_attention_heads": 24, "joint_attention_dim": 3584}
"""20.4 billion weights."""
_TOLD_MORE = ("guidance_embeds", "zero_cond_t", "use_additional_t_cond", "use_layer3d_rope")
"""Switches of transformers that edit pictures, paint layers, or are guided inside."""


class SameNames(OriginalNames):
    """The first code calls the modules as diffusers does."""

    def list_modules(self, modules: Iterable[str]) -> dict[str, tuple[str, ...]]:
        return {module: (module,) for module in modules if module}


_FEW_STEP = re.compile(r"lightning|turbo|(?<![a-z])distill\w*")
_EDITS = re.compile(r"(?:(?<![a-z])|image)(?:edit|layered|controlnet|inpainting)(?![a-z])")
"""Matches names of released models that edit pictures."""


NAMES = SameNames(blocks={}, outside={}, is_swapped=lambda _module, _blocks: False)


class QwenCodec(Codec):
    """Latents of a video autoencoder for one frame, each channel with its own mean and deviation."""

    @property
    def multiple(self) -> int:
        return int(2 ** len(self.autoencoder.config.temperal_downsample))

    @property
    def channels(self) -> int:
        return int(self.autoencoder.config.z_dim)

    @property
    def scale(self) -> float:
        """Returns 1: no number scales all of them."""
        return 1.0

    def check_scale(self) -> None:
        for name in ("latents_mean", "latents_std"):
            values = self.autoencoder.config.get(name)
            numbers = isinstance(values, list | tuple) and all(map(is_number, values))
            if not numbers or len(values) != self.channels or (name == "latents_std" and min(values) <= 0):
                raise UserError(
                    f"the autoencoder's config.json has {name} {values!r:.60}; expected {self.channels} numbers, "
                    "deviations above 0"
                )

    @property
    def _statistics(self) -> tuple[Tensor, Tensor]:
        config = self.autoencoder.config
        mean, std = (torch.tensor(each).view(1, -1, 1, 1) for each in (config.latents_mean, config.latents_std))
        return mean, std

    def read_posterior(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        posterior = self.autoencoder.encode(pixels.unsqueeze(2)).latent_dist
        return posterior.mean.squeeze(2), posterior.std.squeeze(2)

    def scale_latents(self, mean: Tensor, std: Tensor) -> tuple[Tensor, Tensor]:
        centre, spread = (each.to(mean.device) for each in self._statistics)
        return (mean - centre) / spread, std / spread

    def unscale_latents(self, z_0: Tensor, decoder: Any) -> Tensor:  # noqa: ARG002  # there is no other than its own
        centre, spread = (each.to(z_0.device) for each in self._statistics)
        return z_0 * spread + centre

    def paint_pixels(self, decoder: Any, z: Tensor) -> Tensor:
        pixels: Tensor = decoder.decode(z.unsqueeze(2)).sample[:, :, 0]
        return pixels

    @classmethod
    def check_tiny_decoder(cls) -> None:
        raise UserError("no tiny decoder knows the latents of Qwen-Image; leave --tiny-decoder out")


class QwenNetwork(TransformerNetwork):
    """`cond` is as `QwenConditioner` makes it."""

    block_lists = ("transformer_blocks",)

    @property
    def leaves_some_unused(self) -> bool:
        return True  # the last block's text

    @property
    def time_embedding(self) -> Any:
        return self.transformer.time_text_embed

    @property
    def embedded_times(self) -> tuple[float, float]:
        return 0.0, 1.0

    def ask(self, z_t: Tensor, told: Tensor, cond: Cond, omega: Tensor | None) -> Tensor:  # noqa: ARG002
        height, width = z_t.shape[-2:]
        output: Tensor = self.transformer(
            hidden_states=pack(z_t), timestep=told, img_shapes=[[(1, height // 2, width // 2)]] * len(z_t),
            return_dict=False, **_trim(cond, z_t.dtype),
        )[0]  # fmt: skip
        return unpack(output, height, width)

    def rescale(self, z_t: Tensor, t: Tensor, conditional: Prediction, guided: Prediction) -> Prediction:  # noqa: ARG002
        """Gives the guided velocity of each token the length that it has without guidance, as the stock pipeline does:
        that is not affine, and acts on the output alone."""
        wanted, found = (_token_lengths(each.epsilon - each.z_0) for each in (conditional, guided))
        more = wanted / found.clamp_min(torch.finfo(found.dtype).tiny) - 1
        # z_0 and ε are z_t ± shares of v; as a difference, this is exactly nothing where nothing guides.
        return Prediction(*(each + more * (each - z_t) for each in guided))

    def image_tokens(self, output: Any, height: int, width: int) -> Tensor:
        _text, tokens = output
        picture: Tensor = tokens.transpose(1, 2).unflatten(2, (height // 2, width // 2))
        return picture


def _check_places(source: str, text: Any) -> None:
    """Raises UserError where a text encoder's three kinds of places do not fill its heads."""
    said = getattr(text, "rope_parameters", None) or getattr(text, "rope_scaling", None)  # the name before version 5
    section = said.get("mrope_section", (16, 24, 24)) if isinstance(said, dict) else said
    held = list(section) if isinstance(section, list | tuple) else []
    width = text.hidden_size // text.num_attention_heads
    if not all(type(each) is int for each in held) or 2 * sum(held) != width:
        raise UserError(
            f"{source} has mrope_section {section!r:.60} in text_encoder/config.json; expected numbers that are "
            f"{width // 2} in sum"
        )


def _trim(cond: Cond, dtype: torch.dtype) -> dict[str, Tensor | None]:
    """Returns the text as the transformer takes it, no longer than the longest of the batch, and with no mask where
    nothing is padded: prompts fill a fraction of what they are padded to, and attention without a mask is faster."""
    text = cond["text"].to(dtype)
    if "mask" not in cond:
        return {"encoder_hidden_states": text, "encoder_hidden_states_mask": None}
    held = cond["mask"] > 0
    least, most = torch.stack(held.sum(1).aminmax()).tolist()
    mask = held[:, :most] if least < most else None
    return {"encoder_hidden_states": text[:, :most], "encoder_hidden_states_mask": mask}


def _token_lengths(v: Tensor) -> Tensor:
    """Returns the length of the token that each latent of `[b, c, h, w]` is of, `[b, 1, h, w]`."""
    lengths = torch.linalg.vector_norm(pack(v), dim=-1, keepdim=True)
    return unpack(lengths.expand(-1, -1, 4), *v.shape[-2:])


@dataclass(frozen=True)
class QwenConditioner(LanguageConditioner):
    """`{"text": [b, 512, width], "mask": [b, 512]}`, padded at the end."""

    dropped: int
    """Tokens at the begin of a prompt's form that are not read."""

    def pick(self, output: Any, mask: Tensor) -> Cond:
        held = mask > 0
        read = held & (held.cumsum(1) > self.dropped)
        # Whichever side a tokenizer pads, what is read comes first.
        order = (~read).long().argsort(dim=1, stable=True)[:, :TOKENS]
        hidden = output.hidden_states[-1]
        text = hidden.gather(1, order.unsqueeze(-1).expand(-1, -1, hidden.shape[-1]))
        return pad(text, read.gather(1, order))

    def null(self) -> Cond:
        """Encodes a space, which people give as the negative prompt."""
        return self.encode([" "])


LORA = lay_out_loras(
    (
        "attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0", "attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj",
        "attn.to_add_out", "img_mlp.net.0.proj", "img_mlp.net.2", "txt_mlp.net.0.proj", "txt_mlp.net.2",
    ),
    NAMES,
    ("time_text_embed.timestep_embedder.linear_1", "time_text_embed.timestep_embedder.linear_2"),
    text_prefixes={"text_encoder": ("lora_te", "lora_te1")},
    embedding_parts={},
    bare_parts=("text_encoder",),
    kohya_modules=NAMES.list_modules,
)  # fmt: skip


class QwenImage(FlowFamily):
    """Qwen-Image and what people have made of it."""

    name = "qwen"
    title = "Qwen-Image"
    lora = LORA
    parts = ("transformer", "vae", "text_encoder", "tokenizer", "scheduler")
    pipeline_classes = (QwenImagePipeline.__name__,)
    embeds_guidance = False
    rescales_guidance = True
    guidance_argument = "true_cfg_scale"
    transformer_class = QwenImageTransformer2DModel
    network_class = QwenNetwork
    autoencoder_class = AutoencoderKLQwenImage
    codec_class = QwenCodec
    encoders: ClassVar[Mapping[str, Any]] = {"text_encoder": (Qwen2_5_VLForConditionalGeneration, Qwen2Tokenizer)}
    large = ("text_encoder",)
    keys_begin = ("transformer_blocks.0.img_mod.",)
    original = NAMES
    released = _RELEASED
    released_shift = 1.99
    released_codec: ClassVar[Mapping[str, float]] = {}
    released_side = SIDE
    released_latent_channels = 16
    encoder_bytes = int(16.0 * 2**30)

    def describe(self, network_config: Mapping[str, Any]) -> str:
        return f"{self.title}, {network_config.get('num_layers')} blocks"

    def refuse(self, network_config: Mapping[str, Any], source: str) -> None:
        for name in _TOLD_MORE:
            if network_config.get(name):
                raise UserError(
                    f"{source} is told more than a prompt and a time ({name}): models that edit pictures or paint "
                    "layers are not read; give a text-to-image model"
                )
        called = find_released_name(source)
        if few_step := _FEW_STEP.search(called):
            raise UserError(
                f"{source} is called {few_step[0]}, as are models that paint in few steps already and are no teachers; "
                "give Qwen-Image, or a fine-tune of it"
            )
        if _EDITS.search(called):  # in a file alone nothing else tells them from what paints
            raise UserError(
                f"{source} is a model that edits pictures or paints layers, by its name; give a text-to-image model"
            )

    def read_side(self, network_config: Mapping[str, Any], codec_config: Mapping[str, Any]) -> int:  # noqa: ARG002
        return SIDE

    def check_parts(self, source: str, parts: Mapping[str, Any]) -> None:
        config, vae = parts["transformer"].config, parts["vae"].config
        if config.patch_size != 2:
            raise UserError(f"{source} has patch_size {config.patch_size!r:.60}; 2 is read")
        returned = 4 * (config.out_channels or config.in_channels)
        check_channels(source, config.in_channels, returned, 4 * vae.z_dim)
        check_axes(source, "axes_dims_rope", config.axes_dims_rope, config.attention_head_dim)
        if not (is_number(vae.dropout) and 0 <= vae.dropout <= 1):
            raise UserError(f"{source} has dropout {vae.dropout!r:.60} in vae/config.json; expected 0")
        _check_places(source, parts["text_encoder"].config.text_config)
        if config.joint_attention_dim != (width := parts["text_encoder"].config.text_config.hidden_size):
            raise UserError(
                f"{source} has a transformer for text {config.joint_attention_dim} wide and a text encoder of {width}; "
                "they are of different models"
            )

    def make_conditioner(self, parts: Mapping[str, Any]) -> QwenConditioner:
        # The instruction that prompts stand in is the stock pipeline's, which no file holds.
        stock = QwenImagePipeline(*[None] * len(self.parts))
        form, dropped = stock.prompt_template_encode, stock.prompt_template_encode_start_idx
        return QwenConditioner(
            LanguageEncoder(parts["tokenizer"], parts["text_encoder"], form, TOKENS + dropped), dropped
        )

    def make_pipeline(self, model: LatentModel, network: BackboneNetwork, scheduler: Any) -> Any:
        text = model.conditioner
        assert isinstance(text, QwenConditioner)
        return QwenImagePipeline(
            transformer=network.backbone, scheduler=scheduler, vae=model.codec.autoencoder,
            text_encoder=text.reader.network, tokenizer=text.reader.tokenizer,
        )  # fmt: skip

    def spec_architecture(self, parameterisation: str) -> str:  # noqa: ARG002
        return "Qwen-Image"

    def kohya_header(self) -> dict[str, str]:
        return {"ss_base_model_version": "qwen_image"}

    def random_autoencoder(self) -> Any:
        return AutoencoderKLQwenImage()

    def random_encoders(self) -> dict[str, Any]:
        """Makes a reader of two layers and next to no sight: the released one's 28 would say nothing more."""
        from tokenizers.pre_tokenizers import ByteLevel

        words = {letter: i for i, letter in enumerate((*ByteLevel.alphabet(), "<|endoftext|>"))}
        text = {
            "vocab_size": 152_064, "hidden_size": 3584, "intermediate_size": 18_944, "num_hidden_layers": 2,
            "num_attention_heads": 28, "num_key_value_heads": 4,
            "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
        }  # fmt: skip
        sight = {"depth": 1, "hidden_size": 32, "intermediate_size": 32, "num_heads": 2, "out_hidden_size": 3584}
        reader = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(text_config=text, vision_config=sight))
        return {"text_encoder": reader, "tokenizer": Qwen2Tokenizer(vocab=words, merges=[])}

    def shaped_condition(self, batch: int) -> Cond:
        return {"text": torch.randn(batch, TOKENS, 3584)}  # with no mask, whose sums would have to be known


FAMILIES = {"qwen": QwenImage()}
