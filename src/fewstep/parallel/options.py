"""Options of commands whose work is many independent parts: what shares it out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from types import MappingProxyType
from typing import Any, ClassVar, Literal

from fewstep.errors import UserError


@dataclass(frozen=True, kw_only=True)
class ExecutorOptions:
    """Says which processes do the parts of a command's work."""

    formerly: ClassVar[Mapping[str, str]] = MappingProxyType({"engine": "executor"})
    """Names that settings had, which the command line still takes for one version."""

    executor: Literal["processes", "ray"] = "processes"
    """What shares out the work: `processes` of this machine, or actors on all machines of a `ray` cluster (needs
    fewstep[ray]), where a machine may go and come. The files are the same to the byte."""
    ray_address: str = ""
    """Address of the ray cluster, as in `10.0.0.1:6379`, or `auto` for the one that this machine is part of. By
    default $RAY_ADDRESS, else a cluster is started on this machine alone."""
    actors: int = 0
    """Number of ray actors that hold the model; 0 takes as many as the cluster has room for when the command begins.
    Give more, and they begin as machines join."""
    gpus_per_actor: float = 0.0
    """Number of GPUs that each ray actor takes, as in 0.25 for four on one GPU, or a whole number; 0 takes one where
    the cluster has any and --device is not cpu. Give less where a model leaves most of a GPU's memory and time idle."""


def check_executor(config: Any) -> None:
    """Raises UserError where options of one executor are given to another, or no actor could be had by them."""
    for name in ("actors", "gpus_per_actor"):
        if getattr(config, name) < 0:
            raise UserError(f"{name} is {getattr(config, name)}; it must not be negative")
    if config.gpus_per_actor > 1 and config.gpus_per_actor % 1:
        raise UserError(f"gpus_per_actor is {config.gpus_per_actor:g}; above 1 it must be a whole number")
    if config.executor == "ray":
        if config.workers > 1:
            raise UserError(f"workers is {config.workers}, which is of --executor processes; give --actors")
        if config.gpus_per_actor and config.device == "cpu":
            raise UserError(f"gpus_per_actor is {config.gpus_per_actor:g} and device cpu; give one of them")
        if ":" in config.device:
            raise UserError(f"device is {config.device}, and ray gives each actor its GPU; give --device cuda")
        return
    of_ray = [field for field in fields(config) if field.name in _OF_RAY]
    for field in of_ray:
        if getattr(config, field.name) != field.default:
            raise UserError(f"{field.name} is {getattr(config, field.name)}, which is of ray; give --executor ray too")


_OF_RAY = ("ray_address", "actors", "gpus_per_actor", "readers")
