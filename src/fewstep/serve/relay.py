"""What stands before several replicas: it hands each request to one, and to another where that one is lost.

Painting changes nothing, and a request of a seed has one picture, so a request may be painted twice without harm. An
answer is held back until it is whole; of a stream of events, until its first piece has come.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, Callable
from typing import Any

from starlette.types import Message, Receive, Scope, Send

from fewstep.serve.bounded_body import refuse_large, refuse_slow
from fewstep.serve.errors import RefusedError, refuse_alone
from fewstep.serve.settings import ServerSettings

ATTEMPTS = 4
"""How many replicas are asked in turn, each of which is lost, before a client is told to come back."""
ATTEMPT = b"x-fewstep-attempt"
"""Header that says how many replicas were asked for this answer."""
_KEPT = ("type", "http_version", "method", "scheme", "path", "raw_path", "query_string", "root_path", "headers",
         "client", "server", "subprotocols")  # fmt: skip
"""What of a request's scope another process can be sent."""

Ask = Callable[..., AsyncGenerator[Any, None]]
"""Takes the name of a method of `Replica` and its arguments, and yields what a replica answers."""


class Relay:
    """An ASGI application that has others answer."""

    def __init__(self, ask: Ask, lost: tuple[type[Exception], ...], settings: ServerSettings) -> None:
        """Takes `lost`: what `ask` raises when a replica has gone in the midst of its answer."""
        self._ask, self._lost, self._settings = ask, lost, settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            for _ in range(2):
                await send({"type": f"{(await receive())['type']}.complete"})
        elif scope["type"] == "websocket":
            await self._talk(_cut(scope), receive, send)
        else:
            await self._answer(_cut(scope), receive, send)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            if scope["path"] == "/metrics":
                raise refuse_alone("each has metrics of its own; read Ray's, which name the replica")
            body = await self._read_body(receive)
        except RefusedError as error:
            await error.response()(scope, receive, send)
            return
        if body is None:
            return  # the client has gone
        tasks = [asyncio.create_task(self._ask_in_turn(scope, body, send)), asyncio.create_task(_wait_for_end(receive))]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if tasks[0].done():
                tasks[0].result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _read_body(self, receive: Receive) -> bytes | None:
        """Returns the body, None if the client leaves. Raises RefusedError for one that is too large or too slow.

        The replica holds it against the narrower bounds of its route.
        """
        body, more, settings = bytearray(), True, self._settings
        try:
            async with asyncio.timeout(settings.body_seconds):
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return None
                    body += message.get("body", b"")
                    if len(body) > settings.body_bytes:
                        raise refuse_large(settings.body_bytes)
                    more = message.get("more_body", False)
        except TimeoutError as error:
            raise refuse_slow(settings.body_seconds) from error
        return bytes(body)

    async def _ask_in_turn(self, scope: Scope, body: bytes, send: Send) -> None:
        for attempt in range(1, ATTEMPTS + 1):
            held, sent = list[Message](), False
            try:
                async with contextlib.aclosing(self._ask("answer", scope, body)) as answer:
                    async for message in answer:
                        held.append(_add_attempt(message, attempt))
                        if sent or (_is_stream(held[0]) and message.get("body")):
                            await _send_all(held, send)
                            sent = True
            except self._lost:
                if not sent:
                    continue
                await _send_all([_end_stream(_refuse_lost(1))], send)
                return
            await _send_all(held, send)
            return
        await _refuse_lost(ATTEMPTS).response()(scope, _receive_nothing, send)

    async def _talk(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Relays a page's messages, each of which is a request of its own, to whichever replica is free."""
        await receive()
        greeting: Message = {"type": "websocket.close", "code": 1013, "reason": "try again later"}
        for _ in range(ATTEMPTS):
            with contextlib.suppress(*self._lost):
                async with contextlib.aclosing(self._ask("greet", scope)) as answer:
                    greeting = await anext(answer)
                    break
        await send(greeting)
        if greeting["type"] != "websocket.accept":
            return
        task: asyncio.Task[None] | None = None
        try:
            while (message := await receive())["type"] == "websocket.receive":
                if task is not None:
                    task.cancel()  # latest wins
                    await asyncio.gather(task, return_exceptions=True)
                task = asyncio.create_task(self._say(message.get("text"), send))
        finally:
            if task is not None:
                task.cancel()

    async def _say(self, text: str | None, send: Send) -> None:
        """Sends what a replica says to a message; what another said of it before it was lost comes once more."""
        for _ in range(ATTEMPTS):
            try:
                async with contextlib.aclosing(self._ask("say", text)) as answer:
                    async for said in answer:
                        await send({"type": "websocket.send", "text" if isinstance(said, str) else "bytes": said})
                return
            except self._lost:
                continue
        await send({"type": "websocket.close", "code": 1013, "reason": str(_refuse_lost(ATTEMPTS))})


class Replica:
    """Answers what a `Relay` hands on, by an ASGI application; every method yields what goes back to it."""

    def __init__(self, app: Any, name: str, say: Callable[[Any, str | None], Any]) -> None:
        """Takes a `name` that every answer has in a header, and what answers a page's message into an outbox."""
        self._app, self._name, self._say = app, name.encode(), say

    async def answer(self, scope: Scope, body: bytes) -> AsyncGenerator[Message, None]:
        """Yields the messages of ASGI that answer a request."""
        messages = asyncio.Queue[Message | None]()
        requests: list[Message] = [{"type": "http.request", "body": body}]

        async def receive() -> Message:
            return requests.pop() if requests else await _receive_nothing()

        task = asyncio.create_task(self._app(scope, receive, messages.put))
        async for message in _drain(task, messages):
            if message["type"] == "http.response.start":
                yield {**message, "headers": [*message.get("headers", []), (b"x-fewstep-replica", self._name)]}
            else:
                yield message

    async def greet(self, scope: Scope) -> AsyncGenerator[Message, None]:
        """Yields whether a page is let in, as ASGI's websocket.accept or websocket.close."""
        first = list[Message]()
        requests: list[Message] = [{"type": "websocket.disconnect", "code": 1000}, {"type": "websocket.connect"}]

        async def receive() -> Message:
            return requests.pop() if requests else await _receive_nothing()

        async def send(message: Message) -> None:
            first.append(message)

        await self._app({**scope, "extensions": {}}, receive, send)
        accepted = bool(first) and first[0]["type"] == "websocket.accept"
        yield first[0] if accepted else {"type": "websocket.close", "code": 1008, "reason": ""}

    async def say(self, text: str | None) -> AsyncGenerator[str | bytes, None]:
        """Yields the answers to a page's message; None stands for a binary one."""
        outbox = Outbox()
        async for said in _drain(asyncio.create_task(self._say(outbox, text)), outbox.said):
            yield said


class Outbox:
    """What answers a page's message takes this for its socket."""

    def __init__(self) -> None:
        self.said = asyncio.Queue[Any]()

    async def send_text(self, text: str) -> None:
        self.said.put_nowait(text)

    async def send_bytes(self, content: bytes) -> None:
        self.said.put_nowait(content)


async def _drain(task: asyncio.Task[Any], queue: asyncio.Queue[Any]) -> AsyncGenerator[Any, None]:
    """Yields what a task puts into a queue; ends with it, and it with this."""
    task.add_done_callback(lambda _: queue.put_nowait(None))
    try:
        while (each := await queue.get()) is not None:
            yield each
        await task
    finally:
        task.cancel()


def _cut(scope: Scope) -> Scope:
    return {name: scope[name] for name in _KEPT if name in scope}


def _is_stream(message: Message) -> bool:
    headers = dict(message.get("headers", []))
    return bool(headers.get(b"content-type", b"").startswith(b"text/event-stream"))


def _add_attempt(message: Message, attempt: int) -> Message:
    if message["type"] != "http.response.start":
        return message
    return {**message, "headers": [*message.get("headers", []), (ATTEMPT, str(attempt).encode())]}


async def _send_all(held: list[Message], send: Send) -> None:
    while held:
        await send(held.pop(0))


def _refuse_lost(count: int) -> RefusedError:
    return RefusedError(
        f"{count} replicas were lost while they painted; try again" if count > 1
        else "the replica was lost while it painted; ask once more, with the same seed",
        status=503, code="replica_lost", headers={"Retry-After": "5"},
    )  # fmt: skip


def _end_stream(error: RefusedError) -> Message:
    event = f"event: error\ndata: {json.dumps({'type': 'error', **error.content()})}\n\n"
    return {"type": "http.response.body", "body": event.encode(), "more_body": False}


async def _wait_for_end(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _receive_nothing() -> Message:
    """Waits for as long as whoever waits with it."""
    never: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
    return await never
