"""The page, the API and what guards them, over one engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi.responses import FileResponse, JSONResponse, Response

from fewstep import __version__
from fewstep.serve import errors, openai_routes, sdapi_routes, socket_route
from fewstep.serve.desk import Desk
from fewstep.serve.guard import Guard
from fewstep.serve.measures import Measures

PAGE = Path(__file__).parent / "page"
_FILES = {
    "/": "index.html",
    "/page.js": "page.js",
    "/page.css": "page.css",
    "/docs": "docs.html",
    "/docs.js": "docs.js",
}
_POLICY = "default-src 'self'; img-src 'self' blob: data:; connect-src 'self'; style-src 'self'; frame-ancestors 'none'"


def make_app(desk: Desk, chips: dict[str, list[str]]) -> FastAPI:
    """`chips`: words of the model's vocabulary, in groups, that the page offers."""
    app = FastAPI(title="fewstep", version=__version__, docs_url=None, redoc_url=None, openapi_url="/openapi.json")
    errors.install(app)
    measures = Measures(desk.engine)
    for routes in (openai_routes, sdapi_routes, socket_route):
        app.include_router(routes.routes(desk))
    for path, name in _FILES.items():
        app.add_api_route(path, _file(name), include_in_schema=False)

    @app.get("/healthz", tags=["state"])
    async def health() -> JSONResponse:
        alive = desk.engine.alive
        return JSONResponse({"status": "ok" if alive else "down"}, 200 if alive else 503)

    @app.get("/metrics", tags=["state"], response_model=None)
    async def metrics() -> Response:
        return Response(measures.text(), media_type="text/plain; version=0.0.4")

    @app.get("/api/model", tags=["page"])
    async def model() -> dict[str, Any]:
        return described(desk, chips)

    app.add_middleware(measures.middleware)
    app.add_middleware(Guard, settings=desk.settings)
    return app


def described(desk: Desk, chips: dict[str, list[str]]) -> dict[str, Any]:
    """What the page has to know."""
    pipeline, settings = desk.pipeline, desk.settings
    low, high = pipeline.model.card.guidance_range or (1.0, 15.0)
    guidance = {"default": pipeline.guidance_scale, "low": low, "high": high} if pipeline.takes_guidance else None
    return {
        "name": desk.name, "sizes": [f"{width}x{height}" for height, width in desk.sizes],
        "steps": min(8, desk.most_steps), "guidance": guidance, "loras": desk.loras, "chips": chips,
        "prompt_letters": settings.prompt_letters, "version": __version__,
    }  # fmt: skip


def _file(name: str) -> Any:
    async def answer() -> FileResponse:
        headers = {"Content-Security-Policy": _POLICY, "Cache-Control": "no-cache"}
        return FileResponse(PAGE / name, headers=headers)

    return answer
