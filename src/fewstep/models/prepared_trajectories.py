"""Training on trajectories that were walked beforehand: captions are encoded once where they fit, pictures never."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fewstep.data import draws
from fewstep.data.latents import DroppedPicture, StepBatch, StepSource
from fewstep.data.order import SampleOrder
from fewstep.data.shards.prepared import PreparedRow
from fewstep.data.shards.trajectories import TrajectoryShards
from fewstep.diffusion.prediction import Cond
from fewstep.diffusion.schedule import Schedule
from fewstep.models.encoded import encode_captions
from fewstep.models.family import LatentModel
from fewstep.models.network import hash_weights


class KeptTrajectories(StepSource):
    """Reads the trajectories of one folder, in an order of its own: every step of each once an epoch."""

    def __init__(self, model: LatentModel, shards: TrajectoryShards, seed: int, keep_gib: float) -> None:
        self._model, self._shards = model, shards
        sizes = [size * shards.hops for size in shards.shard_sizes]
        self._order = SampleOrder(draws.key(seed, "source", 0), tuple(sizes))
        self._starts = np.cumsum([0, *sizes])
        self.stops = torch.tensor(shards.stops)
        self._texts: dict[str, Tensor] = {}
        self._number_of: dict[str, int] = {}
        if len(shards) * _count_text(model) * 4 / 2**30 <= keep_gib:
            self._keep_texts()

    def __len__(self) -> int:
        """Returns the number of steps of all trajectories."""
        return int(self._starts[-1])

    def shape_at(self, counters: range) -> tuple[int, ...]:  # noqa: ARG002  # all are of one
        return self._shards.latent_shape

    def batch(self, counters: range, noise: Tensor) -> StepBatch:  # noqa: ARG002  # what is kept is no posterior
        places = [self._locate(int(i)) for i in self._order(counters)]
        rows = [self._shards.read_row(shard, row) for shard, row, _ in places]
        omega = torch.tensor([self._shards.read_omega(shard, row) for shard, row, _ in places])
        valid = torch.ones(len(rows), dtype=torch.bool)
        hops = torch.tensor([hop for *_, hop in places])
        z_t, z_0 = self._read(places, hops), self._read(places, torch.full_like(hops, self._shards.hops))
        return StepBatch(z_0, self._tell(rows), self._put(valid), z_t, hops, self._put(omega))

    def read_states(self, counters: range, stops: Tensor) -> Tensor:
        """Returns where the trajectories at these positions stood at each of the `stops` `[b]`, by number."""
        return self._read([self._locate(int(i)) for i in self._order(counters)], stops)

    def _read(self, places: Sequence[tuple[int, int, int]], stops: Tensor) -> Tensor:
        states = [
            self._shards.read_state(shard, row, stop)
            for (shard, row, _), stop in zip(places, stops.tolist(), strict=True)
        ]
        return self._put(torch.stack(states).float())

    def keys(self, counters: range) -> list[str]:
        places = [self._locate(int(i)) for i in self._order(counters)]
        return [f"{self._shards.read_row(shard, row).key} step {hop}" for shard, row, hop in places]

    def dropped(self) -> list[DroppedPicture]:
        return []  # what could not be read was left out when they were prepared

    def _locate(self, index: int) -> tuple[int, int, int]:
        """Returns the shard, the row and the step with this index."""
        shard = int(np.searchsorted(self._starts, index, side="right")) - 1
        return shard, *divmod(index - int(self._starts[shard]), self._shards.hops)

    def _keep_texts(self) -> None:
        shards = self._shards
        rows = (shards.read_row(*shards.locate(i)) for i in range(len(shards)))
        captions = list(dict.fromkeys(row.caption for row in rows))
        self._number_of = {caption: number for number, caption in enumerate(captions)}
        self._texts = encode_captions(self._model.conditioner, captions)
        self._model.rest()

    def _tell(self, rows: Sequence[PreparedRow]) -> Cond:
        conditioner = self._model.conditioner
        if self._texts:
            numbers = torch.tensor([self._number_of[row.caption] for row in rows])
            texts: Cond = {name: self._put(values[numbers]) for name, values in self._texts.items()}
        else:
            texts = conditioner.encode([row.caption for row in rows])
        sizes = conditioner.tell_sizes([row.sizes for row in rows])
        return texts | {name: self._put(values) for name, values in sizes.items()}

    def _put(self, rows: Tensor) -> Tensor:
        device = self._model.device
        pinned = rows.pin_memory() if device.type == "cuda" and rows.device.type == "cpu" else rows
        return pinned.to(device, non_blocking=True)


def _count_text(model: LatentModel) -> int:
    return sum(value.numel() for value in model.conditioner.encode([""]).values())


def describe_teacher(model: LatentModel, resolution: int, stops: Tensor) -> dict[str, Any]:
    """Returns what trajectories between these stops depend on of the model that walks."""
    encoders = model.conditioner.encoders.items()
    return {
        "teacher_sha256": hash_weights(model.network.backbone),
        "encoders": {name: hash_weights(module) for name, module in encoders},
        "prediction": model.network.parameterisation,
        "latent_shape": list(model.codec.shape(resolution)), "stops": stops.tolist(),
        "sigmas": _round_sigmas(model.schedule, stops),
    }  # fmt: skip


def _round_sigmas(schedule: Schedule, stops: Tensor) -> list[float]:
    """Returns the share of noise at every stop, by which schedules are told apart on whatever device."""
    return [round(float(schedule.sigma(stop)), 4) for stop in stops]
