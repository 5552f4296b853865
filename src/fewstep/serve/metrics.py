"""Prometheus metrics of a server: latency, queue, batch, failures."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from prometheus_client import CollectorRegistry, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fewstep.serve.engine import Engine

_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60)


class Metrics:
    """Counts and times the work of one engine, and the requests that reached it."""

    def __init__(self, engine: Engine) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_EngineCollector(engine))
        self.seconds = Histogram(
            "fewstep_request_seconds", "From a request to the end of its answer", ["route", "status"],
            buckets=_BUCKETS, registry=self._registry,
        )  # fmt: skip

    def text(self) -> bytes:
        """Returns the metrics as Prometheus reads them."""
        return generate_latest(self._registry)

    def middleware(self, app: ASGIApp) -> ASGIApp:
        """Times every request that passes through."""

        async def timed(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] != "http":
                await app(scope, receive, send)
                return
            begun, status = time.perf_counter(), 0

            async def noting(message: Message) -> None:
                nonlocal status
                if message["type"] == "http.response.start":
                    status = message["status"]
                await send(message)

            try:
                await app(scope, receive, noting)
            finally:
                # Of routes that there are: else strangers could fill the memory with names.
                route: Any = scope.get("route")
                name = getattr(route, "path", "other")
                self.seconds.labels(name, str(status)).observe(time.perf_counter() - begun)

        return timed


class _EngineCollector(Collector):
    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def collect(self) -> Iterator[Any]:
        engine, counts = self._engine, self._engine.counts
        yield GaugeMetricFamily("fewstep_waiting", "Pictures that have not begun", engine.waiting)
        yield GaugeMetricFamily("fewstep_batch_size", "Pictures in the last batch", counts.painted_together)
        yield CounterMetricFamily("fewstep_pictures", "Pictures painted", counts.pictures)
        yield CounterMetricFamily("fewstep_batches", "Batches evaluated", counts.steps)
        failed = CounterMetricFamily("fewstep_failed", "Pictures that failed", labels=["reason"])
        for reason, count in list(counts.failed.items()):
            failed.add_metric([reason], count)
        yield failed
