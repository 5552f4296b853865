"""Bodies of requests, read whole and parsed in the pool before a route sees them."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

from fastapi import Request, Response, params
from fastapi.routing import APIRoute
from starlette.datastructures import FormData
from starlette.formparsers import FormParser, MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect

from fewstep.serve.documents import SMALL, parse_document
from fewstep.serve.errors import RefusedError
from fewstep.serve.reading import ReadingPool, ReadingTask
from fewstep.serve.settings import ServerSettings
from fewstep.serve.validation import IN_DOCS, MOST_SAID, say

PICTURES = frozenset(("image", "init_images", "mask", "alwayson_scripts"))
"""Fields of JSON that hold pictures, in base64; other programs' extensions have some of their own."""
_FORMS = {"multipart/form-data": MultiPartParser, "application/x-www-form-urlencoded": FormParser}
_OBJECT, _JSON = "a JSON object", "Content-Type: application/json"
_MOST_PARTS = 64
"""Bounds a form."""
_PIECE = 16 << 10
"""Bytes of a form that are parsed at a time."""


class BodyRoute(APIRoute):
    """A route whose body FastAPI finds parsed already."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def handle_parsed(request: Request) -> Response:
            if self.body_field is not None:
                wants_form = isinstance(self.body_field.field_info, params.Form)
                await _parse_body(request, request.app.state.reading, wants_form=wants_form)
            return await handle(request)

        return handle_parsed


async def _parse_body(request: Request, pool: ReadingPool, *, wants_form: bool) -> None:
    """Parses JSON or a form, whichever the route wants, to where FastAPI looks for it. Raises RefusedError."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    try:
        body = await request.body()
    except ClientDisconnect as error:
        raise RefusedError("the client has gone", status=499, code="client_closed_request") from error
    is_json = kind.startswith("application/") and kind.endswith(("/json", "+json"))
    if not body or not (kind in _FORMS if wants_form else is_json):
        wanted = "a form, with Content-Type: multipart/form-data" if wants_form else f"{_OBJECT}, with {_JSON}"
        found = f"was sent as {kind[:60] or 'nothing, without a Content-Type'}" if body else "is empty"
        raise RefusedError(f"the body {found}; send {wanted} ({IN_DOCS})")
    if wants_form:
        request._form = await pool.run(lambda _: _parse_form(_FORMS[kind], request, body))
    else:
        small = len(body) <= SMALL
        request._json = _parse_json(body) if small else await pool.run(lambda reader: _parse_large(body, reader))


def _parse_large(body: bytes, reader: ReadingTask) -> Any:
    with reader.budget.reserve(len(body), reader.check):  # for the text, until what is in it has been copied out
        return _parse_json(body)


def _parse_json(body: bytes) -> Any:
    try:
        text = body.decode()
    except UnicodeDecodeError as error:
        raise RefusedError("the body cannot be read: it is not UTF-8; send JSON in UTF-8") from error
    content = parse_document(text.removeprefix("\ufeff"), PICTURES)
    if not isinstance(content, dict):
        raise RefusedError(f"the body is {say(content)}; send {_OBJECT} ({IN_DOCS})")
    return content


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
        return _check_form(done.value)
    except MultiPartException as error:
        most = f"{_MOST_PARTS} fields of {ServerSettings.json_bytes >> 10} KiB"
        message = f"the form cannot be read ({error.message.rstrip('.')}); send multipart/form-data, at most {most}"
        raise RefusedError(message) from error
    raise RuntimeError("a form that is in memory was waited for")


def _check_form(form: FormData) -> FormData:
    """Raises RefusedError for a field that stands in a form twice; of pictures a route says how many it wants."""
    twice = [name for name, count in Counter(name for name, _ in form.multi_items()).items() if count > 1]
    for name in twice:
        if name.removesuffix("[]") not in PICTURES - {"mask"}:
            short = name[:MOST_SAID]
            raise RefusedError(f"{short} stands more than once in the form; send it once", param=short)
    return form


async def _iterate(body: bytes) -> AsyncIterator[bytes]:
    for begin in range(0, len(body), _PIECE):
        yield body[begin : begin + _PIECE]
    yield b""
