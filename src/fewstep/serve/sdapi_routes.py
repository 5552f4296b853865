"""The part of AUTOMATIC1111's API that its clients paint with: `/sdapi/v1/txt2img` and `img2img`."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter, Request
from PIL import Image

from fewstep.serve import fields
from fewstep.serve.acceptance import AcceptedRequest, PaintRequest, check_between
from fewstep.serve.bodies import BodyRoute
from fewstep.serve.budget import Hold
from fewstep.serve.client_pictures import count_bytes
from fewstep.serve.errors import RefusedError
from fewstep.serve.jobs import PictureSpec
from fewstep.serve.lora_tags import TaggedPrompt, split_tags
from fewstep.serve.reading import ReadingTask
from fewstep.serve.sdapi_fields import ImageToImage, PaintingFields, TextToImage
from fewstep.serve.sdapi_hires import accept_second, enlarge
from fewstep.serve.sdapi_inpainting import Beginning, read_beginning
from fewstep.serve.service import PaintService

_PICTURES = ("init_images", "mask")
_COPIES = 4
"""Times that an encoded picture is in memory while it is answered: as base64, in JSON, and as that is sent."""


def make_routes(service: PaintService) -> APIRouter:
    """Makes the routes of one model."""
    router = APIRouter(prefix="/sdapi/v1", tags=["AUTOMATIC1111"], route_class=BodyRoute)

    @router.post("/txt2img")
    async def txt2img(asked: TextToImage, request: Request) -> dict[str, Any]:
        notes = review(service, "txt2img", asked)
        tagged = split_tags(asked.prompt, heed=not asked.disable_extra_networks)
        first = service.accept(_make_request(service, asked, tagged))
        first.notes.extend([*tagged.notes, *notes])
        if not asked.enable_hr:
            images, _ = await service.paint(first.specs, request)
            return await _answer(service, asked, first, images, request.state.hold)
        second = accept_second(service, asked, first)
        images, latents = await service.paint(first.specs, request)
        multiple = service.pipeline.model.codec.multiple
        specs = await service.reading.run(lambda _: enlarge(second.specs, images, latents, asked.hr_upscaler, multiple))
        request.state.hold.add(count_bytes(*(spec.start for spec in specs if isinstance(spec.start, Image.Image))))
        images, _ = await service.paint(specs, request)
        both = AcceptedRequest(second.request, first.specs, first.notes)
        return await _answer(service, asked, both, images, request.state.hold)

    @router.post("/img2img")
    async def img2img(asked: ImageToImage, request: Request) -> dict[str, Any]:
        notes = review(service, "img2img", asked)
        if asked.resize_mode == 3:
            notes.append("resize_mode 3 stretches pixels here, not latents")
        tagged = split_tags(asked.prompt, heed=not asked.disable_extra_networks)
        plain = service.accept(_make_request(service, asked, tagged))  # refuses before a picture is decoded
        size, hold = plain.specs[0].size, request.state.hold
        begin = await service.reading.run(lambda reader: read_beginning(asked, size, service.settings, reader))
        hold.add(count_bytes(begin.image, begin.mask, begin.whole, begin.whole_mask))
        _check_answer(service, begin, len(plain.specs))
        accepted = service.accept(_make_request(service, asked, tagged, begin))
        accepted.notes.extend([*tagged.notes, *notes])
        images, _ = await service.paint(accepted.specs, request)
        return await _answer(service, asked, accepted, images, hold, begin)

    return router


def review(service: PaintService, kind: fields.Request, asked: PaintingFields) -> list[str]:
    """Returns the notes on fields that are not obeyed, those of the settings for this request alone among them."""
    notes = fields.review(kind, asked.model_extra or {})
    settings = asked.override_settings
    notes += fields.review("options", settings, "override_settings.")
    service.acceptance.check_model(settings.get("sd_model_checkpoint"))
    return notes


def _make_request(
    service: PaintService, asked: PaintingFields, tagged: TaggedPrompt, begin: Beginning | None = None
) -> PaintRequest:  # fmt: skip
    for name in ("batch_size", "n_iter"):
        check_between(name, getattr(asked, name), 1, service.settings.pictures)
    own = service.acceptance.sizes[0]
    height, width = (own[0] if asked.height is None else asked.height, own[1] if asked.width is None else asked.width)
    for name, side in (("height", height), ("width", width)):
        check_between(name, side, 1, 8192)
    check_between("denoising_strength", asked.denoising_strength, 0, 1)
    return PaintRequest(
        prompt=tagged.text, negative_prompt=asked.negative_prompt, n=asked.batch_size * asked.n_iter,
        seed=None if asked.seed == -1 else asked.seed, steps=asked.steps, guidance_scale=asked.cfg_scale,
        size=f"{width}x{height}", loras=tagged.loras, text_loras=tagged.text_loras,
        start=None if begin is None else begin.image, mask=None if begin is None else begin.mask,
        fill="original" if begin is None else begin.fill, strength=asked.denoising_strength,
        names={"guidance_scale": "cfg_scale", "strength": "denoising_strength", "n": "batch_size times n_iter"},
    )  # fmt: skip


def _check_answer(service: PaintService, begin: Beginning, count: int) -> None:
    """Raises RefusedError where so many pictures, each as large as the client's, are too much for one answer."""
    if begin.whole is None:
        return
    pixels, most = count * begin.whole.width * begin.whole.height, 2 * service.settings.image_pixels
    if pixels > most:
        raise RefusedError(
            f"{count} pictures of {begin.whole.width}x{begin.whole.height} are {pixels} pixels to answer with; the "
            f"limit is {most}: ask for fewer, send a smaller one, or set inpaint_full_res to false", param="batch_size",
        )  # fmt: skip


async def _answer(
    service: PaintService, asked: PaintingFields, accepted: AcceptedRequest, images: Sequence[Image.Image], hold: Hold,
    begin: Beginning | None = None,
) -> dict[str, Any]:  # fmt: skip
    files = []
    for image, spec in zip(images if asked.send_images else [], accepted.specs, strict=False):
        if begin is None or begin.whole is None:
            content = await service.encode(image, spec, accepted.request)
        else:
            content = await _finish(service, begin, image, spec, accepted.request)
        hold.add(_COPIES * len(content))
        files.append(base64.b64encode(content).decode())
    size = images[0].size if begin is None or begin.whole is None else begin.whole.size
    hidden = () if getattr(asked, "include_init_images", False) else _PICTURES
    parameters = {name: value for name, value in asked.model_dump().items() if name not in hidden}
    return {
        "images": files,
        "parameters": {**parameters, "steps": accepted.specs[0].steps},
        "info": json.dumps(_write_info(service, accepted, size)),
    }


async def _finish(
    service: PaintService, begin: Beginning, image: Image.Image, spec: PictureSpec, request: PaintRequest
) -> bytes:  # fmt: skip
    """Returns the client's picture with what was painted set into it, encoded."""
    needed, hold = count_bytes(begin.whole), Hold(service.budget)

    def finish(reader: ReadingTask) -> Image.Image:
        with reader.budget.reserve(2 * needed, reader.check):
            return begin.finish(image)

    try:
        finished = await service.reading.run(finish)
        hold.add(needed)
        return await service.encode(finished, spec, request)
    finally:
        hold.release()


def _write_info(
    service: PaintService, accepted: AcceptedRequest, size: tuple[int, int]
) -> dict[str, Any]:  # fmt: skip
    specs, paint_request = accepted.specs, accepted.request
    seeds, count = [spec.seed for spec in specs], len(specs)
    return {
        "prompt": paint_request.prompt, "all_prompts": [paint_request.prompt] * count,
        "negative_prompt": paint_request.negative_prompt,
        "all_negative_prompts": [paint_request.negative_prompt] * count,
        "seed": seeds[0], "all_seeds": seeds, "subseed": seeds[0], "all_subseeds": seeds, "subseed_strength": 0,
        "width": size[0], "height": size[1], "sampler_name": service.pipeline.method.label,
        "cfg_scale": service.guidance_scale_of(specs[0]), "steps": specs[0].steps, "batch_size": count,
        "restore_faces": False, "sd_model_name": service.name, "denoising_strength": specs[0].strength,
        "extra_generation_params": dict(paint_request.told), "index_of_first_image": 0,
        "infotexts": [service.write_infotext(spec, paint_request) for spec in specs], "styles": [],
        "notes": accepted.notes,
    }  # fmt: skip
