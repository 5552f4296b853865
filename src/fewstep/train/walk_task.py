"""Distillation on the teacher's own way: a trajectory is walked step by step, and learnt once its end is known."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fewstep.data.latents import DroppedPicture, LatentSource
from fewstep.method.paths import TrainingBatch, kept_path
from fewstep.method.step import Method
from fewstep.method.walks import Walk, find_stop
from fewstep.train.distill_task import Answers, DistillTask, TimeAndGuidance
from fewstep.train.learner import Learner


@dataclass
class _Trajectories:
    """A trajectory for each row of a part of a batch."""

    held: dict[str, Tensor] = field(default_factory=dict)
    """Holds for every row its `states` `[stops, …]`, as far as it has been walked; `valid`; `omega`, and its condition
    by name."""
    dropped: dict[int, DroppedPicture] = field(default_factory=dict)
    """Holds those whose picture could not be read, by their rows."""

    def put(self, rows: slice, new: dict[str, Tensor], lost: dict[int, DroppedPicture], count: int) -> None:
        """Puts others into these of `count` rows."""
        for name, values in new.items():
            if name not in self.held:
                self.held[name] = values.new_zeros(count, *values.shape[1:])
            self.held[name][rows] = values
        within = range(rows.start, rows.stop)
        self.dropped = {row: each for row, each in self.dropped.items() if row not in within} | lost

    def take(self, rows: slice) -> tuple[dict[str, Tensor], dict[int, DroppedPicture]]:
        """Returns what these rows hold."""
        within = range(rows.start, rows.stop)
        lost = {row: each for row, each in self.dropped.items() if row in within}
        return {name: values[rows] for name, values in self.held.items()}, lost


@dataclass
class _Walkers:
    """The walkers of one part of a batch, which its rows always are."""

    visit: int
    """How often all walkers have gone on before this."""
    begun: bool = False
    """Whether those that came to their end have another trajectory by now."""
    walked: _Trajectories = field(default_factory=_Trajectories)
    """Holds those that the teacher is on."""
    known: _Trajectories = field(default_factory=_Trajectories)
    """Holds those that it walked before, which are learnt."""


_COND = "cond."


class WalkTask(DistillTask):
    """Every row of a batch is a walker: each update takes it one step of the teacher on, from noise to its end.

    What is learnt meanwhile is the trajectory that it walked before, whose ends are known: so nobody need be asked
    where a jump from t to e lands. Where a walker stands follows from its noise, its caption and the frozen teacher
    alone. So a run that goes on takes the steps behind it again, at most those of two trajectories, in the batches that
    it had.
    """

    def __init__(  # a walk in place of a target
        self, learner: Learner, method: Method, source: LatentSource, drawn: TimeAndGuidance, seed: int, *, walk: Walk
    ) -> None:
        super().__init__(learner, dataclasses.replace(method, path=kept_path), source, drawn, seed, "none")
        self._lead, self._walk = method.path, walk
        self._parts: dict[tuple[int, int], _Walkers] = {}
        self._lost: list[DroppedPicture] = []

    def answer(self, counters: range) -> Answers:
        walkers = self._find_walkers(counters)
        self._go_on(walkers, self._look_ahead(counters))  # before the student's activations take their memory
        answers = super().answer(counters)
        walkers.visit, walkers.begun = walkers.visit + 1, False
        self._lost += [
            dataclasses.replace(each, counter=counters[row]) for row, each in sorted(walkers.known.dropped.items())
        ]
        return answers

    def draw_batch(self, counters: range) -> tuple[TrainingBatch, Tensor]:
        known = self._find_walkers(counters).known.held
        hops = torch.tensor(self._walk.locate(counters)[1])
        t = self._walk.stops[hops]
        to = find_stop(self._walk.stops, self._draw_end(t, counters))
        e, rows = self._walk.stops[to], torch.arange(len(hops))
        t, e, hops, to, rows = (each.to(self._device, non_blocking=True) for each in (t, e, hops, to, rows))
        z_t, z_e = known["states"][rows, hops], known["states"][rows, to]
        # z_t stands for a picture and its noise too, which nothing here asks for
        batch = TrainingBatch(z_t, _cond_of(known), t, e, e, z_t, known.get("omega"), z_t=z_t, z_s=z_e)
        return batch, known["valid"]

    def keys(self, counters: range) -> Sequence[str]:
        return [key for i in self._walk.locate(counters)[0] for key in self._source.keys(range(i, i + 1))]

    def dropped(self) -> list[DroppedPicture]:
        lost, self._lost = self._lost, []
        return lost

    def _look_ahead(self, counters: range) -> range:
        """Returns when these rows will learn what the teacher walks now."""
        ahead = self._walk.hops * self._walk.walkers
        return range(counters.start + ahead, counters.stop + ahead)

    def _find_walkers(self, counters: range) -> _Walkers:
        """Returns the walkers of these counters, each with one trajectory behind it and another under way."""
        part, visit = (counters.start % self._walk.walkers, len(counters)), counters.start // self._walk.walkers
        walkers = self._parts.get(part)
        if walkers is None or walkers.visit != visit:
            walkers = self._parts[part] = self._catch_up(counters, visit)
        if not walkers.begun:
            self._begin(walkers, self._look_ahead(counters))
        return walkers

    def _catch_up(self, counters: range, visit: int) -> _Walkers:
        """Takes the steps before this visit again, from where the first of the trajectories that are learnt began.

        A teacher that is spread over processes must be asked by all of them: until one of these walkers has begun, as
        some of another process may have by then, they walk for nothing.
        """
        walkers, now = _Walkers(visit), self._look_ahead(counters)
        for back in range(2 * self._walk.hops - 1, 0, -1):
            ago = back * self._walk.walkers
            then = range(now.start - ago, now.stop - ago)
            self._begin(walkers, then)
            if not walkers.walked.held:
                number = max(0, *self._walk.locate(now)[0])
                waiting, _ = self._start(range(number, number + 1))
                walkers.walked.put(slice(0, len(counters)), waiting, {}, len(counters))
            self._go_on(walkers, then)
        walkers.begun = False
        return walkers

    def _begin(self, walkers: _Walkers, counters: range) -> None:
        """Hands over what has been walked to its end, and puts these walkers at the start of another trajectory."""
        walkers.begun = True
        numbers, hops = self._walk.locate(counters)
        rows = [row for row, hop in enumerate(hops) if hop == 0 and numbers[row] >= 0]
        if not rows:
            return
        new, where = range(numbers[rows[0]], numbers[rows[-1]] + 1), slice(rows[0], rows[-1] + 1)
        if walkers.walked.held:
            walkers.known.put(where, *walkers.walked.take(where), len(counters))
        begun, lost = self._start(new)
        lost = {row + rows[0]: each for row, each in lost.items()}
        walkers.walked.put(where, begun, lost, len(counters))

    def _start(self, new: range) -> tuple[dict[str, Tensor], dict[int, DroppedPicture]]:
        """Returns what trajectories with these numbers begin with, and by their rows what could not be read."""
        shape = self._source.shape_at(new)
        data = self._source.batch(new, self._normal("vae", new, shape))
        z = self._normal("epsilon", new, shape)
        states = z.new_zeros(len(z), self._walk.hops + 1, *z.shape[1:])
        states[:, 0] = z
        begun = {"states": states, "valid": data.valid} | {_COND + name: value for name, value in data.cond.items()}
        if (omega := self._draw_omega(new)) is not None:
            begun["omega"] = omega
        return begun, {each.counter - new.start: each for each in self._source.dropped()}

    @torch.no_grad()
    def _go_on(self, walkers: _Walkers, counters: range) -> None:
        """Takes every walker one step of the teacher on."""
        held, hops = walkers.walked.held, torch.tensor(self._walk.locate(counters)[1])
        t, s = self._walk.stops[hops], self._walk.stops[hops + 1]
        rows = torch.arange(len(hops))
        t, s, hops, rows = (each.to(self._device, non_blocking=True) for each in (t, s, hops, rows))
        z = held["states"][rows, hops]
        batch = TrainingBatch(z, _cond_of(held), t, s, s, z, held.get("omega"), z_t=z)
        held["states"][rows, hops + 1] = self._lead(z, batch).to(z.dtype)


def _cond_of(held: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(_COND): value for name, value in held.items() if name.startswith(_COND)}
