"""What OpenAI's fields ask for, and its answer: pictures in base64, behind links, or as a stream of events."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from fastapi import Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from PIL import Image

from fewstep.data.masks import Fill
from fewstep.serve.acceptance import AcceptedRequest, PaintRequest
from fewstep.serve.errors import RefusedError, refuse_alone, to_refusal
from fewstep.serve.openai_fields import ObeyedFields, check_answer
from fewstep.serve.service import PaintService

FILES = "images/files"
"""Is where pictures behind links are, under `/v1`."""


def make_request(
    service: PaintService, asked: ObeyedFields, start: Image.Image | None = None, mask: Image.Image | None = None,
    fill: Fill = "original", strength: float | None = None,
) -> PaintRequest:  # fmt: skip
    """Makes the request that the engine's side understands, from `start` where there is one. Raises RefusedError."""
    service.acceptance.check_model(asked.model)
    check_answer(asked)
    if asked.response_format == "url" and not service.settings.alone:
        raise refuse_alone("a link would lead to one of them alone; send response_format b64_json", "response_format")
    return PaintRequest(
        prompt=asked.prompt, negative_prompt=asked.negative_prompt, n=asked.n, seed=asked.seed, steps=asked.steps,
        guidance_scale=asked.guidance_scale, size=asked.size, loras=asked.loras, start=start, mask=mask, fill=fill,
        strength=strength, previews=bool(asked.stream and asked.partial_images),
    )  # fmt: skip


@dataclass(frozen=True)
class Answer:
    """How one request is answered."""

    service: PaintService
    asked: ObeyedFields
    kind: Literal["image_generation", "image_edit"]
    notes: Sequence[str]
    """Say which fields are not obeyed."""

    async def paint(self, paint_request: PaintRequest, request: Request) -> Response:
        """Paints what is accepted. Raises RefusedError."""
        accepted = self.service.accept(paint_request)
        accepted.notes.extend(self.notes)
        if self.asked.stream:
            try:
                self.service.engine.check_room(len(accepted.specs), accepted.specs[0].steps)
            except Exception as error:  # refused before the answer begins
                raise to_refusal(error) from error
            events = self._stream_events(accepted)
            return StreamingResponse(events, media_type="text/event-stream", headers={"Cache-Control": "no-store"})
        images, _ = await self.service.paint(accepted.specs, request)
        data = [await self._describe(image, accepted, i, request) for i, image in enumerate(images)]
        height, width = accepted.specs[0].size
        return JSONResponse({
            "created": int(time.time()), "data": data, "usage": self._count_usage(), "size": f"{width}x{height}",
            "output_format": self.asked.output_format, "background": "opaque", "quality": "auto",
            "notes": accepted.notes,
        })  # fmt: skip

    async def _describe(
        self, image: Image.Image, accepted: AcceptedRequest, index: int, request: Request
    ) -> dict[str, Any]:  # fmt: skip
        """Returns one picture of an answer; OpenAI's older clients read which prompt was painted."""
        content = await self._encode(image, accepted, index)
        told = {"seed": accepted.specs[index].seed, "revised_prompt": accepted.request.prompt}
        if self.asked.response_format != "url":
            return {"b64_json": base64.b64encode(content).decode(), **told}
        name = self.service.kept.add(content, f"image/{self.asked.output_format}")
        return {"url": f"{request.base_url}v1/{FILES}/{name}", **told}

    async def _encode(self, image: Image.Image, accepted: AcceptedRequest, index: int) -> bytes:
        quality = None if self.asked.output_compression is None else max(1, self.asked.output_compression)
        spec, form = accepted.specs[index], self.asked.output_format
        return await self.service.encode(image, spec, accepted.request, form, quality)

    async def _encode_b64(self, image: Image.Image, accepted: AcceptedRequest, index: int) -> str:
        return base64.b64encode(await self._encode(image, accepted, index)).decode()

    async def _stream_events(self, accepted: AcceptedRequest) -> AsyncIterator[str]:
        """Yields the first steps of the first picture, at most `partial_images` of them; then every picture."""
        specs = [replace(spec, previews=spec.previews and i == 0) for i, spec in enumerate(accepted.specs)]
        height, width = specs[0].size
        common = {
            "created_at": int(time.time()), "size": f"{width}x{height}", "quality": "auto", "background": "opaque",
            "output_format": self.asked.output_format,
        }  # fmt: skip
        sent, usage = 0, self._count_usage()
        try:
            async for step, images in self.service.follow(specs):
                if step is not None and sent < self.asked.partial_images:
                    content = {
                        "b64_json": await self._encode_b64(images[0], accepted, 0), "partial_image_index": sent
                    }  # fmt: skip
                    yield _format_event(f"{self.kind}.partial_image", content | common)
                    sent += 1
                for i, image in enumerate(images if step is None else []):
                    content = {"b64_json": await self._encode_b64(image, accepted, i), "usage": usage}
                    content |= {"seed": specs[i].seed, "notes": accepted.notes}
                    yield _format_event(f"{self.kind}.completed", content | common)
        except RefusedError as error:
            yield _format_event("error", error.content())

    def _count_usage(self) -> dict[str, Any]:
        """Counts the tokens of the prompt that the model reads; pictures are none here, neither sent nor painted."""
        count = self.service.pipeline.model.conditioner.count_tokens(self.asked.prompt)
        details = {"image_tokens": 0, "text_tokens": count}
        return {"input_tokens": count, "output_tokens": 0, "total_tokens": count, "input_tokens_details": details}


def _format_event(kind: str, content: dict[str, Any]) -> str:
    return f"event: {kind}\ndata: {json.dumps({'type': kind, **content})}\n\n"
