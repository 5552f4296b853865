"""Stable Diffusion 1.x, 2.x and XL: one layout of UNet, CLIP encoders and autoencoder, with three sets of switches."""

from __future__ import annotations

import dataclasses
import inspect
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    LatentConsistencyModelPipeline,
    LCMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from fewstep import assets
from fewstep.diffusion.prediction import Cond
from fewstep.diffusion.schedule import Tabulated
from fewstep.errors import UserError
from fewstep.files import read_safetensors_header
from fewstep.method.omega_embedding import OMEGA_WIDTH
from fewstep.models.card import LCM_LORA, StudentCard, read_card
from fewstep.models.codec import Codec
from fewstep.models.conditioner import TextEncoder
from fewstep.models.families import any_step_pipeline
from fewstep.models.families.clip import ClipConditioner
from fewstep.models.families.original_names import former_names, is_unet_alone, original_unet_names
from fewstep.models.families.single_file import check_keys, read_statements
from fewstep.models.families.stable_diffusion_parts import (
    check_parts,
    load_autoencoder,
    load_parts_of_file,
    load_parts_of_folder,
)
from fewstep.models.families.unet import UNetNetwork
from fewstep.models.family import Family, LatentModel, LoraLayout
from fewstep.models.model_files import read_index, read_json
from fewstep.models.model_places import name_model
from fewstep.models.network import BackboneNetwork
from fewstep.models.options import Overrides
from fewstep.models.parts import put
from fewstep.models.scheduler import read_schedule, settle_schedule
from fewstep.precision import Storage

logger = logging.getLogger(__name__)

TEACHER_CLASS, STUDENT_CLASS, XL_CLASS = (
    each.__name__ for each in (StableDiffusionPipeline, LatentConsistencyModelPipeline, StableDiffusionXLPipeline)
)
LORA = LoraLayout(
    part="unet",
    # 278 modules of Stable Diffusion 1.5, 67.25 M parameters at rank 64: what the released LCM-LoRAs adapt.
    targets=(
        "to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2", "conv1", "conv2",
        "conv_shortcut", "downsamplers.0.conv", "upsamplers.0.conv", "time_emb_proj",
    ),
    prefixes={
        "unet": ("lora_unet",), "text_encoder": ("lora_te", "lora_te1"), "text_encoder_2": ("lora_te2",),
    },
    original_names=original_unet_names,
    original_prefixes=("diffusion_model",),
    former_names=former_names,
    embedding_parts={
        "clip_l": "text_encoder", "clip_g": "text_encoder_2", "string_to_param": "text_encoder",
        "emb_params": "text_encoder",
    },
    time_layers=("time_embedding.linear_1", "time_embedding.linear_2"),
)  # fmt: skip
_PARTS = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")
TOKENS = 77
"""Tokens that the released models read."""
_POOLED = 1280
_OF_TWO = "conditioner.embedders.1.model."
"""How the tensors of the second text encoder begin in single files; a stray one of the first makes no other family."""
_MOST_LEVELS = 16
_SCHEDULER = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
_BLOCKS = {"block_out_channels": (320, 640, 1280, 1280), "layers_per_block": 2, "sample_size": 64}
_LARGE = {
    "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
    "projection_dim": 768,
}  # fmt: skip
_HUGE = {
    "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 23, "num_attention_heads": 16,
    "projection_dim": 1024, "hidden_act": "gelu",
}  # fmt: skip
_GIANT = {
    "hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 20,
    "projection_dim": 1280, "hidden_act": "gelu",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class StableDiffusion(Family):
    """One of the three. `unet`, `encoder` and `encoder_2` are the released models' settings."""

    name: str
    title: str
    unet: Mapping[str, Any]
    encoder: Mapping[str, Any]
    encoder_2: Mapping[str, Any] | None = None
    scaling_factor: float = 0.18215
    keys_begin: str
    """How a single file's keys of the (last) text encoder begin; all else is called alike in the three."""
    parts: tuple[str, ...] = _PARTS
    comfyui_loader: str | None = "CheckpointLoaderSimple"
    pipeline_classes: tuple[str, ...] = (TEACHER_CLASS, STUDENT_CLASS)
    kohya_version: str
    released_side: int
    encoder_bytes: int
    released_latent_channels: int = 4
    lora: LoraLayout = LORA

    def recognises(self, network_config: Mapping[str, Any]) -> bool:
        return (
            network_config.get("_class_name") == UNet2DConditionModel.__name__
            and network_config.get("addition_embed_type") == self.unet.get("addition_embed_type")
            and (self.encoder_2 is not None or _is_linear(network_config) == _is_linear(self.unet))
        )

    def recognises_keys(self, keys: Sequence[str], path: Path) -> bool:
        if is_unet_alone(keys):
            raise UserError(
                f"{path} is a UNet alone, without text encoders and autoencoder; give its base as the model, and with "
                f"it --unet {path}"
            )
        has_two = any(key.startswith(_OF_TWO) for key in keys)
        if has_two != bool(self.encoder_2) or not any(key.startswith(self.keys_begin) for key in keys):
            return False
        check_keys(self, keys, path)
        return True

    def describe(self, network_config: Mapping[str, Any]) -> str:
        width = network_config.get("cross_attention_dim")
        return self.title if width == self.unet["cross_attention_dim"] else f"{self.title}'s layout, text {width} wide"

    def is_few_step(self, network_config: Mapping[str, Any]) -> bool:
        return network_config.get("time_cond_proj_dim") is not None

    def read_side(self, network_config: Mapping[str, Any], codec_config: Mapping[str, Any]) -> int:
        blocks, side = codec_config.get("block_out_channels", ()), network_config.get("sample_size", 0)
        if not isinstance(blocks, list | tuple) or len(blocks) > _MOST_LEVELS or not 0 <= _read_whole(side) < 2**16:
            raise UserError(
                f"the model's unet has sample_size {side!r:.60} and its vae block_out_channels {blocks!r:.60}; "
                "expected a number and a list"
            )
        return _read_whole(side) << max(0, len(blocks) - 1)

    def load_folder(
        self, folder: Path, source: str, index: Mapping[str, Any], storage: Storage, overrides: Overrides
    ) -> LatentModel:
        if index.get("requires_aesthetics_score"):
            raise UserError(f"{source} is a refiner, which goes on from another model's pictures; give its base")
        config = read_json(folder / "scheduler" / "scheduler_config.json", f"{source} has no scheduler")
        named = index.get("scheduler") or [None, None]
        config = {"_class_name": named[-1], **config} if isinstance(named, list) and named[-1] else config
        network = Path(overrides.network)
        config = settle_schedule(config, source, overrides, _read_held(network))
        read_schedule(config, source)  # before the weights, which take their time
        card = StudentCard(name=name_model(network)) if overrides.network else read_card(folder)
        parts = load_parts_of_folder(self, folder, source, overrides.network, storage)
        zero_null = bool(self.encoder_2) and bool(index.get("force_zeros_for_empty_prompt", True))
        model = self.assemble(source, parts, config, storage.device, zero_null=zero_null, card=card)
        return model if overrides.network else _recognise_merged(model)

    def load_single_file(self, path: Path, base_config: str, storage: Storage, overrides: Overrides) -> LatentModel:
        parts, folder = load_parts_of_file(self, path, base_config, overrides.network, storage)
        config = read_json(folder / "scheduler" / "scheduler_config.json", f"{folder} has no scheduler")
        config = settle_schedule(config, path, overrides, _read_held(path, Path(overrides.network)))
        index = read_index(folder, folder)
        zero_null = bool(self.encoder_2) and bool(index.get("force_zeros_for_empty_prompt", True))
        return self.assemble(str(path), parts, config, storage.device, zero_null=zero_null)

    def load_codec(self, place: Path, base_config: str, device: torch.device) -> tuple[Codec, int]:
        autoencoder, folder = load_autoencoder(self, place, base_config)
        network = read_json(folder / "unet" / "config.json", f"{place} is not a whole pipeline")
        codec = Codec(autoencoder.to(device, memory_format=torch.channels_last))
        return codec, self.read_side(network, autoencoder.config)

    def assemble(
        self, source: str, parts: Mapping[str, Any], scheduler_config: dict[str, Any], device: torch.device, *,
        zero_null: bool, card: StudentCard | None = None,
    ) -> LatentModel:  # fmt: skip
        """Checks that the parts fit each other, and puts them on `device`."""
        schedule, parameterisation = read_schedule(scheduler_config, source)
        card = card or StudentCard()
        check_parts(self, source, parts, card)
        unet = parts["unet"]
        codec = Codec(parts["vae"].to(device, memory_format=torch.channels_last))
        second = None
        if self.encoder_2:
            second = TextEncoder(parts["tokenizer_2"], parts["text_encoder_2"].to(device))
        network = UNetNetwork(put(unet, device), schedule, parameterisation, codec.multiple)
        network.schedule = schedule.to(device)  # where the network that waits to be filled is not
        return LatentModel(
            source=source,
            family=self,
            network=network,
            codec=codec,
            conditioner=ClipConditioner(
                TextEncoder(parts["tokenizer"], parts["text_encoder"].to(device)), second,
                takes_sizes=second is not None, zero_null=zero_null,
            ),
            scheduler_config=scheduler_config,
            card=card,
        )  # fmt: skip

    def make_pipeline(self, model: LatentModel, network: BackboneNetwork, scheduler: Any) -> Any:
        conditioner = model.conditioner
        assert isinstance(conditioner, ClipConditioner)
        parts = {
            "vae": model.codec.autoencoder, "text_encoder": conditioner.first.network,
            "tokenizer": conditioner.first.tokenizer, "unet": network.backbone, "scheduler": scheduler,
        }  # fmt: skip
        if second := conditioner.second:
            more = {"text_encoder_2": second.network, "tokenizer_2": second.tokenizer}
            return StableDiffusionXLPipeline(**parts, **more, force_zeros_for_empty_prompt=conditioner.zero_null)
        # The pipeline of LCMs works with their scheduler alone; the other takes an input for guidance too.
        is_lcm = network.takes_omega and isinstance(scheduler, LCMScheduler)
        kind = LatentConsistencyModelPipeline if is_lcm else StableDiffusionPipeline
        return kind(**parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False)

    def write_any_step_pipeline(self, network: BackboneNetwork) -> str:  # noqa: ARG002
        code = inspect.getsource(any_step_pipeline)
        kind = StableDiffusionXLPipeline if self.encoder_2 else StableDiffusionPipeline
        return code.replace(StableDiffusionPipeline.__name__, kind.__name__)

    def spec_architecture(self, parameterisation: str) -> str:
        return {
            "sd1": "stable-diffusion-v1", "sdxl": "stable-diffusion-xl-v1-base",
            "sd2": "stable-diffusion-v2-768-v" if parameterisation == "v_prediction" else "stable-diffusion-v2-512",
        }[self.name]  # fmt: skip

    def spec_prediction(self, parameterisation: str) -> str:
        return {"v_prediction": "v", "epsilon": "epsilon", "sample": "sample"}[parameterisation]

    def kohya_header(self) -> dict[str, str]:
        return {"ss_base_model_version": self.kohya_version, "ss_v2": str(self is SD2)}

    def random_model(self, device: torch.device, *, few_step: bool = False, side: int = 0) -> LatentModel:
        changes = _few_step(few_step=few_step) | ({"sample_size": side // 8} if side else {})
        tokenizer = CLIPTokenizer.from_pretrained(assets.scenes_teacher() / "tokenizer", model_max_length=TOKENS)
        with device:  # numbers for billions of weights are drawn in seconds there
            parts: dict[str, Any] = {
                "unet": UNet2DConditionModel(**{**self.unet, **changes}), "vae": self.random_autoencoder(),
                "text_encoder": CLIPTextModel(_make_clip(self.encoder)), "tokenizer": tokenizer,
            }  # fmt: skip
            if self.encoder_2:
                second = CLIPTextModelWithProjection(_make_clip(self.encoder_2))
                parts |= {"text_encoder_2": second, "tokenizer_2": tokenizer}
        for part in parts.values():
            if isinstance(part, nn.Module):
                part.eval().requires_grad_(False)
        return self.assemble("random weights", parts, dict(_SCHEDULER), device, zero_null=self.encoder_2 is not None)

    def random_autoencoder(self) -> AutoencoderKL:
        """Makes the autoencoder that all three share but for its scale."""
        return AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(128, 256, 512, 512), layers_per_block=2, latent_channels=4, sample_size=512,
            scaling_factor=self.scaling_factor,
        )  # fmt: skip

    def shaped_network(self, *, few_step: bool = False) -> UNetNetwork:
        schedule = Tabulated.from_config({})
        with torch.device("meta"):
            unet = UNet2DConditionModel(**{**self.unet, **_few_step(few_step=few_step)})
            network = UNetNetwork(unet, schedule, "epsilon")
        network.schedule = schedule  # not on the meta device
        return network.requires_grad_(False)

    def shaped_condition(self, batch: int) -> Cond:
        text = {"text": torch.randn(batch, TOKENS, int(self.unet["cross_attention_dim"]))}
        return text | ({"pooled": torch.randn(batch, _POOLED)} if self.encoder_2 else {})


def _recognise_merged(model: LatentModel) -> LatentModel:
    """Returns a model with an LCM's scheduler and no input for guidance as the few-step model that it is: an LCM, or an
    LCM-LoRA merged into its base."""
    is_lcm = model.scheduler_config.get("_class_name") == LCMScheduler.__name__
    if not is_lcm or model.network.takes_omega or model.card.method is not None:
        return model
    logger.info(
        f"note: {model.source} has an {LCMScheduler.__name__} and no input for guidance; it is taken for a few-step "
        "model with guidance built in"
    )
    scale = model.family.guidance_of(0.0)
    return dataclasses.replace(model, card=dataclasses.replace(model.card, method=LCM_LORA, guidance_scale=scale))


def _read_held(*paths: Path) -> dict[str, Any] | None:
    """Returns what those of these that are files say of a schedule, the last over the others; None of no file."""
    files = [path for path in paths if path.is_file()]
    said = (read_statements(read_safetensors_header(path)) for path in files)
    return {name: value for each in said for name, value in each.items()} if files else None


def _read_whole(value: object) -> int:
    """Returns a whole number of a configuration; −1 for anything else."""
    return value if type(value) is int else -1


def _is_linear(config: Mapping[str, Any]) -> bool:
    return bool(config.get("use_linear_projection"))


def _few_step(*, few_step: bool) -> dict[str, Any]:
    return {"time_cond_proj_dim": OMEGA_WIDTH} if few_step else {}


def _make_clip(size: Mapping[str, Any]) -> CLIPTextConfig:
    return CLIPTextConfig(vocab_size=49408, max_position_embeddings=TOKENS, **size)


SD1 = StableDiffusion(
    name="sd1", title="Stable Diffusion 1.x", encoder=_LARGE, keys_begin="cond_stage_model.transformer.",
    unet=_BLOCKS | {"cross_attention_dim": 768, "attention_head_dim": 8},
    kohya_version="sd_v1", released_side=512, encoder_bytes=int(0.8 * 2**30),
)  # fmt: skip
SD2 = StableDiffusion(
    name="sd2", title="Stable Diffusion 2.x", encoder=_HUGE, keys_begin="cond_stage_model.model.",
    unet=_BLOCKS
    | {"cross_attention_dim": 1024, "attention_head_dim": (5, 10, 20, 20), "use_linear_projection": True},
    kohya_version="sd_v2", released_side=768, encoder_bytes=int(1.6 * 2**30),
)  # fmt: skip
SDXL = StableDiffusion(
    name="sdxl", title="Stable Diffusion XL", encoder=_LARGE, encoder_2=_GIANT,
    keys_begin=_OF_TWO, scaling_factor=0.13025, pipeline_classes=(XL_CLASS,),
    parts=(*_PARTS, "text_encoder_2", "tokenizer_2"),
    unet={
        "block_out_channels": (320, 640, 1280), "layers_per_block": 2, "sample_size": 128, "cross_attention_dim": 2048,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "attention_head_dim": (5, 10, 20), "transformer_layers_per_block": (1, 2, 10), "use_linear_projection": True,
        "addition_embed_type": "text_time", "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    },
    kohya_version="sdxl_base_v1-0", released_side=1024, encoder_bytes=int(3.4 * 2**30),
)  # fmt: skip
FAMILIES = {family.name: family for family in (SD1, SD2, SDXL)}
