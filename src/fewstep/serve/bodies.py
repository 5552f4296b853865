"""Bodies of requests, read whole and parsed in the pool before a route sees them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute
from starlette.datastructures import FormData
from starlette.exceptions import HTTPException
from starlette.formparsers import FormParser, MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect

from fewstep.serve.documents import SMALL, parse_document
from fewstep.serve.errors import RefusedError
from fewstep.serve.reading import Reader, ReadingPool
from fewstep.serve.settings import ServerSettings

PICTURES = frozenset(("image", "init_images", "mask", "alwayson_scripts"))
"""Fields of JSON that hold pictures, in base64; other programs' extensions have some of their own."""
_FORMS = {"multipart/form-data": MultiPartParser, "application/x-www-form-urlencoded": FormParser}
_MOST_PARTS = 64
"""Of a form."""
_PIECE = 16 << 10
"""Bytes of a form that are parsed at a time."""


class BodyRoute(APIRoute):
    """A route whose body FastAPI finds parsed already."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def handle_parsed(request: Request) -> Response:
            if self.body_field is not None:
                await _parse_body(request, request.app.state.reading)
            return await handle(request)

        return handle_parsed


async def _parse_body(request: Request, pool: ReadingPool) -> None:
    """Parses JSON or a form where FastAPI looks for them; leaves others to it. Raises RefusedError."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    try:
        body = await request.body()
    except ClientDisconnect as error:
        raise RefusedError("the client has gone", status=499, code="client_closed_request") from error
    if kind in _FORMS:
        request._form = await pool.run(lambda _: _parse_form(_FORMS[kind], request, body))
    elif body and kind.startswith("application/") and kind.endswith(("/json", "+json")):
        small = len(body) <= SMALL
        request._json = _parse_json(body) if small else await pool.run(lambda reader: _parse_large(body, reader))


def _parse_large(body: bytes, reader: Reader) -> Any:
    with reader.budget.reserve(len(body), reader.check):  # for the text, until what is in it has been copied out
        return _parse_json(body)


def _parse_json(body: bytes) -> Any:
    try:
        text = body.decode()
    except UnicodeDecodeError as error:
        raise RefusedError("the body is no JSON (it is not UTF-8)") from error
    return parse_document(text.removeprefix("\ufeff"), PICTURES)


def _parse_form(kind: Any, request: Request, body: bytes) -> FormData:
    limits = {"max_fields": _MOST_PARTS, "max_part_size": ServerSettings.json_bytes}
    if kind is MultiPartParser:
        limits["max_files"] = _MOST_PARTS
    parser = kind(request.headers, _iterate(body), **limits)
    parser.spool_max_size = len(body)  # nothing of a client's is written to the disk
    waiting = parser.parse()
    try:
        waiting.send(None)  # with all of it in memory there is nothing that it would wait for
    except StopIteration as done:
        form: FormData = done.value
        return form
    except MultiPartException as error:
        raise HTTPException(400, error.message) from error
    raise RuntimeError("a form that is in memory was waited for")


async def _iterate(body: bytes) -> AsyncIterator[bytes]:
    for begin in range(0, len(body), _PIECE):
        yield body[begin : begin + _PIECE]
    yield b""
