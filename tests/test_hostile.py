"""Malformed and unusual requests: none of them causes a 5xx. Most are sent as raw bytes to a running server."""

from collections.abc import Iterator
from typing import Any
from urllib.parse import quote
from uuid import uuid4

import httpx2
import pytest
from fastapi.testclient import TestClient

from tests.conftest import Create, local
from tests.raw import connect
from tests.servers import Service, service

PATHS = [
    "/",
    "/health",
    "/health/ready",
    "/docs",
    "/redoc",
    "/openapi.json",
    "/api/ann",
    "/api/ann/tasks",
    "/api/ann/tasks/00000000-0000-4000-8000-000000000000",
    "/api/ann/tasks/00000000-0000-4000-8000-000000000000/complete",
    "/nothing",
]
METHODS = ["GET", "HEAD", "OPTIONS", "TRACE", "CONNECT", "POST", "PUT", "PATCH", "DELETE", "PROPFIND", "QUERY", "FOO"]


@pytest.fixture(scope="module")
def started(database_url: str) -> Iterator[Service]:
    with service("--no-access-log", DATABASE_URL=database_url) as started:
        yield started
        assert not [line for line in started.log if "Traceback" in line or "ERROR" in line]


def send(started: Service, *parts: bytes) -> int:
    """Send the bytes on a new connection. Return the status, or 0 if the server closed it without a response."""
    with connect(started) as connection:
        try:
            for part in parts:
                connection.sendall(part)
            response = connection.recv(65536)
        except (ConnectionResetError, BrokenPipeError):
            response = b""
    return int(response.split()[1]) if response else 0


def head(method: str, path: str, *lines: str) -> bytes:
    return "\r\n".join([f"{method} {path} HTTP/1.1", "Host: localhost", *lines, "", ""]).encode("latin-1")


@pytest.mark.parametrize("method", METHODS)
def test_every_method_on_every_path_has_a_response(started: Service, method: str) -> None:
    for path in PATHS:
        status = send(started, head(method, path, "Origin: http://localhost:3000", "Content-Length: 0"))
        assert 200 <= status < 500, (method, path)


@pytest.mark.parametrize(
    "request_",
    [
        head("GET", "/api/ann/tasks", f"X: {'x' * 64_000}"),
        head("GET", "/api/ann/tasks", *(f"X-{number}: x" for number in range(3_000))),
        head("GET", "/api/ann/tasks?" + "&".join(f"x{number}=1" for number in range(1_000))),
        head("GET", "/api/ann/tasks?" + "&".join("tag=x" for _ in range(1_000))),
        head("GET", "/api/ann/tasks?" + "q=" + "x+" * 20_000),
        head("GET", "/api/ann/tasks?q=%00"),
        head("GET", "/api/ann/tasks?q=%FF&tag=%ED%A0%80"),
        head("GET", "/api/ann/tasks?cursor=%00&sort=%00"),
        head("GET", "/api/ann/tasks?limit=9223372036854775808"),
        head("GET", "/api/ann/tasks?due_before=99999999999999999999-01-01T00:00:00Z"),
        head("GET", "/api/%00/tasks"),
        head("GET", "/api/%FF%FE/tasks"),
        head("GET", "/api/../../etc/passwd"),
        head("GET", "/api/ann/tasks/%2e%2e"),
        head("GET", "//api//ann//tasks"),
        head("GET", "/api/ann/tasks", "If-None-Match: \xff"),
        head("GET", "/api/ann/tasks", "Origin: \xff"),
        head("GET", "/api/ann/tasks", "X-Forwarded-Host: \xff", "X-Forwarded-Proto: \xff"),
        head("GET", "/api/ann/tasks", "Host: evil.example\xff/@x"),
        head("GET", "/api/ann/tasks", "Authorization: \xff"),
        head("POST", "/api/ann/tasks", "Idempotency-Key: \xff", "Content-Length: 2") + b"{}",
        head("POST", "/api/ann/tasks", "Content-Type: \xff", "Content-Length: 2") + b"{}",
        head("POST", "/api/ann/tasks", "Content-Type: application/json; charset=utf-16", "Content-Length: 2") + b"{}",
        head("POST", "/api/ann/tasks", "Content-Length: -1"),
        head("POST", "/api/ann/tasks", "Content-Length: x"),
        head("POST", "/api/ann/tasks", "Content-Length: 99999999999999999999"),
        head("POST", "/api/ann/tasks", "Transfer-Encoding: chunked") + b"ffffffffffffffffff\r\n",
        head("POST", "/api/ann/tasks", "Transfer-Encoding: gzip, x") + b"0\r\n\r\n",
        head("GET", "/api/ann/tasks", "X: a\0b"),
        head("GET", "/api/ann/tasks?\0=1"),
        head("POST", "/api/ann/tasks", "Content-Type: application/json", "Content-Length: 14") + b'{"\0title":"x"}',
        head("POST", "/api/ann/tasks", "Content-Type: application/json", "Content-Length: 21")
        + b'{"\\u0000":1,"title":1}',
        b"GET / HTTP/9.9\r\n\r\n",
        b"\x16\x03\x01\x00\xff nonsense \r\n\r\n",
        b"GET /\xff HTTP/1.1\r\nHost: x\r\n\r\n",
    ],
    ids=lambda request_: repr(request_[:70]),
)
def test_no_malformed_request_causes_a_5xx(started: Service, request_: bytes) -> None:
    assert send(started, request_) < 500
    assert httpx2.get(f"{started.url}/health").status_code == 200


@pytest.mark.parametrize("method", ["GET", "POST", "PATCH", "DELETE"])
def test_a_client_that_disconnects_during_a_request_is_no_error(started: Service, method: str) -> None:
    for _ in range(20):
        with connect(started) as connection:
            connection.sendall(head(method, "/api/ann/tasks", "Content-Length: 100") + b'{"title')
            assert httpx2.get(f"{started.url}/health/ready").status_code == 200  # it blocks no other request
    assert httpx2.get(f"{started.url}/health/ready").status_code == 200
    assert not [line for line in started.log if "Traceback" in line]


def test_no_redirect_uses_the_host_header(started: Service) -> None:
    for path in ("/", "/docs/", "/api/ann/tasks/", "//evil.example"):
        response = httpx2.get(started.url + path, headers={"Host": "evil.example"}, follow_redirects=False)
        assert "evil.example" not in response.headers.get("location", "")


@pytest.mark.parametrize(
    "spelling",
    ["{}", "{{{}}}", "urn:uuid:{}", "{upper}", "{bare}"],
    ids=["usual", "braces", "urn", "upper case", "bare"],
)
def test_every_spelling_of_an_id_is_the_same_task(client: TestClient, url: str, create: Create, spelling: str) -> None:
    task = create()
    spelled = spelling.format(task["id"], upper=task["id"].upper(), bare=task["id"].replace("-", ""))
    assert client.get(f"{url}/{quote(spelled)}").json() == task


@pytest.mark.parametrize(
    "title", ["\u202e\u05d0\u05d1\u05d2", "👩‍👩‍👧‍👦🏳️‍🌈", "e\u0301 \u00e9", "\u200b|", "\ufeffx", "a\u0300" * 100]
)
def test_text_is_returned_as_it_was_sent(client: TestClient, create: Create, title: str) -> None:
    task = create(title=title, description=title, tags=[title[:50]])
    assert (task["title"], task["description"], task["tags"]) == (title, title, [title[:50]])
    assert client.get(local(task["url"])).content.decode().count(title) >= 2


def test_the_last_of_repeated_keys_in_a_body_counts(client: TestClient, url: str) -> None:
    body = b'{"title": "first", "title": "last"}'
    response: Any = client.post(url, content=body, headers={"Content-Type": "application/json"})
    assert response.json()["title"] == "last"


def test_long_user_ids_and_dots_and_percent_signs_are_accepted(client: TestClient) -> None:
    for user in ("x" * 96 + uuid4().hex, f"...{uuid4()}", f"{uuid4()}..", f"%2525{uuid4()}"):
        assert client.post(f"/api/{user}/tasks", json={"title": "mine"}).status_code == 201
        assert len(client.get(f"/api/{user}/tasks").json()) == 1
