"""One connection cannot take the memory: the head of a request and the line behind it have limits."""

import inspect
import json
import re
import time
from collections.abc import Iterator
from contextlib import closing

import httpx2
import psutil
import psycopg2
import pytest
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from protocol import MAX_HEAD_SIZE, MAX_PIPELINED, LimitedHttp
from schemas import Problem
from tests.raw import connect, exchange, read_to_end, statuses
from tests.servers import HERE, LIMITS, Service, service

OVER = MAX_HEAD_SIZE + 1000
UNDER = MAX_HEAD_SIZE - 1000
GROWTH = 30_000_000  # bytes; without a limit it was more than ten times this
LAST = b"GET /health HTTP/1.1\r\nConnection: close\r\n\r\n"
CHUNKED = b"POST /nothing HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.fixture(scope="module")
def started(database_url: str) -> Iterator[Service]:
    with service("--no-access-log", DATABASE_URL=database_url) as started:
        yield started
        assert not [line for line in started.log if "Traceback" in line or "ERROR" in line]


def long_head(part: str, size: int) -> bytes:
    """A head of some `size` bytes, most of which are in that part of it."""
    fill = b"x" * size
    return {
        "a value": b"GET /health HTTP/1.1\r\nConnection: close\r\nX: %s\r\n\r\n" % fill,
        "a name": b"GET /health HTTP/1.1\r\nConnection: close\r\n%s: x\r\n\r\n" % fill,
        "many lines": b"GET /health HTTP/1.1\r\nConnection: close\r\n%s\r\n" % (b"X: x\r\n" * (size // 6)),
        "the query": b"GET /health?%s HTTP/1.1\r\nConnection: close\r\n\r\n" % fill,
        "behind another": b"GET /health HTTP/1.1\r\n\r\nGET /health HTTP/1.1\r\nConnection: close\r\nX: %s\r\n\r\n"
        % fill,
    }[part]


def pieces(data: bytes, size: int) -> list[bytes]:
    return [data[start : start + size] for start in range(0, len(data), size)]


def hold_refused(received: bytes, status: int) -> None:
    """The last response is this problem, which ends the connection."""
    head, _, body = received[received.rindex(b"HTTP/1.1 ") :].partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % status), received[:200]
    assert b"content-type: application/problem+json\r\n" in head
    assert b"\r\nconnection: close" in head
    assert b"\r\nx-content-type-options: nosniff" in head
    assert b"\r\ncontent-length: %d" % len(body) in head
    assert Problem.model_validate(json.loads(body), strict=True).status == status


PARTS = ["a value", "a name", "many lines", "the query"]


@pytest.mark.parametrize("packet", [OVER * 2, 5000], ids=["in one packet", "in many packets"])
@pytest.mark.parametrize("part", PARTS)
def test_a_head_over_64_kib_is_431(started: Service, part: str, packet: int) -> None:
    hold_refused(exchange(started, pieces(long_head(part, OVER), packet), 0.002), 431)


@pytest.mark.parametrize("packet", [OVER * 2, 5000], ids=["in one packet", "in many packets"])
@pytest.mark.parametrize("part", [*PARTS, "behind another"])
def test_a_head_under_64_kib_is_read(started: Service, part: str, packet: int) -> None:
    found = statuses(exchange(started, pieces(long_head(part, UNDER), packet), 0.002))
    assert set(found) == {b"200"}
    assert len(found) == (2 if part == "behind another" else 1)


@pytest.mark.parametrize("packet", [OVER * 2, 5000], ids=["in one packet", "in many packets"])
def test_a_head_over_64_kib_behind_another_request_is_not_answered(started: Service, packet: int) -> None:
    received = exchange(started, pieces(long_head("behind another", OVER + packet), packet), 0.002)
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
def test_a_head_that_never_ends_takes_no_memory_and_ends(started: Service, first: bytes, more: bytes) -> None:
    process = psutil.Process(started.process.pid)
    before = process.memory_info().rss
    packet = more * (65536 // len(more))
    received = exchange(started, [first, *[packet] * 500], 0)
    assert process.memory_info().rss - before < GROWTH
    assert statuses(received)[-1:] in ([b"431"], [b"404"], [])  # it may still be sending when it is reset
    assert httpx2.get(f"{started.url}/health").status_code == 200


def test_a_head_that_never_ends_is_told_that_it_is_too_long(started: Service) -> None:
    hold_refused(exchange(started, [b"GET /a%20b?c HTTP/1.1\r\nX: ", *[b"x" * 5000] * 14], 0.002), 431)


def test_a_refusal_names_the_path_as_every_problem_does(started: Service) -> None:
    received = exchange(started, [b"GET /a%20b?c HTTP/1.1\r\nX: " + b"x" * OVER + b"\r\n\r\n"])
    assert json.loads(received.partition(b"\r\n\r\n")[2])["instance"] == "/a%20b"


def test_a_body_is_no_head(started: Service, user: str) -> None:
    """However it is cut, and whatever comes behind it."""
    body = b'{"title": "any"}'.ljust(300_000)
    for framing, content in (
        (b"Content-Length: %d" % len(body), body),
        (b"Transfer-Encoding: chunked", b"".join(b"64\r\n%s\r\n" % part for part in pieces(body, 100)) + b"0\r\n\r\n"),
    ):
        head = b"POST /api/%s/tasks HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n" % user.encode()
        head += b"X: " + b"x" * (UNDER - 1000) + b"\r\n" + framing + b"\r\n\r\n"
        for size in (1_000_000, 50_000):
            assert statuses(exchange(started, pieces(head + content + head + content + LAST, size))) == [
                b"201",
                b"201",
                b"200",
            ]


def test_many_heads_on_one_connection_are_each_counted_for_themselves(started: Service) -> None:
    head = b"GET /health HTTP/1.1\r\nX: " + b"x" * 3000 + b"\r\n\r\n"
    parts = [part for _ in range(60) for part in pieces(head, 1500)]
    assert statuses(exchange(started, [*parts, LAST])) == [b"200"] * 61


def test_trailers_are_no_headers(started: Service) -> None:
    received = exchange(started, [CHUNKED + b"0\r\nOrigin: http://localhost:3000\r\nX: x\r\n\r\n" + LAST])
    assert statuses(received) == [b"404", b"200"]
    assert b"access-control-allow-origin" not in received


def test_requests_that_wait_on_a_connection_are_few(started: Service) -> None:
    request = b"GET /health HTTP/1.1\r\n\r\n"
    assert statuses(exchange(started, [request * MAX_PIPELINED + LAST])) == [b"200"] * (MAX_PIPELINED + 1)
    assert len(statuses(exchange(started, [request * 1000]))) < 1000


def test_a_client_that_leaves_with_requests_in_line_is_no_error(started: Service, user: str, database_url: str) -> None:
    task = httpx2.post(f"{started.url}/api/{user}/tasks", json={"title": "any"}).json()
    slow = f"PATCH /api/{user}/tasks/{task['id']}/complete HTTP/1.1\r\nHost: x\r\n\r\n".encode()
    with closing(psycopg2.connect(database_url)) as other, other.cursor() as cursor:
        cursor.execute("SELECT FROM tasks WHERE user_id = %s FOR UPDATE", [user])
        with connect(started) as connection:
            connection.sendall(slow + LAST)
            time.sleep(1)
        time.sleep(1)
        other.rollback()
    while not httpx2.get(task["url"]).json()["completed"]:
        time.sleep(0.1)
    with connect(started) as connection:  # what is logged by then is in the log when this ends
        connection.sendall(b"nonsense\r\n\r\n")
        read_to_end(connection)
    assert not [line for line in started.log if "Traceback" in line]


def test_an_upgrade_has_its_response_whatever_follows_it(started: Service, user: str, database_url: str) -> None:
    task = httpx2.post(f"{started.url}/api/{user}/tasks", json={"title": "any"}).json()
    slow = f"PATCH /api/{user}/tasks/{task['id']}/complete HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: h2c"
    with closing(psycopg2.connect(database_url)) as other, other.cursor() as cursor:
        cursor.execute("SELECT FROM tasks WHERE user_id = %s FOR UPDATE", [user])
        with connect(started) as connection:
            connection.sendall(f"{slow}\r\n\r\n".encode())
            time.sleep(0.1)
            connection.sendall(b"nonsense\r\n\r\n")
            time.sleep(0.1)
            other.rollback()
            assert statuses(read_to_end(connection)) == [b"200"]


@pytest.mark.parametrize("body", [b"", b"{}"])
def test_a_client_that_sends_and_never_reads_takes_no_memory(started: Service, body: bytes) -> None:
    process = psutil.Process(started.process.pid)
    before = process.memory_info().rss
    request = b"POST /api/x/tasks HTTP/1.1\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
    exchange(started, [request * 1000] * 300, 0)
    assert process.memory_info().rss - before < GROWTH


def test_what_is_no_request_is_a_problem(started: Service) -> None:
    for nonsense in (b"nonsense\r\n\r\n", b"GET / HTTP/1.1\r\nX: a\0b\r\n\r\n", b"\x16\x03\x01\x00\xff"):
        hold_refused(exchange(started, [nonsense]), 400)


def test_nonsense_is_not_the_response_to_the_request_before_it(started: Service, user: str) -> None:
    before = b"GET /api/%s/tasks HTTP/1.1\r\nHost: x\r\n\r\n" % user.encode()
    with connect(started) as connection:
        connection.sendall(before + b"nonsense\r\n\r\n")
        assert b"400" not in statuses(read_to_end(connection))


def test_an_upgrade_to_websocket_is_a_request_like_others(started: Service) -> None:
    request = b"GET /nothing HTTP/1.1\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n"
    assert statuses(exchange(started, [request])) == [b"404"]


def test_the_installed_uvicorn_has_what_the_class_builds_on() -> None:
    """The behaviour is tested above; this names what a new uvicorn has taken away."""
    own = {name for name, value in vars(LimitedHttp).items() if inspect.isfunction(value)}
    assert own - set(dir(HttpToolsProtocol)) == {"_head_size", "on_chunk_complete"}
    source = inspect.getsource(HttpToolsProtocol)
    for name in ("url", "headers", "pipeline", "cycle", "transport", "server_state", "ws_protocol_class"):
        assert f"self.{name}" in source, name
    assert list(inspect.signature(HttpToolsProtocol.send_400_response).parameters) == ["self", "msg"]


@pytest.mark.parametrize("file", ["README.md", "Makefile", "Dockerfile", "docs/operations.md"])
def test_every_command_that_is_given_has_the_limits(file: str) -> None:
    text = re.sub(r'", "', " ", (HERE / file).read_text())
    commands = re.findall(r"uvicorn main:app.*", text)
    assert commands
    assert all(" ".join(LIMITS) in command for command in commands), commands
