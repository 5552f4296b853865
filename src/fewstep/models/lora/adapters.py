"""LoRA adapters on the networks of a model: trained beside a base that stays as it is, or hung on to paint with."""

from __future__ import annotations

import contextlib
import copy
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.func import functional_call

from fewstep.data import draws
from fewstep.diffusion.prediction import Cond, Prediction
from fewstep.errors import UserError
from fewstep.models.lora.decomposed import Decomposed
from fewstep.models.lora.pair import Lora, Pair
from fewstep.models.network import BackboneNetwork, End, EndEmbedding, find_end, pick_end

STUDENT = "default"
"""Name of the adapters that make a student of their base."""


class AdapterWeights(nn.Module):
    """A and B of every module that adapters of one name hang on, and what embeds the end beside them if anything does:
    the very parameters that the network uses."""

    def __init__(self, network: nn.Module, adapter: str, end: nn.Module | None = None) -> None:
        super().__init__()
        beside = {id(each) for each in end.parameters()} if end else set()
        for name, parameter in network.named_parameters():
            if f".{adapter}." in name or id(parameter) in beside:
                self.register_parameter(name.replace(".", "/"), parameter)

    def by_name(self) -> dict[str, Tensor]:
        """Returns them under the names they have in the network."""
        return {name.replace("/", "."): value for name, value in self.named_parameters()}


@torch.no_grad()
def _draw(weights: AdapterWeights, rank: int, seed: int, stream: str) -> None:
    for name, value in weights.by_name().items():
        if ".lora_A." in name and not value.is_meta:
            generator = draws.generator(seed, f"{stream} {name}", 0)
            value.copy_((2 * torch.rand(value.shape, generator=generator) - 1) * (rank / value.numel()) ** 0.5)


class AdaptedNetwork:
    """Networks with one base in memory: with adapters, without, and with other adapters in their place.

    Several can share a base, each with adapters of another name. Where gradients are built the adapters that answered
    are left in place, since a checkpointed pass is computed again in the backward pass; elsewhere all is as before.
    """

    def __init__(  # what peft wants, and where it starts from
        self, network: BackboneNetwork, rank: int, alpha: float, target_modules: tuple[str, ...],
        base_dtype: torch.dtype = torch.float32, seed: int = 0, name: str = STUDENT,
    ) -> None:  # fmt: skip
        """Hangs fresh adapters, in fp32 and of no effect, on `network`; the rest of it is stored in `base_dtype`.

        A is uniform within ±1/√(inputs), as torch's own layers begin, and follows from `seed` and `name`; B is zero.
        """
        scale: Any = alpha  # peft annotates a whole number, and divides by the rank whatever it is
        # By their whole names: by its end alone a module of a block would be taken for one outside.
        ends = tuple(f".{target}" for target in target_modules)
        adapted = [
            key for key, module in network.backbone.named_modules()
            if key.endswith(ends) and isinstance(module, nn.Linear | nn.Conv2d | LoraLayer)
        ]  # fmt: skip
        config = LoraConfig(r=rank, lora_alpha=scale, target_modules=adapted)
        with _unwarned():
            if hasattr(network.backbone, "add_adapter"):
                network.backbone.add_adapter(config, name)
            else:  # of a class for which diffusers loads no LoRAs
                inject_adapter_in_model(config, network.backbone, name)
        self.network, self.alpha, self._name = network, alpha, name
        self._end = find_end(network)
        told = {id(each) for each in self._end.parameters()} if self._end else set()
        self.weights = AdapterWeights(network, name, self._end if name == STUDENT else None)
        for key, parameter in network.named_parameters():
            adapts = ".lora_" in key or id(parameter) in told
            parameter.requires_grad_(adapts)
            if not isinstance(parameter, DTensor):  # which its owner has put into its format
                parameter.data = parameter.data.to(torch.float32 if adapts else base_dtype)
        _draw(self.weights, rank, seed, "adapter" if name == STUDENT else name)
        self.rank = rank
        self._learning = sum(p.numel() for p in self.weights.parameters())
        self._base = sum(value.numel() for key, value in network.named_parameters() if ".lora_" not in key)
        self._layers: dict[str, Any] = {
            key: layer for key, layer in network.named_modules()
            if isinstance(layer, LoraLayer) and name in layer.lora_A
        }  # fmt: skip

    def student(self, z_t: Tensor, t: Tensor, cond: Cond, omega: Tensor | None) -> Prediction:
        """Returns the base with its adapters."""
        answer: Prediction
        if self._sums_first(z_t):
            sums = {f"{key}.base_layer.weight": self._sum(layer) for key, layer in self._layers.items()}
            with self._acting(None), self._telling():
                answer = functional_call(self.network, sums, (z_t, t, cond, omega))
            return answer
        if torch.is_grad_enabled():
            self._switch(self._name)
            answer = self.network(z_t, t, cond, omega)
            return answer
        with self.acting():
            answer = self.network(z_t, t, cond, omega)
        return answer

    def teacher(self, z_t: Tensor, t: Tensor, cond: Cond, omega: Tensor | None) -> Prediction:
        """Runs the base alone, bit for bit."""
        with self.alone():
            answer: Prediction = self.network(z_t, t, cond, omega)
        return answer

    def alone(self) -> AbstractContextManager[None]:
        """Lets the base answer without adapters while it lasts."""
        return self._acting(None)

    def acting(self) -> AbstractContextManager[None]:
        """Lets these adapters act, and no others, while it lasts."""
        return self._acting(self._name)

    def _sums_first(self, z_t: Tensor) -> bool:
        """Says whether (W + BA)x takes less work than Wx + B(Ax), and is the same to within fp32's rounding.

        The first makes BA, at `rank` multiplications for each of W and twice that in the backward pass, and the
        gradient of W at every position; the second has A and B at every position in all three passes. In bf16 the sum
        would lose what is small beside W. Checkpointing would recompute without the sum.
        """
        layer = next(iter(self._layers.values()))
        weight = dict(layer.base_layer.named_parameters()).get("weight")  # none where it is held in few bits
        if weight is None or isinstance(weight, DTensor) or self.network.backbone.is_gradient_checkpointing:
            return False
        if weight.dtype != torch.float32 or torch.is_autocast_enabled(z_t.device.type):
            return False
        positions = z_t[:, 0].numel() / 3  # of a weight on average: inner levels have fewer
        return self._base * (positions + 3 * self.rank) < 3 * self._learning * positions

    def _sum(self, layer: Any) -> Tensor:
        """Computes W + α/r·BA; a convolution's A has its kernel."""
        own = (layer.base_layer, layer.lora_A[self._name], layer.lora_B[self._name])
        weight, down, up = (each.weight for each in own)
        total = torch.addmm(weight.flatten(1), up.flatten(1), down.flatten(1), alpha=layer.scaling[self._name])
        return total.view_as(weight)

    @contextlib.contextmanager
    def _acting(self, name: str | None) -> Iterator[None]:
        """Lets the adapters of that name act alone, or none, while it lasts."""
        before = self._switch(name)
        try:
            yield
        finally:
            self._switch(before)

    @contextlib.contextmanager
    def _telling(self) -> Iterator[None]:
        """Lets a student be told the end, whatever adapters act, while it lasts."""
        if self._end is None or self._name != STUDENT:
            yield
            return
        before, self._end.scale = self._end.scale, 1.0
        try:
            yield
        finally:
            self._end.scale = before

    def _switch(self, name: str | None) -> str | None:
        """Lets the adapters of that name act alone, or none; returns what acted. Which of them learn stays as it is:
        peft would stop all that do not act, after which their gradients are zero without a word. The student's adapters
        alone are told the end."""
        if self._end is not None:
            self._end.scale = float(name == STUDENT)
        first = next(iter(self._layers.values()))
        before: str | None = None if first.disable_adapters else first.active_adapters[0]
        if before != name:
            learning = [(value, value.requires_grad) for value in self.network.parameters()]
            for layer in self._layers.values():
                layer.enable_adapters(enabled=name is not None)
                if name is not None:
                    layer.set_adapter(name)
            for value, learns in learning:
                value.requires_grad_(learns)
        return before

    @contextlib.contextmanager
    def using(self, weights: AdapterWeights) -> Iterator[None]:
        """Puts, while it lasts, `weights` in the place of the adapters' own; not while a graph is being built."""
        self._swap(weights)
        try:
            yield
        finally:
            self._swap(weights)

    def _swap(self, weights: AdapterWeights) -> None:
        for own, other in zip(self.weights.parameters(), weights.parameters(), strict=True):
            own.data, other.data = other.data, own.data

    def copy_of_weights(self) -> AdapterWeights:
        """Copies them; a moving average starts from that."""
        return copy.deepcopy(self.weights).requires_grad_(False)

    @torch.no_grad()
    def take_over(self, pairs: Lora, source: str, end: End | None = None) -> None:
        """Makes the adapters those of a file; `pairs` by their names in the network, and the `end` of its embedding if
        there is one here. Raises UserError for others than hang here."""
        own = self.pairs(self.weights)
        if own.keys() != pairs.keys() or any(own[name].rank != pair.rank for name, pair in pairs.items()):
            raise UserError(f"{source} has adapters on other modules, or of another rank than {self.rank}")
        if any(pair.alpha != self.alpha for pair in pairs.values()):
            raise UserError(f"{source} has another alpha than {self.alpha:g}; give --lora-alpha")
        named = self.weights.by_name()
        for name, pair in pairs.items():
            named[f"{name}.lora_A.{self._name}.weight"].copy_(pair.down)
            named[f"{name}.lora_B.{self._name}.weight"].copy_(pair.up)
        if self._end is not None:
            self._end.load_state_dict(end or {})

    def end(self, weights: AdapterWeights) -> End:
        """Returns what embeds the end beside them as a LoRA file has it."""
        return {name: value.detach().float() for name, value in pick_end(weights.by_name()).items()}

    def pairs(self, weights: AdapterWeights) -> Lora:
        """Returns the adapters as a LoRA file has them."""
        named = weights.by_name()
        pairs: Lora = {}
        for name, down in named.items():
            if f".lora_A.{self._name}." in name:
                up = named[name.replace(".lora_A.", ".lora_B.")]
                pairs[name.split(".lora_A.")[0]] = Pair(down.detach().float(), up.detach().float(), self.alpha)
        return pairs


@contextlib.contextmanager
def _unwarned() -> Iterator[None]:
    """Keeps peft from warning of several adapters on one network, which are meant here."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Already found a `peft_config`", UserWarning)
        yield


def attach(parts: Mapping[str, nn.Module], pairs: Lora, name: str, scale: float) -> None:
    """Hangs `scale`·ΔW on the modules of `parts`, beside adapters that hang there already."""
    for part, network in parts.items():
        own = {key.split(".", 1)[1]: pair for key, pair in pairs.items() if key.startswith(f"{part}.")}
        if not own:
            continue
        doras = {
            module: Decomposed(pair, _weight_of(network.get_submodule(module)))
            for module, pair in own.items()
            if pair.magnitude is not None
        }
        own |= {module: dora.low_rank(own[module]) for module, dora in doras.items()}
        config = LoraConfig(
            r=1, lora_alpha=1, target_modules="|".join(map(re.escape, own)), init_lora_weights=False,
            rank_pattern={f"^{module}": pair.rank for module, pair in own.items()},
            alpha_pattern={f"^{module}": pair.alpha for module, pair in own.items()},
        )  # fmt: skip
        with _unwarned():
            inject_adapter_in_model(config, network, name)
        for module, pair in own.items():
            layer = network.get_submodule(module)
            assert isinstance(layer, LoraLayer)
            state = {f"lora_A.{name}.weight": pair.down, f"lora_B.{name}.weight": pair.up}
            layer.load_state_dict(state, strict=False)
            layer.set_scale(name, scale)
            if module in doras:
                layer.lora_variant[name] = doras[module]  # type: ignore[assignment]  # peft asks for `forward` alone
        _activate(network)


def _weight_of(module: nn.Module) -> Tensor:
    weight = (module.get_base_layer() if isinstance(module, LoraLayer) else module).weight
    assert isinstance(weight, Tensor)
    return weight.detach()


def rescale(parts: Mapping[str, nn.Module], scales: Mapping[str, float]) -> None:
    """Makes adapters act at these scales, others as they did; one at scale 0 costs nothing."""
    for network in parts.values():
        for layer in network.modules():
            if isinstance(layer, EndEmbedding):
                layer.scale = scales.get(layer.adapter, layer.scale)
            if isinstance(layer, LoraLayer):
                own = [name for name in scales if name in layer.lora_A]
                for name in own:
                    layer.set_scale(name, scales[name])
                layer.set_adapter([name for name in layer.lora_A if scales.get(name, 1.0)], inference_mode=True)


def detach(parts: Mapping[str, nn.Module], name: str) -> None:
    """Takes one adapter off again; what it hung on is as it was, bit for bit."""
    for network in parts.values():
        for layer in network.modules():
            if isinstance(layer, LoraLayer) and name in layer.lora_A:
                layer.delete_adapter(name)
                layer.lora_variant.pop(name, None)
        getattr(network, "peft_config", {}).pop(name, None)
        _activate(network)


def _activate(network: nn.Module) -> None:
    """Lets all adapters of every layer act together."""
    for layer in network.modules():
        if isinstance(layer, LoraLayer):
            layer.set_adapter(list(layer.lora_A), inference_mode=True)
