"""Puts the page, the API and their guard together into one application."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi.responses import FileResponse, JSONResponse, Response

from fewstep import __version__
from fewstep.models.pipeline import Pipeline
from fewstep.serve import openai_routes, sdapi_lookups, sdapi_routes, socket_route
from fewstep.serve.acceptance import STRENGTHS
from fewstep.serve.error_handlers import install_handlers
from fewstep.serve.guard import Guard
from fewstep.serve.metrics import Metrics
from fewstep.serve.service import PaintService

PAGE = Path(__file__).parent / "page"
_EXAMPLES = ("a lighthouse on a cliff at sunrise", "a red bicycle against a yellow wall", "a small house in the snow")
"""Prompts to try with a model that reads any words; one that was taught some has captions of its own."""
_FILES = {
    "/": "index.html",
    "/page.js": "page.js",
    "/keys.js": "keys.js",
    "/mask.js": "mask.js",
    "/strip.js": "strip.js",
    "/logo.svg": "logo.svg",
    "/page.css": "page.css",
    "/docs": "docs.html",
    "/docs.js": "docs.js",
}
_POLICY = "default-src 'self'; img-src 'self' blob: data:; connect-src 'self'; style-src 'self'; frame-ancestors 'none'"


def make_app(service: PaintService, vocabulary: dict[str, list[str]]) -> FastAPI:
    """Makes the application; `vocabulary` holds words, in groups, that the page offers for prompts."""
    app = FastAPI(title="fewstep", version=__version__, docs_url=None, redoc_url=None, openapi_url=None)
    metrics = Metrics(service.engine)
    routers = [part.make_routes(service) for part in (openai_routes, sdapi_routes, sdapi_lookups, socket_route)]
    for router in routers:
        app.include_router(router)
    for path, name in _FILES.items():
        app.add_api_route(path, _file(name), include_in_schema=False)

    @app.get("/healthz", tags=["state"])
    async def health() -> JSONResponse:
        alive = service.engine.alive
        return JSONResponse({"status": "ok" if alive else "down"}, 200 if alive else 503)

    @app.get("/internal/ping", tags=["state"])
    async def ping() -> dict[str, Any]:
        return {}

    @app.get("/metrics", tags=["state"], response_model=None)
    async def prometheus() -> Response:
        return Response(metrics.text(), media_type="text/plain; version=0.0.4")

    written, writing = list[bytes](), asyncio.Lock()

    @app.get("/openapi.json", include_in_schema=False)
    async def openapi() -> Response:
        async with writing:  # which takes long enough not to do it twice
            if not written:
                text = await asyncio.get_running_loop().run_in_executor(None, lambda: json.dumps(app.openapi()))
                written.append(text.encode())
        return Response(written[0], media_type="application/json")

    @app.get("/api/model", tags=["page"])
    async def model() -> dict[str, Any]:
        return describe_model(service, vocabulary)

    own = [route for route in app.routes if hasattr(route, "path")]
    install_handlers(app, [*own, *(route for router in routers for route in router.routes)])
    app.add_middleware(metrics.middleware)
    app.add_middleware(Guard, settings=service.settings, budget=service.budget)
    app.state.reading = service.reading
    return app


def describe_model(service: PaintService, vocabulary: dict[str, list[str]]) -> dict[str, Any]:
    """Returns what the page needs to know of the model."""
    pipeline, settings = service.pipeline, service.settings
    low, high = pipeline.model.card.guidance_range or (1.0, 15.0)
    guidance = {"default": pipeline.guidance_scale, "low": low, "high": high} if pipeline.takes_guidance else None
    return {
        "name": service.name, "sizes": [f"{width}x{height}" for height, width in service.acceptance.sizes],
        "steps": min(max(8, pipeline.steps), service.acceptance.most_steps), "default_steps": pipeline.steps,
        "guidance": guidance, "loras": service.loras, "chips": vocabulary, "examples": list_examples(pipeline),
        "strengths": STRENGTHS,
        "precision": pipeline.precision, "device": str(pipeline.model.device),
        "prompt_letters": settings.prompt_letters, "version": __version__,
    }  # fmt: skip


def list_examples(pipeline: Pipeline) -> list[str]:
    """Lists prompts to try: captions of the model's training where its tokenizer has any, the shortest of them last."""
    known = pipeline.vocabulary.examples if pipeline.vocabulary else ()
    return [*known[1:], *known[:1]] or list(_EXAMPLES)


def _file(name: str) -> Any:
    async def answer() -> FileResponse:
        headers = {"Content-Security-Policy": _POLICY, "Cache-Control": "no-cache"}
        return FileResponse(PAGE / name, headers=headers)

    return answer
