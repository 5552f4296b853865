"""OpenAI's image routes: `/v1/images/generations`, `/v1/images/edits`, `/v1/models`."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, File, Form, Request, UploadFile
from fastapi.responses import Response
from PIL import Image

from fewstep.data.masks import Fill, read_holes
from fewstep.data.sources.fitting import fit_cover
from fewstep.serve import fields
from fewstep.serve.acceptance import PaintRequest
from fewstep.serve.bodies import BodyRoute
from fewstep.serve.client_pictures import Format, check_mask, count_bytes, flatten, open_pictures
from fewstep.serve.errors import RefusedError
from fewstep.serve.openai_answers import FILES, Answer
from fewstep.serve.openai_fields import (
    Generation,
    ObeyedFields,
    ResponseFormat,
    check_answer,
    list_others,
    read_form,
)
from fewstep.serve.reading import Reader
from fewstep.serve.sdapi_fields import Integer, Number
from fewstep.serve.service import PaintService
from fewstep.serve.settings import ServerSettings

_STRENGTH = 0.6
"""Is the strength of an edit of the whole picture, where the client names none; under a mask it is 1."""


def make_routes(service: PaintService) -> APIRouter:
    """Makes the routes of one model."""
    router = APIRouter(prefix="/v1", tags=["OpenAI"], route_class=BodyRoute)

    @router.get("/models")
    async def models() -> dict[str, Any]:
        names = (service.name, *service.acceptance.model_aliases)
        return {"object": "list", "data": [_describe_model(name) for name in names]}

    @router.get("/models/{name:path}")
    async def model(name: str) -> dict[str, Any]:
        service.acceptance.check_model(name)
        return _describe_model(name)

    @router.post("/images/generations", response_model=None)
    async def generations(asked: Generation, request: Request) -> Response:
        notes = fields.review("generations", list_others(asked))
        answer = Answer(service, asked, "image_generation", notes)
        return await answer.paint(_make_request(service, asked), request)

    @router.post("/images/edits", response_model=None)
    async def edits(  # noqa: PLR0913, PLR0917  # a form's fields
        request: Request,
        prompt: Annotated[str, Form()],
        image: Annotated[list[UploadFile] | None, File()] = None,
        images: Annotated[list[UploadFile] | None, File(alias="image[]")] = None,
        mask: Annotated[UploadFile | None, File()] = None,
        model: Annotated[str | None, Form()] = None,
        n: Annotated[Integer, Form()] = 1,
        size: Annotated[str | None, Form()] = None,
        response_format: Annotated[ResponseFormat | None, Form()] = None,
        output_format: Annotated[Format, Form()] = "png",
        output_compression: Annotated[Integer | None, Form()] = None,
        stream: Annotated[bool, Form()] = False,
        partial_images: Annotated[Integer, Form()] = 0,
        steps: Annotated[Integer | None, Form()] = None,
        seed: Annotated[Integer | None, Form()] = None,
        strength: Annotated[Number | None, Form()] = None,
        guidance_scale: Annotated[Number | None, Form()] = None,
        negative_prompt: Annotated[str, Form()] = "",
        loras: Annotated[str, Form()] = "",
    ) -> Response:
        given = {name: value for name, value in (await request.form()).items() if isinstance(value, str)}
        fields.refuse_unknown("edits", await request.form())
        notes = fields.review("edits", given)
        asked = read_form(
            prompt=prompt, model=model, n=n, size=size, response_format=response_format, output_format=output_format,
            output_compression=output_compression, stream=stream, partial_images=partial_images, steps=steps, seed=seed,
            guidance_scale=guidance_scale, negative_prompt=negative_prompt, loras=loras,
        )  # fmt: skip
        answer = Answer(service, asked, "image_edit", notes)
        pictures = [*(image or []), *(images or [])]
        if len(pictures) != 1:
            raise RefusedError(f"image: {len(pictures)} pictures were sent; send one", param="image")
        content, masked = await pictures[0].read(), None if mask is None else await mask.read()
        wanted = service.acceptance.choose_size(size, [])
        reading = partial(_read_pictures, content, masked, wanted, service.settings)
        start, hole, fill = await service.reading.run(reading)
        if fill == "surroundings":
            notes.append("image has transparent parts and there is no mask: these parts alone are painted")
        request.state.hold.add(count_bytes(start, hole))
        chosen = (_STRENGTH if hole is None else 1.0) if strength is None else strength
        return await answer.paint(_make_request(service, asked, start, hole, fill, chosen), request)

    @router.get(f"/{FILES}/{{name}}", response_model=None)
    async def kept_picture(name: str) -> Response:
        found = service.kept.find(name)
        if found is None:
            raise RefusedError(
                "there is no such picture; they are kept for an hour, so paint it again", status=404, code="not_found"
            )
        # Whoever has the link may show the picture, on whatever page.
        headers = {"Cache-Control": "private, max-age=3600", "Cross-Origin-Resource-Policy": "cross-origin"}
        return Response(found.content, media_type=found.media_type, headers=headers)

    return router


def _make_request(
    service: PaintService, asked: ObeyedFields, start: Image.Image | None = None, mask: Image.Image | None = None,
    fill: Fill = "original", strength: float = 1.0,
) -> PaintRequest:  # fmt: skip
    service.acceptance.check_model(asked.model)
    check_answer(asked)
    return PaintRequest(
        prompt=asked.prompt, negative_prompt=asked.negative_prompt, n=asked.n, seed=asked.seed, steps=asked.steps,
        guidance_scale=asked.guidance_scale, size=asked.size, loras=asked.loras, start=start, mask=mask, fill=fill,
        strength=strength, previews=bool(asked.stream and asked.partial_images),
    )  # fmt: skip


def _read_pictures(
    content: bytes, mask: bytes | None, size: tuple[int, int], settings: ServerSettings, reader: Reader
) -> tuple[Image.Image, Image.Image | None, Fill]:  # fmt: skip
    """Returns picture, mask and fill: what is transparent of the mask, or else of the picture, is painted.

    Picture and mask are of the height and width `size`.
    """
    with open_pictures(settings, reader, image=content, mask=mask) as (sent, *masks):
        given = sent.decode(reader, transparency=True)
        picture = flatten(given)
        if not masks:
            hole = read_holes(given)
            if hole is None:
                return fit_cover(picture, size), None, "original"
            return fit_cover(picture, size), fit_cover(hole, size), "surroundings"
        hole = read_holes(masks[0].decode(reader, transparency=True))
        if hole is None:
            raise RefusedError("mask has no transparent pixels; make transparent what shall be painted", param="mask")
        if hole.size != picture.size:
            sizes = f"{hole.width}x{hole.height} and image {picture.width}x{picture.height}"
            raise RefusedError(f"mask is {sizes}; send them of one size", param="mask")
        return fit_cover(picture, size), fit_cover(check_mask(hole), size), "original"


def _describe_model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "fewstep"}
