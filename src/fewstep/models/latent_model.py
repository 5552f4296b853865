"""A latent diffusion model in Stable Diffusion's layout, loaded from a diffusers folder, the Hub, or a single file."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import torch
from diffusers import AutoencoderKL, AutoencoderTiny, UNet2DConditionModel
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from fewstep import assets
from fewstep.diffusion.prediction import Cond, Parameterisation
from fewstep.diffusion.schedule import Schedule, ScheduleError
from fewstep.errors import UserError
from fewstep.models.families import Family, family_of
from fewstep.models.network import UNetNetwork
from fewstep.models.single_file import load_single_file

TEACHER_CLASS = "StableDiffusionPipeline"
STUDENT_CLASS = "LatentConsistencyModelPipeline"
XL_CLASS = "StableDiffusionXLPipeline"
_PARTS = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")
PIXELS_AT_ONCE = 2**20
"""What the autoencoder sees together: one picture of 1024 pixels' side, or four of 512; gigabytes of activations."""
_XL_PARTS = (*_PARTS, "text_encoder_2", "tokenizer_2")


_TOKENIZING = threading.Lock()
"""A fast tokenizer remembers the last padding and truncation that it was called with, for all threads."""


@dataclass(frozen=True)
class LatentModel:
    """A teacher, or a student that fewstep or another wrote; `network` tells which by its ω input."""

    source: str
    """Folder, Hub id or single file that it was loaded from."""
    network: UNetNetwork
    vae: AutoencoderKL
    text_encoder: CLIPTextModel
    tokenizer: CLIPTokenizer
    scheduler_config: dict[str, Any]
    details: dict[str, Any]
    """What fewstep recorded of a student (`fewstep.json`); empty for other models."""
    text_encoder_2: CLIPTextModelWithProjection | None = None
    """Stable Diffusion XL's second text encoder, which also gives the pooled embedding."""
    tokenizer_2: CLIPTokenizer | None = None
    tiny_decoder: AutoencoderTiny | None = None
    """Decodes in the autoencoder's place, faster and less exactly; its own scale counts."""
    zero_null_cond: bool = False
    """Whether the condition of guidance's other half is all zeros, as Stable Diffusion XL wants it."""

    @property
    def device(self) -> torch.device:
        device: torch.device = self.network.unet.device
        return device

    @property
    def parts(self) -> dict[str, nn.Module]:
        """What LoRA files may adapt, under the names that they use."""
        second = {} if self.text_encoder_2 is None else {"text_encoder_2": self.text_encoder_2}
        return {"unet": self.network.unet, "text_encoder": self.text_encoder, **second}

    @property
    def schedule(self) -> Schedule:
        return self.network.schedule

    @property
    def family(self) -> Family:
        return family_of(self.network.unet.config)

    @property
    def resolution(self) -> int:
        """Side in pixels of the pictures that the model was trained on."""
        return int(self.network.unet.config.sample_size) * self.pixels_per_latent

    @property
    def pixels_per_latent(self) -> int:
        return int(2 ** (len(self.vae.config.block_out_channels) - 1))

    def latent_shape(self, resolution: int) -> tuple[int, int, int]:
        side = resolution // self.pixels_per_latent
        return (int(self.network.unet.config.in_channels), side, side)

    @torch.no_grad()
    def encode_text(self, prompts: Sequence[str]) -> Cond:
        """`{"text": [b, tokens, width]}`, for Stable Diffusion XL `"pooled": [b, width]` too; what does not fit is cut
        off."""
        with torch.autocast(self.device.type, enabled=False):
            first = self._run_encoder(self.tokenizer, self.text_encoder, prompts)
            if self.text_encoder_2 is None:
                return {"text": first[0]}
            second = self._run_encoder(self.tokenizer_2, self.text_encoder_2, prompts)
            text = torch.cat([first.hidden_states[-2], second.hidden_states[-2]], dim=-1)
            return {"text": text, "pooled": second.text_embeds}

    def _run_encoder(self, tokenizer: Any, encoder: Any, prompts: Sequence[str]) -> Any:
        with _TOKENIZING:
            tokens = tokenizer(list(prompts), padding="max_length", truncation=True, return_tensors="pt")
        tokens = tokens.to(self.device)
        # The few text encoders that want a mask say so, as diffusers has it.
        mask = tokens.attention_mask if getattr(encoder.config, "use_attention_mask", False) else None
        return encoder(tokens.input_ids, attention_mask=mask, output_hidden_states=self.text_encoder_2 is not None)

    def null_cond(self) -> Cond:
        """∅, batch of one: what guidance leads away from."""
        cond = self.encode_text([""])
        return {name: torch.zeros_like(value) for name, value in cond.items()} if self.zero_null_cond else cond

    def truncated(self, prompt: str) -> bool:
        """Whether the text encoder cannot see the end of `prompt`."""
        with _TOKENIZING:
            return bool(len(self.tokenizer(prompt).input_ids) > self.tokenizer.model_max_length)

    @torch.no_grad()
    def encode_pixels(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the scaled latents of `[b, 3, h, w]` in [−1, 1]."""
        together = max(1, PIXELS_AT_ONCE // pixels[0, 0].numel())
        means, stds = [], []
        for part in pixels.split(together):
            given = part.to(self.device).contiguous(memory_format=torch.channels_last)
            with torch.autocast(self.device.type, enabled=False):
                posterior = self.vae.encode(given).latent_dist
            means.append(posterior.mean)
            stds.append(posterior.std)
        scale = self.vae.config.scaling_factor
        return (torch.cat(means) * scale).contiguous(), (torch.cat(stds) * scale).contiguous()

    @torch.no_grad()
    def decode(self, z_0: Tensor) -> Tensor:
        """Pixels `[b, 3, h, w]` from scaled latents."""
        decoder = self.tiny_decoder or self.vae
        z = (z_0 / decoder.config.scaling_factor).to(decoder.dtype)
        together = max(1, PIXELS_AT_ONCE // (z[0, 0].numel() * self.pixels_per_latent**2))
        parts = [part.contiguous(memory_format=torch.channels_last) for part in z.split(together)]
        return torch.cat([decoder.decode(part).sample.float() for part in parts])


def pick_device(name: str = "auto") -> torch.device:
    """The named device, or the best there is."""
    if name != "auto":
        try:
            device = torch.empty(0, device=name).device
            if device.type in ("cpu", "cuda", "mps"):
                return device
            raise RuntimeError(device.type)
        except (RuntimeError, AssertionError) as error:
            raise UserError(f"device {name!r} cannot be used here; allowed are auto, cpu, cuda, mps") from error
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def load_latent_model(source: str | Path, device: torch.device, base_config: str = "") -> LatentModel:
    """Loads every part in fp32 on `device`, frozen; raises UserError naming what is missing or not known.

    `source` is `scenes` or `scenes-lcm` (bundled), a diffusers folder, a Hub id or a single-file checkpoint, for which
    `base_config` may be a folder with the family's configurations and tokenizers.
    """
    source = assets.find_folder(source)
    if Path(source).is_file():
        return _from_single_file(Path(source), device, base_config)
    if base_config:
        if not Path(source).exists():
            raise UserError(f"{source} is not there; a base that a LoRA names is looked for from where you are")
        raise UserError(f"{source} is no single file and has its own configurations; leave --base-config out")
    folder = _local_folder(source)
    index = _read_json(folder / "model_index.json", f"{source} is not a pipeline")
    kind = index.get("_class_name")
    if kind not in (TEACHER_CLASS, STUDENT_CLASS, XL_CLASS):
        raise UserError(f"{source} holds a {kind}; known are {TEACHER_CLASS}, {STUDENT_CLASS} and {XL_CLASS}")
    xl = kind == XL_CLASS
    places = {part: assets.find_part(folder, part) for part in _XL_PARTS}
    for part in _XL_PARTS if xl else _PARTS:
        if not places[part].is_dir():
            raise UserError(f"{source} is not a whole pipeline: it has no folder {part}/")
    scheduler_config = _read_json(folder / "scheduler" / "scheduler_config.json", f"{source} has no scheduler")
    _read_schedule(scheduler_config, source)  # before the weights, which take their time
    details_file = folder / "fewstep.json"
    parts = {
        "unet": _load_part(UNet2DConditionModel, places["unet"]),
        "vae": _load_part(AutoencoderKL, places["vae"]),
        "text_encoder": _load_part(CLIPTextModel, places["text_encoder"]),
        "tokenizer": _load_tokenizer(places["tokenizer"]),
        "text_encoder_2": _load_part(CLIPTextModelWithProjection, places["text_encoder_2"]) if xl else None,
        "tokenizer_2": _load_tokenizer(places["tokenizer_2"]) if xl else None,
    }
    details = _read_json(details_file, f"{source} cannot be read") if details_file.exists() else {}
    zero_null_cond = xl and bool(index.get("force_zeros_for_empty_prompt", True))
    return assemble(source, parts, scheduler_config, device, details=details, zero_null_cond=zero_null_cond)


def _from_single_file(path: Path, device: torch.device, base_config: str) -> LatentModel:
    pipeline = load_single_file(path, base_config)
    zero_null_cond = bool(pipeline.config.get("force_zeros_for_empty_prompt", False))
    scheduler_config = {**pipeline.scheduler.config, "_class_name": type(pipeline.scheduler).__name__}
    parts = dict(pipeline.components)
    for name in ("unet", "vae", "text_encoder", "text_encoder_2"):
        if parts.get(name) is not None:
            parts[name] = parts[name].eval().requires_grad_(False)
    return assemble(path, parts, scheduler_config, device, details={}, zero_null_cond=zero_null_cond)


def assemble(
    source: str | Path, parts: dict[str, Any], scheduler_config: dict[str, Any], device: torch.device, *,
    details: dict[str, Any], zero_null_cond: bool,
) -> LatentModel:  # fmt: skip
    """Checks that the parts fit each other, and puts them on `device`."""
    schedule, parameterisation = _read_schedule(scheduler_config, source)
    unet, vae = parts["unet"], parts["vae"]
    if not isinstance(unet.config.sample_size, int):
        raise UserError(
            f"{source} has sample_size {unet.config.sample_size} in unet/config.json; square models are read"
        )
    if unet.config.in_channels != vae.config.latent_channels:
        raise UserError(
            f"{source} has a UNet of {unet.config.in_channels} input channels and latents of "
            f"{vae.config.latent_channels}: inpainting and upscaling models are not read; give a text-to-image model"
        )
    encoder_2 = parts.get("text_encoder_2")
    pixels_per_latent = 2 ** (len(vae.config.block_out_channels) - 1)
    return LatentModel(
        source=str(source),
        network=UNetNetwork(unet.to(device), schedule, parameterisation, pixels_per_latent),
        vae=vae.to(device, memory_format=torch.channels_last),
        text_encoder=parts["text_encoder"].to(device),
        tokenizer=parts["tokenizer"],
        scheduler_config=scheduler_config,
        details=details,
        text_encoder_2=None if encoder_2 is None else encoder_2.to(device),
        tokenizer_2=parts.get("tokenizer_2"),
        zero_null_cond=zero_null_cond,
    )


def _local_folder(source: str | Path) -> Path:
    folder = Path(source)
    if folder.is_dir():
        return folder
    looks_like_hub_id = str(source).count("/") == 1 and not str(source).startswith((".", "/", "~"))
    if not looks_like_hub_id:
        raise UserError(
            f"{source} is neither a folder nor a file; give a diffusers folder (with model_index.json), a single-file "
            f".safetensors checkpoint, a Hub id, or the name of a bundled model: {' or '.join(assets.MODELS)}"
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        patterns = [
            "model_index.json",
            "fewstep.json",
            *(f"{part}/*{end}" for part in _XL_PARTS for end in (".json", ".safetensors", ".txt")),
        ]
        return Path(snapshot_download(str(source), allow_patterns=patterns))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise UserError(
            f"{source} is no folder here and could not be fetched from the Hub ({type(error).__name__}); "
            "check the name and the connection, or give a diffusers folder"
        ) from error


def _read_json(path: Path, otherwise: str) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise UserError(f"{otherwise}: {path.name} is missing") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{otherwise}: {path.name} cannot be read ({str(error).splitlines()[0]})") from error
    if not isinstance(content, dict):
        raise UserError(f"{otherwise}: {path.name} is not a JSON object")
    return content


def _read_schedule(config: dict[str, Any], source: str | Path) -> tuple[Schedule, Parameterisation]:
    parameterisation = config.get("prediction_type", "epsilon")
    if parameterisation not in get_args(Parameterisation):
        allowed = ", ".join(get_args(Parameterisation))
        raise UserError(f"{source} has prediction_type {parameterisation!r}; known are {allowed}")
    try:
        schedule = Schedule.from_config(config)
    except (ScheduleError, TypeError, ValueError, IndexError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{source} has no usable noise schedule in scheduler_config.json: {reason}") from error
    if not len(schedule.alphas) or not (schedule.alphas.isfinite().all() and (schedule.alphas.diff() < 0).all()):
        raise UserError(f"{source} has no usable noise schedule in scheduler_config.json: its betas are out of range")
    if schedule.has_zero_terminal_snr and parameterisation == "epsilon":
        raise UserError(
            f"{source} has zero-terminal SNR with epsilon-prediction, which has no answer at pure noise; "
            "use a v_prediction model, or its scheduler without rescale_betas_zero_snr"
        )
    return schedule, parameterisation


def _load_part(kind: Any, folder: Path) -> Any:
    weights = sorted(path.name for path in folder.iterdir() if path.suffix in (".safetensors", ".bin", ".ckpt", ".pt"))
    safe = [name for name in weights if name.endswith(".safetensors")]
    if not safe:
        found = f"found {', '.join(weights)}, a pickle" if weights else "found none"
        raise UserError(f"{folder} has no safetensors weights ({found}); only safetensors are read, convert them first")
    variant = None if any(".fp16." not in name for name in safe) else "fp16"
    try:
        part = kind.from_pretrained(folder, torch_dtype=torch.float32, use_safetensors=True, variant=variant)
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, SafetensorError) as error:
        raise _not_loaded(folder, kind, error) from error
    return part.eval().requires_grad_(False)


def _load_tokenizer(folder: Path) -> CLIPTokenizer:
    try:
        return CLIPTokenizer.from_pretrained(folder)
    except Exception as error:  # tokenizers raises bare Exception for a broken file
        raise _not_loaded(folder, CLIPTokenizer, error) from error


def _not_loaded(folder: Path, kind: type, error: Exception) -> UserError:
    reason = " ".join(str(error).split())[:200]
    return UserError(f"{folder} cannot be loaded as {kind.__name__}: {reason}")
