"""Request smuggling: bytes after an Upgrade or a CONNECT are never processed as another request.

The tests send raw bytes to a running server.
"""

from collections.abc import Iterator

import httpx2
import pytest

from tests.raw import connect, exchange, locked_tasks, read_to_end, statuses
from tests.servers import LIMITS, ON_A_FREE_PORT, Service, service

SECRET = "a shared secret, long enough for HS256"  # noqa: S105


@pytest.fixture(scope="module", params=["as documented", "bare"])
def started(database_url: str, request: pytest.FixtureRequest) -> Iterator[Service]:
    """Start the service with `LimitedHttp`, and with uvicorn's own protocol, which must be safe too."""
    command = [part for part in ON_A_FREE_PORT if request.param != "bare" or part not in LIMITS]
    with service("--no-access-log", command=command, DATABASE_URL=database_url, AUTH_SECRET="") as started:
        yield started
        assert not [line for line in started.log if "Traceback" in line or "ERROR" in line]


def smuggled_request(user: str) -> bytes:
    """Return a request that creates a task if the service processes it."""
    body = b'{"title": "smuggled"}'
    head = f"POST /api/{user}/tasks HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


def head(request_line: str, *lines: str) -> bytes:
    return "\r\n".join([request_line, "Host: x", *lines, "", ""]).encode()


UPGRADE = ("Connection: Upgrade", "Upgrade: websocket")
HEADS = {
    "websocket": head("GET /api/{user}/tasks HTTP/1.1", *UPGRADE, "Content-Length: {length}"),
    "h2c": head(
        "POST /api/{user}/tasks HTTP/1.1",
        "Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQAAP__",
        "Content-Length: {length}",
    ),
    "in capitals": head(
        "GET /api/{user} HTTP/1.1", "CONNECTION: keep-alive, UPGRADE", "UPGRADE: WebSocket", "Content-Length: {length}"
    ),
    "twice, as the last headers": head(
        "DELETE /api/{user}/tasks HTTP/1.1", "Content-Length: {length}", "Upgrade: a", "Connection:upgrade", "Upgrade:b"
    ),
    "without a length": head("GET /api/{user}/tasks HTTP/1.1", *UPGRADE),
    "chunked": head("PATCH /api/{user}/tasks HTTP/1.1", *UPGRADE, "Transfer-Encoding: chunked"),
    "chunked and with a length": head(
        "GET /health/ready HTTP/1.1", *UPGRADE, "Transfer-Encoding: chunked", "Content-Length: {length}"
    ),
    "expecting 100": head(
        "POST /api/{user}/tasks HTTP/1.1", *UPGRADE, "Content-Length: {length}", "Expect: 100-continue"
    ),
    "HTTP/1.0": head("GET /health/ready HTTP/1.0", "Connection: keep-alive, upgrade", "Upgrade: x"),
    "HEAD": head("HEAD /docs HTTP/1.1", *UPGRADE, "Content-Length: {length}"),
    "an unknown path": head("POST /nothing HTTP/1.1", *UPGRADE, "Content-Length: {length}"),
    "a method that is not allowed": head("PUT /health HTTP/1.1", *UPGRADE, "Content-Length: {length}"),
    "a path that is rejected": head("GET /api/%FF/tasks HTTP/1.1", *UPGRADE, "Content-Length: {length}"),
    "a preflight": head(
        "OPTIONS /api/{user}/tasks HTTP/1.1", "Origin: http://localhost:3000", "Access-Control-Request-Method: POST",
        *UPGRADE, "Content-Length: {length}",
    ),
    "a body that is too large": head("POST /api/{user}/tasks HTTP/1.1", *UPGRADE, "Content-Length: 9999999"),
    "CONNECT to a path": head("CONNECT /api/{user}/tasks HTTP/1.1", "Content-Length: {length}"),
    "CONNECT to a host": head("CONNECT localhost:80 HTTP/1.1"),
}  # fmt: skip


def split(first: bytes, second: bytes, way: str) -> list[bytes]:
    """Return the bytes of both requests as packets, split in one of the `WAYS`."""
    data = first + second
    ends = {
        "between head and body": [len(first)],
        "within the head": [len(first) - 3, len(first) + 30],
        "before the last byte of the head": [len(first) - 1],
        "after the first byte of the body": [len(first) + 1],
        "within the smuggled line": [len(first), len(first) + 9],
        "within the smuggled head": [len(first) + 40],
        "within the smuggled body": [len(first), len(data) - 4],
        "nowhere": [],
    }[way]
    return [data[start:end] for start, end in zip([0, *ends], [*ends, None], strict=True)]


WAYS = [
    "between head and body", "within the head", "before the last byte of the head", "after the first byte of the body",
    "within the smuggled line", "within the smuggled head", "within the smuggled body", "nowhere",
]  # fmt: skip


def assert_one_response(received: bytes) -> None:
    """Assert that there is one response, not a 5xx, and that it closes the connection."""
    assert len(statuses(received)) == 1, received
    assert statuses(received)[0] < b"500", received
    assert b"\r\nconnection: close\r\n" in received, received


def assert_not_processed(started: Service, user: str) -> None:
    """Assert that no smuggled request was processed."""
    assert httpx2.get(f"{started.url}/api/{user}/tasks").json() == []


@pytest.mark.parametrize("kind", HEADS)
def test_an_upgrade_closes_its_connection_and_ignores_its_body(started: Service, user: str, kind: str) -> None:
    body = smuggled_request(user)
    first = HEADS[kind].replace(b"{user}", user.encode()).replace(b"{length}", str(len(body)).encode())
    for way in WAYS:
        assert_one_response(exchange(started, split(first, body, way)))
    assert_not_processed(started, user)


@pytest.mark.parametrize("kind", ["websocket", "without a length", "chunked", "CONNECT to a path"])
def test_an_upgrade_that_arrives_byte_by_byte_gets_one_response(started: Service, user: str, kind: str) -> None:
    body = smuggled_request(user)
    first = HEADS[kind].replace(b"{user}", user.encode()).replace(b"{length}", str(len(body)).encode())
    assert_one_response(exchange(started, [bytes([byte]) for byte in first + body], interval=0.001))
    assert_not_processed(started, user)


def test_bytes_after_an_upgrade_are_ignored_while_it_is_processed(
    started: Service, user: str, database_url: str
) -> None:
    task = httpx2.post(f"{started.url}/api/{user}-slow/tasks", json={"title": "any"}).json()
    first = head(f"PATCH /api/{user}-slow/tasks/{task['id']}/complete HTTP/1.1", *UPGRADE)
    with connect(started) as connection:
        with locked_tasks(database_url, f"{user}-slow") as wait_until_blocked:
            connection.sendall(first)
            wait_until_blocked()
            for _ in range(2):
                connection.sendall(smuggled_request(user))
                httpx2.get(f"{started.url}/health")  # when it is processed, so are the bytes before
        received = read_to_end(connection)
    assert_one_response(received)
    assert statuses(received) == [b"200"]
    assert_not_processed(started, user)


def test_a_request_before_an_upgrade_gets_its_response(started: Service, user: str) -> None:
    before = head(f"GET /api/{user}/tasks HTTP/1.1")
    received = exchange(started, [before + head("GET /health HTTP/1.1", *UPGRADE), smuggled_request(user)])
    assert statuses(received) == [b"200", b"200"]
    assert received.count(b"connection: close") == 1
    assert_not_processed(started, user)


def test_an_upgrade_without_a_token_closes_its_connection(database_url: str, user: str) -> None:
    with service(DATABASE_URL=database_url, AUTH_SECRET=SECRET) as started:
        for first in (head(f"GET /api/{user}/tasks HTTP/1.1", *UPGRADE), head("CONNECT /api/x HTTP/1.1")):
            received = exchange(started, [first, smuggled_request(user)])
            assert_one_response(received)
            assert statuses(received) == [b"401"]


def test_an_upgrade_above_the_concurrency_limit_closes_its_connection(database_url: str, user: str) -> None:
    with service("--limit-concurrency", "1", DATABASE_URL=database_url) as started:
        received = exchange(started, [head("GET /health HTTP/1.1", *UPGRADE), smuggled_request(user)])
        assert statuses(received) == [b"503"]
        assert b"\r\nconnection: close\r\n" in received


def test_a_request_without_an_upgrade_keeps_its_connection(started: Service) -> None:
    first, last = head("GET /health HTTP/1.1"), head("GET /health HTTP/1.1", "Connection: close")
    received = exchange(started, [first, last])
    assert statuses(received) == [b"200", b"200"]
    assert received.count(b"connection: close") == 1
