"""Errors as OpenAI's API words them, with the field, the limit and the remedy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from fewstep.serve.jobs import BusyError, CancelledError, ClosedError, DeadlineError, ShortOfMemoryError


class RefusedError(Exception):
    """A request that cannot be met, and its HTTP status."""

    def __init__(self, message: str, *, param: str | None = None, status: int = 400, code: str = "invalid_value",
                 headers: dict[str, str] | None = None) -> None:  # fmt: skip
        super().__init__(message)
        self.param, self.status, self.code, self.headers = param, status, code, headers or {}

    def content(self) -> dict[str, Any]:
        """Returns the error as what JSON can hold."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        error = {"message": str(self), "type": kind, "param": self.param, "code": self.code}
        return {"error": error, "detail": str(self)}  # where AUTOMATIC1111's clients look

    def response(self) -> JSONResponse:
        return JSONResponse(self.content(), self.status, self.headers)


def to_refusal(error: Exception) -> RefusedError:
    """Converts an error of the engine to what a client is told; any other error is the server's fault."""
    if isinstance(error, RefusedError):
        return error
    if isinstance(error, BusyError):
        after = {"Retry-After": str(round(error.retry_after))}
        return RefusedError(str(error), status=429, code="queue_full", headers=after)
    if isinstance(error, CancelledError):
        return RefusedError("the client has gone", status=499, code="client_closed_request")
    if isinstance(error, DeadlineError):
        return RefusedError(f"{error}; ask for less, or later", status=504, code="deadline_exceeded")
    if isinstance(error, ShortOfMemoryError):
        return RefusedError(f"{error}; ask for fewer or smaller pictures", status=503, code="out_of_memory")
    if isinstance(error, ClosedError):
        return RefusedError(str(error), status=503, code="shutting_down", headers={"Retry-After": "5"})
    return RefusedError("the server has failed; its log says how", status=500, code="internal_error")


def explain_invalid_fields(errors: Sequence[Any]) -> RefusedError:
    """Puts pydantic's errors into one sentence, about a misspelt field before one that is missing because of it."""
    first = next((each for each in errors if each["type"] == "extra_forbidden"), errors[0])
    if first["type"] == "json_invalid":
        return RefusedError(f"the body is no JSON ({first.get('ctx', {}).get('error', first['msg'])})")
    place = [str(part) for part in first["loc"] if part not in ("body", "query", "path")]
    if not place and first["type"] in ("model_attributes_type", "dict_type", "model_type"):
        return RefusedError("the body is no JSON object; send one, with content-type application/json")
    param = ".".join(place) or None
    reason = "there is no such field" if first["type"] == "extra_forbidden" else first["msg"]
    return RefusedError(f"{param or 'the body'}: {reason}", param=param)


def install_handlers(app: FastAPI) -> None:
    """Makes `app` answer every error in one shape."""

    @app.exception_handler(RefusedError)
    async def refused(_: Request, error: RefusedError) -> JSONResponse:
        return error.response()

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        return explain_invalid_fields(error.errors()).response()

    @app.exception_handler(Exception)
    async def failed(_: Request, error: Exception) -> JSONResponse:
        return to_refusal(error).response()  # and the server's log has the rest

    @app.exception_handler(HTTPException)
    async def http_error(_: Request, error: HTTPException) -> JSONResponse:
        code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "invalid_request")
        headers = dict(error.headers or {})
        return RefusedError(str(error.detail), status=error.status_code, code=code, headers=headers).response()
