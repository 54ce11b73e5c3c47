"""OpenTelemetry, when it is asked for: traces and metrics of requests, of the database and of the pool.

FastAPI makes one span and the HTTP metrics for each request, and sends them as the `OTEL_*` variables say.
This module adds a span and the metrics of the database, under the names of OpenTelemetry's semantic
conventions. No user id, token, search or part of a task leaves the process.

It is imported only when it is asked for, so that it costs nothing otherwise.
"""

import time
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from fastapi.telemetry import TelemetryConfig
from fastapi.telemetry._api import _route_selected
from opentelemetry import metrics, trace
from opentelemetry.metrics import CallbackOptions, Observation
from starlette.types import ASGIApp, Receive, Scope, Send

from database import Database, Slots
from errors import path_template
from queries import Columns, Query

REDACTED = "REDACTED"  # as the semantic conventions propose
POOL = {"db.client.connection.pool.name": "tasks"}
# The upper bounds of the histogram of waiting times, in seconds, as the semantic conventions propose for durations.
BUCKETS = [0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 10]


def fastapi_config() -> TelemetryConfig:
    """Return the `telemetry` parameter of FastAPI.

    If `opentelemetry-instrument` or a test has set a tracer provider, FastAPI uses that, and adds no exporter of
    its own. Logs stay off, because FastAPI would record exceptions with the values in their messages.
    """
    auto_configure = isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider)
    return {"logs": False, "operation_spans": False, "auto_configure": auto_configure}


class TelemetryMiddleware:
    """Middleware that names FastAPI's span and metrics after the path template, and redacts the path and the query."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        if scope["type"] == "http":
            template = path_template(scope)
            _route_selected(scope=scope, path=template)  # FastAPI's router, which calls it, sees few of the requests
            span = trace.get_current_span()
            span.set_attribute("url.path", template or REDACTED)
            if scope["query_string"]:
                span.set_attribute("url.query", REDACTED)
        await self.app(scope, receive, send)


class MeasuredDatabase(Database):
    """A pool that makes a span for each query, and the metrics of its connections."""

    def __init__(self, dsn: str, *, size: int, timeout: float, can_prepare: bool = False) -> None:
        super().__init__(dsn, size=size, timeout=timeout, can_prepare=can_prepare)
        self._slots = _MeasuredSlots(size, timeout)
        self._tracer = trace.get_tracer("tasks")
        meter = metrics.get_meter("tasks")
        meter.create_observable_up_down_counter(
            "db.client.connection.count", [self._observe_connections], "{connection}", "Open connections, by state."
        )
        meter.create_observable_up_down_counter(
            "db.client.connection.max", [lambda _: [Observation(size, POOL)]], "{connection}", "Connections at most."
        )
        meter.create_observable_up_down_counter(
            "db.client.connection.pending_requests",
            [lambda _: [Observation(self.waiting, POOL)]],
            "{request}",
            "Requests that wait for a slot.",
        )

    @property
    def waiting(self) -> int:
        """The number of requests that wait for a slot."""
        return self._slots.waiting

    async def fetch(
        self, query: Query[*Columns], disconnected: Callable[[], Awaitable[bool]] | None = None
    ) -> list[tuple[*Columns]]:
        """Run a query as Database.fetch does, in a span of its own.

        The attribute `db.client.connection.wait_time` of the span has the seconds in the queue. The rest of its
        duration is the statement, and the time to connect if no connection was idle.
        """
        with self._tracer.start_as_current_span(
            "postgresql",
            kind=trace.SpanKind.CLIENT,
            attributes={"db.system.name": "postgresql"},
            record_exception=False,  # the message may contain values
            set_status_on_exception=False,
        ) as span:
            try:
                return await super().fetch(query, disconnected)
            except Exception as error:
                span.set_attribute("error.type", type(error).__qualname__)
                span.set_status(trace.StatusCode.ERROR)
                raise

    def _observe_connections(self, _options: CallbackOptions) -> Iterable[Observation]:
        used, idle = len(self._busy_connections), len(self._idle_connections)
        for state, number in (("used", used), ("idle", idle)):
            yield Observation(number, POOL | {"db.client.connection.state": state})


class _MeasuredSlots(Slots):
    """Slots that record how long each request has waited for one."""

    def __init__(self, size: int, timeout: float) -> None:
        super().__init__(size, timeout)
        self._wait_time = metrics.get_meter("tasks").create_histogram(
            "db.client.connection.wait_time",
            "s",
            "Time that a request waited for a slot.",
            explicit_bucket_boundaries_advisory=BUCKETS,
        )

    def try_acquire(self, user: str | None) -> bool:
        """Acquire a slot as Slots does, and record that no time was spent on waiting."""
        acquired = super().try_acquire(user)
        if acquired:
            self._record(0.0)
        return acquired

    async def acquire(self, user: str | None) -> Any:
        """Wait for a slot as Slots does, and record the time, also when there is none in time."""
        queued_at = time.monotonic()
        try:
            return await super().acquire(user)
        finally:
            self._record(time.monotonic() - queued_at)

    def _record(self, seconds: float) -> None:
        self._wait_time.record(seconds, POOL)
        trace.get_current_span().set_attribute("db.client.connection.wait_time", seconds)
