"""HTTP as bytes, for what no client would send."""

import re
import socket
import time
from collections.abc import Iterable

from tests.servers import Service


def connect(started: Service) -> socket.socket:
    """A connection that sends each packet at once."""
    host, port = started.url.removeprefix("http://").split(":")
    connection = socket.create_connection((host, int(port)), 10)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def read_to_end(connection: socket.socket) -> bytes:
    """All that comes until the server closes, be it with a reset because there was more to read."""
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
    return [status for status in re.findall(rb"HTTP/1\.1 (\d{3}) ", received) if status != b"100"]


def exchange(started: Service, parts: Iterable[bytes], pause: float = 0.005) -> bytes:
    """Send the parts in packets of their own, until the server closes; return all that it answers."""
    with connect(started) as connection:
        try:
            for part in parts:
                connection.sendall(part)
                time.sleep(pause)
        except (ConnectionResetError, BrokenPipeError):
            pass  # it has been closed: what was answered before can still be read
        return read_to_end(connection)
