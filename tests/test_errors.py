"""Errors of every layer: each is a problem (RFC 9457) that a page of an allowed origin can read."""

import re
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import psycopg2
import pytest
from fastapi.responses import PlainTextResponse
from fastapi.testclient import TestClient

from main import create_app
from middleware import ServiceMiddleware
from settings import Settings
from tests.conftest import Create, assert_contract

ORIGIN = "http://localhost:3000"
SOME_ID = "00000000-0000-4000-8000-000000000000"


def send(client: TestClient, method: str, path: str, **more: Any) -> Any:
    """Send a request with an allowed origin."""
    return client.request(method, path, headers={"Origin": ORIGIN} | more.pop("headers", {}), **more)


def assert_problem(response: Any, status: int, path: str, title: str) -> None:
    """Assert that the response is a complete problem, with CORS headers."""
    assert response.status_code == status
    assert response.headers["content-type"] == "application/problem+json"
    assert response.headers["access-control-allow-origin"] == ORIGIN
    assert response.headers["content-length"] == str(len(response.content))
    problem = response.json()
    assert problem["type"] == "about:blank"
    assert problem["title"] == title
    assert problem["status"] == status
    assert problem["detail"]
    assert problem["instance"] == path


def test_an_unknown_path_is_404(client: TestClient) -> None:
    for path in ("/nothing", "/api", "/api/", "/api/alice/", "/api/alice/tasks/", f"/api/a/tasks/{uuid4()}/x"):
        assert_problem(send(client, "GET", path), 404, path, "Not Found")


def test_a_missing_task_is_404(client: TestClient, url: str) -> None:
    path = f"{url}/{uuid4()}"
    assert_problem(send(client, "GET", path), 404, path, "Not Found")


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("PUT", "/api/alice/tasks", "DELETE, GET, PATCH, POST"),
        ("POST", f"/api/alice/tasks/{SOME_ID}", "DELETE, GET, PATCH, PUT"),
        ("HEAD", f"/api/alice/tasks/{SOME_ID}", "DELETE, GET, PATCH, PUT"),
        ("OPTIONS", f"/api/alice/tasks/{SOME_ID}/complete", "PATCH"),
        ("TRACE", "/health", "GET"),
        ("POST", "/openapi.json", "GET, HEAD"),
    ],
)
def test_a_method_that_is_not_allowed_is_405_with_allow(client: TestClient, method: str, path: str, allow: str) -> None:
    response = send(client, method, path)
    assert response.headers["allow"] == allow
    assert response.headers["access-control-allow-origin"] == ORIGIN
    assert response.status_code == 405


def test_invalid_input_is_422(client: TestClient, url: str) -> None:
    assert_problem(send(client, "POST", url, json={}), 422, url, "Unprocessable Content")


@pytest.mark.parametrize("chunked", [True, False])
def test_a_body_over_one_mebibyte_is_413(client: TestClient, url: str, chunked: bool) -> None:
    body = b" " * (1024 * 1024 + 1)
    content = (body[start : start + 65536] for start in range(0, len(body), 65536)) if chunked else body
    response = send(client, "POST", url, content=content, headers={"Content-Type": "application/json"})
    assert "1,048,576 bytes" in response.json()["detail"]
    assert_problem(response, 413, url, "Content Too Large")


@pytest.mark.parametrize("chunked", [True, False])
@pytest.mark.parametrize("method", ["GET", "DELETE", "PATCH"])
def test_a_body_that_is_too_large_changes_nothing(
    client: TestClient, create: Create, method: str, chunked: bool
) -> None:
    task = create()
    path = task["url"].removeprefix("http://testserver")
    body = b" " * (1024 * 1024 + 1)
    response = send(client, method, path, content=iter([body]) if chunked else body)
    assert response.status_code == 413
    assert client.get(path).json() == task


@pytest.mark.parametrize("chunked", [True, False])
def test_the_summary_rejects_a_body_that_is_too_large(client: TestClient, user: str, chunked: bool) -> None:
    body = b" " * (1024 * 1024 + 1)
    assert send(client, "GET", f"/api/{user}", content=iter([body]) if chunked else body).status_code == 413


def test_a_body_of_one_mebibyte_is_accepted(client: TestClient, url: str) -> None:
    body = b'{"title": "x"}'.ljust(1024 * 1024)
    assert send(client, "POST", url, content=body, headers={"Content-Type": "application/json"}).status_code == 201


def test_a_rejected_preflight_is_a_problem(client: TestClient, url: str) -> None:
    response = client.options(url, headers={"Origin": "http://evil.example", "Access-Control-Request-Method": "POST"})
    assert response.status_code == 400
    assert response.headers["content-type"] == "application/problem+json"
    assert "access-control-allow-origin" not in response.headers


def test_the_instance_of_a_problem_is_percent_encoded(client: TestClient) -> None:
    assert send(client, "GET", "/a%20b/%E2%82%AC%22").json()["instance"] == "/a%20b/%E2%82%AC%22"


def test_a_redirect_includes_the_root_path(settings: Settings) -> None:
    client = TestClient(create_app(settings), root_path="/todo")
    assert client.get("/", follow_redirects=False).headers["location"] == "/todo/docs"


@pytest.fixture
def failing_client(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Yield a client of an app that raises `failing_client.error` when it connects to the database."""
    with TestClient(create_app(settings), raise_server_exceptions=False) as client:
        client.event_hooks = {"response": [assert_contract]}

        def connect(*_: object, **__: object) -> None:
            raise client.error  # type: ignore[attr-defined]

        monkeypatch.setattr(psycopg2, "connect", connect)
        yield client


@pytest.mark.parametrize("error", [ZeroDivisionError("secret"), psycopg2.ProgrammingError("SELECT secret"), KeyError()])
def test_an_unexpected_error_is_500_without_its_message(failing_client: Any, url: str, error: Exception) -> None:
    failing_client.error = error
    response = send(failing_client, "GET", url)
    assert_problem(response, 500, url, "Internal Server Error")
    assert "secret" not in response.text


@pytest.mark.parametrize("error", [psycopg2.OperationalError("secret"), psycopg2.InterfaceError(), TimeoutError()])
def test_an_unavailable_database_is_503(
    failing_client: Any, url: str, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    failing_client.error = error
    for path in (url, "/health/ready"):
        response = send(failing_client, "GET", path)
        assert_problem(response, 503, path, "Service Unavailable")
        assert int(response.headers["retry-after"]) > 0
        assert "secret" not in response.text
    assert send(failing_client, "GET", "/health").json() == {"status": "ok"}
    messages = [record.message for record in caplog.records]
    assert len(messages) == 2
    assert re.match(r"\[GET /api/\{user_id\}/tasks [0-9a-f]{32}\] Database unavailable: ", messages[0])
    assert re.match(r"\[GET /health/ready [0-9a-f]{32}\] Database unavailable: ", messages[1])


TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"X-Request-Id": "Req-1:2/3=4+5@host_a.b"}, r"Req-1:2/3=4\+5@host_a\.b"),
        ({"X-Request-Id": "a", "traceparent": f"00-{TRACE}-00f067aa0ba902b7-01"}, "a"),
        ({"traceparent": f"00-{TRACE}-00f067aa0ba902b7-01"}, TRACE),
        ({"traceparent": f"cc-{TRACE}-00f067aa0ba902b7-01-more"}, TRACE),
        ({"X-Request-Id": "with a space", "traceparent": f"00-{TRACE}-00f067aa0ba902b7-01"}, TRACE),
        ({}, "[0-9a-f]{32}"),
        ({"X-Request-Id": "x" * 129}, "[0-9a-f]{32}"),
        ({"X-Request-Id": "a]\tERROR: b"}, "[0-9a-f]{32}"),
        ({"X-Request-Id": ""}, "[0-9a-f]{32}"),
        ({"traceparent": f"ff-{TRACE}-00f067aa0ba902b7-01"}, f"(?!{TRACE})[0-9a-f]{{32}}"),
        ({"traceparent": f"00-{'0' * 32}-00f067aa0ba902b7-01"}, "(?!0{32})[0-9a-f]{32}"),
        ({"traceparent": f"00-{TRACE.upper()}-00f067aa0ba902b7-01"}, "[0-9a-f]{32}"),
        ({"traceparent": TRACE}, f"(?!{TRACE})[0-9a-f]{{32}}"),
    ],
)
@pytest.mark.parametrize(("error", "status"), [(ZeroDivisionError(), 500), (psycopg2.OperationalError(), 503)])
def test_a_5xx_and_its_log_message_have_the_request_id(
    failing_client: Any,
    url: str,
    caplog: pytest.LogCaptureFixture,
    headers: dict[str, str],
    expected: str,
    error: Exception,
    status: int,
) -> None:
    failing_client.error = error
    response = send(failing_client, "PATCH", f"{url}/{uuid4()}/complete?", headers=headers)
    assert response.status_code == status
    request_id = response.json()["request_id"]
    assert re.fullmatch(expected, request_id)
    [message] = [record.message for record in caplog.records if record.name == "tasks"]
    assert message.startswith(f"[PATCH /api/{{user_id}}/tasks/{{task_id}}/complete {request_id}] ")


def test_two_requests_without_an_id_get_different_ones(failing_client: Any, url: str) -> None:
    failing_client.error = psycopg2.OperationalError()
    assert len({send(failing_client, "GET", url).json()["request_id"] for _ in range(3)}) == 3


def test_a_4xx_has_no_request_id(client: TestClient, url: str) -> None:
    for response in (client.get(f"{url}/{uuid4()}", headers={"X-Request-Id": "a"}), client.get(url + "?x=1")):
        assert "request_id" not in response.json()


def test_each_rejected_origin_is_logged_once(settings: Settings, user: str, caplog: pytest.LogCaptureFixture) -> None:
    preflight = {"Access-Control-Request-Method": "POST"}
    with TestClient(create_app(settings)) as client:
        caplog.clear()
        for origin in ("http://localhost:3001", "http://evil.example", "http://localhost:3001", "null"):
            client.get(f"/api/{user}/tasks", headers={"Origin": origin})
            client.options(f"/api/{user}/tasks", headers={"Origin": origin} | preflight)
        for origin in (ORIGIN, "http://testserver"):  # an allowed one, and the service itself
            client.post(f"/api/{user}/tasks", headers={"Origin": origin}, json={"title": "x"})
        messages = [re.sub("[0-9a-f]{32}", "ID", record.message) for record in caplog.records]
        assert messages == [
            f"[GET /api/{{user_id}}/tasks ID] CORS_ORIGINS does not contain '{origin}'"
            for origin in ("http://localhost:3001", "http://evil.example", "null")
        ]
        caplog.clear()
        for number in range(100):
            forged = f"http://{number}\u0085ERROR: forged {'x' * 1000}".encode("latin-1")
            client.get("/nowhere", headers=[("Origin", forged)])
        assert 0 < len(caplog.records) <= 20
        assert all(len(record.message) < 400 and record.message.isascii() for record in caplog.records)
        assert all(record.message.startswith("[GET unknown path ") for record in caplog.records)


def test_a_plain_text_error_is_replaced_by_a_problem() -> None:
    response = TestClient(ServiceMiddleware(PlainTextResponse("no", 429, {"Retry-After": "7"}))).get("/api/somebody")
    assert response.headers["content-type"] == "application/problem+json"
    assert (response.status_code, response.json()["title"]) == (429, "Too Many Requests")
    assert response.headers["retry-after"] == "7"


def test_a_running_service_is_healthy_and_ready(client: TestClient) -> None:
    assert client.get("/health").json() == {"status": "ok"}
    assert client.get("/health/ready").json() == {"status": "ready"}


def test_the_root_redirects_to_the_documentation(client: TestClient) -> None:
    response = client.get("/", headers={"Host": "evil.example"}, follow_redirects=False)
    assert response.headers["location"] == "/docs"
    assert client.get("/docs").status_code == 200


def test_cors_allows_only_the_configured_origins(client: TestClient, url: str) -> None:
    for origin in [f"http://{host}:{port}" for host in ("localhost", "127.0.0.1") for port in (3000, 5173)]:
        response = client.get(url, headers={"Origin": origin})
        assert response.headers["access-control-allow-origin"] == origin
        assert set(response.headers["access-control-expose-headers"].split(", ")) == {
            "ETag",
            "Link",
            "Location",
            "X-Total-Count",
            "Idempotent-Replayed",
            "Retry-After",
        }
    for origin in ("http://localhost:3001", "https://localhost:3000", "http://evil.example", "null"):
        assert "access-control-allow-origin" not in client.get(url, headers={"Origin": origin}).headers


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE"])
def test_a_preflight_allows_the_methods_and_headers_of_the_contract(client: TestClient, url: str, method: str) -> None:
    names = "authorization,content-type,if-match,if-none-match,idempotency-key,x-request-id,traceparent"
    headers = {"Origin": ORIGIN, "Access-Control-Request-Method": method, "Access-Control-Request-Headers": names}
    response = client.options(url, headers=headers)
    assert response.status_code == 200
    assert response.headers["access-control-allow-origin"] == ORIGIN
    assert method in response.headers["access-control-allow-methods"]
