"""A network of a library as the method sees it, with an input for where its answers land; and the hash of its weights,
by which a file says what it was made for."""

from __future__ import annotations

import hashlib
import importlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from fewstep.diffusion.prediction import Cond, Parameterisation, Prediction
from fewstep.diffusion.schedule import Schedule
from fewstep.parallel.world import gather_tensor

KEYS = "fewstep_lora_end."
"""How the keys of an end's embedding begin in a file. diffusers looks for `lora` in every key, and takes those of its
networks' names alone."""
_LAST = "linear_2."
End = dict[str, Tensor]
"""Tensors of an end's embedding by their names in it; empty where a LoRA has none."""


class EndEmbedding(nn.Module):
    """A time MLP for the end e, in a network that was built without one. It adds at the scale of its adapters: 0 is the
    network as it was."""

    def __init__(self, first: Any, second: Any) -> None:
        """Begins as a copy of two layers that embed a network's time, so that e is read as t is, and of no effect."""
        super().__init__()
        self.linear_1, self.linear_2 = _copy(first), _copy(second)
        for value in self.linear_2.parameters():
            nn.init.zeros_(value)
        self.scale = 1.0
        self.adapter = ""
        """Name of the adapters that it hangs beside, where they have scales of their own."""

    def forward(self, features: Tensor) -> Tensor:
        """Embeds features `[b, width]` of the end."""
        if not self.scale:
            return features.new_zeros(len(features), 1)
        hidden = functional.silu(self.linear_1(features.to(self.linear_1.weight.dtype)))
        answer: Tensor = self.scale * self.linear_2(hidden)
        return answer

    @torch.no_grad()
    def merge(self) -> None:
        """Makes its scale part of its weights."""
        for value in self.linear_2.parameters():
            value.mul_(self.scale)
        self.scale = 1.0


@torch.no_grad()
def _copy(layer: Any) -> nn.Linear:
    """Copies a linear layer without what hangs on it."""
    weight = layer.weight
    has_bias = layer.bias is not None
    copy = nn.Linear(layer.in_features, layer.out_features, has_bias, device=weight.device, dtype=weight.dtype)
    copy.weight.copy_(gather_tensor(weight))
    if has_bias:
        copy.bias.copy_(gather_tensor(layer.bias))
    return copy


def find_end(network: nn.Module) -> EndEmbedding | None:
    """Returns what embeds the end beside adapters in a network, if anything does."""
    return next((module for module in network.modules() if isinstance(module, EndEmbedding)), None)


def pick_end(named: Mapping[str, Tensor]) -> End:
    """Picks the end's embedding out of what learns with adapters, by its names in the network."""
    return {".".join(name.split(".")[-2:]): value for name, value in named.items() if ".lora_" not in name}


def scale_end(end: End, scale: float) -> End:
    """Returns an embedding that adds so many times as much."""
    return {name: scale * value if name.startswith(_LAST) else value for name, value in end.items()}


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

    @property
    def leaves_some_unused(self) -> bool:
        """Tells whether it computes with weights of which nothing comes in the answer."""
        return False


def hash_weights(network: nn.Module) -> str:
    """Hashes a network's weights, whatever adapters hang on it. Of one that is spread all processes call it."""
    if any(hasattr(value, "full_tensor") for value in network.parameters()):
        # imported only where a run spreads its network
        spread: str = importlib.import_module("fewstep.models.spreading").hash_spread(network)
        return spread
    total = hashlib.sha256()
    for name, value in list_weights(network):
        update_hash(total, name, value)
    return total.hexdigest()


def list_weights(network: nn.Module) -> list[tuple[str, Tensor]]:
    """Returns the tensors that are hashed by their names there, in their order, which no adapters change."""
    named = ((name, value) for name, value in sorted(network.state_dict().items()) if ".lora_" not in name)
    return [(name.replace(".base_layer", ""), value) for name, value in named]


def update_hash(total: hashlib._Hash, name: str, value: Tensor) -> None:
    """Adds a tensor to a hash."""
    total.update(name.encode())
    total.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)


def have_same_weights(one: nn.Module, other: nn.Module) -> bool:
    """Says whether two networks hold the same numbers under the same names."""
    mine, theirs = one.state_dict(), other.state_dict()
    return mine.keys() == theirs.keys() and all(
        value.dtype == theirs[name].dtype and torch.equal(value, theirs[name]) for name, value in mine.items()
    )
