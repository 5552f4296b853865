"""OpenAI's image routes: `/v1/images/generations`, `/v1/images/edits`, `/v1/models`."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Annotated, Any, Literal

from fastapi import APIRouter, File, Form, Request, UploadFile
from fastapi.responses import JSONResponse, Response, StreamingResponse
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field

from fewstep.serve.errors import RefusedError, to_refusal
from fewstep.serve.service import AcceptedRequest, Format, PaintRequest, PaintService, read_image

_INTEGER = Annotated[int, Field(ge=-(2**63), lt=2**63)]
_NUMBER = Annotated[float, Field(allow_inf_nan=False)]


def bounds_in_schema(**bounds: Any) -> Any:
    """Writes bounds into the schema only: the service checks them, and says what to do."""
    return Field(json_schema_extra=bounds)


class Generation(BaseModel):
    """A request of OpenAI's shape, with this server's own fields beside. What of OpenAI's has no meaning here
    (`quality`, `style`, `background`, `moderation`, `user`, `input_fidelity`, `output_compression`) is taken and does
    nothing; any other field is an error."""

    model_config = ConfigDict(extra="forbid", strict=True, use_attribute_docstrings=True)

    prompt: Annotated[str, bounds_in_schema(minLength=1, maxLength=2000)]
    model: str | None = None
    n: Annotated[_INTEGER, bounds_in_schema(minimum=1, maximum=8)] | None = 1
    size: Annotated[str, bounds_in_schema(enum=["auto"])] | None = None
    """`WIDTHxHEIGHT` of those that /api/model lists, or auto."""
    response_format: Literal["b64_json", "url"] | None = None
    """`url` is refused: pictures are sent, not kept."""
    output_format: Format | None = "png"
    stream: bool | None = False
    """Send server-sent events."""
    partial_images: Annotated[_INTEGER, bounds_in_schema(minimum=0, maximum=8)] | None = 0
    """In a stream, the number of first steps that are sent as pictures too."""
    steps: Annotated[_INTEGER, bounds_in_schema(minimum=1, maximum=50)] | None = None
    """By default as many as the model wants, which /api/model says."""
    seed: Annotated[_INTEGER, bounds_in_schema(minimum=0)] | None = None
    """Seed of the first picture; picture i has seed + i. Random by default; the answer holds it."""
    guidance_scale: Annotated[_NUMBER, bounds_in_schema(minimum=1, maximum=100)] | None = None
    """diffusers' convention: the papers' ω + 1."""
    negative_prompt: str = ""
    loras: dict[str, _NUMBER] = {}
    """Scales of registered LoRAs, by name."""
    quality: Any = None
    style: Any = None
    background: Any = None
    moderation: Any = None
    user: Any = None
    input_fidelity: Any = None
    output_compression: Any = None


def make_routes(service: PaintService) -> APIRouter:
    """Makes the routes of one model."""
    router = APIRouter(prefix="/v1", tags=["OpenAI"])

    @router.get("/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [_describe_model(service)]}

    @router.get("/models/{name:path}")
    async def model(name: str) -> dict[str, Any]:
        service.check_model(name)
        return _describe_model(service)

    @router.post("/images/generations", response_model=None)
    async def generations(asked: Generation, request: Request) -> Response:
        service.check_model(asked.model)
        _check_answer(asked.response_format, asked.partial_images or 0)
        paint_request = PaintRequest(
            prompt=asked.prompt, negative_prompt=asked.negative_prompt, n=asked.n or 1, seed=asked.seed,
            steps=asked.steps, guidance_scale=asked.guidance_scale, size=asked.size, loras=asked.loras,
            previews=bool(asked.stream and asked.partial_images),
        )  # fmt: skip
        form: Format = asked.output_format or "png"
        kind = "image_generation"
        return await _answer(service, paint_request, request, form, kind, asked.stream, asked.partial_images or 0)

    @router.post("/images/edits", response_model=None)
    async def edits(  # noqa: PLR0913, PLR0917  # a form's fields
        request: Request,
        prompt: Annotated[str, Form()],
        image: Annotated[list[UploadFile] | None, File()] = None,
        images: Annotated[list[UploadFile] | None, File(alias="image[]")] = None,
        mask: Annotated[UploadFile | None, File()] = None,
        model: Annotated[str | None, Form()] = None,
        n: Annotated[_INTEGER, Form()] = 1,
        size: Annotated[str | None, Form()] = None,
        response_format: Annotated[Literal["b64_json", "url"] | None, Form()] = None,
        output_format: Annotated[Format, Form()] = "png",
        stream: Annotated[bool, Form()] = False,
        partial_images: Annotated[_INTEGER, Form()] = 0,
        steps: Annotated[_INTEGER | None, Form()] = None,
        seed: Annotated[_INTEGER | None, Form()] = None,
        strength: Annotated[_NUMBER, Form()] = 0.6,
        guidance_scale: Annotated[_NUMBER | None, Form()] = None,
        negative_prompt: Annotated[str, Form()] = "",
        loras: Annotated[str, Form()] = "",
    ) -> Response:
        service.check_model(model)
        _check_answer(response_format, partial_images)
        given = [*(image or []), *(images or [])]
        if mask is not None:
            raise RefusedError("mask is not read; leave it out and change the whole picture", param="mask")
        if len(given) != 1:
            raise RefusedError(f"image: {len(given)} were sent and one is wanted", param="image")
        content = await given[0].read()
        start = await asyncio.get_running_loop().run_in_executor(None, read_image, content, service.settings)
        paint_request = PaintRequest(
            prompt=prompt, negative_prompt=negative_prompt, n=n, seed=seed, steps=steps,
            guidance_scale=guidance_scale, size=size, loras=_parse_scales(loras), start=start, strength=strength,
            previews=bool(stream and partial_images),
        )  # fmt: skip
        return await _answer(service, paint_request, request, output_format, "image_edit", stream, partial_images)

    return router


def _describe_model(service: PaintService) -> dict[str, Any]:
    return {"id": service.name, "object": "model", "created": 0, "owned_by": "fewstep"}


def _check_answer(response_format: str | None, partial_images: int) -> None:
    if response_format == "url":
        raise RefusedError("pictures are sent, not kept: give response_format b64_json", param="response_format")
    if not 0 <= partial_images <= 8:
        raise RefusedError(f"partial_images is {partial_images}; allowed are 0 to 8", param="partial_images")


def _parse_scales(text: str) -> dict[str, float]:
    if not text:
        return {}
    try:
        found = json.loads(text)
        return {str(name): float(scale) for name, scale in found.items()}
    except (ValueError, AttributeError, TypeError, RecursionError, OverflowError) as error:
        raise RefusedError('loras is no JSON object of numbers, as {"style": 0.8}', param="loras") from error


async def _answer(  # what the two routes share
    service: PaintService,
    paint_request: PaintRequest,
    request: Request,
    form: Format,
    kind: str,
    stream: bool | None,
    partial_images: int,
) -> Response:
    accepted = service.accept(paint_request)
    if stream:
        try:
            service.engine.check_room(len(accepted.specs), accepted.specs[0].steps)
        except Exception as error:  # refused before the answer begins
            raise to_refusal(error) from error
        events = _stream_events(service, accepted, form, kind, partial_images)
        return StreamingResponse(events, media_type="text/event-stream", headers={"Cache-Control": "no-store"})
    images = await service.paint(accepted, request)
    data = [
        {"b64_json": await _encode_b64(service, image, accepted, i, form), "seed": accepted.specs[i].seed}
        for i, image in enumerate(images)
    ]
    usage = {"input_tokens": 0, "output_tokens": 0, "total_tokens": 0, "input_tokens_details": _NO_TOKENS}
    content = {"created": int(time.time()), "data": data, "usage": usage, "output_format": form}
    return JSONResponse({**content, "notes": accepted.notes})


_NO_TOKENS = {"image_tokens": 0, "text_tokens": 0}


async def _encode_b64(
    service: PaintService, image: Image.Image, accepted: AcceptedRequest, index: int, form: Format
) -> str:
    return base64.b64encode(await service.encode(image, accepted.specs[index], accepted.request, form)).decode()


async def _stream_events(
    service: PaintService, accepted: AcceptedRequest, form: Format, kind: str, partial_images: int
) -> AsyncIterator[str]:
    """Yields the first steps of the first picture, at most `partial_images` of them; then every picture."""
    specs = [replace(spec, previews=spec.previews and i == 0) for i, spec in enumerate(accepted.specs)]
    width, height = specs[0].size[::-1]
    common = {
        "created_at": int(time.time()), "size": f"{width}x{height}", "quality": "auto", "background": "opaque",
        "output_format": form,
    }  # fmt: skip
    usage = {"input_tokens": 0, "output_tokens": 0, "total_tokens": 0, "input_tokens_details": _NO_TOKENS}
    sent = 0
    try:
        async for step, images in service.follow(specs):
            if step is not None and sent < partial_images:
                content = {
                    "b64_json": await _encode_b64(service, images[0], accepted, 0, form),
                    "partial_image_index": sent,
                }
                yield _format_event(f"{kind}.partial_image", content | common)
                sent += 1
            for i, image in enumerate(images if step is None else []):
                content = {"b64_json": await _encode_b64(service, image, accepted, i, form), "usage": usage}
                content |= {"seed": specs[i].seed, "notes": accepted.notes}
                yield _format_event(f"{kind}.completed", content | common)
    except RefusedError as error:
        yield _format_event("error", error.content())


def _format_event(kind: str, content: dict[str, Any]) -> str:
    return f"event: {kind}\ndata: {json.dumps({'type': kind, **content})}\n\n"
