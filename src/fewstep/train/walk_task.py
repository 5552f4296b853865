"""Distillation on the teacher's own way: where one update's step of it has led, a later update begins."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fewstep.data.latents import DroppedPicture, LatentSource
from fewstep.method.batch import TrainingBatch
from fewstep.method.paths import Path
from fewstep.method.step import Method, TargetName
from fewstep.method.walks import Walk
from fewstep.train.distill_task import Answers, DistillTask, TimeAndGuidance
from fewstep.train.learner import Learner


class _Remembering:
    """A path that remembers where it led."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.led_to: Tensor

    def __call__(self, z_t: Tensor, batch: TrainingBatch) -> Tensor:
        self.led_to = self._path(z_t, batch)
        return self.led_to


@dataclass
class _Walkers:
    """The walkers of one part of a batch, which its rows always are."""

    visit: int
    """How often all walkers have gone on before this."""
    held: dict[str, Tensor] = field(default_factory=dict)
    """Of every row: `z`, where it stands; `valid`; `omega`, and its condition by name."""
    dropped: dict[int, DroppedPicture] = field(default_factory=dict)
    """Holds those whose picture could not be read, by their rows."""

    def put(self, rows: slice, new: dict[str, Tensor], count: int) -> None:
        """Puts what is new into some of `count` rows."""
        for name, values in new.items():
            if name not in self.held:
                self.held[name] = values.new_zeros(count, *values.shape[1:])
            self.held[name][rows] = values


_COND = "cond."


class WalkTask(DistillTask):
    """Every row of a batch is a walker: it starts from noise, and each update takes it one step of the teacher on.

    Where it stands follows from its noise, its caption and the frozen teacher alone. So a run that goes on takes the
    steps behind it again, at most those of one trajectory, in the batches that it had.
    """

    def __init__(  # a walk more than its base
        self, learner: Learner, method: Method, source: LatentSource, drawn: TimeAndGuidance, seed: int,
        target: TargetName = "average", *, walk: Walk,
    ) -> None:  # fmt: skip
        self._path = _Remembering(method.path)
        super().__init__(learner, dataclasses.replace(method, path=self._path), source, drawn, seed, target)
        self._walk = walk
        self._parts: dict[tuple[int, int], _Walkers] = {}
        self._lost: list[DroppedPicture] = []

    def answer(self, counters: range) -> Answers:
        answers = super().answer(counters)
        walkers = self._parts[self._find_part(counters)]
        walkers.held["z"], walkers.visit = self._path.led_to, walkers.visit + 1
        self._lost += [
            dataclasses.replace(each, counter=counters[row]) for row, each in sorted(walkers.dropped.items())
        ]
        return answers

    def draw_batch(self, counters: range) -> tuple[TrainingBatch, Tensor]:
        part, visit = self._find_part(counters), counters.start // self._walk.walkers
        if part not in self._parts or self._parts[part].visit != visit:
            self._parts[part] = self._catch_up(counters, visit)
        walkers = self._parts[part]
        self._begin(walkers, counters)
        return self._draw(walkers, counters), walkers.held["valid"]

    def keys(self, counters: range) -> Sequence[str]:
        return [key for i in self._walk.locate(counters)[0] for key in self._source.keys(range(i, i + 1))]

    def dropped(self) -> list[DroppedPicture]:
        lost, self._lost = self._lost, []
        return lost

    def _find_part(self, counters: range) -> tuple[int, int]:
        return counters.start % self._walk.walkers, len(counters)

    @torch.no_grad()
    def _catch_up(self, counters: range, visit: int) -> _Walkers:
        """Takes the steps before this visit again, from where the last walker of the part began."""
        walkers = _Walkers(visit)
        for back in range(self._walk.hops - 1, 0, -1):
            ago = back * self._walk.walkers
            then = range(counters.start - ago, counters.stop - ago)
            self._begin(walkers, then)
            if walkers.held:
                walkers.held["z"] = self._path(walkers.held["z"], self._draw(walkers, then))
        return walkers

    def _begin(self, walkers: _Walkers, counters: range) -> None:
        """Puts each walker that has come to its end at the start of another trajectory."""
        numbers, hops = self._walk.locate(counters)
        rows = [row for row, hop in enumerate(hops) if hop == 0 and numbers[row] >= 0]
        if not rows:
            return
        new, where = range(numbers[rows[0]], numbers[rows[-1]] + 1), slice(rows[0], rows[-1] + 1)
        data = self._source.batch(new, self._normal("vae", new, self._source.latent_shape))
        begun = {"z": self._normal("epsilon", new, self._source.latent_shape), "valid": data.valid}
        if (omega := self._draw_omega(new)) is not None:
            begun["omega"] = omega
        walkers.put(where, begun | {_COND + name: value for name, value in data.cond.items()}, len(counters))
        lost = {each.counter - new.start + rows[0]: each for each in self._source.dropped()}
        walkers.dropped = {row: each for row, each in walkers.dropped.items() if row not in rows} | lost

    def _draw(self, walkers: _Walkers, counters: range) -> TrainingBatch:
        hops = torch.tensor(self._walk.locate(counters)[1])
        t, s = self._walk.stops[hops], self._walk.stops[hops + 1]
        e = torch.minimum(self._draw_end(t, counters), s)  # an end anywhere below t may lie above s
        t, s, e = (time.to(self._device, non_blocking=True) for time in (t, s, e))
        cond = {name.removeprefix(_COND): value for name, value in walkers.held.items() if name.startswith(_COND)}
        z = walkers.held["z"]  # in place of a picture and its noise too, which nothing here asks for
        return TrainingBatch(z, cond, t, s, e, z, walkers.held.get("omega"), z_t=z)
