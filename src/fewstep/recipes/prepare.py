"""The settings of a preparation: of latents, or of trajectories."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

from fewstep import assets
from fewstep.data.draws import check_seed
from fewstep.diffusion.solvers import SolverName
from fewstep.errors import UserError
from fewstep.models.card import MAX_STEPS
from fewstep.models.options import DeviceOptions, ModelOptions, Overrides
from fewstep.parallel.options import ExecutorOptions, check_executor
from fewstep.precision import Precision
from fewstep.recipes.pictures import PictureOptions
from fewstep.train.config import check_at_least, check_between, check_values


@dataclass(frozen=True, kw_only=True)
class TrajectoryOptions:
    """Says how a teacher walks from noise to pictures."""

    trajectories: int = 0
    """Keep so many trajectories in place of latents: the teacher goes from noise to a picture for each, guided, and
    where every step leads is stored. `distill --states trajectories` then asks no teacher. Captions are those of
    --data, which may be a .txt file with a prompt on each line; pictures are not encoded."""
    skip: int = 20
    """Most time steps of the schedule that the teacher takes at once on a trajectory; as in the `distill` to come."""
    phases: tuple[int, ...] = (1, 2, 4, 8)
    """Numbers of phases at whose begins trajectories stop too, so that these can be learnt."""
    guidance_range: tuple[float, float] = (3.0, 9.0)
    """Lowest and highest guidance scale, between which one is drawn for each trajectory; as in the `distill` to
    come."""
    guided_from: int = 0
    """Lowest time step of a trajectory at which the teacher is guided; as in the `distill` to come."""
    solver: SolverName = "ddim"
    """Solver that the teacher walks trajectories by; as in the `distill` to come."""
    precision: Precision = "auto"
    """Number format that the teacher walks trajectories in. `auto` takes bf16 on a GPU that computes in it, fp16
    on an older GPU, else fp32."""
    states_precision: Literal["fp16", "fp32"] = "fp16"
    """Number format in which trajectories are stored; `fp16` is half as large, and off by 1 part in 2,000 at
    most."""


@dataclass(frozen=True, kw_only=True)
class Prepare(PictureOptions, TrajectoryOptions, ExecutorOptions, ModelOptions, DeviceOptions):
    """Encodes pictures into a folder that a training takes as --data, or walks a teacher's trajectories into one.

    Give the same command again to resume it, or several times at once, on one machine or many, to share the work.
    """

    model: str = assets.SCENES
    """The model whose autoencoder encodes the pictures, or that walks: `scenes` (bundled), a diffusers folder in Stable
    Diffusion's layout, a single-file checkpoint or a Hub id."""
    out: Path = Path("prepared")
    """Folder for the shards of latents: one for each shard of the source, or several for a long one (--part). Or any
    URL that fsspec writes to, such as `s3://bucket/latents`."""
    std: bool = True
    """Also store the standard deviations of the latents, so that training can sample them; --no-std halves the disk
    space."""
    part: int = 0
    """Most pictures, or trajectories, in a shard, which a process that is interrupted makes again; 0 takes 10,000
    pictures, or 256 trajectories, and fewer where these are larger than 128 MiB."""
    batch_size: int = 16
    """Pictures encoded, or trajectories walked, together. What they become depends on it, but only by rounding."""
    workers: int = 0
    """Processes on this machine; 0 takes one for each GPU, or without one for each core, of one thread each."""
    readers: int = 0
    """Number of ray actors, of one CPU each, that read and decode pictures for those that hold the model; 0 leaves it
    to these, as --read-ahead says. Give more while the command says that GPUs encode more pictures a second than are
    decoded."""
    read_ahead: int = 4
    """Threads of each process on a GPU that read and decode the next pictures while it encodes; 0 reads them in
    between."""
    seed: int = 0
    """Seed of random crops, of scenes, and of the noise and the guidance of trajectories."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_values(self)
        check_at_least(self, 1, "batch_size")
        check_at_least(self, 0, "part", "workers", "readers", "read_ahead", "trajectories")
        check_executor(self)
        check_seed(self.seed)
        walking = {field.name for field in fields(TrajectoryOptions) if field.name != "trajectories"}
        walking |= {field.name for field in fields(Overrides)}
        if not self.trajectories:
            _check_unset(self, walking, "is of trajectories; give --trajectories too")
            return
        _check_unset(self, {"std", "read_ahead", "buckets"}, "is of pictures; trajectories have none")
        self._check_walk()

    def _check_walk(self) -> None:
        low, high = self.guidance_range
        if not 1 <= low <= high:
            raise UserError(f"guidance_range is {low:g} to {high:g}; needed: 1 ≤ low ≤ high")
        check_between(self, 1, 500, "skip")
        check_at_least(self, 0, "guided_from")
        if not all(1 <= count <= MAX_STEPS for count in self.phases):
            raise UserError(f"phases are {self.phases}; expected numbers from 1 to {MAX_STEPS}")


def default_prepare() -> Prepare:
    """Returns the command's defaults: it asks which pictures are meant."""
    return Prepare(data="")


def _check_unset(config: Prepare, names: set[str], why: str) -> None:
    """Raises UserError where one of these settings is not as it is by default."""
    for field in dataclasses.fields(Prepare):
        if field.name in names and getattr(config, field.name) != field.default:
            raise UserError(f"{field.name} is {getattr(config, field.name)}, which {why}")
