"""What Stability's own code, and diffusers before, call the modules of a UNet and its text encoders."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable

_RESNET = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0",
    "conv2": "out_layers.3", "conv_shortcut": "skip_connection",
}  # fmt: skip
_ENDS = {
    "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2", "conv_in": "input_blocks.0.0",
    "add_embedding.linear_1": "label_emb.0.0", "add_embedding.linear_2": "label_emb.0.2", "conv_norm_out": "out.0",
    "conv_out": "out.2",
}  # fmt: skip
_MIDDLE = re.compile(r"mid_block\.(resnets|attentions)\.(\d+)\.(.+)")
_BLOCK = re.compile(r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.+)")

_PROCESSED = re.compile(r"(.+\.attn\d)\.(to_q|to_k|to_v|to_out\.0)")
_PROJECTED = re.compile(r"(.+\.self_attn)\.(q|k|v|out)_proj")


def former_names(part: str, module: str) -> tuple[str, ...]:
    """Returns how diffusers wrote a module that is in attention: as its processor's, or by another name."""
    if part == "unet" and (found := _PROCESSED.fullmatch(module)):
        place = found[2].removesuffix(".0")
        return tuple(dict.fromkeys((f"{found[1]}.processor.{place}", f"{found[1]}.{place}")))
    if part != "unet" and (found := _PROJECTED.fullmatch(module)):
        return (f"{found[1]}.to_{found[2]}",)
    return ()


def original_unet_names(modules: Iterable[str]) -> dict[str, str]:
    """Maps diffusers' names of a whole UNet's modules to the original's; what the original does not have is left out.

    The original numbers blocks through: first convolution, then for every level its layers and its down-sampler.
    """
    modules = list(modules)
    levels = [found for name in modules if (found := _BLOCK.fullmatch(name))]
    per_level = 2 + max((int(m[4]) for m in levels if m[1] == "down" and m[3] == "resnets"), default=0)
    with_attention = {m[2] for m in levels if m[1] == "up" and m[3] == "attentions"}
    spelt = {name: _name_original(name, per_level, with_attention) for name in modules}
    return {name: theirs for name, theirs in spelt.items() if theirs}


def _name_original(name: str, per_level: int, with_attention: set[str]) -> str | None:
    if name in _ENDS:
        return _ENDS[name]
    if found := _MIDDLE.fullmatch(name):
        kind, place, rest = found.groups()
        return f"middle_block.{1 if kind == 'attentions' else 2 * int(place)}.{_name_inside(kind, rest)}"
    if not (found := _BLOCK.fullmatch(name)):
        return None
    side, level, kind, place, rest = found.groups()
    number = int(level) * per_level + int(place)
    if kind == "downsamplers":
        return f"input_blocks.{(int(level) + 1) * per_level}.0.{rest.replace('conv', 'op')}"
    if kind == "upsamplers":
        return f"output_blocks.{(int(level) + 1) * per_level - 1}.{1 + (level in with_attention)}.{rest}"
    if side == "down":
        return f"input_blocks.{number + 1}.{int(kind == 'attentions')}.{_name_inside(kind, rest)}"
    return f"output_blocks.{number}.{int(kind == 'attentions')}.{_name_inside(kind, rest)}"


def _name_inside(kind: str, module: str) -> str:
    return module if kind == "attentions" else _RESNET.get(module, module)


_FIRST_AND_LAST = (("time_embedding.linear_1.weight", "conv_out.weight"), ("time_embed.0.weight", "out.2.weight"))
OMEGA = "time_embedding.cond_proj.weight"
"""The layer by which a few-step UNet is told its guidance, by diffusers' name."""


def find_unet_prefix(keys: Collection[str]) -> str | None:
    """Returns what stands before a UNet's tensors in a single file; None where it holds none."""
    for first, last in _FIRST_AND_LAST:
        for key in keys:
            if key.endswith(first) and (prefix := key.removesuffix(first)) + last in keys:
                return prefix
    return None


def is_unet_alone(keys: Iterable[str]) -> bool:
    """Says whether a single file holds a UNet and no other part of a model."""
    keys = set(keys)
    others = ("first_stage_model.", "cond_stage_model.", "conditioner.")
    return find_unet_prefix(keys) is not None and not any(key.startswith(others) for key in keys)


_VAE_ENDS = {
    "group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out",
    "conv_shortcut": "nin_shortcut",
}  # fmt: skip
_VAE_BLOCK = re.compile(r"(down|up)_blocks\.(\d+)\.(resnets|downsamplers|upsamplers)\.(\d+)\.")


def original_vae_names(tensors: Iterable[str], levels: int) -> set[str]:
    """Returns what the original calls the tensors of an autoencoder of so many levels, which it counts from the
    picture on both sides."""

    def place(found: re.Match[str]) -> str:
        side, level, kind, number = found.groups()
        level = level if side == "down" else str(levels - 1 - int(level))
        return f"{side}.{level}." + (f"block.{number}." if kind == "resnets" else f"{side}sample.")

    names = set()
    for tensor in tensors:
        name = _VAE_BLOCK.sub(place, tensor)
        name = re.sub(r"mid_block\.resnets\.(\d)", lambda found: f"mid.block_{int(found[1]) + 1}", name)
        name = name.replace("mid_block.attentions.0", "mid.attn_1").replace("conv_norm_out", "norm_out")
        for ours, theirs in _VAE_ENDS.items():
            name = name.replace(f".{ours}.", f".{theirs}.")
        names.add(name)
    return names


_OPEN_CLIP = {
    "layer_norm1": "ln_1", "layer_norm2": "ln_2", "self_attn.out_proj": "attn.out_proj", "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}  # fmt: skip
_OPEN_CLIP_ENDS = {
    "embeddings.token_embedding.weight": "token_embedding.weight",
    "embeddings.position_embedding.weight": "positional_embedding", "final_layer_norm.weight": "ln_final.weight",
    "final_layer_norm.bias": "ln_final.bias", "text_projection.weight": "text_projection",
}  # fmt: skip
_LAYER = re.compile(r"encoder\.layers\.(\d+)\.(.+)\.(weight|bias)")


def open_clip_names(tensors: Iterable[str]) -> set[str]:
    """Returns what OpenCLIP calls the tensors of a text encoder, with query, key and value in one."""
    names = set()
    for tensor in (each.removeprefix("text_model.") for each in tensors):
        if not (found := _LAYER.fullmatch(tensor)):
            names.add(_OPEN_CLIP_ENDS[tensor])
            continue
        layer, module, end = found.groups()
        spelt = f"{_OPEN_CLIP[module]}.{end}" if module in _OPEN_CLIP else f"attn.in_proj_{end}"
        names.add(f"transformer.resblocks.{layer}.{spelt}")
    return names


def original_clip_names(tensors: Iterable[str], held: Iterable[str]) -> set[str]:
    """Returns what a file calls the tensors of CLIP's own text encoder; some files leave its prefix out."""
    prefix = "text_model." if any(".text_model." in name for name in held) else ""
    return {f"{prefix}{name.removeprefix('text_model.')}" for name in tensors}
