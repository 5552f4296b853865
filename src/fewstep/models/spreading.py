"""Networks built where they end: shaped on no device, spread over the processes, and filled part by part from files or
from another network's parts. Nothing of them is ever whole anywhere."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor

from fewstep.files import open_safetensors
from fewstep.models.family import LatentModel
from fewstep.models.loading import load_latent_model
from fewstep.models.network import BackboneNetwork, EndEmbedding, list_weights, update_hash
from fewstep.models.options import Overrides
from fewstep.parallel.world import (
    count_local,
    current_world,
    find_mesh,
    find_plain_class,
    find_rows,
    gather_tensor,
    shard,
)

_STORED = "stored_in"
"""Is what a network that waits to be filled calls the files of its tensors, by their names."""
_Network = TypeVar("_Network", bound=BackboneNetwork)


def load_spread(
    source: str | Path, home: torch.device, base_config: str = "", overrides: Overrides | None = None, *,
    mesh: DeviceMesh | None = None,
) -> LatentModel:  # fmt: skip
    """Loads a model as `load_latent_model` does, in fp32, but of its network each process its own part alone: one of
    all, or of those that `mesh` says.

    One whose weights do not lie in a folder of diffusers' own names (a single file, a LoRA merged into it) is read
    whole by every process first. All processes call it together.
    """
    model = _load_in_turn(source, home, base_config, overrides)
    network = model.network
    stored = network.backbone.__dict__.pop(_STORED, None)
    shard(network.backbone, network.blocks, mesh)
    if stored is not None:
        _allocate(network.backbone, home)
        _fill(network.backbone, stored)
    network.backbone.to(home)
    return model


def _load_in_turn(
    source: str | Path, home: torch.device, base_config: str, overrides: Overrides | None
) -> LatentModel:  # fmt: skip
    """Loads all but the network, which is shaped alone. Where text encoders go to a GPU the processes of a machine load
    them one after another, so that its main memory holds those of one at a time."""
    world, turns = current_world(), 1 if home.type == "cpu" else count_local()
    own = int(os.environ.get("LOCAL_RANK", "0")) % turns
    model: LatentModel | None = None
    for turn in range(turns):
        if turn == own:
            model = load_latent_model(source, torch.device("cpu"), base_config, overrides, home=home, shaped=True)
            model = model.settle_around(home)
        if turns > 1:
            world.wait()
    assert model is not None
    return model


def shape_network(kind: Any, folder: Path, files: Sequence[Path], dtype: torch.dtype) -> Any | None:
    """Makes the network of `folder`, of a class of diffusers, with parameters on no device and buffers as they are
    computed; None where the files do not hold just its tensors, which loading it whole puts in words."""
    config = kind.load_config(folder, local_files_only=True)
    with _parameters_on_meta():
        network = kind.from_config(config)
    wanted = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    held: dict[str, tuple[Path, tuple[int, ...]]] = {}
    for path in files:
        with open_safetensors(path) as file:
            held |= {key: (path, tuple(file.get_slice(key).get_shape())) for key in file.keys()}  # noqa: SIM118
    if {name: shape for name, (_, shape) in held.items()} != wanted:
        return None
    network.__dict__[_STORED] = {name: path for name, (path, _) in held.items()}
    return network.to(dtype)


def copy_spread(
    network: _Network, settings: Mapping[str, Any] | None = None, begins: Mapping[str, str | None] | None = None, *,
    told_end: bool = False,
) -> _Network:  # fmt: skip
    """Copies a spread network, each process its own part.

    `settings` are other ones of the library's module; `told_end` hangs an input for the end on it. `begins` says of
    tensors that `network` has not which of its own they begin as, or None for zeros.
    """
    given = network.backbone
    copy: Any = network.with_backbone(_shape_like(given, settings or {}))
    copy.schedule = network.schedule
    if (told_end or network.takes_end) and not copy.takes_end:
        with _parameters_on_meta():
            copy.hang_end()
    shard(copy.backbone, copy.blocks, find_mesh(given))
    _allocate(copy.backbone, next(given.parameters()).device)
    _copy_parts(copy.backbone, given, begins or {})
    copied: _Network = copy
    return copied


def save_spread(network: _Network, save: Callable[[_Network], None]) -> None:
    """Has the first process `save` a spread network as one that is whole: whoever writes it takes tensors out of its
    state by their names, and finds each put together then, of the parts that the others give. All processes call it."""
    world, held = current_world(), network.backbone.state_dict()
    if not world.main:
        while name := world.gather("")[0]:
            gather_tensor(held[name].detach())
        return
    try:
        save(_appear_whole(network, held))
    finally:
        world.gather("")


def _appear_whole(network: _Network, held: Mapping[str, Tensor]) -> _Network:
    whole: Any = network.with_backbone(_shape_like(network.backbone, {}))
    whole.schedule = network.schedule
    if network.takes_end and not whole.takes_end:
        with _parameters_on_meta():
            whole.hang_end()
    backbone = whole.backbone
    list_shapes = backbone.state_dict
    for begin, end in backbone.named_modules():
        if isinstance(end, EndEmbedding):  # small, and written beside
            state = _Asked(list_shapes(), held)
            end.load_state_dict({name: state[f"{begin}.{name}"] for name in end.state_dict()}, assign=True)
    backbone.state_dict = lambda: _Asked(list_shapes(), held)
    seen: _Network = whole
    return seen


class _Asked(dict[str, Tensor]):
    """The shapes of a state, of which a tensor that is taken out by its name is put together."""

    def __init__(self, shapes: Mapping[str, Tensor], held: Mapping[str, Tensor]) -> None:
        super().__init__(shapes)
        self._held = held

    def __getitem__(self, name: str) -> Tensor:
        current_world().gather(name)
        return gather_tensor(self._held[name].detach())


def hash_spread(network: nn.Module) -> str:
    """Hashes a spread network's weights, as `hash_weights` does those of a whole one. All processes call it."""
    total, main = hashlib.sha256(), current_world().main
    for name, value in list_weights(network):
        whole = gather_tensor(value.detach())
        if main:
            update_hash(total, name, whole)
    found: str = current_world().gather(total.hexdigest())[0]
    return found


def _shape_like(given: Any, settings: Mapping[str, Any]) -> Any:
    """Makes a network as large as a spread one, or of other settings, with parameters on no device."""
    # What an older config.json leaves out diffusers lists under this name, and would set to its default again.
    config = {name: value for name, value in given.config.items() if name != "_use_default_values"}
    kind: Any = find_plain_class(given)
    with _parameters_on_meta():
        shaped = kind.from_config({**config, **settings})
    return shaped.to(next(given.parameters()).dtype).train(given.training)


@contextlib.contextmanager
def _parameters_on_meta() -> Iterator[None]:
    """Has every parameter that a module is given lie on no device, while it lasts. Its buffers, and numbers that are
    kept beside, are computed as ever; so is a parameter's memory asked for, which nobody then touches."""
    modules: Any = nn.Module
    register = modules.register_parameter

    def register_on_meta(module: nn.Module, name: str, value: nn.Parameter | None) -> None:
        if value is not None and not value.is_meta:
            value = nn.Parameter(value.to("meta"), requires_grad=value.requires_grad)
        register(module, name, value)

    modules.register_parameter = register_on_meta
    try:
        yield
    finally:
        modules.register_parameter = register


def _allocate(module: nn.Module, device: torch.device) -> None:
    """Gives what has none memory on a device, each process for its parts; what it holds then is anything."""
    module._apply(lambda value: torch.empty_like(value, device=device) if value.is_meta else value.to(device))


@torch.no_grad()
def _fill(module: nn.Module, stored: Mapping[str, Path]) -> None:
    """Reads this process's part of every tensor, and no more of it, converted as it is read."""
    own = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    for path in sorted(set(stored.values())):
        with open_safetensors(path) as file:
            for name in (each for each, where in stored.items() if where == path):
                value = own[name]
                if not isinstance(value, DTensor):
                    value.copy_(file.get_tensor(name))
                elif (local := value.to_local()).numel():
                    local.copy_(file.get_slice(name)[find_rows(value)])


@torch.no_grad()
def _copy_parts(module: nn.Module, given: nn.Module, begins: Mapping[str, str | None]) -> None:
    held = {**dict(given.named_parameters()), **dict(given.named_buffers())}
    for name, value in (*module.named_parameters(), *module.named_buffers()):
        local = value.to_local() if isinstance(value, DTensor) else value
        if name in held:
            source: str | None = name
        elif name in begins:
            source = begins[name]
        else:  # a buffer that other settings bring along, and that is as it is computed
            assert not isinstance(value, DTensor), name
            continue
        if source is None:
            local.zero_()
            continue
        other = held[source]
        local.copy_(other.to_local() if isinstance(other, DTensor) else other)
