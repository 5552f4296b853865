"""Between the routes and the engine: what is asked is checked against what the model allows, and waited for."""

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
from fewstep.data.sources.decoding import PictureLimits, decode
from fewstep.models.pipeline import MAX_STEPS
from fewstep.serve.engine import CancelledError, DeadlineError, Engine, Job, OnStep, Wish
from fewstep.serve.errors import RefusedError, refusal_of
from fewstep.serve.settings import Settings

Format = Literal["png", "jpeg", "webp"]
_SEEDS = 2**32
_POLL = 0.1
"""Seconds between two looks whether the client is still there."""
_GRACE = 5.0
"""Seconds after the deadline in which the engine says so itself."""
_OBLONG = 32
"""How many times as long as the other a side of a picture may be."""


@dataclass(frozen=True, kw_only=True)
class Order:
    """What a client asks for, in diffusers' convention; None where it leaves that to the server."""

    prompt: str
    negative_prompt: str = ""
    n: int = 1
    seed: int | None = None
    steps: int = 4
    guidance_scale: float | None = None
    size: str | None = None
    """`WIDTHxHEIGHT`, or auto."""
    loras: Mapping[str, float] | None = None
    start: Image.Image | None = None
    strength: float = 0.8
    previews: bool = False


@dataclass(frozen=True)
class Accepted:
    """An order that the model can paint."""

    order: Order
    wishes: list[Wish]
    notes: list[str]
    """What the client should know of it."""


class Desk:
    """Of one model."""

    def __init__(self, engine: Engine, settings: Settings, loras: Mapping[str, float]) -> None:
        """`loras`: every registered name with the scale that it has where none is asked for."""
        self.engine, self.settings, self.loras = engine, settings, dict(loras)
        self.pipeline = engine.pipeline
        self.sizes = _sizes(self.pipeline.model.resolution)

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

    def accept(self, order: Order) -> Accepted:
        """Raises RefusedError naming the field, its limit and what to do."""
        settings, notes = self.settings, list[str]()
        if not order.prompt.strip():
            raise RefusedError("prompt is empty; say what to paint", param="prompt")
        if len(order.prompt) > settings.prompt_letters:
            limit = settings.prompt_letters
            raise RefusedError(f"prompt has {len(order.prompt)} letters; at most {limit} are read", param="prompt")
        if len(order.negative_prompt) > settings.prompt_letters:
            raise RefusedError(
                f"negative_prompt has more than {settings.prompt_letters} letters", param="negative_prompt"
            )
        for name, text in (("prompt", order.prompt), ("negative_prompt", order.negative_prompt)):
            try:
                text.encode()
            except UnicodeEncodeError as error:
                raise RefusedError(f"{name} has half a letter, \\u{ord(text[error.start]):x}", param=name) from error
        _within("n", order.n, 1, settings.pictures)
        _within("steps", order.steps, 1, self.most_steps)
        seed = random.randrange(_SEEDS) if order.seed is None else order.seed
        _within("seed", seed, 0, 2**63 - settings.pictures)
        height, width = self._size(order.size)
        self.check_work((height, width), order.n * order.steps)
        if self.pipeline.model.conditioner.truncates(order.prompt):
            most = self.pipeline.model.conditioner.limit
            notes.append(f"the model reads the first {most} tokens of the prompt and ignores the rest")
        if order.negative_prompt:
            notes.append("guidance is built into this model: the negative prompt has no effect")
        strength = 1.0
        if order.start is not None:
            if not 0 < order.strength <= 1:
                raise RefusedError(f"strength is {order.strength:g}; allowed is above 0, up to 1", param="strength")
            strength = order.strength
            most = int(self.pipeline.grid_size * strength)
            if order.steps > most:
                raise RefusedError(f"steps is {order.steps}; strength {strength:g} allows {most}", param="steps")
        omega = self.pipeline.model.family.omega_of(self._guidance(order.guidance_scale, notes))
        wish = Wish(
            prompt=order.prompt, seed=seed, steps=order.steps, omega=omega,
            size=(height, width), loras=self._scales(order.loras or {}), start=order.start, strength=strength,
            previews=order.previews,
        )  # fmt: skip
        wishes = [replace(wish, seed=seed + i) for i in range(order.n)]
        return Accepted(order, wishes, notes)

    def check_work(self, size: tuple[int, int], steps: int) -> None:
        """For so many steps of all pictures together. Raises RefusedError."""
        height, width = size
        work = height * width * steps
        if work > self.settings.work:
            raise RefusedError(
                f"{steps} steps of {width}x{height} are {work} pixels to compute; the limit is {self.settings.work}: "
                "ask for fewer pictures, fewer steps or a smaller size", param="n",
            )  # fmt: skip

    def submit(self, wishes: Sequence[Wish], on_step: OnStep | None = None) -> list[Job]:
        """Raises RefusedError where the engine does not take them."""
        try:
            return self.engine.submit(wishes, on_step)
        except Exception as error:
            raise refusal_of(error) from error

    async def wait(self, jobs: Sequence[Job], gone: Callable[[], Awaitable[bool]] | None = None) -> list[Image.Image]:
        """Pictures of all jobs; cancels them if whoever waits is, or `gone()` says that the client has."""
        waiting = [asyncio.wrap_future(job.future) for job in jobs]
        end = time.monotonic() + self.engine.limits.deadline + _GRACE
        try:
            while True:
                if time.monotonic() > end:  # the engine itself, which keeps the deadline, does not answer
                    raise refusal_of(DeadlineError(f"it took more than {self.engine.limits.deadline:g} s"))
                done, rest = await asyncio.wait(waiting, timeout=_POLL, return_when=asyncio.FIRST_EXCEPTION)
                failed = next((each for each in done if each.exception()), None)
                if failed is not None:
                    error = failed.exception()
                    assert isinstance(error, Exception)
                    refusal = refusal_of(error)
                    raise refusal from error
                if not rest:
                    return [each.result() for each in waiting]
                if gone is not None and await gone():
                    raise refusal_of(CancelledError())
        finally:
            for job in jobs:
                job.cancel()
            for each in waiting:
                each.cancel()

    async def follow(self, wishes: Sequence[Wish]) -> AsyncIterator[tuple[int | None, list[Image.Image]]]:
        """(step, [its picture]) of every preview that is wanted, and at last (None, all pictures)."""
        loop = asyncio.get_running_loop()
        queue = asyncio.Queue[tuple[int, list[Image.Image]] | None]()

        def on_step(step: int, image: Image.Image) -> None:
            loop.call_soon_threadsafe(queue.put_nowait, (step, [image]))

        waiting = asyncio.ensure_future(self.wait(self.submit(wishes, on_step)))
        waiting.add_done_callback(lambda _: queue.put_nowait(None))
        try:
            while (shown := await queue.get()) is not None:
                yield shown
            yield None, await waiting
        finally:
            waiting.cancel()

    async def paint(self, accepted: Accepted, request: Request) -> list[Image.Image]:
        """For a client that waits for the last picture."""
        return await self.wait(self.submit(accepted.wishes), request.is_disconnected)

    async def encode(self, image: Image.Image, wish: Wish, order: Order, form: Format = "png") -> bytes:
        """A file with its settings in it, made beside the event loop."""
        text = self.infotext(wish, order)
        return await asyncio.get_running_loop().run_in_executor(None, partial(_encode, image, text, form))

    def infotext(self, wish: Wish, order: Order) -> str:
        """AUTOMATIC1111's `parameters`."""
        settings = {
            "Steps": str(wish.steps), "Sampler": "LCM", "CFG scale": f"{self.guidance_of(wish):g}",
            "Seed": str(wish.seed),
            "Size": f"{wish.size[1]}x{wish.size[0]}", "Model": self.name,
            **({"Denoising strength": f"{wish.strength:g}"} if wish.start is not None else {}),
            **{f"Lora {i}": f"{name}:{scale:g}" for i, (name, scale) in enumerate(wish.loras, 1) if scale},
            "Version": f"fewstep {__version__}",
        }  # fmt: skip
        return str(Infotext(wish.prompt, order.negative_prompt, settings))

    def guidance_of(self, wish: Wish) -> float:
        """Returns the `guidance_scale` that a wish is painted with, in diffusers' convention."""
        return self.pipeline.model.family.guidance_of(wish.omega)

    def _size(self, size: str | None) -> tuple[int, int]:
        if size in (None, "", "auto"):
            return self.sizes[0]
        found = {f"{width}x{height}": (height, width) for height, width in self.sizes}
        if size not in found:
            raise RefusedError(f"size is {size!r}; this model paints {', '.join(found)}", param="size")
        return found[size]

    def _guidance(self, asked: float | None, notes: list[str]) -> float:
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

    def _scales(self, asked: Mapping[str, float]) -> tuple[tuple[str, float], ...]:
        for name, scale in asked.items():
            if name not in self.loras:
                known = ", ".join(self.loras) or "none"
                raise RefusedError(f"lora {name!r} is not here; there are: {known}", param="loras")
            if not -4 <= scale <= 4:
                raise RefusedError(f"the scale of lora {name!r} is {scale:g}; allowed are -4 to 4", param="loras")
        return tuple((name, float(asked.get(name, scale))) for name, scale in self.loras.items())


def read_image(content: bytes | str, settings: Settings, param: str = "image") -> Image.Image:
    """A picture that a client sent, as bytes or base64 (a data: URL too). Raises RefusedError."""
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
    if max(image.size) > _OBLONG * min(image.size):
        size = f"{image.width}x{image.height}"
        raise RefusedError(f"{param} is {size}; a side may be {_OBLONG} times the other: cut it", param=param)
    return image


def _encode(image: Image.Image, text: str, form: Format) -> bytes:
    file = io.BytesIO()
    if form == "png":
        image.save(file, "png", pnginfo=build_png_info(text))
    else:
        image.save(file, form, quality=95)
    return file.getvalue()


def _sizes(resolution: int) -> list[tuple[int, int]]:
    """Height and width, the model's own first; large models also paint smaller and oblong pictures."""
    own = (resolution, resolution)
    if resolution < 256:
        return [own]
    smaller, half = resolution * 3 // 4 // 64 * 64, resolution // 2 // 64 * 64
    return [own, (resolution, smaller), (smaller, resolution), (smaller, smaller), (half, half)]


def _within(name: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise RefusedError(f"{name} is {value}; allowed are {low} to {high}", param=name)
