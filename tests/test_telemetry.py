"""OpenTelemetry: which spans and metrics an app makes when it is asked for, and what is never in them."""

import gzip
import http.server
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any
from uuid import uuid4

import httpx2
import jwt
import psycopg2
import pytest
from fastapi.testclient import TestClient
from opentelemetry import _logs, metrics, trace
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import InMemoryLogRecordExporter, SimpleLogRecordProcessor
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from pydantic import SecretStr

from database import Database
from main import create_app
from settings import Settings
from tests.servers import service

SECRET = "a secret of the tests, 32 bytes or more"  # noqa: S105  # of the tests only
WORD = "confidential"  # in every title, tag and search of these tests


def get_metrics(reader: InMemoryMetricReader) -> dict[str, Any]:
    """Return the current metrics by name."""
    data: Any = reader.get_metrics_data()
    scopes = [scope for resource in data.resource_metrics for scope in resource.scope_metrics]
    return {metric.name: metric for scope in scopes for metric in scope.metrics}


class Recorder:
    """What an app has exported: its spans, and its metrics by name."""

    def __init__(self) -> None:
        self._exporter, self._reader = InMemorySpanExporter(), InMemoryMetricReader()
        tracer_provider = TracerProvider()
        tracer_provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        trace.set_tracer_provider(tracer_provider)
        metrics.set_meter_provider(MeterProvider(metric_readers=[self._reader]))
        self.logs = InMemoryLogRecordExporter()
        logger_provider = LoggerProvider()
        logger_provider.add_log_record_processor(SimpleLogRecordProcessor(self.logs))
        _logs.set_logger_provider(logger_provider)

    def spans(self) -> list[ReadableSpan]:
        """Return the spans since the last call."""
        finished = list(self._exporter.get_finished_spans())
        self._exporter.clear()
        return finished

    def metrics(self) -> dict[str, Any]:
        """Return the current metrics by name."""
        return get_metrics(self._reader)


@pytest.fixture(scope="session")
def recorder() -> Recorder:
    """Return the recorder of this process: OpenTelemetry's providers can be set only once."""
    return Recorder()


@pytest.fixture
def measured_client(recorder: Recorder, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[TestClient]:
    """Yield a client of an app with tokens that is asked for OpenTelemetry."""
    monkeypatch.setenv("OTEL_SERVICE_NAME", "tasks")
    app = create_app(settings.model_copy(update={"auth_secret": SecretStr(SECRET)}))
    with TestClient(app, raise_server_exceptions=False) as client:
        recorder.spans()
        yield client


@pytest.fixture
def token(user: str) -> str:
    return jwt.encode({"sub": user, "exp": 2**32}, SECRET, "HS256")


def test_each_request_has_a_span_and_one_for_the_database(
    recorder: Recorder, measured_client: TestClient, url: str, token: str
) -> None:
    response = measured_client.get(f"{url}?limit=7", headers={"Authorization": f"Bearer {token}"})
    assert response.status_code == 200
    database, request = recorder.spans()
    assert (request.name, request.kind) == ("GET /api/{user_id}/tasks", trace.SpanKind.SERVER)
    assert request.attributes is not None
    assert request.attributes["http.route"] == request.attributes["url.path"] == "/api/{user_id}/tasks"
    assert request.attributes["http.response.status_code"] == 200
    assert request.attributes["url.query"] == "REDACTED"
    assert (database.name, database.kind) == ("postgresql", trace.SpanKind.CLIENT)
    assert database.parent is not None
    assert request.context is not None
    assert database.parent.span_id == request.context.span_id
    assert dict(database.attributes or {}) == {
        "db.system.name": "postgresql",
        "db.client.connection.wait_time": 0.0,
    }


def test_the_database_span_has_the_time_in_the_queue(
    recorder: Recorder, settings: Settings, user: str, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_SERVICE_NAME", "tasks")
    reader = InMemoryMetricReader()  # of its own: the pools of all apps in one process share the global one
    monkeypatch.setattr(metrics, "get_meter", MeterProvider(metric_readers=[reader]).get_meter)
    app = create_app(settings.model_copy(update={"database_pool_size": 1}))
    with TestClient(app) as client, closing(psycopg2.connect(database_url)) as locking, locking.cursor() as sql:
        client.post(f"/api/{user}/tasks", json={"title": "x"})
        sql.execute("SELECT FROM task_users WHERE user_id = %s FOR UPDATE", [user])
        recorder.spans()
        with ThreadPoolExecutor() as threads:
            for _ in range(2):
                threads.submit(client.post, f"/api/{user}/tasks", json={"title": "y"})
            deadline = time.monotonic() + 60
            while app.state.database.waiting < 1:  # until the second request is in the queue
                assert time.monotonic() < deadline
                time.sleep(0.01)
            waiting = get_metrics(reader)
            time.sleep(0.1)
            locking.rollback()
    times = sorted(
        (span.attributes or {})["db.client.connection.wait_time"]
        for span in recorder.spans() if span.name == "postgresql"
    )  # fmt: skip
    assert times[0] == 0
    assert times[1] >= 0.1
    assert [point.value for point in waiting["db.client.connection.pending_requests"].data.data_points] == [1]
    states = {
        point.attributes["db.client.connection.state"]: point.value
        for point in waiting["db.client.connection.count"].data.data_points
    }
    assert states == {"used": 1, "idle": 0}


def test_spans_and_metrics_are_sent_to_the_endpoint(database_url: str, user: str) -> None:
    received: dict[str, bytes] = {}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            body = gzip.decompress(body) if self.headers["Content-Encoding"] == "gzip" else body
            received[self.path] = received.get(self.path, b"") + body
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as collector:
        threading.Thread(target=collector.serve_forever, args=[0.05]).start()
        endpoint = f"http://127.0.0.1:{collector.server_port}"
        with service(DATABASE_URL=database_url, OTEL_EXPORTER_OTLP_ENDPOINT=endpoint) as started:
            assert httpx2.get(f"{started.url}/api/{user}/tasks").status_code == 200
            assert httpx2.get(f"{started.url}/api/{user}/tasks?x=1").status_code == 422  # FastAPI could log it
            started.process.terminate()
            started.process.wait(60)
        collector.shutdown()
    assert received.keys() == {"/v1/traces", "/v1/metrics"}
    assert b"GET /api/{user_id}/tasks" in received["/v1/traces"]
    assert b"db.client.connection.wait_time" in received["/v1/metrics"]
    assert not [body for body in received.values() if user.encode() in body]


@pytest.mark.parametrize("hidden", ["opentelemetry.sdk", None], ids=["a missing package", "an invalid endpoint"])
def test_what_prevents_telemetry_is_logged_and_the_service_starts(
    settings: Settings,
    url: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    hidden: str | None,
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9" if hidden else "no URL")
    if hidden:
        monkeypatch.setitem(sys.modules, f"{hidden}.trace", None)  # its import fails
    monkeypatch.setattr(trace, "get_tracer_provider", trace.ProxyTracerProvider)
    with TestClient(create_app(settings)) as client:
        assert client.get(url).status_code == 200
    assert "FastAPI automatic telemetry configuration failed: " in caplog.text


def test_a_trace_is_continued(recorder: Recorder, measured_client: TestClient, url: str, token: str) -> None:
    traceparent = f"00-{uuid4().hex}-00f067aa0ba902b7-01"
    measured_client.get(url, headers={"Authorization": f"Bearer {token}", "traceparent": traceparent})
    for span in recorder.spans():
        assert span.context is not None
        assert f"{span.context.trace_id:032x}" == traceparent.split("-")[1]


def test_the_pool_has_metrics_with_their_standard_names(
    recorder: Recorder, measured_client: TestClient, url: str, token: str
) -> None:
    measured_client.get(url, headers={"Authorization": f"Bearer {token}"})
    found = recorder.metrics()
    states = {
        point.attributes["db.client.connection.state"] for point in found["db.client.connection.count"].data.data_points
    }
    assert states == {"idle", "used"}
    assert [point.value for point in found["db.client.connection.pending_requests"].data.data_points] == [0]
    assert found["db.client.connection.wait_time"].unit == "s"
    assert sum(point.count for point in found["db.client.connection.wait_time"].data.data_points) > 0
    routes = {point.attributes.get("http.route") for point in found["http.server.request.duration"].data.data_points}
    assert "/api/{user_id}/tasks" in routes


def test_an_unavailable_database_is_an_error_of_both_spans(
    recorder: Recorder, measured_client: TestClient, url: str, token: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def connect(*_: object, **__: object) -> None:
        raise psycopg2.OperationalError(f"{WORD} {url}")

    monkeypatch.setattr(psycopg2, "connect", connect)
    assert measured_client.get(url, headers={"Authorization": f"Bearer {token}"}).status_code == 503
    database, request = recorder.spans()
    for span, kind in ((database, "DatabaseUnavailable"), (request, "503")):
        assert span.status.status_code == trace.StatusCode.ERROR
        assert (span.attributes or {})["error.type"] == kind
        assert not span.events
        assert WORD not in span.to_json()


def test_the_message_of_an_unexpected_error_is_not_exported(
    recorder: Recorder, measured_client: TestClient, url: str, token: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def connect(*_: object, **__: object) -> None:
        raise ZeroDivisionError(WORD)

    monkeypatch.setattr(psycopg2, "connect", connect)
    assert measured_client.get(url, headers={"Authorization": f"Bearer {token}"}).status_code == 500
    spans = recorder.spans()
    assert {(span.attributes or {})["error.type"] for span in spans} == {"ZeroDivisionError", "500"}
    assert not [span for span in spans if WORD in span.to_json()]
    assert recorder.logs.get_finished_logs() == ()


def test_no_user_token_task_or_search_is_exported(
    recorder: Recorder, measured_client: TestClient, user: str, url: str, token: str
) -> None:
    headers = {"Authorization": f"Bearer {token}"}
    body = {"title": WORD, "tags": [WORD], "extra": {"x": WORD}}
    created = measured_client.post(url, json=body, headers=headers | {"Idempotency-Key": WORD}).json()
    task = f"{url}/{created['id']}"
    for method, path in (
        ("GET", f"{url}?q={WORD}&tag={WORD}"),
        ("GET", f"{url}?{WORD}={user}"),  # 422
        ("GET", task),
        ("GET", f"{url}/{WORD}"),  # 422
        ("PATCH", f"{task}/complete"),
        ("DELETE", task),
        ("POST", f"{task}/restore"),
        ("GET", f"/api/{user}/changes"),
        ("DELETE", f"/api/{user}?confirm={user}"),
        ("GET", f"/api/{WORD}/tasks"),  # 404
        ("GET", f"/{user}/{WORD}"),  # 404 without a route
        ("PUT", url),  # 405
        ("GET", f"/api/{user}%2F/tasks"),  # 422
    ):
        measured_client.request(method, path, headers=headers)
    measured_client.get(url, headers={"Authorization": f"Bearer {token}x"})  # 401
    spans = recorder.spans()
    assert len(spans) > 20
    exported = [span.to_json() for span in spans] + [metric.to_json() for metric in recorder.metrics().values()]
    for secret in (WORD, user, token, SECRET, created["id"]):
        assert not [text for text in exported if secret in text]


def test_an_app_that_is_not_asked_makes_no_spans(
    recorder: Recorder, settings: Settings, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder.spans()  # those of other tests
    for variables in ({}, {"OTEL_SERVICE_NAME": ""}, {"OTEL_SERVICE_NAME": "tasks", "OTEL_SDK_DISABLED": "true"}):
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        with TestClient(create_app(settings)) as client:
            assert client.get(url).status_code == 200
            assert type(client.app.state.database) is Database  # type: ignore[attr-defined]
    assert recorder.spans() == []
