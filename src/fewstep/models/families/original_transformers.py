"""What the first code of flow transformers calls their modules, several of which diffusers has as one's rows apart."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import Tensor

from fewstep.errors import UserError
from fewstep.files import explain_damage, open_safetensors, read_safetensors_header
from fewstep.models.config_sizes import check_layers
from fewstep.models.model_files import check_config

Modules = Mapping[str, tuple[str, ...]]
"""diffusers' modules by the original's, whose rows theirs are, one after the other."""
_SCALES = ("scale_weight", "weight_scale", "weight_scale_inv")
"""Ends of what weights in fp8 are multiplied by, if they were scaled to its range."""
_SCALED = (*_SCALES, "scale_input", "input_scale", "comfy_quant")
"""Ends of what stands beside such weights; the last names the format."""
_BLOCK = 128
"""Side of the blocks of a weight that have a scale each, where it is neither one number nor one for each row."""
_MARKS = ("scaled_fp8",)


@dataclass(frozen=True)
class OriginalNames:
    """Holds the names of one family's modules and tensors."""

    blocks: Mapping[tuple[str, str], Modules]
    """Gives modules by the lists of blocks, the original's and diffusers'; names are within a block."""
    outside: Modules
    tensors: Mapping[str, str] = field(default_factory=dict)
    """Gives diffusers' tensors by the original's, where neither is of a module that has the other's end."""
    kinds: Mapping[str, str] = field(default_factory=dict)
    """Ends of tensors as the original has them, by diffusers' modules' ends, where they are another's."""
    unread: tuple[str, ...] = ()
    """Tensors that the original has, and diffusers makes anew or does without."""
    is_swapped: Callable[[str, int], bool] = lambda module, _blocks: module == "norm_out.linear"
    """(diffusers' module, number of blocks) → whether the original has the halves of its rows the other way round."""

    def list_modules(self, modules: Iterable[str]) -> dict[str, tuple[str, ...]]:
        """Returns them for a transformer with these modules of diffusers'."""
        held = set(modules)
        found = {theirs: ours for theirs, ours in self.outside.items() if held.issuperset(ours)}
        for (theirs, ours), names in self.blocks.items():
            for i in range(1 + max((_number(name, ours) for name in held), default=-1)):
                for original, own in names.items():
                    whole = tuple(f"{ours}.{i}.{name}" for name in own)
                    if held.issuperset(whole):
                        found[f"{theirs}.{i}.{original}"] = whole
        return found

    def is_diffusers(self, keys: Iterable[str]) -> bool:
        """Says whether tensors are called as diffusers calls them: all modules outside of the blocks are there."""
        held = {key.rpartition(".")[0] for key in keys}
        wanted = {name for ours in self.outside.values() for name in ours}
        return bool(wanted) and held.issuperset(wanted)

    def convert(self, read: Callable[[str], Tensor], shapes: Mapping[str, Sequence[int]]) -> dict[str, Tensor]:
        """Returns diffusers' tensors of those `shapes`, of what `read` gives by the original's names."""
        blocks = len({name.split(".")[1] for name in shapes if name.startswith("transformer_blocks.")})
        result = {ours: read(theirs).view(shapes[ours]) for theirs, ours in self.tensors.items() if ours in shapes}
        for theirs, ours in self.list_modules({name.rpartition(".")[0] for name in shapes}).items():
            for kind in ("weight", "bias"):
                held = [f"{module}.{kind}" for module in ours if f"{module}.{kind}" in shapes]
                if not held:
                    continue
                whole = read(f"{theirs}.{self._kind(ours[0], kind)}")
                for name, part in zip(held, whole.split([shapes[name][0] for name in held]), strict=True):
                    swap = self.is_swapped(name.rpartition(".")[0], blocks)
                    result[name] = torch.cat(part.chunk(2)[::-1]) if swap else part
        return result

    def list_tensors(self, shapes: Collection[str]) -> set[str]:
        """Returns the names of the original's tensors of a transformer with these of diffusers'."""
        wanted = {theirs for theirs, ours in self.tensors.items() if ours in shapes}
        for theirs, ours in self.list_modules({name.rpartition(".")[0] for name in shapes}).items():
            kinds = {kind for kind in ("weight", "bias") if f"{ours[0]}.{kind}" in shapes}
            wanted |= {f"{theirs}.{self._kind(ours[0], kind)}" for kind in kinds}
        return wanted

    def _kind(self, module: str, kind: str) -> str:
        return next((said for end, said in self.kinds.items() if module.endswith(end)), kind)


def _number(name: str, blocks: str) -> int:
    begin, _, rest = name.removeprefix(f"{blocks}.").partition(".")
    return int(begin) if name.startswith(f"{blocks}.") and rest and begin.isdigit() else -1


def make_shaped(kind: Any, config: Mapping[str, Any], place: Path) -> Any:
    """Makes the network that a configuration, read from `place`, describes, with weights on no device. Raises
    UserError."""
    check_config(config, place)
    check_layers(config, place.parent)
    try:
        with init_empty_weights(include_buffers=False):  # no file has tables that are no weights
            return kind.from_config(config)
    except Exception as error:  # diffusers raises nearly anything where a configuration is odd
        reason = " ".join(str(error).split())[:100]
        raise UserError(f"{place} describes no {kind.__name__} ({reason})") from error


def load_original(
    path: Path, network: Any, place: Path, names: OriginalNames, prefix: str, dtype: torch.dtype,
    check: Callable[[Mapping[str, Collection[str]]], None],
) -> Any:  # fmt: skip
    """Fills a network, on no device as `place` describes it, from a single file, whose keys begin with `prefix`, and
    returns it, frozen, in `dtype`.

    `check` is given the names that the file should hold, by that prefix. Weights in fp8 are scaled back.
    """
    shapes = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    held = {key.removeprefix(prefix) for key in read_safetensors_header(path).shapes if key.startswith(prefix)}
    beside = {key for key in held if key.endswith(_SCALED) or key in (*_MARKS, *names.unread)}
    is_diffusers = names.is_diffusers(held)
    check({prefix: (set(shapes) if is_diffusers else names.list_tensors(shapes)) | beside})
    with open_safetensors(path) as file, explain_damage(path):

        def read(name: str) -> Tensor:
            value: Tensor = file.get_tensor(prefix + name)
            if not value.is_floating_point():
                raise UserError(
                    f"{path} holds {prefix}{name} in whole numbers, which are no weights by themselves; take the file "
                    "in fp8, bf16 or fp32"
                )
            module, _, end = name.rpartition(".")
            for scale in (f"{module}.{each}" for each in _SCALES):
                if end == "weight" and scale in held:
                    value = value.float() * _spread_scale(path, prefix + scale, file.get_tensor(prefix + scale), value)
            value = value.to(dtype)
            if not value.isfinite().all():
                raise UserError(f"{path} is broken: NaN or infinity in {prefix}{name}")
            return value

        try:
            state = {name: read(name) for name in shapes} if is_diffusers else names.convert(read, shapes)
        except (RuntimeError, ValueError) as error:
            raise UserError(f"{path} has tensors of other sizes than {place} describes ({error})") from error
    wrong = [name for name, value in state.items() if tuple(value.shape) != shapes[name]]
    if wrong:
        raise UserError(f"{path} has tensors of other sizes than {place} describes, such as {wrong[0]}")
    network.load_state_dict(state, assign=True)
    return network.eval().requires_grad_(False)


def _spread_scale(path: Path, name: str, scale: Tensor, weight: Tensor) -> Tensor:
    """Returns a weight's scale so that it multiplies it: one number, one for each row, or one for each block. Raises
    UserError."""
    if scale.is_floating_point() and scale.float().isfinite().all():
        if scale.numel() == 1:
            return scale.float().reshape(())
        if scale.numel() == len(weight) == len(scale):
            return scale.float().reshape(-1, *[1] * (weight.ndim - 1))
        if weight.ndim == 2 and scale.shape == tuple(-(-side // _BLOCK) for side in weight.shape):
            rows, columns = weight.shape
            spread = scale.float().repeat_interleave(_BLOCK, dim=0).repeat_interleave(_BLOCK, dim=1)
            return spread[:rows, :columns]
    raise UserError(
        f"{path} has {name} of {str(scale.dtype).removeprefix('torch.')} {tuple(scale.shape)}, for a weight of "
        f"{tuple(weight.shape)}; one number is read, or one for each row or block of {_BLOCK}×{_BLOCK}: take the "
        "file in bf16"
    )


_QKV = ("to_q", "to_k", "to_v")
_ADDED = ("add_q_proj", "add_k_proj", "add_v_proj")


def _list_inside(attention: str, names: Sequence[str]) -> tuple[str, ...]:
    return tuple(f"{attention}.{name}" for name in names)


SD3_NAMES = OriginalNames(
    blocks={
        ("joint_blocks", "transformer_blocks"): {
            "x_block.attn.qkv": _list_inside("attn", _QKV), "x_block.attn.proj": ("attn.to_out.0",),
            "x_block.attn.ln_q": ("attn.norm_q",), "x_block.attn.ln_k": ("attn.norm_k",),
            "x_block.attn2.qkv": _list_inside("attn2", _QKV), "x_block.attn2.proj": ("attn2.to_out.0",),
            "x_block.attn2.ln_q": ("attn2.norm_q",), "x_block.attn2.ln_k": ("attn2.norm_k",),
            "context_block.attn.qkv": _list_inside("attn", _ADDED), "context_block.attn.proj": ("attn.to_add_out",),
            "context_block.attn.ln_q": ("attn.norm_added_q",), "context_block.attn.ln_k": ("attn.norm_added_k",),
            "x_block.adaLN_modulation.1": ("norm1.linear",),
            "context_block.adaLN_modulation.1": ("norm1_context.linear",),
            "x_block.mlp.fc1": ("ff.net.0.proj",), "x_block.mlp.fc2": ("ff.net.2",),
            "context_block.mlp.fc1": ("ff_context.net.0.proj",), "context_block.mlp.fc2": ("ff_context.net.2",),
        }
    },
    outside={
        "x_embedder.proj": ("pos_embed.proj",), "context_embedder": ("context_embedder",),
        "t_embedder.mlp.0": ("time_text_embed.timestep_embedder.linear_1",),
        "t_embedder.mlp.2": ("time_text_embed.timestep_embedder.linear_2",),
        "y_embedder.mlp.0": ("time_text_embed.text_embedder.linear_1",),
        "y_embedder.mlp.2": ("time_text_embed.text_embedder.linear_2",),
        "final_layer.linear": ("proj_out",), "final_layer.adaLN_modulation.1": ("norm_out.linear",),
    },
    tensors={"pos_embed": "pos_embed.pos_embed"},
    # The last block's text goes no further: its norm is of the kind that the last layer has.
    is_swapped=lambda module, blocks: (
        module in ("norm_out.linear", f"transformer_blocks.{blocks - 1}.norm1_context.linear")
    ),
)  # fmt: skip
FLUX_NAMES = OriginalNames(
    blocks={
        ("double_blocks", "transformer_blocks"): {
            "img_attn.qkv": _list_inside("attn", _QKV), "img_attn.proj": ("attn.to_out.0",),
            "img_attn.norm.query_norm": ("attn.norm_q",), "img_attn.norm.key_norm": ("attn.norm_k",),
            "txt_attn.qkv": _list_inside("attn", _ADDED), "txt_attn.proj": ("attn.to_add_out",),
            "txt_attn.norm.query_norm": ("attn.norm_added_q",), "txt_attn.norm.key_norm": ("attn.norm_added_k",),
            "img_mod.lin": ("norm1.linear",), "txt_mod.lin": ("norm1_context.linear",),
            "img_mlp.0": ("ff.net.0.proj",), "img_mlp.2": ("ff.net.2",),
            "txt_mlp.0": ("ff_context.net.0.proj",), "txt_mlp.2": ("ff_context.net.2",),
        },
        ("single_blocks", "single_transformer_blocks"): {
            "linear1": (*_list_inside("attn", _QKV), "proj_mlp"), "linear2": ("proj_out",),
            "modulation.lin": ("norm.linear",),
            "norm.query_norm": ("attn.norm_q",), "norm.key_norm": ("attn.norm_k",),
        },
    },
    outside={
        "img_in": ("x_embedder",), "txt_in": ("context_embedder",),
        "time_in.in_layer": ("time_text_embed.timestep_embedder.linear_1",),
        "time_in.out_layer": ("time_text_embed.timestep_embedder.linear_2",),
        "vector_in.in_layer": ("time_text_embed.text_embedder.linear_1",),
        "vector_in.out_layer": ("time_text_embed.text_embedder.linear_2",),
        "guidance_in.in_layer": ("time_text_embed.guidance_embedder.linear_1",),
        "guidance_in.out_layer": ("time_text_embed.guidance_embedder.linear_2",),
        "final_layer.linear": ("proj_out",), "final_layer.adaLN_modulation.1": ("norm_out.linear",),
    },
    kinds=dict.fromkeys(("attn.norm_q", "attn.norm_k", "attn.norm_added_q", "attn.norm_added_k"), "scale"),
)  # fmt: skip
XLABS_NAMES = OriginalNames(
    blocks={
        ("double_blocks", "transformer_blocks"): {
            "processor.qkv_lora1": _list_inside("attn", _QKV), "processor.proj_lora1": ("attn.to_out.0",),
            "processor.qkv_lora2": _list_inside("attn", _ADDED), "processor.proj_lora2": ("attn.to_add_out",),
        },
        ("single_blocks", "single_transformer_blocks"): {
            "processor.qkv_lora": _list_inside("attn", _QKV), "processor.proj_lora": ("proj_out",),
        },
    },
    outside={},
)  # fmt: skip
"""What XLabs' LoRAs of FLUX.1 call the modules that they adapt: by what adapts them, which never has an alpha."""
