"""Transformers of diffusers as networks: what all of them have alike."""

from __future__ import annotations

import copy
import importlib
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from fewstep.diffusion.prediction import Cond, Parameterisation, Prediction, to_prediction
from fewstep.diffusion.schedule import Schedule
from fewstep.errors import UserError
from fewstep.models.families.tapping import tap
from fewstep.models.families.told_time import name_first_layer, tell_end
from fewstep.models.network import BackboneNetwork, End, EndEmbedding, scale_end
from fewstep.parallel.world import is_spread

_TAPS = 4
"""How many of a transformer's blocks are features that heads judge by."""


def _spared_fp16(device: str) -> AbstractContextManager[object]:
    """Lets a network compute in the format that it is kept in, while it lasts, where it would in fp16, in which it
    overflows."""
    half = torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) == torch.float16
    return torch.autocast(device, enabled=False) if half else nullcontext()


def refuse_engine(network: str) -> UserError:
    """Returns what is said where another engine than torch is asked for a network of that class."""
    return UserError(f"--engine torch alone computes a {network}; leave --engine out")


class TransformerNetwork(BackboneNetwork):
    """A transformer that predicts the velocity of a flow, ε − z_0, if no other parameterisation is said."""

    block_lists: ClassVar[tuple[str, ...]]
    """The transformer's lists of blocks, in the order in which they compute."""
    tapped: ClassVar[tuple[str, ...]] = ()
    """Names those of them through which text and picture go together; none named are all."""

    def __init__(
        self, transformer: Any, schedule: Schedule, parameterisation: Parameterisation = "flow_prediction"
    ) -> None:
        super().__init__()
        self.transformer = transformer
        self.schedule = schedule
        self.parameterisation = parameterisation

    @property
    def backbone(self) -> Any:
        return self.transformer

    @property
    def takes_omega(self) -> bool:
        return False

    @property
    def takes_end(self) -> bool:
        return self._end is not None

    @property
    @abstractmethod
    def time_embedding(self) -> Any:
        """Returns diffusers' embedding of time and pooled text, called with the time first."""

    @property
    def embedded_times(self) -> tuple[float, float]:
        """Returns what that is given of a noise share σ in the end, as an offset and what σ is multiplied by."""
        return 0.0, 1000.0

    @property
    def _end(self) -> EndEmbedding | None:
        return getattr(self.time_embedding, "end", None)

    def hang_end(self) -> EndEmbedding:
        return tell_end(self.time_embedding)

    @contextmanager
    def without_end(self) -> Iterator[End]:
        if (end := self._end) is None:
            yield {}
            return
        del self.time_embedding.end
        try:
            yield scale_end(end.state_dict(), end.scale)
        finally:
            self.time_embedding.end = end

    @property
    def blocks(self) -> Sequence[nn.Module]:
        return [block for name in self.block_lists for block in getattr(self.transformer, name)]

    @property
    def _taps(self) -> list[nn.Module]:
        blocks = [block for name in self.tapped or self.block_lists for block in getattr(self.transformer, name)]
        count = len(blocks)
        return [blocks[i] for i in sorted({max(0, count * tap // _TAPS - 1) for tap in range(1, _TAPS + 1)})]

    @property
    def feature_widths(self) -> Sequence[int]:
        return [self.width] * len(self._taps)

    @property
    def width(self) -> int:
        """Returns the width of the transformer's tokens."""
        config = self.transformer.config
        return int(config.num_attention_heads * config.attention_head_dim)

    def tell_time(self, t: Tensor) -> Tensor:
        """Returns what the network is told of times `[b]`: of a flow, the noise shares σ, fp32."""
        return self.schedule.sigma(t).float()

    @abstractmethod
    def ask(self, z_t: Tensor, told: Tensor, cond: Cond, omega: Tensor | None) -> Tensor:
        """Returns the transformer's output `[b, c, h, w]` for what it is `told` of the times, `[b]`; with an end, of
        both, `[2, b]`."""

    @abstractmethod
    def image_tokens(self, output: Any, height: int, width: int) -> Tensor:
        """Returns `[b, c, h, w]` of what a block outputs for latents so high and wide."""

    def forward(self, z_t: Tensor, t: Tensor, cond: Cond, omega: Tensor | None) -> Prediction:
        first = next(self.transformer.parameters(), None)
        dtype = torch.float32 if first is None else first.dtype
        alpha, sigma = self.schedule.coefficients(t, z_t)
        told = self.tell_time(t)
        if (end := self._end) is not None and end.scale:
            told = torch.stack([told, self.tell_time(cond["end"])])
        with _spared_fp16(z_t.device.type):
            output = self.ask(z_t.to(dtype), told, cond, omega)
        return to_prediction(self.parameterisation, output, z_t, alpha, sigma)

    def features(self, z_t: Tensor, t: Tensor, cond: Cond) -> list[Tensor]:
        height, width = z_t.shape[-2:]
        return tap(
            self.transformer, self._taps, lambda output: self.image_tokens(output, height, width),
            lambda: self(z_t, t, cond, None),
        )  # fmt: skip

    @torch.no_grad()
    def to_student(self, latent_side: int, *, told_end: bool = False) -> Self:
        if is_spread(self.transformer):
            return self._to_spread_student(latent_side, told_end=told_end)
        student = copy.deepcopy(self.transformer).requires_grad_(True)
        if self.says_side:
            student.register_to_config(sample_size=latent_side)
        network = self.with_backbone(student)
        if told_end:
            network.hang_end()
        return network

    def _to_spread_student(self, latent_side: int, *, told_end: bool) -> Self:
        """Makes the same of a network of which every process holds a part."""
        (place,) = (name for name, each in self.transformer.named_modules() if each is self.time_embedding)
        begins: dict[str, str | None] = {}
        for kind in ("weight", "bias"):
            begins[f"{place}.end.linear_1.{kind}"] = f"{place}.{name_first_layer(self.time_embedding)}.{kind}"
            begins[f"{place}.end.linear_2.{kind}"] = None
        changes = {"sample_size": latent_side} if self.says_side else {}
        # imported only where a run spreads its network
        spreading: Any = importlib.import_module("fewstep.models.spreading")
        student: Self = spreading.copy_spread(self, {}, begins, told_end=told_end)
        student.backbone.register_to_config(**changes)
        return student

    def with_backbone(self, backbone: Any) -> Self:
        return type(self)(backbone, self.schedule, self.parameterisation)

    def compiled_by(self, _compile: Callable[[nn.Module, nn.Module], Callable[..., Tensor]]) -> Self:
        raise refuse_engine(type(self.transformer).__name__)
