"""Nothing that follows an Upgrade or a CONNECT is taken for another request: raw bytes against the real server."""

import time
from collections.abc import Iterator
from contextlib import closing

import httpx2
import psycopg2
import pytest

from tests.raw import connect, exchange, read_to_end, statuses
from tests.servers import LIMITS, ON_A_FREE_PORT, Service, service

SECRET = "a shared secret, long enough for HS256"  # noqa: S105


@pytest.fixture(scope="module", params=["as documented", "bare"])
def started(database_url: str, request: pytest.FixtureRequest) -> Iterator[Service]:
    """The service with its own protocol class and without: the promise needs none."""
    command = [part for part in ON_A_FREE_PORT if request.param != "bare" or part not in LIMITS]
    with service("--no-access-log", command=command, DATABASE_URL=database_url, AUTH_SECRET="") as started:
        yield started
        assert not [line for line in started.log if "Traceback" in line or "ERROR" in line]


def smuggled(user: str) -> bytes:
    """A request that leaves a trace when it is run."""
    body = b'{"title": "smuggled"}'
    head = f"POST /api/{user}/tasks HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


def head(first: str, *lines: str) -> bytes:
    return "\r\n".join([first, "Host: x", *lines, "", ""]).encode()


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
    "last of all, twice": head(
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
    "a method that is not there": head("PUT /health HTTP/1.1", *UPGRADE, "Content-Length: {length}"),
    "a path that is refused": head("GET /api/%FF/tasks HTTP/1.1", *UPGRADE, "Content-Length: {length}"),
    "a preflight": head(
        "OPTIONS /api/{user}/tasks HTTP/1.1", "Origin: http://localhost:3000", "Access-Control-Request-Method: POST",
        *UPGRADE, "Content-Length: {length}",
    ),
    "a body that is too large": head("POST /api/{user}/tasks HTTP/1.1", *UPGRADE, "Content-Length: 9999999"),
    "CONNECT to a path": head("CONNECT /api/{user}/tasks HTTP/1.1", "Content-Length: {length}"),
    "CONNECT to a host": head("CONNECT localhost:80 HTTP/1.1"),
}  # fmt: skip


def cut(first: bytes, second: bytes, way: str) -> list[bytes]:
    """The bytes of both, in packets that end at an awkward place."""
    whole = first + second
    ends = {
        "between head and body": [len(first)],
        "within the head": [len(first) - 3, len(first) + 30],
        "before the last byte of the head": [len(first) - 1],
        "after the first byte of the body": [len(first) + 1],
        "within the smuggled line": [len(first), len(first) + 9],
        "within the smuggled head": [len(first) + 40],
        "within the smuggled body": [len(first), len(whole) - 4],
        "nowhere": [],
    }[way]
    return [whole[start:end] for start, end in zip([0, *ends], [*ends, None], strict=True)]


WAYS = [
    "between head and body", "within the head", "before the last byte of the head", "after the first byte of the body",
    "within the smuggled line", "within the smuggled head", "within the smuggled body", "nowhere",
]  # fmt: skip


def hold_one_response(received: bytes) -> None:
    """One response, which is no error of the service and ends the connection."""
    assert len(statuses(received)) == 1, received
    assert statuses(received)[0] < b"500", received
    assert b"\r\nconnection: close\r\n" in received, received


def hold_untouched(started: Service, user: str) -> None:
    """No smuggled request was run."""
    assert httpx2.get(f"{started.url}/api/{user}/tasks").json() == []


@pytest.mark.parametrize("form", HEADS)
def test_an_upgrade_ends_its_connection_and_its_body_is_not_answered(started: Service, user: str, form: str) -> None:
    body = smuggled(user)
    first = HEADS[form].replace(b"{user}", user.encode()).replace(b"{length}", str(len(body)).encode())
    for way in WAYS:
        hold_one_response(exchange(started, cut(first, body, way)))
    hold_untouched(started, user)


@pytest.mark.parametrize("form", ["websocket", "without a length", "chunked", "CONNECT to a path"])
def test_an_upgrade_that_arrives_byte_by_byte_is_answered_alone(started: Service, user: str, form: str) -> None:
    body = smuggled(user)
    first = HEADS[form].replace(b"{user}", user.encode()).replace(b"{length}", str(len(body)).encode())
    hold_one_response(exchange(started, [bytes([byte]) for byte in first + body], pause=0.001))
    hold_untouched(started, user)


def test_what_follows_an_upgrade_is_dropped_while_its_response_is_made(
    started: Service, user: str, database_url: str
) -> None:
    task = httpx2.post(f"{started.url}/api/{user}-slow/tasks", json={"title": "any"}).json()
    first = head(f"PATCH /api/{user}-slow/tasks/{task['id']}/complete HTTP/1.1", *UPGRADE)
    with closing(psycopg2.connect(database_url)) as other, other.cursor() as cursor:
        cursor.execute("SELECT FROM tasks WHERE user_id = %s FOR UPDATE", [f"{user}-slow"])
        with connect(started) as connection:
            for part in (first, smuggled(user), smuggled(user)):
                connection.sendall(part)
                time.sleep(0.1)
            other.rollback()
            received = read_to_end(connection)
    hold_one_response(received)
    assert statuses(received) == [b"200"]
    hold_untouched(started, user)


def test_a_request_before_an_upgrade_on_its_connection_is_answered(started: Service, user: str) -> None:
    before = head(f"GET /api/{user}/tasks HTTP/1.1")
    received = exchange(started, [before + head("GET /health HTTP/1.1", *UPGRADE), smuggled(user)])
    assert statuses(received) == [b"200", b"200"]
    assert received.count(b"connection: close") == 1
    hold_untouched(started, user)


def test_an_upgrade_without_a_token_ends_its_connection(database_url: str, user: str) -> None:
    with service(DATABASE_URL=database_url, AUTH_SECRET=SECRET) as started:
        for first in (head(f"GET /api/{user}/tasks HTTP/1.1", *UPGRADE), head("CONNECT /api/x HTTP/1.1")):
            received = exchange(started, [first, smuggled(user)])
            hold_one_response(received)
            assert statuses(received) == [b"401"]


def test_an_upgrade_above_the_limit_of_requests_ends_its_connection(database_url: str, user: str) -> None:
    with service("--limit-concurrency", "1", DATABASE_URL=database_url) as started:
        received = exchange(started, [head("GET /health HTTP/1.1", *UPGRADE), smuggled(user)])
        assert statuses(received) == [b"503"]
        assert b"\r\nconnection: close\r\n" in received


def test_a_request_that_upgrades_nothing_keeps_its_connection(started: Service) -> None:
    ask, last = head("GET /health HTTP/1.1"), head("GET /health HTTP/1.1", "Connection: close")
    received = exchange(started, [ask, last])
    assert statuses(received) == [b"200", b"200"]
    assert received.count(b"connection: close") == 1
