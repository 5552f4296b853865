"""OpenAI's route `/v1/images/edits`: a form with a picture, painted anew as a whole or where a mask is transparent."""

from __future__ import annotations

from functools import partial
from typing import Annotated, NamedTuple

from fastapi import APIRouter, File, Form, Request, UploadFile
from fastapi.responses import Response
from PIL import Image

from fewstep.data.masks import Fill, read_holes
from fewstep.data.sources.fitting import fit_cover
from fewstep.serve import fields
from fewstep.serve.client_pictures import Format, check_mask, count_bytes, flatten, open_pictures
from fewstep.serve.errors import RefusedError
from fewstep.serve.openai_answers import Answer, make_request
from fewstep.serve.openai_fields import ResponseFormat, read_form
from fewstep.serve.reading import ReadingTask
from fewstep.serve.sdapi_fields import Integer, Number
from fewstep.serve.service import PaintService
from fewstep.serve.settings import ServerSettings


class Edit(NamedTuple):
    """What an edit starts from, in the size in which it is painted."""

    picture: Image.Image
    hole: Image.Image | None
    """Is white where the picture is painted anew; None: everywhere."""
    fill: Fill


def add_edits(router: APIRouter, service: PaintService) -> None:
    """Adds the route of edits."""

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
        form = await request.form()
        fields.refuse_unknown("edits", form)
        notes = fields.review("edits", {name: value for name, value in form.items() if isinstance(value, str)})
        asked = read_form(
            prompt=prompt, model=model, n=n, size=size, response_format=response_format, output_format=output_format,
            output_compression=output_compression, stream=stream, partial_images=partial_images, steps=steps, seed=seed,
            guidance_scale=guidance_scale, negative_prompt=negative_prompt, loras=loras,
        )  # fmt: skip
        edit = await _read_edit(service, [*(image or []), *(images or [])], mask, size)
        if edit.fill == "surroundings":
            notes.append("image has transparent parts and there is no mask: these parts alone are painted")
        request.state.hold.add(count_bytes(edit.picture, edit.hole))
        paint_request = make_request(service, asked, edit.picture, edit.hole, edit.fill, strength)
        return await Answer(service, asked, "image_edit", notes).paint(paint_request, request)


async def _read_edit(
    service: PaintService, pictures: list[UploadFile], mask: UploadFile | None, size: str | None
) -> Edit:  # fmt: skip
    """Reads the one picture of a form, and its mask. Raises RefusedError."""
    if len(pictures) != 1:
        raise RefusedError(f"image: {len(pictures)} pictures were sent; send one", param="image")
    content, masked = await pictures[0].read(), None if mask is None else await mask.read()
    wanted = service.acceptance.choose_size(size, [])
    return await service.reading.run(partial(_decode_edit, content, masked, wanted, service.settings))


def _decode_edit(
    content: bytes, mask: bytes | None, size: tuple[int, int], settings: ServerSettings, reader: ReadingTask
) -> Edit:  # fmt: skip
    """Takes as the hole what is transparent of the mask, or else of the picture; both become of `size`."""
    with open_pictures(settings, reader, image=content, mask=mask) as (sent, *masks):
        given = sent.decode(reader, transparency=True)
        picture = flatten(given)
        if not masks:
            hole = read_holes(given)
            if hole is None:
                return Edit(fit_cover(picture, size), None, "original")
            return Edit(fit_cover(picture, size), fit_cover(hole, size), "surroundings")
        hole = read_holes(masks[0].decode(reader, transparency=True))
        if hole is None:
            raise RefusedError("mask has no transparent pixels; make transparent what shall be painted", param="mask")
        if hole.size != picture.size:
            sizes = f"{hole.width}x{hole.height} and image {picture.width}x{picture.height}"
            raise RefusedError(f"mask is {sizes}; send them of one size", param="mask")
        return Edit(fit_cover(picture, size), fit_cover(check_mask(hole), size), "original")
