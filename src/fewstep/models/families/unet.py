"""Stable Diffusion's UNet as a network."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn

from fewstep.diffusion.prediction import Cond, Parameterisation, Prediction, to_prediction
from fewstep.diffusion.schedule import Schedule
from fewstep.method.omega_embedding import OMEGA_WIDTH, embed_omega
from fewstep.models.families.tapping import tap
from fewstep.models.network import BackboneNetwork, EndEmbedding
from fewstep.parallel.world import is_spread

AS_TIMES = "timestep"
"""How diffusers' UNet calls a second input that is embedded as its time is: the end."""
_END_WEIGHTS = [f"class_embedding.linear_{layer}.{kind}" for layer in (1, 2) for kind in ("weight", "bias")]


class UNetNetwork(BackboneNetwork):
    """`cond["text"]` is `[b, tokens, width]`, with `"pooled"` `[b, width]` for Stable Diffusion XL, and `"sizes"`
    `[b, 6]`, without which its sizes and crop are those of a whole picture."""

    def __init__(
        self, unet: UNet2DConditionModel, schedule: Schedule, parameterisation: Parameterisation,
        pixels_per_latent: int = 8,
    ) -> None:  # fmt: skip
        super().__init__()
        self.unet = unet
        self.schedule = schedule.to(unet.device)
        self.parameterisation: Parameterisation = parameterisation
        self.pixels_per_latent = pixels_per_latent

    @property
    def backbone(self) -> Any:
        return self.unet

    @property
    def takes_omega(self) -> bool:
        return self.unet.config.time_cond_proj_dim is not None

    @property
    def takes_end(self) -> bool:
        return bool(self.unet.config.class_embed_type == AS_TIMES)

    @property
    def blocks(self) -> Sequence[nn.Module]:
        return [*self._inward, *self.unet.up_blocks]

    @property
    def repeated_blocks(self) -> Sequence[nn.Module]:
        return [module for module in self.unet.modules() if isinstance(module, BasicTransformerBlock | ResnetBlock2D)]

    @property
    def _inward(self) -> list[nn.Module]:
        middle = [] if self.unet.mid_block is None else [self.unet.mid_block]
        return [*self.unet.down_blocks, *middle]

    @property
    def feature_widths(self) -> Sequence[int]:
        widths = self.unet.config.block_out_channels
        return [*widths, *widths[-1:]][: len(self._inward)]

    def features(self, z_t: Tensor, t: Tensor, cond: Cond) -> list[Tensor]:
        def read(output: Any) -> Any:
            return output[0] if isinstance(output, tuple) else output  # the rest is for the way out

        return tap(self.unet, self._inward, read, lambda: self(z_t, t, cond, None))

    def forward(self, z_t: Tensor, t: Tensor, cond: Cond, omega: Tensor | None) -> Prediction:
        # diffusers' own property looks at every weight, which takes longer than some layers do.
        first = next(self.unet.parameters(), None)
        dtype = torch.float32 if first is None else first.dtype
        omega_embedding = None
        if omega is not None and self.unet.config.time_cond_proj_dim is not None:
            omega_embedding = embed_omega(omega, self.unet.config.time_cond_proj_dim).to(dtype)
        output = self.unet(
            z_t.to(dtype),
            t.float() if t.is_floating_point() else t,
            encoder_hidden_states=cond["text"].to(dtype),
            timestep_cond=omega_embedding,
            class_labels=self._end(t, cond).float() if self.takes_end else None,
            added_cond_kwargs=self._sizes(z_t, cond, dtype) if "pooled" in cond else None,
        ).sample
        alpha, sigma = self.schedule.coefficients(t, z_t)
        return to_prediction(self.parameterisation, output, z_t, alpha, sigma)

    def _end(self, t: Tensor, cond: Cond) -> Tensor:
        hung = getattr(self.unet, "class_embedding", None)
        if isinstance(hung, EndEmbedding) and not hung.scale:
            return t  # diffusers wants something there, and nothing comes of it
        return cond["end"]

    def _sizes(self, z_t: Tensor, cond: Cond, dtype: torch.dtype) -> Cond:
        """Returns XL's added conditions: original size, crop's corner, target size (arXiv 2307.01952, 2.2)."""
        if (sizes := cond.get("sizes")) is None:
            height, width = (side * self.pixels_per_latent for side in z_t.shape[-2:])
            sizes = torch.tensor([height, width, 0, 0, height, width], device=z_t.device).expand(len(z_t), 6)
        # The sizes stay in fp32, as which they are embedded: bf16 would make 1368 of 1365.
        return {"text_embeds": cond["pooled"].to(dtype), "time_ids": sizes.float()}

    @torch.no_grad()
    def to_student(self, latent_side: int, *, told_end: bool = False) -> UNetNetwork:
        changes: dict[str, Any] = {"time_cond_proj_dim": OMEGA_WIDTH, "sample_size": latent_side}
        if told_end:
            changes["class_embed_type"] = AS_TIMES
        if is_spread(self.unet):
            return self._to_spread_student(changes)
        # What an older config.json leaves out diffusers lists under this name, and would set to its default again.
        config = {name: value for name, value in self.unet.config.items() if name != "_use_default_values"}
        copy = UNet2DConditionModel.from_config({**config, **changes}).to(self.unet.device)
        copy.time_embedding.cond_proj.weight.zero_()
        missing, unexpected = copy.load_state_dict(self.unet.state_dict(), strict=False)
        fresh = ["time_embedding.cond_proj.weight", *(_END_WEIGHTS if told_end else [])]
        assert (missing, unexpected) == (fresh, [])
        if told_end:  # read as t is, and without effect at first
            copy.class_embedding.linear_1.load_state_dict(copy.time_embedding.linear_1.state_dict())
            copy.class_embedding.linear_2.weight.zero_()
            copy.class_embedding.linear_2.bias.zero_()
        return self.with_backbone(copy)

    def _to_spread_student(self, changes: Mapping[str, Any]) -> UNetNetwork:
        """Makes the same of a network of which every process holds a part."""
        begins: dict[str, str | None] = dict.fromkeys(["time_embedding.cond_proj.weight", *_END_WEIGHTS])
        for name in _END_WEIGHTS[:2]:
            begins[name] = name.replace("class_embedding", "time_embedding")
        # imported only where a run spreads its network
        spreading: Any = importlib.import_module("fewstep.models.spreading")
        student: UNetNetwork = spreading.copy_spread(self, changes, begins)
        student.backbone.train()
        return student

    @torch.no_grad()
    def hang_end(self) -> EndEmbedding:
        hung = self.unet.class_embedding = EndEmbedding(
            self.unet.time_embedding.linear_1, self.unet.time_embedding.linear_2
        )
        self.unet.register_to_config(class_embed_type=AS_TIMES)
        return hung

    def with_backbone(self, backbone: Any) -> UNetNetwork:
        return UNetNetwork(backbone, self.schedule, self.parameterisation, self.pixels_per_latent)

    def compiled_by(self, compile_module: Callable[[nn.Module, nn.Module], Callable[..., Tensor]]) -> UNetNetwork:
        return self.with_backbone(_CompiledUNet(self.unet, compile_module(_PositionalUNet(self.unet), self.unet)))


class _PositionalUNet(nn.Module):
    """A UNet whose inputs all have a place."""

    def __init__(self, unet: Any) -> None:
        super().__init__()
        self._unet = unet

    def forward(self, z_t: Tensor, t: Tensor, text: Tensor, *more: Tensor) -> Tensor:
        rest = list(more)
        omega = rest.pop(0) if self._unet.config.time_cond_proj_dim is not None else None
        end = rest.pop(0) if self._unet.config.class_embed_type == AS_TIMES else None
        sizes = {"text_embeds": rest[0], "time_ids": rest[1]} if rest else None
        output: Tensor = self._unet(
            z_t,
            t,
            encoder_hidden_states=text,
            timestep_cond=omega,
            class_labels=end,
            added_cond_kwargs=sizes,
            return_dict=False,
        )[0]
        return output


class _CompiledUNet(nn.Module):
    """Stands where a UNet2DConditionModel did, and calls what was compiled of it."""

    def __init__(self, unet: Any, compiled: Callable[..., Tensor]) -> None:
        super().__init__()
        self.config = unet.config
        self.device, self.dtype = torch.device("cpu"), torch.float32
        self._compiled = compiled

    def forward(
        self, z_t: Tensor, t: Tensor, *, encoder_hidden_states: Tensor, timestep_cond: Tensor | None,
        class_labels: Tensor | None, added_cond_kwargs: dict[str, Tensor] | None,
    ) -> SimpleNamespace:  # fmt: skip
        given = [z_t, t.float(), encoder_hidden_states]
        if timestep_cond is not None:
            given.append(timestep_cond)
        if class_labels is not None:
            given.append(class_labels)
        if added_cond_kwargs is not None:
            given += [added_cond_kwargs["text_embeds"], added_cond_kwargs["time_ids"]]
        return SimpleNamespace(sample=self._compiled(*given))
