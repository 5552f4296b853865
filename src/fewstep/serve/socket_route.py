"""The page's WebSocket: the latest message is painted, and every answer names the message it belongs to.

A message is JSON: `seq`, and what `/v1/images/generations` takes. An answer is one binary message: the length of a JSON
head (4 bytes, big-endian), the head (`seq`, `kind`: step or picture, `index`, `step`, `seed`, `text`), a PNG. Of a
picture the head has `notes` too, and as `on_words` the one of them that names words which the model never learnt.
What is refused comes as JSON with `seq` and `error`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import struct
import time
from dataclasses import replace
from typing import Any

from fastapi import APIRouter, WebSocket, WebSocketDisconnect
from PIL import Image
from pydantic import ConfigDict, Field, ValidationError

from fewstep.data.masks import feather, read_mask
from fewstep.data.sources.fitting import fit_cover
from fewstep.serve.acceptance import PaintRequest
from fewstep.serve.budget import Hold
from fewstep.serve.client_pictures import check_mask, count_bytes, open_pictures
from fewstep.serve.documents import SMALL, parse_document
from fewstep.serve.error_handlers import SOCKET
from fewstep.serve.errors import RefusedError, to_refusal
from fewstep.serve.jobs import PictureSpec
from fewstep.serve.pages import Page
from fewstep.serve.reading import ReadingPool, ReadingTask
from fewstep.serve.sdapi_fields import Integer, Nullable, Number
from fewstep.serve.service import PaintService
from fewstep.serve.settings import ServerSettings
from fewstep.serve.validation import explain_invalid_fields

_FIELDS = 64
_PICTURES = frozenset(("image", "mask"))


class LiveRequest(Nullable):
    """A message of the page."""

    model_config = ConfigDict(extra="forbid")

    seq: Integer
    prompt: str
    negative_prompt: str = ""
    seed: Integer = 0
    steps: Integer | None = None
    guidance_scale: Number | None = None
    size: str | None = None
    loras: dict[str, Number] = Field(default={})
    image: str | None = None
    """Picture to start from, in base64."""
    strength: Number | None = None
    mask: str | None = None
    """White where the picture may be painted anew, in base64; of its size."""
    mask_blur: Integer = Field(default=4, ge=0, le=256)
    """Pixels of that mask by which its edges are blurred."""
    previews: bool = False
    compare: list[Integer] = Field(default=[], max_length=8)
    """Step counts to paint side by side from one seed, in place of `steps`."""


def make_routes(service: PaintService) -> APIRouter:
    """Makes the routes of one model."""
    router = APIRouter()

    @router.websocket(SOCKET)
    async def paint_as_typed(socket: WebSocket) -> None:
        page, pages = Page(socket), service.pages
        await socket.accept()  # else the page cannot read why it is closed
        if pages.going_down or not pages.admit(page):
            why = "the server goes down" if pages.going_down else f"{service.settings.sockets} pages are painting"
            await socket.close(1013, f"{why}; try again later")
            return
        try:
            while True:
                message = await _receive(socket)
                if pages.going_down:
                    await _refuse(socket, None, RefusedError("the server goes down", status=503, code="shutting_down"))
                    continue
                if message is None:
                    await refuse_binary(socket)
                    continue
                if page.task is not None:
                    page.task.cancel()  # latest wins
                    with contextlib.suppress(asyncio.CancelledError):
                        await page.task
                page.last = time.monotonic()
                page.task = asyncio.create_task(answer_message(service, page, message))
                del message  # it may be large, and the next one may be long in coming
        except (WebSocketDisconnect, RuntimeError):  # gone
            pass
        finally:
            pages.leave(page)
            if page.task is not None:
                page.task.cancel()

    return router


async def _receive(socket: WebSocket) -> str | None:
    """Returns the next message, None for a binary one. Raises WebSocketDisconnect when the page has gone."""
    message = await socket.receive()
    if message["type"] == "websocket.disconnect":
        raise WebSocketDisconnect(message["code"])
    return message.get("text")


async def answer_message(service: PaintService, page: Page, message: str) -> None:
    """Sends a page what a message asks for, or why it is refused."""
    seq: int | None = None
    hold = Hold(service.budget)
    try:
        hold.add_body(2 * len(message))  # as it came, and what is read from it
        content = await _parse_message(message, service.reading)
        del message
        seq = _find_number(content)
        live_request = _read_request(content)
        await _paint(service, page.socket, live_request, hold)
    except WebSocketDisconnect:
        pass
    except Exception as error:
        if isinstance(error, RuntimeError) and "close message" in str(error):
            return  # the page has gone while a picture was on its way
        await _refuse(page.socket, seq, to_refusal(error))
    finally:
        hold.release()
        page.last = time.monotonic()


async def refuse_binary(socket: WebSocket) -> None:
    """Tells a page that its message is not text."""
    await _refuse(socket, None, RefusedError("the message is binary; send JSON, as text"))


async def _refuse(socket: WebSocket, seq: int | None, refusal: RefusedError) -> None:
    with contextlib.suppress(WebSocketDisconnect, RuntimeError):  # it has gone
        await socket.send_text(json.dumps({"seq": seq, **refusal.content()}))


async def _parse_message(message: str, pool: ReadingPool) -> Any:
    """Reads JSON, and refuses what would keep pydantic busy for seconds, naming thousands of wrong entries."""
    if len(message) <= SMALL:
        content = parse_document(message, _PICTURES, "message")
    else:
        content = await pool.run(lambda _: parse_document(message, _PICTURES, "message"))
    if isinstance(content, dict) and (
        len(content) > _FIELDS or _is_long(content.get("loras")) or _is_long(content.get("compare"))
    ):
        raise RefusedError(f"the message has more than {_FIELDS} fields, or loras or compare do; send fewer")
    return content


def _find_number(content: Any) -> int | None:
    """Returns the number of a message, whatever else is in it, so that its page knows what was refused."""
    number = content.get("seq") if isinstance(content, dict) else None
    return number if isinstance(number, int) and not isinstance(number, bool) else None


def _read_request(content: Any) -> LiveRequest:
    try:
        return LiveRequest.model_validate(content)
    except ValidationError as error:
        known = LiveRequest.model_fields
        listed = f"the fields are {', '.join(known)}"
        raise explain_invalid_fields(error.errors(), known, listed=listed) from error


def _is_long(value: object) -> bool:
    return isinstance(value, dict | list) and len(value) > _FIELDS


async def _paint(service: PaintService, socket: WebSocket, message: LiveRequest, hold: Hold) -> None:
    begun = time.perf_counter()
    start = mask = None
    if message.mask and not message.image:
        raise RefusedError("a mask says what to paint of a picture; send image too", param="mask")
    if message.image:
        size = service.acceptance.choose_size(message.size, [])
        start, mask = await service.reading.run(lambda reader: _read_pictures(message, size, service.settings, reader))
        hold.add(count_bytes(start, mask))
    paint_request = PaintRequest(
        prompt=message.prompt, negative_prompt=message.negative_prompt, seed=message.seed,
        steps=max(message.compare, default=message.steps), guidance_scale=message.guidance_scale, size=message.size,
        loras=message.loras, start=start, mask=mask,
        strength=message.strength, previews=message.previews and not message.compare,
        names={"steps": "compare"} if message.compare else {},
    )  # fmt: skip
    accepted = service.accept(paint_request)
    spec = accepted.specs[0]
    counts = message.compare or [spec.steps]
    if min(counts) < 1:
        raise RefusedError(f"compare has {min(counts)}; allowed: 1 and more", param="compare")
    service.acceptance.check_work(spec.size, sum(counts))
    most = service.pipeline.most_steps(spec.strength)
    specs = [replace(spec, steps=min(steps, most)) for steps in counts]
    async for step, images in service.follow(specs):
        if step is not None:
            head = {"seq": message.seq, "kind": "step", "index": 0, "step": step}
            await _send(service, socket, images[0], spec, paint_request, head)
            continue
        for index, (image, own) in enumerate(zip(images, specs, strict=True)):
            head = {
                "seq": message.seq, "kind": "picture", "index": index, "step": own.steps, "of": len(specs),
                "ms": round(1e3 * (time.perf_counter() - begun)), "notes": accepted.notes,
                "on_words": accepted.on_words,
            }  # fmt: skip
            await _send(service, socket, image, own, paint_request, head)


def _read_pictures(
    message: LiveRequest, size: tuple[int, int], settings: ServerSettings, reader: ReadingTask
) -> tuple[Image.Image, Image.Image | None]:  # fmt: skip
    """Returns the picture to start from and its mask where there is one, of a height and width. Raises RefusedError."""
    with open_pictures(settings, reader, image=message.image, mask=message.mask) as (sent, *masks):
        start = sent.decode(reader)
        if not masks:
            return fit_cover(start, size), None
        mask = read_mask(masks[0].decode(reader, transparency=True))
        if mask.size != start.size:
            raise RefusedError("mask and image are of different sizes; send them of one", param="mask")
        mask = feather(check_mask(mask), message.mask_blur, message.mask_blur)
        return fit_cover(start, size), fit_cover(mask, size)


async def _send(
    service: PaintService, socket: WebSocket, image: Image.Image, spec: PictureSpec, paint_request: PaintRequest,
    head: dict[str, Any],
) -> None:  # fmt: skip
    content = await service.encode(image, spec, paint_request)
    text = json.dumps({**head, "seed": spec.seed, "text": service.write_infotext(spec, paint_request)}).encode()
    await socket.send_bytes(struct.pack(">I", len(text)) + text + content)
