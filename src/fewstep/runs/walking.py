"""Trajectories of a teacher, walked from noise to pictures by the steps that walkers would take, and kept."""

from __future__ import annotations

import dataclasses
import math
import os
import time
from collections.abc import Sequence

import torch
from torch import Tensor

from fewstep.data import draws
from fewstep.data.reading import CropSettings, Square, hash_sources
from fewstep.data.shards.manifest import TRAJECTORIES
from fewstep.data.shards.prepared import PreparedRow, is_written, write_shard
from fewstep.data.shards.store import open_store
from fewstep.data.sources.base import escape_line
from fewstep.diffusion.solvers import SOLVERS
from fewstep.errors import UserError
from fewstep.method.paths import TeacherPath, TrainingBatch
from fewstep.method.walks import find_stops
from fewstep.models.family import LatentModel
from fewstep.models.loading import load_latent_model, pick_device
from fewstep.models.prepared_trajectories import describe_teacher
from fewstep.precision import autocast, choose_dtype, name_dtype
from fewstep.recipes.prepare import Prepare
from fewstep.runs.material import choose_resolution
from fewstep.runs.preparing import Part, Stages, check_readable, make_row
from fewstep.runs.reading_stage import ReadingHelpers, ReadingStage, open_reading
from fewstep.train.distill_task import draw_omega

_MOST_BYTES, _MOST_EACH = 128 * 2**20, 256
"""Bound a shard, which is what an interrupted command does again, and what processes share out."""
_READERS = 4
"""Threads that read captions, and for their sizes pictures."""


class WalkingStudio:
    """Holds the teacher and the captions in each of the processes."""

    noun = kind = TRAJECTORIES
    verb = "walk"

    def __init__(self, config: Prepare, number: int = 0, helpers: ReadingHelpers | None = None) -> None:
        """`number` is that of the process on this machine, each of which has a GPU of its own as long as there are
        some; `helpers` read for it."""
        self._config, self._store, self.notes = config, open_store(config.out), list[str]()
        own = int(os.environ.get("LOCAL_RANK", "0")) * max(1, config.workers) + number
        device = pick_device(config.device, own)
        self.on_cpu = device.type == "cpu"
        self.gpus = 1 if "LOCAL_RANK" in os.environ or device.type != "cuda" else torch.cuda.device_count()
        self._dtype = choose_dtype(config.precision, device)
        self._stored = torch.float16 if config.states_precision == "fp16" else torch.float32
        model = self._model = load_teacher(config, device)
        resolution = choose_resolution(config, model)
        self._reading, source = open_reading(config, CropSettings(resolution=resolution, crop=config.crop))
        self._stage = ReadingStage(self._reading, _READERS, helpers)
        self._stops = find_stops(model.schedule, config.skip, config.phases)
        self._shape = model.codec.shape(resolution)
        bytes_each = len(self._stops) * math.prod(self._shape) * self._stored.itemsize
        part = config.part or max(1, min(_MOST_EACH, _MOST_BYTES // bytes_each))
        starts = range(0, config.trajectories, part)
        self.parts = [
            Part(f"{n:05d}-0000-{TRAJECTORIES}", range(start, min(start + part, config.trajectories)))
            for n, start in enumerate(starts)
        ]
        self.made_of = _describe(config, model, resolution, self._stops) | {
            "precision": name_dtype(self._dtype), "part": part,
            "pictures_sha256": hash_sources([source]),
        }  # fmt: skip
        model.network.backbone.to(model.dtype_for(self._dtype))  # as a training holds its teacher
        self._path = TeacherPath(
            model.network, model.schedule, model.null(), SOLVERS[config.solver], config.guided_from, model.rescale
        )

    def run(self, part: Part) -> Stages:
        """Walks the trajectories of a part, unless another process has meanwhile."""
        if is_written(self._store, part.name):
            return Stages()
        rows: list[PreparedRow] = []
        walked: dict[str, list[Tensor]] = {"states": [], "omega": []}
        reading = walking = 0.0
        size = self._config.batch_size
        starts = range(part.pictures.start, part.pictures.stop, size)
        batches = [range(start, min(start + size, part.pictures.stop)) for start in starts]
        for numbers, (squares, seconds) in zip(
            batches, self._stage.read_in_order(map(self._places, batches)), strict=True
        ):  # fmt: skip
            begun = time.perf_counter()
            kept = torch.tensor([not square.reason for square in squares])
            for name, values in zip(walked, self._walk(numbers, squares), strict=True):
                walked[name].append(values[kept])
            reading, walking = reading + seconds, walking + time.perf_counter() - begun
            rows += [self._make_row(number, square) for number, square in zip(numbers, squares, strict=True)]
            check_readable(rows, part)
        begun = time.perf_counter()
        joined = {name: torch.cat(values) for name, values in walked.items()}
        write_shard(self._store, part.name, rows, joined, self.made_of)
        return Stages(len(part.pictures), reading, walking, time.perf_counter() - begun)

    def _places(self, numbers: range) -> list[tuple[int, int]]:
        """Returns which picture a walker of each number would be given, and where."""
        return list(zip(self._reading.indices(numbers).tolist(), numbers, strict=True))

    def _make_row(self, number: int, square: Square) -> PreparedRow:
        row = make_row(self._reading, int(self._reading.indices([number])[0]), square)
        key = f"trajectory {number} of {row.key}"
        return dataclasses.replace(row, key=key, caption=square.caption, others=())  # the one that was drawn

    @torch.no_grad()
    def _walk(self, numbers: range, squares: Sequence[Square]) -> tuple[Tensor, Tensor]:
        """Returns the states `[b, stops, c, h, w]` and ω `[b]`, in main memory."""
        config, device = self._config, self._model.device
        # All batches are of one size, so that where a trajectory leads depends on none beside it.
        rows = [row % len(numbers) for row in range(config.batch_size)]
        filled = [numbers[row] for row in rows]
        conditioner = self._model.conditioner
        cond = conditioner.encode([squares[row].caption for row in rows])
        cond |= conditioner.tell_sizes([squares[row].sizes for row in rows])
        low, high = map(self._model.family.omega_of, config.guidance_range)
        omega = draw_omega(config.seed, filled, (low, high))
        z = draws.normal(config.seed, "epsilon", filled, self._shape).to(device)
        states = [z]
        for t, s in zip(self._stops[:-1], self._stops[1:], strict=True):
            times = (t.expand(len(rows)).to(device), s.expand(len(rows)).to(device))
            batch = TrainingBatch(z, cond, *times, e=times[1], epsilon=z, omega=omega.to(device), z_t=z)
            with autocast(device, self._dtype):
                z = self._path(z, batch).float()
            states.append(z)
        stored = torch.stack(states, dim=1)[: len(numbers)].to(self._stored).cpu()
        self._check_finite(stored, numbers, squares)
        return stored, omega[: len(numbers)]

    def _check_finite(self, states: Tensor, numbers: range, squares: Sequence[Square]) -> None:
        finite = states.isfinite().flatten(2).all(2)
        for row, stop in (~finite).nonzero().tolist():
            if squares[row].reason:
                continue
            raise UserError(
                f"the state of trajectory {numbers[row]} ({escape_line(squares[row].caption[:60])}) at "
                f"t = {int(self._stops[stop])} is not a finite number in {self._config.states_precision}; give another "
                "--precision or --states-precision, or check the teacher"
            )


def load_teacher(config: Prepare, device: torch.device) -> LatentModel:
    """Loads the model that walks. Raises UserError for one that is few-step already."""
    model = load_latent_model(config.model, device, config.base_config, config)
    if model.is_few_step:
        raise UserError(f"{config.model} is a few-step model, which has no trajectories; give the teacher")
    model.take_side(choose_resolution(config, model))
    if config.skip > model.schedule.last:
        raise UserError(f"skip is {config.skip} and the schedule has {model.schedule.num_steps} times; give less")
    return model


def _describe(config: Prepare, model: LatentModel, resolution: int, stops: Tensor) -> dict[str, object]:
    """Returns what the trajectories depend on, beside the captions."""
    said = ("trajectories", "skip", "guided_from", "solver", "states_precision", "data", "seed", "crop", "batch_size")
    return {
        "format": 1, "kind": TRAJECTORIES, **describe_teacher(model, resolution, stops), "resolution": resolution,
        "guidance_range": list(config.guidance_range), "phases": sorted(set(config.phases)),
        **{name: getattr(config, name) for name in said},
    }  # fmt: skip
