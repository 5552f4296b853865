"""Errors as OpenAI's API words them, with the field, the limit and the remedy, in one line."""

from __future__ import annotations

from typing import Any

from fastapi.responses import JSONResponse

from fewstep.errors import UserError, show
from fewstep.serve.jobs import BusyError, CancelledError, ClosedError, DeadlineError, ShortOfMemoryError

_MOST_LETTERS = 1000
"""Bounds a message."""


class RefusedError(Exception):
    """A request that cannot be met, and its HTTP status."""

    def __init__(self, message: str, *, param: str | None = None, status: int = 400, code: str = "invalid_value",
                 headers: dict[str, str] | None = None) -> None:  # fmt: skip
        super().__init__(_write_line(message))
        self.param = None if param is None else _write_line(param)
        self.status, self.code, self.headers = status, code, headers or {}

    def content(self) -> dict[str, Any]:
        """Returns the error as what JSON can hold."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        error = {"message": str(self), "type": kind, "param": self.param, "code": self.code}
        return {"error": error, "detail": str(self)}  # where AUTOMATIC1111's clients look

    def response(self) -> JSONResponse:
        return JSONResponse(self.content(), self.status, self.headers)


def refuse_alone(reason: str, param: str | None = None) -> RefusedError:
    """Returns the refusal of what only a server that is alone can answer."""
    return RefusedError(f"this server is one of several replicas, and {reason}", param=param, code="one_of_several")


def _write_line(text: str) -> str:
    """Returns a text, what clients sent in it, as one line that JSON and a terminal can hold."""
    return show(text, _MOST_LETTERS).replace("\n", "\\n").replace("\t", "\\t")


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
    if isinstance(error, UserError):  # of its model
        return RefusedError(str(error), status=500, code="internal_error")
    return RefusedError("the server has failed; its log says how", status=500, code="internal_error")
