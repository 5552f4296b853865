"""Pages of other origins that whoever started the server lets in (CORS)."""

from __future__ import annotations

from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import Message, Scope

from fewstep.serve.settings import ServerSettings

_METHODS = "GET, HEAD, POST, OPTIONS"
_HEADERS = "authorization, content-type"
_SECONDS = "600"


def is_allowed(origin: str | None, host: str, settings: ServerSettings) -> bool:
    """Says whether a page of that origin may ask; None is no page's request, and the server's own page always may."""
    if origin is None or _netloc(origin) == host.lower():
        return True
    known = {each.lower().rstrip("/") for each in settings.origins}
    return "*" in known or origin.lower().rstrip("/") in known


def is_preflight(scope: Scope, headers: Headers) -> bool:
    """Says whether a browser asks what another origin's page may ask."""
    return scope["type"] == "http" and scope["method"] == "OPTIONS" and "access-control-request-method" in headers


def answer_preflight(headers: Headers) -> Response:
    """Returns the answer, to which `add_headers` adds the rest; it holds no secret and needs no token."""
    allowed = headers.get("access-control-request-headers") or _HEADERS
    told = {
        "access-control-allow-methods": _METHODS, "access-control-allow-headers": allowed,
        "access-control-max-age": _SECONDS,
    }  # fmt: skip
    if "access-control-request-private-network" in headers:
        told["access-control-allow-private-network"] = "true"
    return Response(status_code=204, headers=told)


def add_headers(message: Message, origin: str | None) -> Message:
    """Returns the head of an answer with what lets a page of `origin` read it."""
    if origin is None or message["type"] != "http.response.start":
        return message
    told = [
        (b"access-control-allow-origin", origin.encode("latin-1")), (b"vary", b"Origin"),
        (b"access-control-expose-headers", b"retry-after"),
    ]  # fmt: skip
    return {**message, "headers": [*message.get("headers", []), *told]}


def _netloc(origin: str) -> str | None:
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return None
