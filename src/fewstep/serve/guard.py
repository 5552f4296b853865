"""Guards every route: checks host names, origins and tokens, and bounds the size and time of bodies."""

from __future__ import annotations

import base64
import binascii
import hmac
from collections.abc import Sequence
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import parse_qs

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fewstep.serve.bounded_body import BoundedBody, refuse_large
from fewstep.serve.budget import Budget, Hold
from fewstep.serve.crossing import add_headers, answer_preflight, is_allowed, is_preflight
from fewstep.serve.error_handlers import SOCKET, refuse_path
from fewstep.serve.errors import RefusedError
from fewstep.serve.settings import ServerSettings
from fewstep.serve.turnstile import Turnstile

COOKIE = "fewstep_token"
OPEN = "/healthz"
"""A route that needs no token, as do pictures behind links, whose names nobody can guess."""
KEPT = "/v1/images/files/"
WITH_PICTURES = ("/v1/images/edits", "/sdapi/v1/img2img", "/sdapi/v1/png-info")
"""Routes whose bodies hold a picture."""


class Guard:
    """ASGI middleware that refuses a request before any route sees it."""

    def __init__(self, app: ASGIApp, settings: ServerSettings, budget: Budget) -> None:
        self._app, self._settings, self._budget, self._turnstile = app, settings, budget, Turnstile()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        if scope["path"] != OPEN:  # whether the server is well is told at once
            await self._turnstile.pass_through()
        headers = Headers(scope=scope)
        given, by_link = self._read_token(scope, headers)
        refusal = self._check_names(headers)
        if refusal is None and scope["type"] == "http":
            send = _crossing(send, headers.get("origin"))  # answers to other origins that were let in, errors too
            if is_preflight(scope, headers):
                await answer_preflight(headers)(scope, receive, send)
                return
            if scope["method"] == "HEAD":
                scope = {**scope, "method": "GET"}  # uvicorn sends no body
        refusal = refusal or self._check(scope, headers, given)
        if refusal is None and scope["type"] == "http":
            cookie = given if by_link and self._settings.token else ""
            await self._pass_on(scope, receive, send, _list_headers(cookie))
        elif refusal is None:
            await self._app(scope, receive, send)
        else:
            response = refusal.response()
            response.headers["connection"] = "close"  # its body is not read
            await response(scope, receive, send)

    async def _pass_on(
        self, scope: Scope, receive: Receive, send: Send, headers: Sequence[tuple[bytes, bytes]]
    ) -> None:  # fmt: skip
        hold, most = Hold(self._budget), _max_bytes(scope, self._settings)
        scope = {**scope, "state": {**scope.get("state", {}), "hold": hold}}
        seconds = self._settings.body_seconds
        bounded = BoundedBody(receive, send, hold, most=most, seconds=seconds, headers=headers)
        try:
            await self._app(scope, bounded.receive, bounded.send)
        finally:
            hold.release()

    def _check_names(self, headers: Headers) -> RefusedError | None:
        """Checks by what name the server is asked, and from what page."""
        settings, host = self._settings, headers.get("host", "")
        name = host.rsplit(":", 1)[0] if not host.endswith("]") else host
        known = {each.lower().rstrip(".") for each in settings.hosts}
        if "*" not in known and name.lower().rstrip(".") not in known:
            allowed = ", ".join(dict.fromkeys(settings.hosts))
            return RefusedError(
                f"the server is not known as {name!r}, but as {allowed}; start it with --allowed-host {name or 'NAME'} "
                "to be reached so", status=403, code="bad_host",
            )  # fmt: skip
        origin = headers.get("origin")
        if not is_allowed(origin, host, settings):
            return RefusedError(
                f"pages of other origins may not ask; start the server with --allowed-origin {origin} to let it in",
                status=403, code="bad_origin",
            )  # fmt: skip
        return None

    def _check(self, scope: Scope, headers: Headers, given: str) -> RefusedError | None:
        settings = self._settings
        is_open = scope["path"] == OPEN or scope["path"].startswith(KEPT)
        if not is_open and settings.token and not _equal(given, settings.token):
            return RefusedError(
                "a token is needed: Authorization: Bearer TOKEN, or Basic with it as password, or ?token=TOKEN for "
                "the page", status=401, code="invalid_api_key",
                headers={"WWW-Authenticate": 'Bearer, Basic realm="fewstep"'},
            )  # fmt: skip
        if scope["type"] == "websocket" and scope["path"] != SOCKET:
            return refuse_path(scope["path"], [SOCKET])
        coding = headers.get("content-encoding", "identity").strip().lower()
        if coding not in ("", "identity"):
            return RefusedError(
                f"the body is compressed ({coding[:20]}), and none is unpacked here; send it as it is",
                status=415, code="unsupported_encoding",
            )  # fmt: skip
        length = headers.get("content-length", "0")
        if not length.isascii() or not length.isdigit() or int(length[:20]) > _max_bytes(scope, settings):
            return refuse_large(_max_bytes(scope, settings))
        return None

    def _read_token(self, scope: Scope, headers: Headers) -> tuple[str, bool]:
        """Returns the token that was given, and whether it was in the link."""
        scheme, _, value = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer":
            return value.strip(), False
        if scheme.lower() == "basic":
            return self._read_basic(value), False
        query = parse_qs(scope.get("query_string", b"").decode("latin-1"))
        if "token" in query:
            return query["token"][0], True
        try:
            cookie = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
        except CookieError:
            cookie = None
        return (cookie.value if cookie else ""), False

    def _read_basic(self, value: str) -> str:
        """Returns the password of whatever user; or both, where the token was given as USER:PASSWORD."""
        try:
            both = base64.b64decode(value.strip(), validate=True).decode()
        except (binascii.Error, ValueError):
            return ""
        return both if _equal(both, self._settings.token) else both.partition(":")[2]


def _crossing(send: Send, origin: str | None) -> Send:
    async def sending(message: Message) -> None:
        await send(add_headers(message, origin))

    return sending


def _list_headers(token: str) -> list[tuple[bytes, bytes]]:
    """Lists what every answer says to browsers; with a token, that they shall keep it."""
    headers: list[tuple[bytes, bytes]] = [
        (b"x-content-type-options", b"nosniff"), (b"referrer-policy", b"no-referrer"),
        (b"cross-origin-resource-policy", b"same-origin"), (b"x-frame-options", b"DENY"),
    ]  # fmt: skip
    if token:
        cookie: Any = SimpleCookie()
        cookie[COOKIE] = token
        cookie[COOKIE]["path"] = "/"
        cookie[COOKIE]["httponly"] = True
        cookie[COOKIE]["samesite"] = "Strict"
        headers.append((b"set-cookie", cookie[COOKIE].OutputString().encode()))
    return headers


def _equal(given: str, token: str) -> bool:
    return hmac.compare_digest(given.encode(), token.encode())


def _max_bytes(scope: Scope, settings: ServerSettings) -> int:
    """Returns the most bytes that a body may have: more where it holds a picture."""
    return settings.body_bytes if scope["path"] in WITH_PICTURES else settings.json_bytes
