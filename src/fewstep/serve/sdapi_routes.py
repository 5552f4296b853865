"""The part of AUTOMATIC1111's API that its clients paint with: `/sdapi/v1/txt2img` and `img2img`."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter, Request
from PIL import Image

from fewstep.serve import fields
from fewstep.serve.acceptance import AcceptedRequest, PaintRequest, check_between
from fewstep.serve.errors import RefusedError
from fewstep.serve.lora_tags import TaggedPrompt, split_tags
from fewstep.serve.sdapi_fields import ImageToImage, PaintingFields, TextToImage
from fewstep.serve.sdapi_hires import accept_second, enlarge
from fewstep.serve.sdapi_inpainting import Beginning, read_beginning
from fewstep.serve.service import PaintService

_PICTURES = ("init_images", "mask")


def make_routes(service: PaintService) -> APIRouter:
    """Makes the routes of one model."""
    router = APIRouter(prefix="/sdapi/v1", tags=["AUTOMATIC1111"])

    @router.post("/txt2img")
    async def txt2img(asked: TextToImage, request: Request) -> dict[str, Any]:
        notes = review(service, "txt2img", asked)
        tagged = split_tags(asked.prompt, heed=not asked.disable_extra_networks)
        first = service.accept(_make_request(service, asked, tagged))
        first.notes.extend([*tagged.notes, *notes])
        if not asked.enable_hr:
            images, _ = await service.paint(first.specs, request)
            return await _answer(service, asked, first, images)
        second = accept_second(service, asked, first)
        images, latents = await service.paint(first.specs, request)
        multiple = service.pipeline.model.codec.multiple
        specs = enlarge(second.specs, images, latents, asked.hr_upscaler, multiple)
        images, _ = await service.paint(specs, request)
        both = AcceptedRequest(second.request, first.specs, first.notes)
        return await _answer(service, asked, both, images)

    @router.post("/img2img")
    async def img2img(asked: ImageToImage, request: Request) -> dict[str, Any]:
        notes = review(service, "img2img", asked)
        if asked.resize_mode == 3:
            notes.append("resize_mode 3 stretches pixels here, not latents")
        tagged = split_tags(asked.prompt, heed=not asked.disable_extra_networks)
        plain = service.accept(_make_request(service, asked, tagged))  # refuses before a picture is decoded
        begin = await asyncio.get_running_loop().run_in_executor(
            None, read_beginning, asked, plain.specs[0].size, service.settings
        )
        accepted = service.accept(_make_request(service, asked, tagged, begin))
        accepted.notes.extend([*tagged.notes, *notes])
        images, _ = await service.paint(accepted.specs, request)
        return await _answer(service, asked, accepted, [begin.finish(image) for image in images])

    return router


def review(service: PaintService, kind: fields.Request, asked: PaintingFields) -> list[str]:
    """Returns the notes on fields that are not obeyed, those of the settings for this request alone among them."""
    notes = fields.review(kind, asked.model_extra or {})
    settings = asked.override_settings
    model = settings.get("sd_model_checkpoint")
    service.acceptance.check_model(model if model is None else str(model))
    return notes + fields.review("options", settings, "override_settings.")


def _make_request(
    service: PaintService, asked: PaintingFields, tagged: TaggedPrompt, begin: Beginning | None = None
) -> PaintRequest:  # fmt: skip
    for name in ("batch_size", "n_iter"):
        check_between(name, getattr(asked, name), 1, service.settings.pictures)
    own = service.acceptance.sizes[0]
    height, width = (own[0] if asked.height is None else asked.height, own[1] if asked.width is None else asked.width)
    for name, side in (("height", height), ("width", width)):
        check_between(name, side, 1, 8192)
    if not 0 <= asked.denoising_strength <= 1:
        raise RefusedError(
            f"denoising_strength is {asked.denoising_strength:g}; allowed are 0 to 1", param="denoising_strength"
        )
    return PaintRequest(
        prompt=tagged.text, negative_prompt=asked.negative_prompt, n=asked.batch_size * asked.n_iter,
        seed=None if asked.seed == -1 else asked.seed, steps=asked.steps, guidance_scale=asked.cfg_scale,
        size=f"{width}x{height}", loras=tagged.loras, text_loras=tagged.text_loras,
        start=None if begin is None else begin.image, mask=None if begin is None else begin.mask,
        fill="original" if begin is None else begin.fill, strength=asked.denoising_strength,
    )  # fmt: skip


async def _answer(
    service: PaintService, asked: PaintingFields, accepted: AcceptedRequest, images: Sequence[Image.Image]
) -> dict[str, Any]:  # fmt: skip
    files = []
    if asked.send_images:
        for image, spec in zip(images, accepted.specs, strict=True):
            files.append(base64.b64encode(await service.encode(image, spec, accepted.request)).decode())
    hidden = () if getattr(asked, "include_init_images", False) else _PICTURES
    parameters = {name: value for name, value in asked.model_dump().items() if name not in hidden}
    return {
        "images": files,
        "parameters": {**parameters, "steps": accepted.specs[0].steps},
        "info": json.dumps(_write_info(service, accepted, images)),
    }


def _write_info(
    service: PaintService, accepted: AcceptedRequest, images: Sequence[Image.Image]
) -> dict[str, Any]:  # fmt: skip
    specs, paint_request = accepted.specs, accepted.request
    seeds, count = [spec.seed for spec in specs], len(specs)
    return {
        "prompt": paint_request.prompt, "all_prompts": [paint_request.prompt] * count,
        "negative_prompt": paint_request.negative_prompt,
        "all_negative_prompts": [paint_request.negative_prompt] * count,
        "seed": seeds[0], "all_seeds": seeds, "subseed": seeds[0], "all_subseeds": seeds, "subseed_strength": 0,
        "width": images[0].width, "height": images[0].height, "sampler_name": "LCM",
        "cfg_scale": service.guidance_scale_of(specs[0]), "steps": specs[0].steps, "batch_size": count,
        "restore_faces": False, "sd_model_name": service.name, "denoising_strength": specs[0].strength,
        "extra_generation_params": dict(paint_request.told), "index_of_first_image": 0,
        "infotexts": [service.write_infotext(spec, paint_request) for spec in specs], "styles": [],
        "notes": accepted.notes,
    }  # fmt: skip
