"""Answers every error of an application in one shape; what is nowhere is told where the routes are listed."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from fewstep.serve.errors import RefusedError, to_refusal
from fewstep.serve.validation import explain_invalid_fields

SOCKET = "/ws"
"""Is the one route of WebSockets."""
_MOST_LETTERS = 100
"""Bounds how much of a path is said again."""


def install_handlers(app: FastAPI, routes: Sequence[Any]) -> None:
    """Makes `app`, which has these routes, answer every error in one shape."""

    @app.exception_handler(RefusedError)
    async def refused(_: Request, error: RefusedError) -> JSONResponse:
        return error.response()

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        return explain_invalid_fields(error.errors(), _list_fields(request)).response()

    @app.exception_handler(Exception)
    async def failed(_: Request, error: Exception) -> JSONResponse:
        return to_refusal(error).response()  # and the server's log has the rest

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> JSONResponse:
        if error.status_code == 404:
            return refuse_path(request.scope["path"], [route.path for route in routes]).response()
        if error.status_code == 405:
            return _refuse_method(request, routes).response()
        message = f"{str(error.detail).rstrip('.')}; send another request (/docs lists them)"
        headers = dict(error.headers or {})
        return RefusedError(message, status=error.status_code, code="invalid_request", headers=headers).response()


def refuse_path(path: str, known: Sequence[str]) -> RefusedError:
    """Returns the refusal of a path at which there is nothing, with the one of the `known` that may be meant."""
    if path == SOCKET:
        return RefusedError(
            f"{SOCKET} is a WebSocket, and a plain request came; open it as one", status=404, code="not_found"
        )
    short = path[:_MOST_LETTERS]
    near = difflib.get_close_matches(short, [each for each in known if "{" not in each], 1, 0.7)
    hint = f"did you mean {near[0]}? " if near else ""
    return RefusedError(f"there is nothing at {short}; {hint}/docs lists the routes", status=404, code="not_found")


def _refuse_method(request: Request, routes: Sequence[Any]) -> RefusedError:
    """Returns the refusal of a method that a path does not take, with those that it does."""
    path, allowed = request.scope["path"], set[str]()
    for route in routes:
        if getattr(route, "methods", None) and route.path_regex.match(path):
            allowed |= route.methods
    told = ", ".join(sorted(allowed))
    message = f"{path[:_MOST_LETTERS]} does not take {request.method[:20]}; send {told} (/docs lists the routes)"
    return RefusedError(message, status=405, code="method_not_allowed", headers={"Allow": told})


def _list_fields(request: Request) -> list[str]:
    """Lists the fields that the body of a route may have, where it is JSON."""
    body = getattr(request.scope.get("route"), "body_field", None)
    return list(getattr(getattr(getattr(body, "field_info", None), "annotation", None), "model_fields", ()))
