"""Paints for many clients at once: in one thread, whose batch pictures join and leave between any two steps."""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from fewstep.data.sources.fitting import fit_cover
from fewstep.diffusion.prediction import Cond
from fewstep.errors import UserError, is_short_of_memory
from fewstep.method.sampling import Kept, advance, bring, find_clean
from fewstep.models.lora.adapters import rescale
from fewstep.models.pipeline import Pipeline, seeded_noise
from fewstep.models.start import Start
from fewstep.serve.jobs import (
    BusyError,
    CancelledError,
    ClosedError,
    DeadlineError,
    EngineCounts,
    EngineLimits,
    OnStep,
    PaintJob,
    PictureSpec,
    ShortOfMemoryError,
)

logger = logging.getLogger(__name__)
_TEXTS = 256
"""Encoded prompts that are kept."""


class Engine:
    """Owns the model, which nothing else may touch while the engine runs."""

    def __init__(self, pipeline: Pipeline, loras: Mapping[str, str], limits: EngineLimits) -> None:
        """Takes `loras`: the adapter behind every registered name."""
        self.pipeline, self.limits, self.counts = pipeline, limits, EngineCounts()
        self._loras = dict(loras)
        self._jobs: list[PaintJob] = []  # in the order of their arrival
        self._changed = threading.Condition()
        self._closing = False
        self._texts: OrderedDict[str, Cond] = OrderedDict()
        self._scales: object = None
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._turn: dict[tuple[object, ...], int] = {}  # when a kind was last painted
        self._clock = itertools.count(1)

    def start(self) -> None:
        self._thread.start()

    def close(self, seconds: float | None = None) -> bool:
        """Takes no more pictures, and waits for those it has. Returns whether all were finished in time."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        if self._thread.is_alive():
            self._thread.join(seconds)
        return not self._thread.is_alive()

    @property
    def waiting(self) -> int:
        """Counts the pictures that have not begun."""
        return sum(job.z is None for job in list(self._jobs))

    def progress(self) -> tuple[float, int]:
        """Returns the fraction of all wanted steps that is done, and the number of unfinished pictures."""
        jobs = [job for job in list(self._jobs) if not job.future.done()]
        return sum(job.step for job in jobs) / max(1, sum(job.spec.steps for job in jobs)), len(jobs)

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def submit(self, specs: Sequence[PictureSpec], on_step: OnStep | None = None) -> list[PaintJob]:
        """Queues all pictures or none. Raises BusyError or ClosedError. The engine's thread calls `on_step`."""
        with self._changed:
            self.check_room(len(specs), max((spec.steps for spec in specs), default=0))
            end = time.monotonic() + self.limits.deadline
            jobs = [PaintJob(spec, end, on_step) for spec in specs]
            self._jobs += jobs
            self._changed.notify()
        return jobs

    def check_room(self, count: int, steps: int) -> None:
        """Raises BusyError or ClosedError where there is no room for so many more pictures of so many steps.

        They need places in the queue, and those before them may use up at most half of the time they have to spare.
        """
        if self._closing:
            raise ClosedError("the server is going down")
        before = 0.0
        for job in list(self._jobs):
            before += (job.spec.steps - job.step) / self._max_batch(job.spec.size)
        seconds = before * self.counts.seconds_per_step
        to_spare = max(0.0, self.limits.deadline - steps * self.counts.seconds_per_step)
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
                self._advance_safely(batch)

    def _choose(self) -> list[PaintJob]:
        """Chooses pictures of the kind that has waited longest; cancelled and late ones are dropped."""
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
        kinds = dict.fromkeys(job.spec.kind for job in self._jobs)
        self._turn = {kind: self._turn.get(kind) or next(self._clock) for kind in kinds}
        kind = min(kinds, key=self._turn.__getitem__)
        self._turn[kind] = next(self._clock)
        alike = [job for job in self._jobs if job.spec.kind == kind]
        most = self._max_batch(alike[0].spec.size)
        # Those that have begun first: so none of them waits for a newcomer.
        return sorted(alike, key=lambda job: job.z is None)[:most]

    def _max_batch(self, size: tuple[int, int]) -> int:
        """Returns the most pictures of that size in a batch."""
        height, width = size
        return max(1, min(self.limits.batch, self.limits.batch_pixels // (height * width)))

    def _advance_safely(self, batch: list[PaintJob]) -> None:
        """Computes one step; an error costs the pictures of this batch and no others."""
        begun = time.perf_counter()
        try:
            self._advance(batch)
        except Exception as error:
            self._give_up(batch, error, f"{len(batch)} pictures need more memory than there is")
        taken = time.perf_counter() - begun
        self.counts.seconds_per_step += 0.1 * (taken - self.counts.seconds_per_step)

    def _give_up(self, batch: list[PaintJob], error: Exception, short: str) -> None:
        """Fails the batch with `error`, or with the message `short` where the device has too little memory."""
        reported = error
        if is_short_of_memory(error):
            reported = ShortOfMemoryError(short)
            reported.__cause__ = error
        else:
            logger.error("a step has failed", exc_info=error)
        for job in batch:
            self._count(type(reported).__name__)
            job.fail(reported)
        with self._changed:
            self._jobs = [job for job in self._jobs if not job.future.done()]
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _count(self, failure: str) -> None:
        self.counts.failed[failure] = self.counts.failed.get(failure, 0) + 1

    @torch.no_grad()
    def _advance(self, batch: list[PaintJob]) -> None:
        self._use(batch[0].spec)
        self._begin([job for job in batch if job.z is None])
        batch = [job for job in batch if job.z is not None]
        if not batch:
            return
        landed, clean = self._land(batch)
        self.counts.steps += 1
        self.counts.painted_together = len(batch)
        for job, own, seen in zip(batch, landed.split(1), clean.split(1), strict=True):
            job.z, job.seen, job.step = own, seen, job.step + 1
        shown = [job for job in batch if job.step == len(job.times) or (job.spec.previews and job.on_step)]
        if not shown:
            return
        pixels = self.pipeline.model.codec.decode(_join_seen(shown))
        for job, own in zip(shown, pixels.split(1), strict=True):
            try:
                (painted,) = self.pipeline.to_images(own)
            except UserError as error:  # its picture is its own: the others go on
                self._give_up([job], error, str(error))
                continue
            image = painted if job.begin is None else job.begin.lay_over(painted)
            if job.step < len(job.times):
                if job.on_step:
                    job.on_step(job.step, image)
                continue
            self.counts.pictures += 1
            job.done(image)

    def _land(self, batch: list[PaintJob]) -> tuple[Tensor, Tensor]:
        """Returns the latents of all after their next step, and what they would be without the noise in them."""
        device = self.pipeline.model.device
        cond = {name: torch.cat([job.cond[name] for job in batch]) for name in batch[0].cond}
        omega = torch.tensor([job.spec.omega for job in batch], device=device)
        t, e, before = (
            torch.tensor(times, device=device)
            for times in zip(*((job.times[job.step], job.ends[job.step], job.stands) for job in batch), strict=True)
        )
        noise = torch.cat([job.noise() for job in batch])
        f = self.pipeline.consistency_function(cond, omega)
        landed = advance(f, _latents(batch), t, e, noise, before, _join_kept(batch))
        if not e.any():
            return landed, landed
        z_t = bring(f.schedule, _latents(batch), t, noise, before)
        return landed, find_clean(f.schedule, z_t, landed, t, e)

    def _use(self, spec: PictureSpec) -> None:
        """Makes LoRAs act at the scales of a picture, on the network and on text encoders."""
        on_text = spec.loras if spec.text_loras is None else spec.text_loras
        if (spec.loras, on_text) == self._scales:
            return
        model = self.pipeline.model
        for part, module in model.parts.items():
            scales = spec.loras if part == model.family.lora.part else on_text
            rescale({part: module}, {self._loras[name]: scale for name, scale in scales})
        self._scales = spec.loras, on_text
        self._texts.clear()  # a LoRA may hang on the text encoder

    def _begin(self, jobs: list[PaintJob]) -> None:
        """Texts, times and first noise; draws are those of `Pipeline`, so that a seed is a picture."""
        model = self.pipeline.model
        unknown = list(dict.fromkeys(job.spec.prompt for job in jobs if job.spec.prompt not in self._texts))
        if unknown:
            cond = model.conditioner.encode(unknown)
            for i, prompt in enumerate(unknown):
                self._texts[prompt] = {name: value[i : i + 1] for name, value in cond.items()}
        for job in jobs:
            spec = job.spec
            job.cond = self._texts[spec.prompt]
            self._texts.move_to_end(spec.prompt)
            job.times, job.ends = self.pipeline.jumps(spec.steps, spec.strength if spec.start is not None else 1.0)
            shape = (model.codec.shape(model.resolution)[0], *(side // model.codec.multiple for side in spec.size))
            job.draw = seeded_noise([spec.seed], shape, model.device)
            try:
                job.z = self._find_first(job)
            except Exception as error:  # its picture is its own: the others go on
                self._give_up([job], error, "the picture to start from needs more memory than there is")
        while len(self._texts) > _TEXTS:
            self._texts.popitem(last=False)

    def _find_first(self, job: PaintJob) -> Tensor:
        """Returns the latents that a picture begins from: noise, or those of its start."""
        spec = job.spec
        assert job.draw is not None
        if spec.start is None:
            return job.draw()
        if isinstance(spec.start, Tensor):
            return spec.start.to(self.pipeline.model.device)
        mask = None if spec.mask is None else fit_cover(spec.mask, spec.size)
        job.begin = Start(fit_cover(spec.start, spec.size), mask, spec.fill)
        z, job.kept = job.begin.encode(self.pipeline.model.codec, job.draw)
        return z


def _join_kept(jobs: Sequence[PaintJob]) -> Kept | None:
    """Returns what stays of the latents of all, which is nothing of those without a mask."""
    if not any(job.kept for job in jobs):
        return None
    all_free = torch.ones_like(next(job.kept.free for job in jobs if job.kept))
    z_0 = [job.kept.z_0 if job.kept else job.z for job in jobs if job.z is not None]
    none = torch.zeros_like(z_0[0])  # what begins anew has no noise to keep
    noise = [job.kept.noise if job.kept and job.kept.noise is not None else none for job in jobs]
    free = torch.cat([job.kept.free if job.kept else all_free for job in jobs])
    return Kept(torch.cat(z_0), free, torch.cat(noise))


def _join_seen(jobs: Sequence[PaintJob]) -> Tensor:
    return torch.cat([job.seen for job in jobs if job.seen is not None])


def _latents(jobs: Sequence[PaintJob]) -> Tensor:
    return torch.cat([job.z for job in jobs if job.z is not None])
