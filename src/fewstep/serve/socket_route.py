"""The page's WebSocket: what is typed last is painted, and every answer says which wish it is of.

A message is JSON: `seq`, and what `/v1/images/generations` takes. An answer is one binary message: the length of a JSON
head (4 bytes, big-endian), the head (`seq`, `kind`: step or picture, `index`, `step`, `seed`, `text`), a PNG. What is
refused comes as JSON with `seq` and `error`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import struct
import time
from dataclasses import replace
from typing import Annotated, Any

from fastapi import APIRouter, WebSocket, WebSocketDisconnect
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fewstep.serve.desk import Desk, Order, read_image
from fewstep.serve.engine import Wish
from fewstep.serve.errors import RefusedError, invalid_fields, refusal_of

_FIELDS = 64
_INTEGER = Annotated[int, Field(ge=-(2**63), lt=2**63)]
_NUMBER = Annotated[float, Field(allow_inf_nan=False)]


class Typed(BaseModel):
    """What the page asks for."""

    model_config = ConfigDict(extra="forbid")

    seq: _INTEGER
    prompt: str
    negative_prompt: str = ""
    seed: _INTEGER = 0
    steps: _INTEGER = 4
    guidance_scale: _NUMBER | None = None
    size: str | None = None
    loras: dict[str, _NUMBER] = {}
    image: str | None = None
    """base64 of a picture to start from."""
    strength: _NUMBER = 0.6
    previews: bool = False
    compare: list[_INTEGER] = Field(default=[], max_length=8)
    """Numbers of steps that are painted side by side, from one seed, in place of `steps`."""


def routes(desk: Desk) -> APIRouter:
    """Of this model."""
    router = APIRouter()
    open_ones: set[WebSocket] = set()

    @router.websocket("/ws")
    async def paint_as_typed(socket: WebSocket) -> None:
        if len(open_ones) >= desk.settings.sockets:
            await socket.accept()  # else the page cannot read why
            await socket.close(1013, f"{desk.settings.sockets} pages are open; close one")
            return
        await socket.accept()
        open_ones.add(socket)
        task: asyncio.Task[None] | None = None
        try:
            while True:
                message = await socket.receive_text()
                if task is not None:
                    task.cancel()  # latest wins
                    with contextlib.suppress(asyncio.CancelledError):
                        await task
                task = asyncio.create_task(_answer(desk, socket, message))
        except (WebSocketDisconnect, RuntimeError, KeyError):  # gone, or binary where text is wanted
            pass
        finally:
            open_ones.discard(socket)
            if task is not None:
                task.cancel()

    return router


async def _answer(desk: Desk, socket: WebSocket, message: str) -> None:
    seq: int | None = None
    try:
        try:
            typed = Typed.model_validate(_plain(message))
        except ValidationError as error:
            raise invalid_fields(error.errors()) from error
        seq = typed.seq
        await _paint(desk, socket, typed)
    except WebSocketDisconnect:
        pass
    except Exception as error:
        if isinstance(error, RuntimeError) and "close message" in str(error):
            return  # the page has gone while a picture was on its way
        await socket.send_text(json.dumps({"seq": seq, **refusal_of(error).content()}))


def _plain(message: str) -> Any:
    """What pydantic is not asked about: it would name every wrong entry of thousands, for seconds."""
    try:
        found = json.loads(message)
    except (ValueError, RecursionError) as error:
        raise RefusedError("the message is no JSON") from error
    if isinstance(found, dict) and (len(found) > _FIELDS or _long(found.get("loras")) or _long(found.get("compare"))):
        raise RefusedError(f"the message has more than {_FIELDS} fields, or loras or compare more than as many")
    return found


def _long(value: object) -> bool:
    return isinstance(value, dict | list) and len(value) > _FIELDS


async def _paint(desk: Desk, socket: WebSocket, typed: Typed) -> None:
    begun, loop = time.perf_counter(), asyncio.get_running_loop()
    start = None
    if typed.image:
        start = await loop.run_in_executor(None, read_image, typed.image, desk.settings)
    order = Order(
        prompt=typed.prompt, negative_prompt=typed.negative_prompt, seed=typed.seed,
        steps=max(typed.compare or [typed.steps]), guidance_scale=typed.guidance_scale, size=typed.size,
        loras=typed.loras, start=start, strength=typed.strength, previews=typed.previews and not typed.compare,
    )  # fmt: skip
    accepted = desk.accept(order)
    wish = accepted.wishes[0]
    counts = typed.compare or [typed.steps]
    if min(counts) < 1:
        raise RefusedError(f"compare has {min(counts)}; allowed are 1 and more", param="compare")
    desk.check_work(wish.size, sum(counts))
    wishes = [replace(wish, steps=steps) for steps in counts]
    async for step, images in desk.follow(wishes):
        if step is not None:
            head = {"seq": typed.seq, "kind": "step", "index": 0, "step": step}
            await _send(desk, socket, images[0], wish, order, head)
            continue
        for index, (image, own) in enumerate(zip(images, wishes, strict=True)):
            head = {
                "seq": typed.seq, "kind": "picture", "index": index, "step": own.steps, "of": len(wishes),
                "ms": round(1e3 * (time.perf_counter() - begun)), "notes": accepted.notes,
            }  # fmt: skip
            await _send(desk, socket, image, own, order, head)


async def _send(
    desk: Desk, socket: WebSocket, image: Image.Image, wish: Wish, order: Order, head: dict[str, Any]
) -> None:  # fmt: skip
    content = await desk.encode(image, wish, order)
    text = json.dumps({**head, "seed": wish.seed, "text": desk.infotext(wish, order)}).encode()
    await socket.send_bytes(struct.pack(">I", len(text)) + text + content)
