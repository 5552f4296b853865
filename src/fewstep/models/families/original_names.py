"""What Stability's own code, and diffusers before, call the modules of a UNet and its text encoders."""

from __future__ import annotations

import re
from collections.abc import Iterable

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
    """diffusers' names of a whole UNet's modules, to the original's; what the original does not have is left out.

    The original numbers blocks through: first convolution, then for every level its layers and its down-sampler.
    """
    modules = list(modules)
    levels = [found for name in modules if (found := _BLOCK.fullmatch(name))]
    per_level = 2 + max((int(m[4]) for m in levels if m[1] == "down" and m[3] == "resnets"), default=0)
    with_attention = {m[2] for m in levels if m[1] == "up" and m[3] == "attentions"}
    spelt = {name: _original(name, per_level, with_attention) for name in modules}
    return {name: theirs for name, theirs in spelt.items() if theirs}


def _original(name: str, per_level: int, with_attention: set[str]) -> str | None:
    if name in _ENDS:
        return _ENDS[name]
    if found := _MIDDLE.fullmatch(name):
        kind, place, rest = found.groups()
        return f"middle_block.{1 if kind == 'attentions' else 2 * int(place)}.{_inside(kind, rest)}"
    if not (found := _BLOCK.fullmatch(name)):
        return None
    side, level, kind, place, rest = found.groups()
    number = int(level) * per_level + int(place)
    if kind == "downsamplers":
        return f"input_blocks.{(int(level) + 1) * per_level}.0.{rest.replace('conv', 'op')}"
    if kind == "upsamplers":
        return f"output_blocks.{(int(level) + 1) * per_level - 1}.{1 + (level in with_attention)}.{rest}"
    if side == "down":
        return f"input_blocks.{number + 1}.{int(kind == 'attentions')}.{_inside(kind, rest)}"
    return f"output_blocks.{number}.{int(kind == 'attentions')}.{_inside(kind, rest)}"


def _inside(kind: str, module: str) -> str:
    return module if kind == "attentions" else _RESNET.get(module, module)
