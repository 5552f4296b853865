"""Stands between the routes and the engine: checks requests against what the model allows, and waits for pictures."""

from __future__ import annotations

import asyncio
import base64
import binascii
import io
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

from PIL import Image
from starlette.requests import Request

from fewstep import __version__
from fewstep.data.infotext import Infotext, build_png_info
from fewstep.data.sources.base import DroppedError
from fewstep.data.sources.decoding import decode
from fewstep.data.sources.fitting import PictureLimits
from fewstep.models.pipeline import MAX_STEPS
from fewstep.serve.engine import Engine
from fewstep.serve.errors import RefusedError, to_refusal
from fewstep.serve.jobs import CancelledError, DeadlineError, OnStep, PaintJob, PictureSpec
from fewstep.serve.settings import ServerSettings

Format = Literal["png", "jpeg", "webp"]
_SEEDS = 2**32
_POLL = 0.1
"""Seconds between two checks whether the client is still there."""
_GRACE = 5.0
"""Seconds after the deadline in which the engine reports it itself."""
_MOST_ASPECT = 32
"""Largest ratio of the sides of a picture that a client sends."""


@dataclass(frozen=True, kw_only=True)
class PaintRequest:
    """What a client asks for, in diffusers' convention; None where it leaves that to the server."""

    prompt: str
    negative_prompt: str = ""
    n: int = 1
    seed: int | None = None
    steps: int | None = None
    guidance_scale: float | None = None
    size: str | None = None
    """`WIDTHxHEIGHT`, or auto."""
    loras: Mapping[str, float] | None = None
    start: Image.Image | None = None
    strength: float = 0.8
    previews: bool = False


@dataclass(frozen=True)
class AcceptedRequest:
    """A request that the model can paint."""

    request: PaintRequest
    specs: list[PictureSpec]
    notes: list[str]
    """Notes for the client."""


class PaintService:
    """Checks requests for one model, has the engine paint them, and encodes the pictures."""

    def __init__(self, engine: Engine, settings: ServerSettings, loras: Mapping[str, float]) -> None:
        """Takes `loras`: every registered name, and its scale where the client gives none."""
        self.engine, self.settings, self.loras = engine, settings, dict(loras)
        self.pipeline = engine.pipeline
        self.sizes = _list_sizes(self.pipeline.model.resolution)

    @property
    def name(self) -> str:
        return self.pipeline.name

    @property
    def most_steps(self) -> int:
        return min(MAX_STEPS, self.pipeline.grid_size)

    def check_model(self, name: str | None) -> None:
        """Raises RefusedError for another model than this one."""
        if name not in (None, "", self.name):
            raise RefusedError(
                f"model {name!r} is not here; there is {self.name!r}", param="model", status=404, code="model_not_found"
            )

    def accept(self, request: PaintRequest) -> AcceptedRequest:
        """Checks a request. Raises RefusedError, which names the field, its limit and what to do."""
        settings, notes = self.settings, list[str]()
        if not request.prompt.strip():
            raise RefusedError("prompt is empty; say what to paint", param="prompt")
        if len(request.prompt) > settings.prompt_letters:
            limit = settings.prompt_letters
            raise RefusedError(f"prompt has {len(request.prompt)} letters; at most {limit} are read", param="prompt")
        if len(request.negative_prompt) > settings.prompt_letters:
            raise RefusedError(
                f"negative_prompt has more than {settings.prompt_letters} letters", param="negative_prompt"
            )
        for name, text in (("prompt", request.prompt), ("negative_prompt", request.negative_prompt)):
            try:
                text.encode()
            except UnicodeEncodeError as error:
                raise RefusedError(f"{name} has half a letter, \\u{ord(text[error.start]):x}", param=name) from error
        _check_between("n", request.n, 1, settings.pictures)
        steps = self.pipeline.steps if request.steps is None else request.steps
        _check_between("steps", steps, 1, self.most_steps)
        seed = random.randrange(_SEEDS) if request.seed is None else request.seed
        _check_between("seed", seed, 0, 2**63 - settings.pictures)
        height, width = self._choose_size(request.size)
        self.check_work((height, width), request.n * steps)
        if self.pipeline.model.conditioner.truncates(request.prompt):
            most = self.pipeline.model.conditioner.limit
            notes.append(f"the model reads the first {most} tokens of the prompt and ignores the rest")
        if request.negative_prompt:
            notes.append("guidance is built into this model: the negative prompt has no effect")
        strength = 1.0
        if request.start is not None:
            if not 0 < request.strength <= 1:
                raise RefusedError(f"strength is {request.strength:g}; allowed is above 0, up to 1", param="strength")
            strength = request.strength
            most = int(self.pipeline.grid_size * strength)
            if steps > most:
                raise RefusedError(f"steps is {steps}; strength {strength:g} allows {most}", param="steps")
        omega = self.pipeline.model.family.omega_of(self._choose_guidance(request.guidance_scale, notes))
        spec = PictureSpec(
            prompt=request.prompt, seed=seed, steps=steps, omega=omega,
            size=(height, width), loras=self._choose_scales(request.loras or {}), start=request.start,
            strength=strength, previews=request.previews,
        )  # fmt: skip
        specs = [replace(spec, seed=seed + i) for i in range(request.n)]
        return AcceptedRequest(request, specs, notes)

    def check_work(self, size: tuple[int, int], steps: int) -> None:
        """Raises RefusedError where so many steps, of all pictures together, are more work than allowed."""
        height, width = size
        work = height * width * steps
        if work > self.settings.work:
            raise RefusedError(
                f"{steps} steps of {width}x{height} are {work} pixels to compute; the limit is {self.settings.work}: "
                "ask for fewer pictures, fewer steps or a smaller size", param="n",
            )  # fmt: skip

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

    async def paint(self, accepted: AcceptedRequest, request: Request) -> list[Image.Image]:
        """Paints for a client that waits for all pictures."""
        return await self.wait(self.submit(accepted.specs), request.is_disconnected)

    async def encode(self, image: Image.Image, spec: PictureSpec, request: PaintRequest, form: Format = "png") -> bytes:
        """Returns an image file that holds its settings, encoded outside the event loop."""
        text = self.write_infotext(spec, request)
        return await asyncio.get_running_loop().run_in_executor(None, partial(_encode, image, text, form))

    def write_infotext(self, spec: PictureSpec, request: PaintRequest) -> str:
        """Returns the settings of a picture as AUTOMATIC1111's `parameters` text."""
        settings = {
            "Steps": str(spec.steps), "Sampler": "LCM", "CFG scale": f"{self.guidance_scale_of(spec):g}",
            "Seed": str(spec.seed),
            "Size": f"{spec.size[1]}x{spec.size[0]}", "Model": self.name,
            **({"Denoising strength": f"{spec.strength:g}"} if spec.start is not None else {}),
            **{f"Lora {i}": f"{name}:{scale:g}" for i, (name, scale) in enumerate(spec.loras, 1) if scale},
            "Version": f"fewstep {__version__}",
        }  # fmt: skip
        return str(Infotext(spec.prompt, request.negative_prompt, settings))

    def guidance_scale_of(self, spec: PictureSpec) -> float:
        """Returns the `guidance_scale` that a picture is painted with, in diffusers' convention."""
        return self.pipeline.model.family.guidance_of(spec.omega)

    def _choose_size(self, size: str | None) -> tuple[int, int]:
        if size in (None, "", "auto"):
            return self.sizes[0]
        found = {f"{width}x{height}": (height, width) for height, width in self.sizes}
        if size not in found:
            raise RefusedError(f"size is {size!r}; this model paints {', '.join(found)}", param="size")
        return found[size]

    def _choose_guidance(self, asked: float | None, notes: list[str]) -> float:
        own = self.pipeline.guidance_scale
        if asked is None:
            return own
        if not 1 <= asked <= 100:
            raise RefusedError(f"guidance_scale is {asked:g}; allowed are 1 (none) to 100", param="guidance_scale")
        if not self.pipeline.takes_guidance:
            if asked not in (1.0, own):
                notes.append(f"guidance is built into the LCM-LoRA: guidance_scale {asked:g} has no effect")
            return own
        low, high = self.pipeline.model.card.guidance_range or (asked, asked)
        if not low <= asked <= high:
            notes.append(f"guidance_scale is {asked:g}; this model was trained for {low:g} to {high:g}")
        return asked

    def _choose_scales(self, asked: Mapping[str, float]) -> tuple[tuple[str, float], ...]:
        for name, scale in asked.items():
            if name not in self.loras:
                known = ", ".join(self.loras) or "none"
                raise RefusedError(f"lora {name!r} is not here; there are: {known}", param="loras")
            if not -4 <= scale <= 4:
                raise RefusedError(f"the scale of lora {name!r} is {scale:g}; allowed are -4 to 4", param="loras")
        return tuple((name, float(asked.get(name, scale))) for name, scale in self.loras.items())


def read_image(content: bytes | str, settings: ServerSettings, param: str = "image") -> Image.Image:
    """Decodes a picture that a client sent, as bytes or base64 (a data: URL too). Raises RefusedError."""
    if isinstance(content, str):
        try:
            content = base64.b64decode(content.rpartition(",")[2], validate=True)
        except (binascii.Error, ValueError) as error:
            raise RefusedError(f"{param} is no base64; send a PNG, JPEG or WebP picture so", param=param) from error
    limits = PictureLimits(max_bytes=settings.body_bytes, max_pixels=settings.image_pixels)
    try:
        image = decode(content, limits)
    except DroppedError as error:
        megapixels = settings.image_pixels // 1_000_000
        raise RefusedError(
            f"{param}: {error.reason}; wanted is a PNG, JPEG or WebP picture of at most {megapixels} megapixels",
            param=param,
        ) from error
    if max(image.size) > _MOST_ASPECT * min(image.size):
        size = f"{image.width}x{image.height}"
        raise RefusedError(f"{param} is {size}; a side may be {_MOST_ASPECT} times the other: cut it", param=param)
    return image


def _encode(image: Image.Image, text: str, form: Format) -> bytes:
    file = io.BytesIO()
    if form == "png":
        image.save(file, "png", pnginfo=build_png_info(text))
    else:
        image.save(file, form, quality=95)
    return file.getvalue()


def _list_sizes(resolution: int) -> list[tuple[int, int]]:
    """Lists (height, width) that the model paints, its own first; large models also paint smaller and oblong ones."""
    own = (resolution, resolution)
    if resolution < 256:
        return [own]
    smaller, half = resolution * 3 // 4 // 64 * 64, resolution // 2 // 64 * 64
    return [own, (resolution, smaller), (smaller, resolution), (smaller, smaller), (half, half)]


def _check_between(name: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise RefusedError(f"{name} is {value}; allowed are {low} to {high}", param=name)
