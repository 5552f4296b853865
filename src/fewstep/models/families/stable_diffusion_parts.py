"""The parts of a Stable Diffusion model, out of folders and single files, and whether they fit each other."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, StableDiffusionXLPipeline, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from fewstep import assets
from fewstep.errors import UserError
from fewstep.files import read_safetensors_header
from fewstep.models.card import LCM_LORA, StudentCard
from fewstep.models.config_sizes import check_layers
from fewstep.models.families.original_names import (
    open_clip_names,
    original_clip_names,
    original_unet_names,
    original_vae_names,
)
from fewstep.models.families.original_transformers import make_shaped
from fewstep.models.families.single_file import (
    AUTOENCODER,
    NETWORK,
    check_tensors,
    find_configurations,
    holds_average,
    load_average_of_file,
    load_part_of_file,
    load_pipeline_of_file,
)
from fewstep.models.families.unet import AS_TIMES
from fewstep.models.families.unet_file import load_unet_of_file
from fewstep.models.family import Family
from fewstep.models.hub import fetch_network
from fewstep.models.model_files import is_hub_id, read_json, stage_configurations
from fewstep.models.model_places import find_snapshot
from fewstep.models.parts import check_tokenizer, load_tokenizer, load_weights
from fewstep.models.weight_files import check_floats
from fewstep.precision import Storage

_CLIP = {"cond_stage_model.transformer.": "text_encoder", "conditioner.embedders.0.transformer.": "text_encoder"}
_OPEN_CLIP = {"cond_stage_model.model.": "text_encoder", "conditioner.embedders.1.model.": "text_encoder_2"}
"""How the tensors of text encoders begin in single files."""
_KINDS = {"text_encoder": CLIPTextModel, "text_encoder_2": CLIPTextModelWithProjection}


def load_parts_of_folder(family: Family, folder: Path, source: str, network: str, storage: Storage) -> dict[str, Any]:
    """Loads every part of a folder but its scheduler; `network` names a UNet that stands in for its own."""
    skipped = {family.lora.part} if network else set()
    places = {part: assets.find_part(folder, part) for part in family.parts if part not in skipped}
    for part, place in places.items():
        if not place.is_dir():
            raise UserError(f"{source} is not a whole pipeline: it has no folder {part}/")
    parts: dict[str, Any] = {
        "unet": load_network(family, network, folder, storage)
        if network
        else load_weights(UNet2DConditionModel, places["unet"], storage.dtype, shaped=storage.shaped),
        "vae": load_weights(AutoencoderKL, places["vae"], choose_codec_dtype(places["vae"], storage)),
    }
    for encoder in (name for name in _KINDS if name in places):
        tokenizer = encoder.replace("text_encoder", "tokenizer")
        parts[encoder] = load_weights(_KINDS[encoder], places[encoder], storage.dtype)
        parts[tokenizer] = load_tokenizer(CLIPTokenizer, places[tokenizer])
        check_tokenizer(parts[tokenizer], parts[encoder].config, str(places[tokenizer]))
    return parts


def choose_codec_dtype(folder: Path, storage: Storage) -> torch.dtype:
    """Returns what an autoencoder is kept in: fp32 where its config.json says `force_upcast`, which diffusers takes for
    granted where nothing is said."""
    config = read_json(folder / "config.json", f"{folder} is not an autoencoder")
    return torch.float32 if config.get("force_upcast", True) else storage.codec_dtype


def load_autoencoder(family: Family, place: Path, base_config: str) -> tuple[Any, Path]:
    """Loads an autoencoder alone, in fp32, and returns the folder of the model's configurations with it."""
    if place.is_file():
        folder = find_configurations(family, base_config, read_safetensors_header(place), place)
        check_floats(place)
        vae = load_part_of_file(family, place, folder / "vae", AutoencoderKL, torch.float32)
        vae.eval().requires_grad_(False)
    else:
        folder, vae = place, load_weights(AutoencoderKL, assets.find_part(place, "vae"))
    _check_latents(str(place), vae.config, is_xl="text_encoder_2" in family.parts)
    return vae, folder


def load_network(family: Family, source: str, base: Path, storage: Storage) -> Any:
    """Loads a UNet that is a repository of its own, a folder, a Hub id, or a file that the folder `base` describes.
    Raises UserError."""
    folder = Path(source)
    if folder.is_file():
        return load_unet_of_file(family, folder, base, storage)
    if not folder.is_dir():
        if not is_hub_id(source):
            raise UserError(f"{source} is neither a file nor a folder nor a Hub id; --unet wants one that holds a UNet")
        folder = fetch_network(source)
    folder = find_snapshot(folder)
    folder = folder if (folder / "config.json").is_file() else folder / "unet"
    config = read_json(folder / "config.json", f"{source} holds no UNet")
    if not family.recognises(config):
        raise UserError(f"{source} holds no UNet of {family.title}, as its base is ({config.get('_class_name')})")
    return load_weights(UNet2DConditionModel, folder, storage.dtype, shaped=storage.shaped)


def load_parts_of_file(
    family: Family, path: Path, base_config: str, network: str, storage: Storage
) -> tuple[dict[str, Any], Path]:
    """Loads every part of a single file, and returns the folder of its configurations with them."""
    header = read_safetensors_header(path)
    folder = find_configurations(family, base_config, header, path)
    wanted = _wanted(family, folder, list(header.shapes))
    check_tensors(path, family, header.shapes, wanted)
    check_floats(path)
    has_two = "text_encoder_2" in family.parts
    kind: Any = StableDiffusionXLPipeline if has_two else StableDiffusionPipeline
    given: dict[str, Any] = {} if has_two else {"safety_checker": None, "feature_extractor": None}
    if network:
        given["unet"] = load_network(family, network, folder, storage)
    elif holds_average(header):
        given["unet"] = load_average_of_file(family, path, folder, UNet2DConditionModel, storage.dtype)
    if (dtype := choose_codec_dtype(folder / "vae", storage)) != storage.dtype:
        given["vae"] = load_part_of_file(family, path, folder / "vae", AutoencoderKL, dtype)
    pipeline = load_pipeline_of_file(family, path, folder, kind, torch_dtype=storage.dtype, **given)
    parts = {name: part for name, part in pipeline.components.items() if part is not None}
    for part in parts.values():
        if isinstance(part, nn.Module):
            part.eval().requires_grad_(False)
    for encoder in (name for name in _KINDS if name in family.parts):
        tokenizer = encoder.replace("text_encoder", "tokenizer")
        check_tokenizer(parts[tokenizer], parts[encoder].config, str(folder / tokenizer))
    return parts, folder


def _wanted(family: Family, folder: Path, keys: list[str]) -> dict[str, set[str]]:
    """Returns what a file's tensors should be called, as its configurations describe them, by how they begin."""
    unet = _make_shaped(UNet2DConditionModel, folder / "unet")
    vae = _make_shaped(AutoencoderKL, folder / "vae")
    originals = original_unet_names(name for name, _ in unet.named_modules())
    named = (name.rpartition(".") for name in unet.state_dict())
    wanted = {
        NETWORK: {f"{originals.get(module, module)}.{end}" for module, _, end in named},
        AUTOENCODER: original_vae_names(vae.state_dict(), len(vae.config.block_out_channels)),
    }
    spelt: list[tuple[Mapping[str, str], Callable[[list[str], list[str]], set[str]]]] = [
        (_CLIP, original_clip_names), (_OPEN_CLIP, lambda tensors, _: open_clip_names(tensors)),
    ]  # fmt: skip
    has_two = "text_encoder_2" in family.parts
    for begins, name_in in spelt:
        for begin, part in begins.items():
            held = [key for key in keys if key.startswith(begin)]
            if held and part in family.parts and begin.startswith("conditioner.") == has_two:
                wanted[begin] = name_in(_name_text_tensors(part, folder), held)
    return wanted


def _make_shaped(kind: Any, folder: Path) -> Any:
    place = folder / "config.json"
    return make_shaped(kind, read_json(place, f"{folder} has no readable configuration"), place)


def _name_text_tensors(part: str, folder: Path) -> list[str]:
    check_layers(read_json(folder / part / "config.json", f"{folder / part} is not a text encoder"), folder / part)
    try:
        with tempfile.TemporaryDirectory() as place:
            stage_configurations(folder, (part,), Path(place))
            config = CLIPTextConfig.from_pretrained(Path(place) / part)
        with torch.device("meta"):
            return list(_KINDS[part](config).state_dict())
    except UserError:
        raise
    except Exception as error:  # as above
        reason = " ".join(str(error).split())[:100]
        raise UserError(f"{folder / part}/config.json describes no text encoder ({reason})") from error


_MOST_SIDE = 2**12


def check_parts(family: Family, source: str, parts: Mapping[str, Any], card: StudentCard) -> None:
    """Raises UserError where the parts do not fit each other, or make a model that is told more than a prompt."""
    unet, vae = parts["unet"].config, parts["vae"].config
    if not (type(unet.sample_size) is int and 0 < unet.sample_size < _MOST_SIDE):
        raise UserError(
            f"{source} has sample_size {unet.sample_size!r:.60} in unet/config.json; square models are read, of less "
            f"than {_MOST_SIDE:,} latents a side"
        )
    if unet.in_channels != vae.latent_channels:
        raise UserError(
            f"{source} has a UNet of {unet.in_channels} input channels and latents of {vae.latent_channels}: "
            "inpainting, editing (pix2pix) and upscaling models are not read; give a text-to-image model"
        )
    if unet.out_channels != unet.in_channels:
        raise UserError(f"{source} has a UNet of {unet.out_channels} output channels for {unet.in_channels}; not read")
    for name in ("class_embed_type", "num_class_embeds", "encoder_hid_dim_type"):
        few_step = unet.get("time_cond_proj_dim") is not None or card.method == LCM_LORA
        told_end = few_step and unet.get(name) == AS_TIMES  # as fewstep's any-step is
        if unet.get(name) is not None and not told_end:
            raise UserError(f"{source} has a UNet with {name} {unet[name]}, which is told more than a prompt; not read")
    widths = [parts[name].config.hidden_size for name in _KINDS if name in family.parts]
    if isinstance(unet.cross_attention_dim, int) and unet.cross_attention_dim != sum(widths):
        raise UserError(
            f"{source} has a UNet for text {unet.cross_attention_dim} wide and text encoders of "
            f"{' + '.join(map(str, widths))}; they are of different models"
        )
    _check_latents(source, vae, is_xl="text_encoder_2" in family.parts)


def _check_latents(source: str, vae: Any, *, is_xl: bool) -> None:
    mean, std = vae.get("latents_mean"), vae.get("latents_std")
    if mean is None and std is None:
        return
    for name, value in (("latents_mean", mean), ("latents_std", std)):
        if not isinstance(value, list | tuple) or len(value) != vae.latent_channels:
            raise UserError(
                f"{source} has {name} {value!r} in vae/config.json; expected {vae.latent_channels} numbers, as for "
                "the other of latents_mean and latents_std"
            )
    if not is_xl:
        raise UserError(
            f"{source} has latents_mean in vae/config.json, which Stable Diffusion 1.x and 2.x pipelines ignore; "
            "take it out if the UNet was trained without it"
        )
