"""Guards every route: checks host names, origins and tokens, and bounds the size and time of bodies."""

from __future__ import annotations

import asyncio
import base64
import binascii
import hmac
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import parse_qs

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fewstep.serve.crossing import add_headers, answer_preflight, is_allowed, is_preflight
from fewstep.serve.errors import RefusedError
from fewstep.serve.settings import ServerSettings

COOKIE = "fewstep_token"
OPEN = "/healthz"
"""A route that needs no token, as do pictures behind links, whose names nobody can guess."""
KEPT = "/v1/images/files/"
WITH_PICTURES = ("/v1/images/edits", "/sdapi/v1/img2img", "/sdapi/v1/png-info")
"""Routes whose bodies hold a picture."""


class Guard:
    """ASGI middleware that refuses a request before any route sees it."""

    def __init__(self, app: ASGIApp, settings: ServerSettings) -> None:
        self._app, self._settings = app, settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
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
            bounded = _BoundedBody(self._settings, _max_bytes(scope, self._settings), receive, send, cookie)
            await self._app(scope, bounded.receive, bounded.send)
        elif refusal is None:
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            response = refusal.response()
            response.headers["connection"] = "close"  # its body is not read
            await response(scope, receive, send)
        else:
            await send({"type": "websocket.close", "code": 1008, "reason": str(refusal)[:100]})

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
        length = headers.get("content-length", "0")
        if not length.isascii() or not length.isdigit() or int(length[:20]) > _max_bytes(scope, settings):
            return _too_large(_max_bytes(scope, settings))
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


class _BoundedBody:
    """Counts and times the body of one request as it arrives."""

    def __init__(self, settings: ServerSettings, most: int, receive: Receive, send: Send, token: str) -> None:
        self._settings, self._most, self._receive, self._send, self._token = settings, most, receive, send, token
        self._end = asyncio.get_running_loop().time() + settings.body_seconds
        self._count, self._whole, self._answered = 0, False, False
        self._refusal: RefusedError | None = None

    async def receive(self) -> Message:
        if self._whole:
            return await self._receive()
        if self._refusal is not None:
            return {"type": "http.disconnect"}
        try:
            async with asyncio.timeout_at(self._end):
                message = await self._receive()
        except TimeoutError:
            seconds = self._settings.body_seconds
            self._refusal = RefusedError(f"the body took more than {seconds:g} s", status=408, code="too_slow")
            return {"type": "http.disconnect"}
        self._count += len(message.get("body", b""))
        if self._count > self._most:
            self._refusal = _too_large(self._most)
            return {"type": "http.disconnect"}
        self._whole = not message.get("more_body", False)
        return message

    async def send(self, message: Message) -> None:
        if self._refusal is not None and not self._whole:
            if not self._answered:  # whatever the application makes of a body that breaks off
                self._answered = True
                response = self._refusal.response()
                response.headers["connection"] = "close"
                await response({"type": "http"}, self._receive, self._send)
            return
        if message["type"] == "http.response.start":
            own = message.get("headers", [])
            names = {name for name, _ in own}
            message = {
                **message,
                "headers": [*own, *(each for each in self._security_headers() if each[0] not in names)],
            }
        await self._send(message)

    def _security_headers(self) -> list[tuple[bytes, bytes]]:
        headers: list[tuple[bytes, bytes]] = [
            (b"x-content-type-options", b"nosniff"), (b"referrer-policy", b"no-referrer"),
            (b"cross-origin-resource-policy", b"same-origin"), (b"x-frame-options", b"DENY"),
        ]  # fmt: skip
        if self._token:
            cookie: Any = SimpleCookie()
            cookie[COOKIE] = self._token
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


def _too_large(most: int) -> RefusedError:
    limit = f"{most >> 20} MiB" if most >> 20 else f"{most >> 10} KiB"
    return RefusedError(f"the body is larger than {limit}; send less", status=413, code="body_too_large")
