"""What AUTOMATIC1111's clients look up when they connect, under `/sdapi/v1`: what there is, and empty lists."""

from __future__ import annotations

import os
from typing import Any

import torch
from fastapi import APIRouter
from pydantic import BaseModel

from fewstep.data.infotext import read_infotext
from fewstep.serve import fields
from fewstep.serve.bodies import BodyRoute
from fewstep.serve.client_pictures import read_parameters
from fewstep.serve.errors import refuse_alone
from fewstep.serve.sdapi_fields import Options
from fewstep.serve.sdapi_hires import LATENT_MODES, UPSCALERS
from fewstep.serve.service import PaintService

_NOTHING = ("sd-vae", "sd-modules", "hypernetworks", "face-restorers", "realesrgan-models", "prompt-styles",
            "script-info", "extensions")  # fmt: skip
"""Lists of what is not here."""
_DONE = ("interrupt", "skip", "refresh-checkpoints", "refresh-vae", "refresh-loras", "refresh-embeddings",
         "unload-checkpoint", "reload-checkpoint")  # fmt: skip
"""Requests that are answered and do nothing: there is one model, and nobody may stop another's picture; a client that
leaves is noticed anyway."""


class PngInfo(BaseModel):
    """A picture whose settings are wanted."""

    image: str


def make_routes(service: PaintService) -> APIRouter:
    """Makes the routes of one model."""
    router = APIRouter(prefix="/sdapi/v1", tags=["AUTOMATIC1111"], route_class=BodyRoute)
    for name in _NOTHING:
        router.add_api_route(f"/{name}", _always([]), methods=["GET"], name=name)
    for name in _DONE:
        router.add_api_route(f"/{name}", _always({}), methods=["POST"], name=name)
    scripts: dict[str, list[str]] = {"txt2img": [], "img2img": []}
    for name, content in (("scripts", scripts), ("embeddings", {"loaded": {}, "skipped": {}})):
        router.add_api_route(f"/{name}", _always(content), methods=["GET"], name=name)
    _add_choices(router, service)
    _add_state(router, service)

    @router.get("/sd-models")
    async def models() -> list[dict[str, Any]]:
        names = (service.name, *service.acceptance.model_aliases)
        return [
            {"title": name, "model_name": name, "hash": None, "sha256": None, "filename": name, "config": None}
            for name in names
        ]

    @router.get("/options")
    async def options() -> dict[str, Any]:
        return {**fields.list_defaults("options"), "sd_model_checkpoint": service.name, "sd_checkpoint_hash": ""}

    @router.post("/options")
    async def set_options(asked: Options) -> dict[str, Any] | None:
        service.acceptance.check_model(asked.sd_model_checkpoint)
        notes = fields.review("options", asked.model_extra or {})
        return {"notes": notes} if notes else None

    @router.get("/loras")
    async def loras() -> list[dict[str, Any]]:
        other = {own: alias for alias, own in service.acceptance.lora_aliases.items()}
        return [{"name": name, "alias": other.get(name, name), "path": name, "metadata": {}} for name in service.loras]

    @router.post("/png-info")
    async def png_info(asked: PngInfo) -> dict[str, Any]:
        text = await service.reading.run(lambda reader: read_parameters(asked.image, service.settings, reader))
        found = read_infotext(text)
        named = {"Prompt": found.prompt, "Negative prompt": found.negative_prompt, **found.settings} if text else {}
        return {"info": text, "items": {"parameters": text} if text else {}, "parameters": named}

    return router


def _add_choices(router: APIRouter, service: PaintService) -> None:
    """Adds what a client may choose from."""

    @router.get("/samplers")
    async def samplers() -> list[dict[str, Any]]:
        label = service.pipeline.method.label
        return [{"name": label, "aliases": [label.lower()], "options": {}}]

    @router.get("/schedulers")
    async def schedulers() -> list[dict[str, Any]]:
        only = {"name": "automatic", "label": "Automatic", "aliases": [], "default_rho": -1.0}
        return [{**only, "need_inner_model": False}]

    @router.get("/upscalers")
    async def upscalers() -> list[dict[str, Any]]:
        nothing = {"model_name": None, "model_path": None, "model_url": None, "scale": 4.0}
        return [{"name": name, **nothing} for name in ("None", *UPSCALERS)]

    @router.get("/latent-upscale-modes")
    async def latent_upscale_modes() -> list[dict[str, Any]]:
        return [{"name": name} for name in LATENT_MODES]


def _add_state(router: APIRouter, service: PaintService) -> None:
    """Adds how the server is."""

    @router.get("/cmd-flags")
    async def cmd_flags() -> dict[str, Any]:
        return {
            "api": True, "nowebui": False, "listen": "*" in service.settings.hosts, "api_auth": None,
            "api_server_stop": False, "max_batch_count": service.settings.pictures,
            "freeze_settings": True, "lora_dir": None, "ckpt_dir": None, "embeddings_dir": None,
        }  # fmt: skip

    @router.get("/progress")
    async def progress() -> dict[str, Any]:
        if not service.settings.alone:
            raise refuse_alone("another one may be painting; wait for the answer")
        part, jobs = service.engine.progress()
        state = {
            "skipped": False, "interrupted": False, "stopping_generation": False, "job": "", "job_count": jobs,
            "job_timestamp": "0", "job_no": 0, "sampling_step": 0, "sampling_steps": 0,
        }  # fmt: skip
        return {"progress": part, "eta_relative": 0.0, "state": state, "current_image": None, "textinfo": None}

    @router.get("/memory")
    async def memory() -> dict[str, Any]:
        return {"ram": _count_ram(), "cuda": _count_cuda()}


def _count_ram() -> dict[str, int]:
    """Counts bytes of the machine's memory, where the system tells."""
    try:
        page, pages, free = (os.sysconf(name) for name in ("SC_PAGE_SIZE", "SC_PHYS_PAGES", "SC_AVPHYS_PAGES"))
    except (AttributeError, ValueError, OSError):
        return {}
    return {"free": page * free, "used": page * (pages - free), "total": page * pages}


def _count_cuda() -> dict[str, Any]:
    if not torch.cuda.is_available():
        return {"error": "there is no CUDA device"}
    free, total = torch.cuda.mem_get_info()
    held = {"current": torch.cuda.memory_allocated(), "peak": torch.cuda.max_memory_allocated()}
    return {"system": {"free": free, "used": total - free, "total": total}, "allocated": held}


def _always(content: Any) -> Any:
    async def answer() -> Any:
        return content

    return answer
