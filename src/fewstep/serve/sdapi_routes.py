"""The part of AUTOMATIC1111's API that its clients paint with: `/sdapi/v1/…`."""

from __future__ import annotations

import asyncio
import base64
import json
import re
from typing import Annotated, Any

from fastapi import APIRouter, Request
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field

from fewstep.serve.errors import RefusedError
from fewstep.serve.service import AcceptedRequest, PaintRequest, PaintService, read_image

_INTEGER = Annotated[int, Field(ge=-(2**63), lt=2**63)]
_NUMBER = Annotated[float, Field(allow_inf_nan=False)]
_LORA = re.compile(r"<lora:([^:<>]+)(?::([^:<>]*))?>")


class TextToImage(BaseModel):
    """The fields that fewstep understands; clients send dozens of others, which do nothing here."""

    model_config = ConfigDict(extra="ignore")

    prompt: str = ""
    negative_prompt: str = ""
    seed: _INTEGER = -1
    steps: _INTEGER | None = None
    cfg_scale: _NUMBER | None = None
    width: _INTEGER | None = None
    height: _INTEGER | None = None
    batch_size: _INTEGER = 1
    n_iter: _INTEGER = 1


class ImageToImage(TextToImage):
    """A request that starts from a picture."""

    init_images: Annotated[list[str], Field(fail_fast=True)] = []
    denoising_strength: _NUMBER = 0.75


class Options(BaseModel):
    """The one option, of dozens, that could not be met; the others do nothing here."""

    model_config = ConfigDict(extra="ignore")

    sd_model_checkpoint: str | None = None


def make_routes(service: PaintService) -> APIRouter:
    """Makes the routes of one model."""
    router = APIRouter(prefix="/sdapi/v1", tags=["AUTOMATIC1111"])

    @router.post("/txt2img")
    async def txt2img(asked: TextToImage, request: Request) -> dict[str, Any]:
        return await _paint(service, asked, request, None, 1.0)

    @router.post("/img2img")
    async def img2img(asked: ImageToImage, request: Request) -> dict[str, Any]:
        if len(asked.init_images) != 1:
            raise RefusedError(
                f"init_images: {len(asked.init_images)} were sent and one is wanted", param="init_images"
            )
        loop = asyncio.get_running_loop()
        start = await loop.run_in_executor(None, read_image, asked.init_images[0], service.settings, "init_images")
        return await _paint(service, asked, request, start, asked.denoising_strength)

    @router.get("/progress")
    async def progress() -> dict[str, Any]:
        part, jobs = service.engine.progress()
        state = {"skipped": False, "interrupted": False, "job": "", "job_count": jobs, "job_no": 0}
        return {"progress": part, "eta_relative": 0.0, "state": state, "current_image": None, "textinfo": None}

    @router.get("/sd-models")
    async def models() -> list[dict[str, Any]]:
        name = service.name
        return [{"title": name, "model_name": name, "hash": None, "sha256": None, "filename": name, "config": None}]

    @router.get("/options")
    async def options() -> dict[str, Any]:
        return {"sd_model_checkpoint": service.name}

    @router.post("/options")
    async def set_options(asked: Options) -> None:
        service.check_model(asked.sd_model_checkpoint)

    @router.post("/interrupt")
    async def interrupt() -> dict[str, Any]:
        """Does nothing: a client that leaves is noticed anyway, and nobody may stop another's picture."""
        return {}

    @router.get("/samplers")
    async def samplers() -> list[dict[str, Any]]:
        return [{"name": "LCM", "aliases": ["lcm"], "options": {}}]

    @router.get("/loras")
    async def loras() -> list[dict[str, Any]]:
        return [{"name": name, "alias": name, "path": name, "metadata": {}} for name in service.loras]

    return router


async def _paint(
    service: PaintService, asked: TextToImage, request: Request, start: Image.Image | None, strength: float
) -> dict[str, Any]:  # fmt: skip
    prompt, loras = _split_loras(asked.prompt)
    size, resized = _choose_nearest_size(service, asked)
    for name in ("batch_size", "n_iter"):
        if not 1 <= getattr(asked, name) <= service.settings.pictures:
            value, most = getattr(asked, name), service.settings.pictures
            raise RefusedError(f"{name} is {value}; allowed are 1 to {most}", param=name)
    paint_request = PaintRequest(
        prompt=prompt, negative_prompt=asked.negative_prompt, n=asked.batch_size * asked.n_iter,
        seed=None if asked.seed == -1 else asked.seed, steps=asked.steps, guidance_scale=asked.cfg_scale, size=size,
        loras=loras, start=start, strength=strength,
    )  # fmt: skip
    accepted = service.accept(paint_request)
    accepted.notes.extend(resized)
    images = await service.paint(accepted, request)
    files = [
        await service.encode(image, spec, paint_request) for image, spec in zip(images, accepted.specs, strict=True)
    ]
    return {
        "images": [base64.b64encode(file).decode() for file in files],
        "parameters": {**asked.model_dump(exclude={"init_images"}), "steps": accepted.specs[0].steps},
        "info": json.dumps(_write_info(service, accepted)),
    }


def _choose_nearest_size(service: PaintService, asked: TextToImage) -> tuple[str, list[str]]:
    """Returns the nearest size that the model paints, and a note where it is another: these clients always send one."""
    height, width = service.sizes[0]
    wanted = (height if asked.height is None else asked.height, width if asked.width is None else asked.width)
    for name, side in zip(("height", "width"), wanted, strict=True):
        if not 1 <= side <= 8192:
            raise RefusedError(f"{name} is {side}; allowed are 1 to 8192", param=name)
    nearest = min(service.sizes, key=lambda size: abs(size[0] - wanted[0]) + abs(size[1] - wanted[1]))
    name = f"{nearest[1]}x{nearest[0]}"
    note = f"size is {wanted[1]}x{wanted[0]}; this model paints {name}, which is nearest"
    return name, [] if nearest == wanted else [note]


def _write_info(service: PaintService, accepted: AcceptedRequest) -> dict[str, Any]:
    specs, paint_request = accepted.specs, accepted.request
    return {
        "prompt": paint_request.prompt, "all_prompts": [paint_request.prompt] * len(specs),
        "negative_prompt": paint_request.negative_prompt,
        "seed": specs[0].seed, "all_seeds": [spec.seed for spec in specs], "width": specs[0].size[1],
        "height": specs[0].size[0], "sampler_name": "LCM", "cfg_scale": service.guidance_scale_of(specs[0]),
        "steps": specs[0].steps, "batch_size": len(specs), "sd_model_name": service.name,
        "infotexts": [service.write_infotext(spec, paint_request) for spec in specs], "extra_generation_params": {},
        "notes": accepted.notes,
    }  # fmt: skip


def _split_loras(prompt: str) -> tuple[str, dict[str, float]]:
    """Returns the prompt without `<lora:name:scale>`, as A1111's clients write it, and the scales by name."""
    found: dict[str, float] = {}
    for name, scale in _LORA.findall(prompt):
        try:
            found[name] = float(scale or 1)
        except ValueError as error:
            raise RefusedError(
                f"the scale of lora {name!r} is {scale!r}; a number is wanted", param="prompt"
            ) from error
    return _LORA.sub("", prompt).strip() if found else prompt, found
