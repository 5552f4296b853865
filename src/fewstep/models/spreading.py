"""Networks built where they end: shaped on no device, spread over the processes, and filled part by part from files or
from another network's parts. Nothing of them is ever whole anywhere."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor

from fewstep.errors import UserError
from fewstep.files import open_safetensors
from fewstep.models.family import LatentModel
from fewstep.models.loading import load_latent_model
from fewstep.models.network import BackboneNetwork, EndEmbedding, list_weights, update_hash
from fewstep.models.options import Overrides
from fewstep.models.weight_files import check_floats
from fewstep.parallel.world import (
    count_local,
    current_world,
    find_mesh,
    find_plain_class,
    find_rows,
    gather_tensor,
    make_mesh,
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

    The processes of a machine load one after another. One whose network does not lie in files of diffusers' own names
    (a single file, a LoRA merged into it) reads it whole and keeps its part, so that main memory holds it whole once.
    All processes call it together. Raises UserError, in each, once all of them had their turn, for NaN too.
    """
    mesh = mesh or make_mesh("fsdp")
    world, turns = current_world(), count_local()
    own = int(os.environ.get("LOCAL_RANK", world.rank)) % turns
    model: LatentModel | None = None
    failed: UserError | None = None
    for turn in range(turns):
        if turn == own:
            try:
                model = _load_parts(source, home, base_config, overrides, mesh)
            except UserError as error:
                failed = error
        if turns > 1:
            world.wait()
    if failed:
        raise failed
    assert model is not None
    if broken := next(filter(None, world.gather(model.find_broken())), None):
        network = overrides.network if overrides and broken.startswith(f"{model.family.lora.part}.") else ""
        held = network or source
        raise UserError(f"{held} is broken: NaN or infinity in {broken}; fetch the model again, or export it anew")
    return model


def _load_parts(
    source: str | Path, home: torch.device, base_config: str, overrides: Overrides | None, mesh: DeviceMesh
) -> LatentModel:  # fmt: skip
    """Loads a model with this process's part of its network, and waits for no other process."""
    model = load_latent_model(source, torch.device("cpu"), base_config, overrides, home=home, shaped=True)
    network = model.network
    stored = network.backbone.__dict__.pop(_STORED, None)
    if stored is None:
        model = dataclasses.replace(model, network=_cut(network, mesh, home))
    else:
        shard(network.backbone, network.blocks, mesh)
        _allocate(network.backbone, home)
        _fill(network.backbone, stored)
        network.backbone.to(home)
    return model.settle_around(home)


def _cut(network: _Network, mesh: DeviceMesh, home: torch.device) -> _Network:
    """Returns this process's part of a network that is whole."""
    given = network.backbone
    part: Any = _shape_as(network, {})
    shard(part.backbone, part.blocks, mesh)
    _allocate(part.backbone, home)
    part.requires_grad_(False)
    held = {**dict(given.named_parameters()), **dict(given.named_buffers())}
    with torch.no_grad():
        for name, value in (*part.backbone.named_parameters(), *part.backbone.named_buffers()):
            if not isinstance(value, DTensor):
                value.copy_(held[name])
            elif (local := value.to_local()).numel():
                local.copy_(held[name][find_rows(value)])
    cut: _Network = part
    return cut


def shape_network(kind: Any, folder: Path, files: Sequence[Path], dtype: torch.dtype) -> Any | None:
    """Makes the network of `folder`, of a class of diffusers, with parameters on no device and buffers as they are
    computed; None where the files do not hold just its tensors, which loading it whole puts in words."""
    config = kind.load_config(folder, local_files_only=True)
    with _parameters_on_meta():
        network = kind.from_config(config)
    wanted = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    held: dict[str, tuple[Path, tuple[int, ...]]] = {}
    for path in files:
        check_floats(path)
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
    copy: Any = _shape_as(network, settings or {}, told_end=told_end)
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
    whole: Any = _shape_as(network, {})
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


def _shape_as(network: BackboneNetwork, settings: Mapping[str, Any], *, told_end: bool = False) -> BackboneNetwork:
    """Makes a network like another one, but for `settings` of its module, with parameters on no device."""
    shaped = network.with_backbone(_shape_like(network.backbone, settings))
    shaped.schedule = network.schedule
    if (told_end or network.takes_end) and not shaped.takes_end:
        with _parameters_on_meta():
            shaped.hang_end()
    return shaped


def _shape_like(given: Any, settings: Mapping[str, Any]) -> Any:
    """Makes a module as large as a spread one, or of other settings, with parameters on no device."""
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
