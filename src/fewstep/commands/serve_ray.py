"""`fewstep serve` as an application of Ray Serve: `serve deploy deploy/ray_serve.yaml` calls `build`."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator
from typing import Any

from fewstep.commands.serve import Serve, make_service
from fewstep.errors import UserError

_PROXIES = ("host", "port", "connections", "address_connections", "replica")
"""Options that Ray's proxies have in place of ours; that it is a replica is known."""


def build(args: dict[str, Any]) -> Any:
    """Returns the application: replicas that paint, and what relays requests to them. Raises UserError.

    `args` are options of `fewstep serve` with _ for -; a list where one may be given several times. How many replicas
    there are, and on what, the deployment file says.
    """
    config = read_options(args)
    try:
        from ray import serve
    except ImportError as error:
        raise UserError("Ray Serve is not installed; install it with: pip install 'fewstep[ray]'") from error
    # A picture is computed while thousands of requests may wait; the engine refuses what is too much.
    painter: Any = serve.deployment(
        PaintReplica, name="Painter", max_ongoing_requests=1000, graceful_shutdown_timeout_s=config.deadline + 10,
        health_check_period_s=5, health_check_timeout_s=30,
    )  # fmt: skip
    relay: Any = serve.deployment(
        serve.ingress(_make_relay)(Front), name="Relay", max_ongoing_requests=10_000,
        graceful_shutdown_timeout_s=config.deadline + 10, ray_actor_options={"num_cpus": 0},
    )  # fmt: skip
    return relay.bind(painter.bind(config))


def read_options(args: dict[str, Any]) -> Serve:
    """Reads options from a deployment file. Raises UserError for what is none, or has no use there."""
    from pydantic import TypeAdapter, ValidationError

    known = Serve.__dataclass_fields__.keys() - set(_PROXIES)
    for name in args:
        if name in _PROXIES:
            raise UserError(f"args has {name}, which Ray Serve decides; leave it out (http_options has its address)")
        if name not in known:
            raise UserError(
                f"args has {name}, which is no option of `fewstep serve`; it has {', '.join(sorted(known))}"
            )
    if args.get("token") == "random":
        raise UserError("args has token random, and every replica would make up another; give one of your own")
    # A token guards the replicas under any name; without one they are asked under this machine's own alone.
    anywhere = {"host": "0.0.0.0"} if args.get("token") and not args.get("allowed_host") else {}
    try:
        return TypeAdapter(Serve).validate_python({**args, **anywhere, "replica": True})
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(f"args: {'.'.join(map(str, first['loc']))}: {first['msg']}") from error


class PaintReplica:
    """A replica: a model, its engine and the application."""

    def __init__(self, config: Serve) -> None:
        from ray import serve

        from fewstep.serve.budget import use_one_heap
        from fewstep.serve.pages import Page
        from fewstep.serve.relay import Replica
        from fewstep.serve.socket_route import answer_message, refuse_binary

        use_one_heap()
        service, app, _ = make_service(config)
        self._engine = service.engine

        async def say(outbox: Any, text: str | None) -> None:
            await (refuse_binary(outbox) if text is None else answer_message(service, Page(outbox), text))

        self._replica = Replica(app, serve.get_replica_context().replica_id.unique_id, say)
        self._engine.start()

    def check_health(self) -> None:
        """Raises RuntimeError where the engine has ended; Ray then starts another replica."""
        if not self._engine.alive:
            raise RuntimeError("the engine has ended")

    async def answer(self, scope: Any, body: bytes) -> AsyncGenerator[Any, None]:
        async for each in self._replica.answer(scope, body):
            yield each

    async def greet(self, scope: Any) -> AsyncGenerator[Any, None]:
        async for each in self._replica.greet(scope):
            yield each

    async def say(self, text: str | None) -> AsyncGenerator[Any, None]:
        async for each in self._replica.say(text):
            yield each


class Front:
    """Has the relay's place among Ray's deployments."""

    def __init__(self, painter: Any) -> None:
        self.painter = painter


def _make_relay() -> Any:
    from ray import serve
    from ray.exceptions import RayActorError

    from fewstep.serve.relay import Relay
    from fewstep.serve.settings import ServerSettings

    painter = serve.get_deployment_handle("Painter", serve.get_replica_context().app_name)

    async def ask(method: str, *given: Any) -> AsyncGenerator[Any, None]:
        stream: Any = painter.options(method_name=method, stream=True).remote(*given)
        try:
            async for each in stream:
                yield each
        finally:
            with contextlib.suppress(Exception):  # it may have ended
                stream.cancel()

    return Relay(ask, (RayActorError,), ServerSettings())
