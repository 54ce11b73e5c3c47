"""The limits of one connection: the size of a request's head, and the number of pipelined requests."""

import inspect
import json
import re
import time
from collections.abc import Iterator

import httpx2
import psutil
import pytest
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from protocol import MAX_HEAD_SIZE, MAX_PIPELINED, LimitedHttp
from schemas import Problem
from tests.raw import connect, exchange, locked_tasks, read_to_end, statuses
from tests.servers import HERE, LIMITS, Service, service

TOO_LARGE = MAX_HEAD_SIZE + 1000
ALLOWED = MAX_HEAD_SIZE - 1000
MAX_GROWTH = 30_000_000  # bytes of memory; without the limits it was more than ten times this
LAST = b"GET /health HTTP/1.1\r\nConnection: close\r\n\r\n"
CHUNKED = b"POST /nothing HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.fixture(scope="module")
def started(database_url: str) -> Iterator[Service]:
    with service("--no-access-log", DATABASE_URL=database_url) as started:
        yield started
        assert not [line for line in started.log if "Traceback" in line or "ERROR" in line]


def long_head(part: str, size: int) -> bytes:
    """Return a request whose head has about `size` bytes, most of them in this part."""
    filler = b"x" * size
    return {
        "a value": b"GET /health HTTP/1.1\r\nConnection: close\r\nX: %s\r\n\r\n" % filler,
        "a name": b"GET /health HTTP/1.1\r\nConnection: close\r\n%s: x\r\n\r\n" % filler,
        "many lines": b"GET /health HTTP/1.1\r\nConnection: close\r\n%s\r\n" % (b"X: x\r\n" * (size // 6)),
        "the query": b"GET /health?%s HTTP/1.1\r\nConnection: close\r\n\r\n" % filler,
        "behind another": b"GET /health HTTP/1.1\r\n\r\nGET /health HTTP/1.1\r\nConnection: close\r\nX: %s\r\n\r\n"
        % filler,
    }[part]


def split(data: bytes, size: int) -> list[bytes]:
    return [data[start : start + size] for start in range(0, len(data), size)]


def assert_rejected(received: bytes, status: int) -> None:
    """Assert that the last response is a problem with this status that closes the connection."""
    head, _, body = received[received.rindex(b"HTTP/1.1 ") :].partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % status), received[:200]
    assert b"content-type: application/problem+json\r\n" in head
    assert b"\r\nconnection: close" in head
    assert b"\r\nx-content-type-options: nosniff" in head
    assert b"\r\ncontent-length: %d" % len(body) in head
    assert Problem.model_validate(json.loads(body), strict=True).status == status


PARTS = ["a value", "a name", "many lines", "the query"]


@pytest.mark.parametrize("packet", [TOO_LARGE * 2, 5000], ids=["in one packet", "in many packets"])
@pytest.mark.parametrize("part", PARTS)
def test_a_head_over_64_kib_is_431(started: Service, part: str, packet: int) -> None:
    assert_rejected(exchange(started, split(long_head(part, TOO_LARGE), packet), 0.002), 431)


@pytest.mark.parametrize("packet", [TOO_LARGE * 2, 5000], ids=["in one packet", "in many packets"])
@pytest.mark.parametrize("part", [*PARTS, "behind another"])
def test_a_head_under_64_kib_is_accepted(started: Service, part: str, packet: int) -> None:
    received_statuses = statuses(exchange(started, split(long_head(part, ALLOWED), packet), 0.002))
    assert set(received_statuses) == {b"200"}
    assert len(received_statuses) == (2 if part == "behind another" else 1)


@pytest.mark.parametrize("packet", [TOO_LARGE * 2, 5000], ids=["in one packet", "in many packets"])
def test_a_large_head_after_another_request_is_not_processed(started: Service, packet: int) -> None:
    # Such a head may exceed the limit by what the server reads at once with the end of the request before it.
    received = exchange(started, split(long_head("behind another", TOO_LARGE + 256 * 1024), packet), 0.002)
    assert statuses(received) in ([], [b"200"], [b"200", b"431"])


@pytest.mark.parametrize(
    ("first", "more"),
    [
        (b"GET /health HTTP/1.1\r\nX: ", b"x"),
        (b"GET /health HTTP/1.1\r\nX: ", b" "),
        (b"GET /health HTTP/1.1\r\n", b"x"),
        (b"GET /health HTTP/1.1\r\n", b"X: x\r\n"),
        (b"GET /", b"x"),
        (b"", b"\r\n"),
        (CHUNKED + b"1\r\nx\r\n0\r\n", b"X: x\r\n"),
        (CHUNKED + b"1\r\nx\r\n0\r\nX: ", b"x"),
        (CHUNKED + b"1;", b"x"),
    ],
    ids=["value", "blanks", "name", "lines", "path", "blank lines", "trailers", "trailer", "chunk extension"],
)
def test_an_endless_head_uses_little_memory_and_is_cut_off(started: Service, first: bytes, more: bytes) -> None:
    process = psutil.Process(started.process.pid)
    before = process.memory_info().rss
    packet = more * (65536 // len(more))
    received = exchange(started, [first, *[packet] * 500], 0)
    assert process.memory_info().rss - before < MAX_GROWTH
    assert statuses(received)[-1:] in ([b"431"], [b"404"], [])  # a reset may discard the response
    assert httpx2.get(f"{started.url}/health").status_code == 200


def test_an_endless_head_is_431(started: Service) -> None:
    assert_rejected(exchange(started, [b"GET /a%20b?c HTTP/1.1\r\nX: ", *[b"x" * 5000] * 14], 0.002), 431)


def test_a_431_has_the_path_as_instance(started: Service) -> None:
    received = exchange(started, [b"GET /a%20b?c HTTP/1.1\r\nX: " + b"x" * TOO_LARGE + b"\r\n\r\n"])
    assert json.loads(received.partition(b"\r\n\r\n")[2])["instance"] == "/a%20b"


def test_a_body_does_not_count_as_part_of_a_head(started: Service, user: str) -> None:
    body = b'{"title": "any"}'.ljust(300_000)
    for framing, content in (
        (b"Content-Length: %d" % len(body), body),
        (b"Transfer-Encoding: chunked", b"".join(b"64\r\n%s\r\n" % part for part in split(body, 100)) + b"0\r\n\r\n"),
    ):
        head = b"POST /api/%s/tasks HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n" % user.encode()
        head += b"X: " + b"x" * (ALLOWED - 1000) + b"\r\n" + framing + b"\r\n\r\n"
        for size in (1_000_000, 50_000):
            assert statuses(exchange(started, split(head + content + head + content + LAST, size))) == [
                b"201",
                b"201",
                b"200",
            ]


def test_each_head_on_a_connection_is_counted_separately(started: Service) -> None:
    head = b"GET /health HTTP/1.1\r\nX: " + b"x" * 3000 + b"\r\n\r\n"
    parts = [part for _ in range(60) for part in split(head, 1500)]
    assert statuses(exchange(started, [*parts, LAST])) == [b"200"] * 61


def test_trailers_are_not_used_as_headers(started: Service) -> None:
    received = exchange(started, [CHUNKED + b"0\r\nOrigin: http://localhost:3000\r\nX: x\r\n\r\n" + LAST])
    assert statuses(received) == [b"404", b"200"]
    assert b"access-control-allow-origin" not in received


def test_the_number_of_pipelined_requests_is_limited(started: Service) -> None:
    request = b"GET /health HTTP/1.1\r\n\r\n"
    assert statuses(exchange(started, [request * MAX_PIPELINED + LAST])) == [b"200"] * (MAX_PIPELINED + 1)
    assert len(statuses(exchange(started, [request * 1000]))) < 1000


def slow_request(started: Service, user: str, *lines: str) -> bytes:
    """Return a request that changes a new task, and waits while the user's tasks are locked."""
    task = httpx2.post(f"{started.url}/api/{user}/tasks", json={"title": "any"}).json()
    path = f"/api/{user}/tasks/{task['id']}/complete"
    return "\r\n".join([f"PATCH {path} HTTP/1.1", "Host: x", *lines, "", ""]).encode()


def test_a_disconnect_with_pipelined_requests_is_no_error(user: str, database_url: str) -> None:
    with service("--no-access-log", DATABASE_URL=database_url, DATABASE_POOL_SIZE="1") as started:
        slow = slow_request(started, user)
        with connect(started) as other, locked_tasks(database_url, user) as wait_until_blocked:
            other.sendall(slow)
            wait_until_blocked()
            with connect(started) as connection:
                connection.sendall(slow + LAST)
                # uvicorn pauses reading while a pipelined request waits. It resumes when the service checks for a
                # disconnect, which it does after 0.1 seconds in the queue.
                time.sleep(1)
        started.stop()
    assert not [line for line in started.log if "Traceback" in line]


def test_an_upgrade_followed_by_other_bytes_gets_its_response(started: Service, user: str, database_url: str) -> None:
    slow = slow_request(started, user, "Connection: upgrade", "Upgrade: h2c")
    with connect(started) as connection:
        with locked_tasks(database_url, user) as wait_until_blocked:
            connection.sendall(slow)
            wait_until_blocked()
            connection.sendall(b"nonsense\r\n\r\n")
            httpx2.get(f"{started.url}/health")  # when it is processed, so are the bytes before
        assert statuses(read_to_end(connection)) == [b"200"]


@pytest.mark.parametrize("body", [b"", b"{}"])
def test_a_client_that_never_reads_uses_little_memory(started: Service, body: bytes) -> None:
    process = psutil.Process(started.process.pid)
    before = process.memory_info().rss
    request = b"POST /api/x/tasks HTTP/1.1\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
    exchange(started, [request * 1000] * 300, 0)
    assert process.memory_info().rss - before < MAX_GROWTH


def test_invalid_http_is_a_problem(started: Service) -> None:
    for nonsense in (b"nonsense\r\n\r\n", b"GET / HTTP/1.1\r\nX: a\0b\r\n\r\n", b"\x16\x03\x01\x00\xff"):
        assert_rejected(exchange(started, [nonsense]), 400)


def test_invalid_http_is_not_the_response_to_an_earlier_request(started: Service, user: str) -> None:
    before = b"GET /api/%s/tasks HTTP/1.1\r\nHost: x\r\n\r\n" % user.encode()
    with connect(started) as connection:
        connection.sendall(before + b"nonsense\r\n\r\n")
        assert b"400" not in statuses(read_to_end(connection))


def test_an_upgrade_to_websocket_is_processed_as_an_ordinary_request(started: Service) -> None:
    request = b"GET /nothing HTTP/1.1\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n"
    assert statuses(exchange(started, [request])) == [b"404"]


def test_the_installed_uvicorn_has_the_attributes_that_are_used() -> None:
    """Name an attribute that a new release of uvicorn has removed. The other tests cover the behaviour."""
    own = {name for name, value in vars(LimitedHttp).items() if inspect.isfunction(value)}
    assert own - set(dir(HttpToolsProtocol)) == {"_head_size", "on_chunk_complete"}
    source = inspect.getsource(HttpToolsProtocol)
    for name in ("url", "headers", "pipeline", "cycle", "transport", "server_state", "ws_protocol_class"):
        assert f"self.{name}" in source, name
    assert list(inspect.signature(HttpToolsProtocol.send_400_response).parameters) == ["self", "msg"]


@pytest.mark.parametrize("file", ["README.md", "Makefile", "deploy/tasks@.service", "docs/operations.md"])
def test_every_documented_command_has_the_limits(file: str) -> None:
    text = re.sub(r'", "', " ", (HERE / file).read_text())
    commands = re.findall(r"uvicorn main:app.*", text)
    assert commands
    assert all(" ".join(LIMITS) in command for command in commands), commands
