"""OpenAI's image routes: `/v1/images/generations`, `/v1/images/edits`, `/v1/models`."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from fewstep.serve import fields
from fewstep.serve.bodies import BodyRoute
from fewstep.serve.errors import RefusedError
from fewstep.serve.openai_answers import FILES, Answer, make_request
from fewstep.serve.openai_edits import add_edits
from fewstep.serve.openai_fields import Generation, list_others
from fewstep.serve.service import PaintService


def make_routes(service: PaintService) -> APIRouter:
    """Makes the routes of one model."""
    router = APIRouter(prefix="/v1", tags=["OpenAI"], route_class=BodyRoute)
    _add_models(router, service)
    _add_generations(router, service)
    add_edits(router, service)
    _add_kept_pictures(router, service)
    return router


def _add_models(router: APIRouter, service: PaintService) -> None:
    """Adds what clients ask to learn the model's names."""

    @router.get("/models")
    async def models() -> dict[str, Any]:
        names = (service.name, *service.acceptance.model_aliases)
        return {"object": "list", "data": [_describe_model(name) for name in names]}

    @router.get("/models/{name:path}")
    async def model(name: str) -> dict[str, Any]:
        service.acceptance.check_model(name)
        return _describe_model(name)


def _describe_model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "fewstep"}


def _add_generations(router: APIRouter, service: PaintService) -> None:
    """Adds the route that paints from a prompt alone."""

    @router.post("/images/generations", response_model=None)
    async def generations(asked: Generation, request: Request) -> Response:
        notes = fields.review("generations", list_others(asked))
        answer = Answer(service, asked, "image_generation", notes)
        return await answer.paint(make_request(service, asked), request)


def _add_kept_pictures(router: APIRouter, service: PaintService) -> None:
    """Adds the links behind which pictures are kept for a while."""

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
