"""A network of a library as the method sees it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from fewstep.diffusion.prediction import Cond, Parameterisation, Prediction
from fewstep.diffusion.schedule import Schedule
from fewstep.models.end import End, EndEmbedding


class BackboneNetwork(nn.Module, ABC):
    """A family's network as the method sees it: its output is converted to z_0 and ε here, at the edge."""

    schedule: Schedule
    parameterisation: Parameterisation
    """Says what the backbone outputs."""

    @property
    @abstractmethod
    def backbone(self) -> Any:
        """Returns the library's own module, with its `config`."""

    @property
    def says_side(self) -> bool:
        """Tells whether a student's settings say the side of its pictures; else its card does."""
        return "sample_size" in self.backbone.config

    @property
    @abstractmethod
    def takes_omega(self) -> bool:
        """Tells whether guidance is an input, as it is of a few-step model."""

    @property
    @abstractmethod
    def takes_end(self) -> bool:
        """Tells whether where its answer shall land is an input, `cond["end"]` `[b]`."""

    @abstractmethod
    def forward(self, z_t: Tensor, t: Tensor, cond: Cond, omega: Tensor | None) -> Prediction:
        """Predicts z_0 and ε of z_t `[b, c, h, w]` at t `[b]`; ω `[b]` is heeded where the network has an input."""

    @abstractmethod
    def to_student(self, latent_side: int, *, told_end: bool = False) -> BackboneNetwork:
        """Copies it with an input for ω, and one for the end if it is to be told, that start without effect;
        `latent_side` is what samplers paint by default."""

    @abstractmethod
    def hang_end(self) -> EndEmbedding:
        """Gives this very network an input for the end, that starts without effect and can be switched off again."""

    @contextmanager
    def without_end(self) -> Iterator[End]:
        """Takes an input for the end that the backbone's own class has no place for out of it while it lasts, and
        yields what that holds; most have a place."""
        yield {}

    def load_end(self, end: End, adapter: str, scale: float) -> None:
        """Gives this very network a LoRA's input for the end, frozen, beside `adapter` at its `scale`."""
        hung = self.hang_end().requires_grad_(False)
        hung.load_state_dict(end)
        hung.adapter, hung.scale = adapter, scale

    @abstractmethod
    def with_backbone(self, backbone: Any) -> BackboneNetwork:
        """Returns the same network around another module of its kind."""

    @abstractmethod
    def compiled_by(self, compile_module: Callable[[nn.Module, nn.Module], Callable[..., Tensor]]) -> BackboneNetwork:
        """Returns the same network computed by what `compile_module(module, weights)` gives: a module all of whose
        inputs are tensors that have a place, and the module whose weights it computes with."""

    def rescale(self, z_t: Tensor, t: Tensor, conditional: Prediction, guided: Prediction) -> Prediction:  # noqa: ARG002
        """Returns what guidance comes to by the family's own rule, where it has one (`Family.rescales_guidance`)."""
        return guided

    @abstractmethod
    def features(self, z_t: Tensor, t: Tensor, cond: Cond) -> list[Tensor]:
        """Returns what it makes of z_t at t on the way to its innermost level, a `[b, c, h, w]` for each, outermost
        first, and goes no further; differentiable in z_t."""

    @property
    @abstractmethod
    def feature_widths(self) -> Sequence[int]:
        """Returns the channels of each of its `features`."""

    @property
    @abstractmethod
    def blocks(self) -> Sequence[nn.Module]:
        """Returns the parts that are put together one at a time where every process keeps a share of the weights."""

    @property
    def repeated_blocks(self) -> Sequence[nn.Module]:
        """Returns the parts of few kinds that there are many of, which are compiled kind by kind."""
        return self.blocks
