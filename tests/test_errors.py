"""Every failure, from every layer, is a problem+json answer that a browser may read."""

from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import psycopg2
import pytest
from fastapi.responses import PlainTextResponse
from fastapi.testclient import TestClient

from database import Database
from main import create_app
from middleware import ServiceMiddleware
from settings import Settings
from tests.conftest import Create, hold_to_contract

ORIGIN = "http://localhost:3000"
SOME_ID = "00000000-0000-4000-8000-000000000000"


def ask(client: TestClient, method: str, path: str, **more: Any) -> Any:
    return client.request(method, path, headers={"Origin": ORIGIN} | more.pop("headers", {}), **more)


def hold_problem(answer: Any, status: int, path: str, title: str) -> None:
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["access-control-allow-origin"] == ORIGIN
    assert answer.headers["content-length"] == str(len(answer.content))
    problem = answer.json()
    assert problem["type"] == "about:blank"
    assert problem["title"] == title
    assert problem["status"] == status
    assert problem["detail"]
    assert problem["instance"] == path


def test_an_unknown_path_is_404(client: TestClient) -> None:
    for path in ("/nothing", "/api", "/api/", "/api/alice/", "/api/alice/tasks/", f"/api/a/tasks/{uuid4()}/x"):
        hold_problem(ask(client, "GET", path), 404, path, "Not Found")


def test_a_missing_task_is_404(client: TestClient, url: str) -> None:
    path = f"{url}/{uuid4()}"
    hold_problem(ask(client, "GET", path), 404, path, "Not Found")


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
def test_a_method_that_is_not_there_is_405_and_tells_those_that_are(
    client: TestClient, method: str, path: str, allow: str
) -> None:
    answer = ask(client, method, path)
    assert answer.headers["allow"] == allow
    assert answer.headers["access-control-allow-origin"] == ORIGIN
    assert answer.status_code == 405


def test_broken_input_is_422(client: TestClient, url: str) -> None:
    hold_problem(ask(client, "POST", url, json={}), 422, url, "Unprocessable Content")


@pytest.mark.parametrize("chunked", [True, False])
def test_a_body_over_one_mebibyte_is_413(client: TestClient, url: str, chunked: bool) -> None:
    body = b" " * (1024 * 1024 + 1)
    content = (body[start : start + 65536] for start in range(0, len(body), 65536)) if chunked else body
    answer = ask(client, "POST", url, content=content, headers={"Content-Type": "application/json"})
    assert "1,048,576 bytes" in answer.json()["detail"]
    hold_problem(answer, 413, url, "Content Too Large")


@pytest.mark.parametrize("chunked", [True, False])
@pytest.mark.parametrize("method", ["GET", "DELETE", "PATCH"])
def test_a_body_that_is_too_large_is_refused_before_anything_is_done(
    client: TestClient, create: Create, method: str, chunked: bool
) -> None:
    task = create()
    path = task["url"].removeprefix("http://testserver")
    body = b" " * (1024 * 1024 + 1)
    answer = ask(client, method, path, content=iter([body]) if chunked else body)
    assert answer.status_code == 413
    assert client.get(path).json() == task


@pytest.mark.parametrize("chunked", [True, False])
def test_a_body_that_is_too_large_is_refused_for_the_summary_too(client: TestClient, user: str, chunked: bool) -> None:
    body = b" " * (1024 * 1024 + 1)
    assert ask(client, "GET", f"/api/{user}", content=iter([body]) if chunked else body).status_code == 413


def test_a_body_of_one_mebibyte_is_read(client: TestClient, url: str) -> None:
    body = b'{"title": "x"}'.ljust(1024 * 1024)
    assert ask(client, "POST", url, content=body, headers={"Content-Type": "application/json"}).status_code == 201


def test_a_preflight_that_is_refused_is_a_problem(client: TestClient, url: str) -> None:
    answer = client.options(url, headers={"Origin": "http://evil.example", "Access-Control-Request-Method": "POST"})
    assert answer.status_code == 400
    assert answer.headers["content-type"] == "application/problem+json"
    assert "access-control-allow-origin" not in answer.headers


def test_the_path_in_a_problem_is_encoded_as_in_a_url(client: TestClient) -> None:
    assert ask(client, "GET", "/a%20b/%E2%82%AC%22").json()["instance"] == "/a%20b/%E2%82%AC%22"


def test_a_path_below_a_root_path_is_told_whole(settings: Settings) -> None:
    client = TestClient(create_app(settings), root_path="/todo")
    assert client.get("/", follow_redirects=False).headers["location"] == "/todo/docs"


@pytest.fixture
def broken(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A client of an app whose next query raises what is put into `broken.error`."""
    with TestClient(create_app(settings), raise_server_exceptions=False) as client:
        client.event_hooks = {"response": [hold_to_contract]}

        async def run(*_: object) -> None:
            raise client.error  # type: ignore[attr-defined]

        monkeypatch.setattr(Database, "_run", run)
        yield client


@pytest.mark.parametrize("error", [ZeroDivisionError("secret"), psycopg2.ProgrammingError("SELECT secret"), KeyError()])
def test_an_unexpected_error_is_500_and_tells_nothing(broken: Any, url: str, error: Exception) -> None:
    broken.error = error
    answer = ask(broken, "GET", url)
    hold_problem(answer, 500, url, "Internal Server Error")
    assert "secret" not in answer.text


@pytest.mark.parametrize("error", [psycopg2.OperationalError("secret"), psycopg2.InterfaceError(), TimeoutError()])
def test_a_database_that_does_not_answer_is_503(
    broken: Any, url: str, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    broken.error = error
    for path in (url, "/health/ready"):
        answer = ask(broken, "GET", path)
        hold_problem(answer, 503, path, "Service Unavailable")
        assert int(answer.headers["retry-after"]) > 0
        assert "secret" not in answer.text
    assert ask(broken, "GET", "/health").json() == {"status": "ok"}
    assert len(caplog.records) == 2
    assert all(record.message.startswith("Database unavailable: ") for record in caplog.records)


def test_plain_text_of_any_refusal_becomes_a_problem() -> None:
    answer = TestClient(ServiceMiddleware(PlainTextResponse("no", 429, {"Retry-After": "7"}))).get("/api/somebody")
    assert answer.headers["content-type"] == "application/problem+json"
    assert (answer.status_code, answer.json()["title"]) == (429, "Too Many Requests")
    assert answer.headers["retry-after"] == "7"


def test_a_service_that_runs_says_that_it_is_up_and_ready(client: TestClient) -> None:
    assert client.get("/health").json() == {"status": "ok"}
    assert client.get("/health/ready").json() == {"status": "ready"}


def test_the_root_leads_to_the_documentation(client: TestClient) -> None:
    answer = client.get("/", headers={"Host": "evil.example"}, follow_redirects=False)
    assert answer.headers["location"] == "/docs"
    assert client.get("/docs").status_code == 200


def test_cors_answers_the_origins_that_are_set_and_no_other(client: TestClient, url: str) -> None:
    for origin in ("http://localhost:3000", "http://localhost:5173"):
        answer = client.get(url, headers={"Origin": origin})
        assert answer.headers["access-control-allow-origin"] == origin
        assert set(answer.headers["access-control-expose-headers"].split(", ")) == {
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
    headers = "authorization,content-type,if-match,if-none-match,idempotency-key"
    asked = {"Origin": ORIGIN, "Access-Control-Request-Method": method, "Access-Control-Request-Headers": headers}
    answer = client.options(url, headers=asked)
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == ORIGIN
    assert method in answer.headers["access-control-allow-methods"]
