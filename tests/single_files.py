"""A pipeline's weights under the names of Stability's own code, as single-file checkpoints have them."""

from __future__ import annotations

import re
from pathlib import Path

import safetensors.torch
import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn

from fewstep.models.families.original_names import original_unet_names


def _vae_name(name: str, blocks: int) -> str:
    name = re.sub(r"down_blocks\.(\d)\.resnets\.(\d)", r"down.\1.block.\2", name)
    name = re.sub(r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample", name)
    name = re.sub(r"up_blocks\.(\d)\.resnets\.(\d)", lambda m: f"up.{blocks - 1 - int(m[1])}.block.{m[2]}", name)
    name = re.sub(r"up_blocks\.(\d)\.upsamplers\.0", lambda m: f"up.{blocks - 1 - int(m[1])}.upsample", name)
    name = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", name)
    name = name.replace("mid_block.attentions.0", "mid.attn_1").replace("conv_norm_out", "norm_out")
    for ours, theirs in {
        "group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out",
        "conv_shortcut": "nin_shortcut",
    }.items():  # fmt: skip
        name = name.replace(f".{ours}.", f".{theirs}.")
    return name


def _clip(encoder: nn.Module) -> dict[str, Tensor]:
    """With the names that released files have, whatever transformers calls the modules."""
    return {
        name if name.startswith(("text_model.", "text_projection")) else f"text_model.{name}": value
        for name, value in encoder.state_dict().items()
    }


def _open_clip(encoder: nn.Module) -> dict[str, Tensor]:
    """OpenCLIP's names, with query, key and value in one."""
    found: dict[str, Tensor] = {}
    for spelt_out, value in _clip(encoder).items():
        name = spelt_out.removeprefix("text_model.")
        if name == "text_projection.weight":
            found["text_projection"] = value.T.contiguous()
        elif name.startswith("embeddings.token"):
            found["token_embedding.weight"] = value
        elif name.startswith("embeddings.position_embedding"):
            found["positional_embedding"] = value
        elif name.startswith("final_layer_norm"):
            found[name.replace("final_layer_norm", "ln_final")] = value
        elif match := re.match(r"encoder\.layers\.(\d)\.(.*)\.(weight|bias)", name):
            layer, module, end = match.groups()
            block = f"transformer.resblocks.{layer}"
            if module == "self_attn.q_proj":
                three = [name.replace("q_proj", each) for each in ("q_proj", "k_proj", "v_proj")]
                state = {key.removeprefix("text_model."): each for key, each in _clip(encoder).items()}
                found[f"{block}.attn.in_proj_{end}"] = torch.cat([state[each] for each in three])
            elif module not in ("self_attn.k_proj", "self_attn.v_proj"):
                spelt = {
                    "layer_norm1": "ln_1", "layer_norm2": "ln_2", "self_attn.out_proj": "attn.out_proj",
                    "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj",
                }[module]  # fmt: skip
                found[f"{block}.{spelt}.{end}"] = value
    return found


def save_single_file(family: str, folder: Path, file: Path) -> Path:
    """Writes the pipeline in `folder` as one file."""
    pipe = DiffusionPipeline.from_pretrained(folder)
    names = original_unet_names(name for name, _ in pipe.unet.named_modules())
    tensors = {}
    for name, value in pipe.unet.state_dict().items():
        module, end = name.rsplit(".", 1)
        tensors[f"model.diffusion_model.{names[module]}.{end}"] = value
    blocks = len(pipe.vae.config.block_out_channels)
    for name, value in pipe.vae.state_dict().items():
        attention = "attentions" in name and name.endswith("weight") and value.ndim == 2
        tensors[f"first_stage_model.{_vae_name(name, blocks)}"] = value[..., None, None] if attention else value
    if family == "sdxl":
        tensors |= {f"conditioner.embedders.0.transformer.{n}": v for n, v in _clip(pipe.text_encoder).items()}
        tensors |= {f"conditioner.embedders.1.model.{n}": v for n, v in _open_clip(pipe.text_encoder_2).items()}
    elif family.startswith("sd21"):
        tensors |= {f"cond_stage_model.model.{n}": v for n, v in _open_clip(pipe.text_encoder).items()}
    else:
        tensors |= {f"cond_stage_model.transformer.{n}": v for n, v in _clip(pipe.text_encoder).items()}
    safetensors.torch.save_file({name: value.contiguous() for name, value in tensors.items()}, file)
    return file
