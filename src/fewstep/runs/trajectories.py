"""Trajectories opened for a run, where they are of its teacher and its settings."""

from __future__ import annotations

from collections.abc import Collection

import torch

from fewstep.data.shards.manifest import TRAJECTORIES
from fewstep.data.shards.trajectories import TrajectoryShards
from fewstep.data.sources.remote import CacheSettings
from fewstep.errors import UserError
from fewstep.method.named import METHODS
from fewstep.method.times import edges
from fewstep.models.family import LatentModel
from fewstep.models.prepared_trajectories import KeptTrajectories, describe_teacher
from fewstep.recipes.distill import Distill
from fewstep.recipes.pictures import TrainingConfig
from fewstep.runs.latent_material import describe_shards
from fewstep.runs.material import Material


def open_kind(config: TrainingConfig, model: LatentModel, resolution: int, *, captions: int, **_: object) -> Material:
    """Opens trajectories as what a run learns from."""
    walked = open_trajectories(config, model, resolution)
    return describe_shards(
        config, walked, resolution, captions, len(walked) * walked.hops,
        lambda: KeptTrajectories(model, walked, config.seed, config.keep_gib),
    )  # fmt: skip


def open_trajectories(config: TrainingConfig, model: LatentModel, resolution: int) -> TrajectoryShards:
    """Opens those of a folder. Raises UserError where the run is of another kind, or they do not fit it."""
    folder = config.data
    if not isinstance(config, Distill):
        raise UserError(f"{folder} holds trajectories of a teacher, which only `fewstep distill` learns from")
    if METHODS[config.method].states == "own":
        raise UserError(
            f"{folder} holds trajectories of a teacher and {config.method} follows the student; give --data pictures"
        )
    if config.states not in ("auto", TRAJECTORIES):
        raise UserError(f"{folder} holds trajectories, and states is {config.states}; give --states {TRAJECTORIES}")
    if config.follows_student:
        raise UserError(f"{folder} holds trajectories of a teacher, and a student is followed; give other --data")
    config.check_walked(TRAJECTORIES)
    shards = TrajectoryShards(folder, follow_links=config.follow_links, cache=CacheSettings(budget=config.cache_bytes))
    _check_settings(shards, config)
    _check_teacher(shards, config, model, resolution)
    if config.phases or not config.start:  # else they are the student's, which is not read yet
        check_stops(config.data, shards.stops, config.phases or METHODS[config.method].phases, model)
    return shards


def _check_settings(shards: TrajectoryShards, config: Distill) -> None:
    """Raises UserError naming the setting in which trajectories and a run do not agree."""
    wanted = {
        "skip": config.skip, "solver": config.solver, "guidance_range": list(config.guidance_range),
        "guided_from": config.guided_from,
    }  # fmt: skip
    for name, value in wanted.items():
        held = shards.made_of.get(name)
        if held != value:
            said, here = (" ".join(map(str, each)) if isinstance(each, list) else each for each in (held, value))
            option = name.replace("_", "-")
            raise UserError(
                f"{shards.place} was walked with {name} {said} and this run has {here}; give --{option} {said}, or "
                f"prepare trajectories with --{option} {here}"
            )


def _check_teacher(shards: TrajectoryShards, config: Distill, model: LatentModel, resolution: int) -> None:
    held = shards.made_of
    wanted = describe_teacher(model, resolution, torch.tensor(shards.stops).clamp(max=model.schedule.last))
    for name, value in wanted.items():
        if held.get(name) != value:
            raise UserError(
                f"{shards.place} was not walked by {config.teacher} at this resolution: {name} is "
                f"{str(held.get(name))[:60]} there and {str(value)[:60]} here; give the teacher that walked, or "
                "prepare trajectories of this one"
            )


def check_stops(data: str, stops: Collection[int], phases: Collection[int], model: LatentModel) -> None:
    """Raises UserError where the trajectories in `data` do not stop where each of these numbers of phases begin."""
    lacking = [count for count in phases if not set(edges(model.schedule, count).tolist()) <= set(stops)]
    if lacking:
        raise UserError(
            f"{data} does not stop where {' or '.join(map(str, lacking))} phases begin; prepare trajectories with "
            f"--phases {' '.join(map(str, phases))}"
        )
