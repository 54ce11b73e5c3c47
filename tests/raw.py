"""HTTP as raw bytes, for tests of requests that no HTTP client would send."""

import re
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager

import psycopg2

from tests.servers import Service

BLOCKED = "SELECT FROM pg_locks WHERE NOT granted AND transactionid = pg_current_xact_id_if_assigned()::xid"


def connect(started: Service) -> socket.socket:
    """Return a connection to the service that sends each part in a packet of its own."""
    host, port = started.url.removeprefix("http://").split(":")
    connection = socket.create_connection((host, int(port)), 10)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def read_to_end(connection: socket.socket) -> bytes:
    """Return all bytes until the server closes or resets the connection. It resets it if it has unread input."""
    received = b""
    while True:
        try:
            data = connection.recv(65536)
        except ConnectionResetError:
            return received
        if not data:
            return received
        received += data


def statuses(received: bytes) -> list[bytes]:
    """Return the status of each response, except 100 Continue."""
    return [status for status in re.findall(rb"HTTP/1\.1 (\d{3}) ", received) if status != b"100"]


def exchange(started: Service, parts: Iterable[bytes], interval: float = 0.005) -> bytes:
    """Send the parts, `interval` seconds apart, and return the responses when the server closes the connection."""
    with connect(started) as connection:
        try:
            for part in parts:
                connection.sendall(part)
                time.sleep(interval)
        except (ConnectionResetError, BrokenPipeError):
            pass  # the server has closed the connection, and its responses can still be read
        return read_to_end(connection)


@contextmanager
def locked_tasks(database_url: str, user: str) -> Iterator[Callable[[], None]]:
    """Lock the user's tasks against changes. Yield a function that returns when a statement waits for the lock."""
    with closing(psycopg2.connect(database_url)) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT FROM tasks WHERE user_id = %s FOR UPDATE", [user])

        def wait_until_blocked() -> None:
            deadline = time.monotonic() + 10
            cursor.execute(BLOCKED)
            while not cursor.rowcount:
                assert time.monotonic() < deadline, "no statement waits for the lock"
                time.sleep(0.01)
                cursor.execute(BLOCKED)

        yield wait_until_blocked
