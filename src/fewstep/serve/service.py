"""Stands between the routes and the engine: has pictures painted, waits for them and encodes them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from functools import partial

from PIL import Image
from starlette.requests import Request
from torch import Tensor

from fewstep import __version__
from fewstep.data.infotext import Infotext
from fewstep.serve.acceptance import Acceptance, AcceptedRequest, PaintRequest
from fewstep.serve.budget import Budget
from fewstep.serve.client_pictures import Format, encode_image
from fewstep.serve.engine import Engine
from fewstep.serve.errors import to_refusal
from fewstep.serve.jobs import CancelledError, DeadlineError, OnStep, PaintJob, PictureSpec
from fewstep.serve.kept_pictures import KeptPictures
from fewstep.serve.pages import Pages
from fewstep.serve.reading import ReadingPool
from fewstep.serve.settings import ServerSettings

_POLL = 0.1
"""Seconds between two checks whether the client is still there."""
_GRACE = 5.0
"""Seconds after the deadline in which the engine reports it itself."""


class PaintService:
    """Has the engine paint what is accepted, and encodes the pictures."""

    def __init__(
        self, engine: Engine, settings: ServerSettings, loras: Mapping[str, float],
        lora_aliases: Mapping[str, str] | None = None, model_aliases: Sequence[str] = (),
    ) -> None:  # fmt: skip
        """Takes `loras`: every registered name, and its scale where the client gives none; and further names."""
        self.engine, self.settings, self.loras = engine, settings, dict(loras)
        self.pipeline = engine.pipeline
        self.acceptance = Acceptance(self.pipeline, settings, loras, lora_aliases or {}, tuple(model_aliases))
        self.kept = KeptPictures()
        self.budget = Budget(settings.memory_bytes)
        self.pages = Pages(settings.sockets)
        self.reading = ReadingPool(self.budget, settings.read_seconds)

    @property
    def name(self) -> str:
        return self.pipeline.name

    def accept(self, request: PaintRequest) -> AcceptedRequest:
        """Checks a request. Raises RefusedError, which names the field, its limit and what to do."""
        return self.acceptance.accept(request)

    def submit(self, specs: Sequence[PictureSpec], on_step: OnStep | None = None) -> list[PaintJob]:
        """Queues pictures. Raises RefusedError where the engine does not take them."""
        try:
            return self.engine.submit(specs, on_step)
        except Exception as error:
            raise to_refusal(error) from error

    async def wait(
        self, jobs: Sequence[PaintJob], gone: Callable[[], Awaitable[bool]] | None = None
    ) -> list[Image.Image]:
        """Returns the pictures of all jobs; cancels these if it is cancelled, or `gone()` says that the client left."""
        waiting = [asyncio.wrap_future(job.future) for job in jobs]
        end = time.monotonic() + self.engine.limits.deadline + _GRACE
        try:
            while True:
                if time.monotonic() > end:  # the engine itself, which keeps the deadline, does not answer
                    raise to_refusal(DeadlineError(f"it took more than {self.engine.limits.deadline:g} s"))
                done, rest = await asyncio.wait(waiting, timeout=_POLL, return_when=asyncio.FIRST_EXCEPTION)
                failed = next((each for each in done if each.exception()), None)
                if failed is not None:
                    error = failed.exception()
                    assert isinstance(error, Exception)
                    refusal = to_refusal(error)
                    raise refusal from error
                if not rest:
                    return [each.result() for each in waiting]
                if gone is not None and await gone():
                    raise to_refusal(CancelledError())
        finally:
            for job in jobs:
                job.cancel()
            for each in waiting:
                each.cancel()

    async def follow(self, specs: Sequence[PictureSpec]) -> AsyncIterator[tuple[int | None, list[Image.Image]]]:
        """Yields (step, [its picture]) for every preview that is wanted, and at last (None, all pictures)."""
        loop = asyncio.get_running_loop()
        queue = asyncio.Queue[tuple[int, list[Image.Image]] | None]()

        def on_step(step: int, image: Image.Image) -> None:
            loop.call_soon_threadsafe(queue.put_nowait, (step, [image]))

        waiting = asyncio.ensure_future(self.wait(self.submit(specs, on_step)))
        waiting.add_done_callback(lambda _: queue.put_nowait(None))
        try:
            while (preview := await queue.get()) is not None:
                yield preview
            yield None, await waiting
        finally:
            waiting.cancel()

    async def paint(self, specs: Sequence[PictureSpec], request: Request) -> tuple[list[Image.Image], list[Tensor]]:
        """Paints for a client that waits for all pictures; returns these, and their latents `[1, c, h, w]`."""
        jobs = self.submit(specs)
        images = await self.wait(jobs, request.is_disconnected)
        return images, [job.z for job in jobs if job.z is not None]

    async def encode(
        self, image: Image.Image, spec: PictureSpec, request: PaintRequest, form: Format = "png",
        quality: int | None = None,
    ) -> bytes:  # fmt: skip
        """Returns an image file that holds its settings, encoded outside the event loop."""
        text = self.write_infotext(spec, request)
        return await asyncio.get_running_loop().run_in_executor(None, partial(encode_image, image, text, form, quality))

    def write_infotext(self, spec: PictureSpec, request: PaintRequest) -> str:
        """Returns the settings of a picture as AUTOMATIC1111's `parameters` text."""
        on_text = spec.text_loras or ()
        settings = {
            "Steps": str(spec.steps), "Sampler": self.pipeline.method.label,
            "CFG scale": f"{self.guidance_scale_of(spec):g}", "Seed": str(spec.seed),
            "Size": f"{spec.size[1]}x{spec.size[0]}", "Model": self.name,
            **({"Denoising strength": f"{spec.strength:g}"} if spec.start is not None else {}),
            **({"Masked": spec.fill} if spec.mask is not None else {}),
            **{f"Lora {i}": f"{name}:{scale:g}" for i, (name, scale) in enumerate(spec.loras, 1) if scale},
            **{f"Text lora {i}": f"{name}:{scale:g}" for i, (name, scale) in enumerate(on_text, 1)},
            **({"Precision": self.pipeline.precision} if self.pipeline.precision != "fp32" else {}),
            **request.told,
            "Version": f"fewstep {__version__}",
        }  # fmt: skip
        return str(Infotext(spec.prompt, request.negative_prompt, settings))

    def guidance_scale_of(self, spec: PictureSpec) -> float:
        """Returns the `guidance_scale` that a picture is painted with, in diffusers' convention."""
        return self.pipeline.model.family.guidance_of(spec.omega)
