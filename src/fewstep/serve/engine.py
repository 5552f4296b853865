"""Paints for many at once: one thread, and pictures that join and leave its batch between any two steps."""

from __future__ import annotations

import contextlib
import itertools
import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass, field

import torch
from PIL import Image
from torch import Tensor

from fewstep.data.pictures import to_images, to_pixels
from fewstep.data.sources.decoding import fit_cover
from fewstep.diffusion.prediction import Cond
from fewstep.errors import is_short_of_memory
from fewstep.method.sampling import advance
from fewstep.models.lora.adapters import rescale
from fewstep.models.pipeline import Pipeline, seeded_noise

logger = logging.getLogger(__name__)
OnStep = Callable[[int, Image.Image], None]
_TEXTS = 256
"""Encoded prompts that are kept."""


class BusyError(Exception):
    """The queue is full."""

    def __init__(self, retry_after: float) -> None:
        super().__init__(f"the queue is full; try again in {retry_after:.0f} s")
        self.retry_after = retry_after
        """Seconds until there will be room, as far as can be said."""


class ClosedError(Exception):
    """The engine takes no more work."""


class DeadlineError(Exception):
    """A picture was not done in time."""


class ShortOfMemoryError(Exception):
    """The device had too little memory for a batch; the engine lives on."""


class CancelledError(Exception):
    """Whoever wanted the picture has gone."""


@dataclass(frozen=True, kw_only=True)
class Wish:
    """One picture; whoever makes it has checked that the model allows it."""

    prompt: str
    seed: int
    steps: int
    omega: float
    """Guidance in the papers' convention."""
    size: tuple[int, int]
    """Height and width in pixels."""
    loras: tuple[tuple[str, float], ...] = ()
    """Every registered LoRA with its scale λ."""
    start: Image.Image | None = None
    """A picture to start from."""
    strength: float = 1.0
    """How far to go from it."""
    previews: bool = False
    """Whether the picture of each step is wanted too."""

    @property
    def kind(self) -> tuple[object, ...]:
        """What must be alike in pictures that are painted together."""
        return (self.size, self.loras)


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What the engine takes on."""

    waiting: int = 64
    """Pictures that have not begun."""
    batch_pixels: int = 16 * 512 * 512
    """Of all pictures that are painted together."""
    batch: int = 16
    """Pictures that are painted together."""
    deadline: float = 60.0
    """Seconds from a wish to its picture."""


@dataclass(eq=False)
class Job:
    """A wish on its way."""

    wish: Wish
    end: float
    """When it must be done, by time.monotonic."""
    on_step: OnStep | None
    future: Future[Image.Image] = field(default_factory=Future)
    times: Sequence[int] = ()
    cond: Cond = field(default_factory=dict)
    z: Tensor | None = None
    draw: Callable[[], Tensor] | None = None
    """Gives noise `[1, c, h, w]` of its seed at every call, once it has begun."""
    step: int = 0
    """Steps done."""
    cancelled: bool = False

    @property
    def fresh(self) -> bool:
        """Whether its z is noise alone, which stands at the first time already."""
        return self.step == 0 and self.wish.start is None

    def noise(self) -> Tensor:
        """Draws what brings z to the next time; zeros, undrawn, where it stands there already."""
        assert self.draw is not None
        assert self.z is not None
        return torch.zeros_like(self.z) if self.fresh else self.draw()

    def cancel(self) -> None:
        """Leaves the batch before the next step."""
        self.cancelled = True

    def fail(self, error: Exception) -> None:
        with contextlib.suppress(InvalidStateError):  # whoever waited may leave at any moment
            self.future.set_exception(error)

    def done(self, image: Image.Image) -> None:
        with contextlib.suppress(InvalidStateError):
            self.future.set_result(image)


@dataclass
class Counts:
    """What has been done, for whoever measures."""

    pictures: int = 0
    steps: int = 0
    """Evaluations of the network, each of a batch."""
    painted_together: int = 0
    """Pictures in the last batch."""
    seconds_a_step: float = 0.05
    """A moving average."""
    failed: dict[str, int] = field(default_factory=dict)
    """By the name of the error."""


class Engine:
    """Owns the model: nothing else may touch it while the engine runs."""

    def __init__(self, pipeline: Pipeline, loras: Mapping[str, str], limits: Limits = Limits()) -> None:
        """`loras` gives the adapter behind every registered name."""
        self.pipeline, self.limits, self.counts = pipeline, limits, Counts()
        self._loras = dict(loras)
        self._jobs: list[Job] = []  # in the order of their arrival
        self._changed = threading.Condition()
        self._closing = False
        self._texts: OrderedDict[str, Cond] = OrderedDict()
        self._scales: tuple[tuple[str, float], ...] | None = None
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._turn: dict[tuple[object, ...], int] = {}  # when a kind was last painted
        self._clock = itertools.count(1)

    def start(self) -> None:
        self._thread.start()

    def close(self, seconds: float | None = None) -> bool:
        """Takes no more and waits for what it has; whether all was done in time."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        if self._thread.is_alive():
            self._thread.join(seconds)
        return not self._thread.is_alive()

    @property
    def waiting(self) -> int:
        """Pictures that have not begun."""
        return sum(job.z is None for job in list(self._jobs))

    def progress(self) -> tuple[float, int]:
        """Share of the steps done of all pictures that are asked for, and how many these are."""
        jobs = [job for job in list(self._jobs) if not job.future.done()]
        return sum(job.step for job in jobs) / max(1, sum(job.wish.steps for job in jobs)), len(jobs)

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def submit(self, wishes: Sequence[Wish], on_step: OnStep | None = None) -> list[Job]:
        """All of them or none. Raises BusyError or ClosedError. `on_step` is called by the engine's thread."""
        with self._changed:
            self.check_room(len(wishes), max((wish.steps for wish in wishes), default=0))
            end = time.monotonic() + self.limits.deadline
            jobs = [Job(wish, end, on_step) for wish in wishes]
            self._jobs += jobs
            self._changed.notify()
        return jobs

    def check_room(self, count: int, steps: int) -> None:
        """For so many more pictures of so many steps: a place in the queue, and half of the time that they have to
        spare not used up by those before them. Raises BusyError or ClosedError."""
        if self._closing:
            raise ClosedError("the server is going down")
        before = 0.0
        for job in list(self._jobs):
            before += (job.wish.steps - job.step) / self._together(job.wish.size)
        seconds = before * self.counts.seconds_a_step
        to_spare = max(0.0, self.limits.deadline - steps * self.counts.seconds_a_step)
        if self.waiting + count > self.limits.waiting or (before and seconds > to_spare / 2):
            raise BusyError(max(1.0, seconds))

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._jobs and not self._closing:
                    self._changed.wait()
                if not self._jobs:
                    return
                batch = self._choose()
            if batch:
                self._guarded(batch)

    def _choose(self) -> list[Job]:
        """Pictures of one kind, of that which has waited longest; the gone and the late are dropped."""
        now = time.monotonic()
        for job in self._jobs:
            if job.cancelled:
                job.fail(CancelledError())
            elif now > job.end:
                self._count("DeadlineError")
                job.fail(DeadlineError(f"it took more than {self.limits.deadline:g} s"))
        self._jobs = [job for job in self._jobs if not job.future.done()]
        if not self._jobs:
            return []
        # A kind that is new comes after those that are here: a stream of new ones would starve them.
        kinds = dict.fromkeys(job.wish.kind for job in self._jobs)
        self._turn = {kind: self._turn.get(kind) or next(self._clock) for kind in kinds}
        kind = min(kinds, key=self._turn.__getitem__)
        self._turn[kind] = next(self._clock)
        alike = [job for job in self._jobs if job.wish.kind == kind]
        most = self._together(alike[0].wish.size)
        # Those that have begun first: so none of them waits for a newcomer.
        return sorted(alike, key=lambda job: job.z is None)[:most]

    def _together(self, size: tuple[int, int]) -> int:
        """Pictures of that size in a batch, at most."""
        height, width = size
        return max(1, min(self.limits.batch, self.limits.batch_pixels // (height * width)))

    def _guarded(self, batch: list[Job]) -> None:
        """A step; whatever goes wrong with it costs its pictures and no more."""
        begun = time.perf_counter()
        try:
            self._advance(batch)
        except Exception as error:
            self._give_up(batch, error, f"{len(batch)} pictures need more memory than there is")
        taken = time.perf_counter() - begun
        self.counts.seconds_a_step += 0.1 * (taken - self.counts.seconds_a_step)

    def _give_up(self, batch: list[Job], error: Exception, short: str) -> None:
        """`short` is said where the error is one of too little memory."""
        told = error
        if is_short_of_memory(error):
            told = ShortOfMemoryError(short)
            told.__cause__ = error
        else:
            logger.error("a step has failed", exc_info=error)
        for job in batch:
            self._count(type(told).__name__)
            job.fail(told)
        with self._changed:
            self._jobs = [job for job in self._jobs if not job.future.done()]
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _count(self, failure: str) -> None:
        self.counts.failed[failure] = self.counts.failed.get(failure, 0) + 1

    @torch.no_grad()
    def _advance(self, batch: list[Job]) -> None:
        self._use(batch[0].wish.loras)
        self._begin([job for job in batch if job.z is None])
        batch = [job for job in batch if job.z is not None]
        if not batch:
            return
        landed = self._land(batch)
        self.counts.steps += 1
        self.counts.painted_together = len(batch)
        for job, own in zip(batch, landed.split(1), strict=True):
            job.z, job.step = own, job.step + 1
        shown = [job for job in batch if job.step == len(job.times) or (job.wish.previews and job.on_step)]
        if not shown:
            return
        for job, image in zip(shown, to_images(self.pipeline.model.codec.decode(_latents(shown))), strict=True):
            if job.step < len(job.times):
                if job.on_step:
                    job.on_step(job.step, image)
                continue
            self.counts.pictures += 1
            job.done(image)

    def _land(self, batch: list[Job]) -> Tensor:
        """Returns the latents of all after their next step."""
        device = self.pipeline.model.device
        cond = {name: torch.cat([job.cond[name] for job in batch]) for name in batch[0].cond}
        omega = torch.tensor([job.wish.omega for job in batch], device=device)
        t = torch.tensor([job.times[job.step] for job in batch], device=device)
        fresh = torch.tensor([job.fresh for job in batch], device=device)
        noise = torch.cat([job.noise() for job in batch])
        f = self.pipeline.consistency_function(cond, omega)
        return advance(f, _latents(batch), t, torch.zeros_like(t), noise, fresh)

    def _use(self, loras: tuple[tuple[str, float], ...]) -> None:
        if loras != self._scales:
            rescale(self.pipeline.model.parts, {self._loras[name]: scale for name, scale in loras})
            self._scales = loras
            self._texts.clear()  # a LoRA may hang on the text encoder

    def _begin(self, jobs: list[Job]) -> None:
        """Texts, times and first noise; draws are those of `Pipeline`, so that a seed is a picture."""
        model = self.pipeline.model
        unknown = list(dict.fromkeys(job.wish.prompt for job in jobs if job.wish.prompt not in self._texts))
        if unknown:
            cond = model.conditioner.encode(unknown)
            for i, prompt in enumerate(unknown):
                self._texts[prompt] = {name: value[i : i + 1] for name, value in cond.items()}
        for job in jobs:
            wish = job.wish
            job.cond = self._texts[wish.prompt]
            self._texts.move_to_end(wish.prompt)
            job.times = self.pipeline.times(wish.steps, wish.strength if wish.start is not None else 1.0)
            shape = (model.codec.shape(model.resolution)[0], *(side // model.codec.multiple for side in wish.size))
            job.draw = seeded_noise([wish.seed], shape, model.device)
            z = job.draw()
            if wish.start is not None:
                try:
                    mean, std = model.codec.encode(to_pixels([fit_cover(wish.start, wish.size)]))
                except Exception as error:  # its picture is its own: the others go on
                    self._give_up([job], error, "the picture to start from needs more memory than there is")
                    continue
                z = mean + std * z
            job.z = z
        while len(self._texts) > _TEXTS:
            self._texts.popitem(last=False)


def _latents(jobs: Sequence[Job]) -> Tensor:
    return torch.cat([job.z for job in jobs if job.z is not None])
