"""An HTTP/1.1 client on plain sockets: light enough for thousands of connections, and with access to the raw bytes."""

import asyncio
import json
import time
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

MEDIA_TYPE = "application/problem+json"


@dataclass(frozen=True)
class Response:
    """A response, the monotonic time at which its request was sent, and the seconds until it was complete."""

    status: int
    headers: dict[str, str]
    body: bytes
    sent_at: float
    seconds: float

    def json(self) -> Any:
        """Return the decoded body."""
        return json.loads(self.body)

    @property
    def version(self) -> int:
        """The version of the task, from the ETag."""
        return int(self.headers["etag"].strip('"'))


def address(url: str) -> tuple[str, int]:
    """Return the host and the port of a URL."""
    parts = urlsplit(url)
    assert parts.hostname
    assert parts.port
    return parts.hostname, parts.port


def request(method: str, path: str, body: object = None, **headers: str) -> bytes:
    """Return the bytes of a request. The keyword `if_match` becomes the header If-Match."""
    content = b"" if body is None else json.dumps(body).encode()
    lines = [f"{method} {path} HTTP/1.1", "Host: tasks"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    if body is not None:
        lines += ["Content-Type: application/json", f"Content-Length: {len(content)}"]
    return "\r\n".join([*lines, "", ""]).encode() + content


class Client:
    """A keep-alive connection, opened by the first request and again after the service has closed it."""

    def __init__(self, url: str) -> None:
        self._address = address(url)
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def open(self) -> None:
        """Open the connection, unless it is open."""
        if self._streams is None:
            self._streams = await asyncio.open_connection(*self._address)

    async def send(self, method: str, path: str, body: object = None, **headers: str) -> Response:
        """Send a request, check that the response follows the contract, and return it.

        Raises OSError when there is no connection, and EOFError when it is closed before the response.
        """
        sent_at = time.monotonic()
        await self.open()
        assert self._streams
        reader, writer = self._streams
        try:
            writer.write(request(method, path, body, **headers))
            status, received = await _read_head(reader)
            content = await reader.readexactly(int(received.get("content-length", "0")))
        except BaseException:
            self.close()
            raise
        if received.get("connection") == "close":
            self.close()
        response = Response(status, received, content, sent_at, time.monotonic() - sent_at)
        check_contract(response)
        return response

    def close(self) -> None:
        """Close the connection, even while a request is in flight."""
        if self._streams:
            self._streams[1].close()
            self._streams = None


async def _read_head(reader: asyncio.StreamReader) -> tuple[int, dict[str, str]]:
    first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")[:-2]
    pairs = (line.split(": ", 1) for line in lines)
    return int(first.split(" ")[1]), {name.lower(): value for name, value in pairs}


def check_contract(response: Response) -> None:
    """Assert that an error is a problem (RFC 9457) and no 500, and that a 503 has Retry-After (RFC 9110, 10.2.3)."""
    if response.status >= 400:
        assert response.status != 500, response
        assert response.headers["content-type"] == MEDIA_TYPE, response
        assert response.json()["status"] == response.status
    if response.status == 503:
        assert int(response.headers["retry-after"]) > 0, response


async def send_once(url: str, method: str, path: str, body: object = None, **headers: str) -> Response:
    """Send one request on a connection of its own."""
    client = Client(url)
    try:
        return await client.send(method, path, body, **headers)
    finally:
        client.close()
