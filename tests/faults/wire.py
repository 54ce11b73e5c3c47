"""HTTP/1.1 by hand: clients light enough for thousands of them, and rude where a test wants them so."""

import asyncio
import json
import time
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

MEDIA_TYPE = "application/problem+json"


@dataclass(frozen=True)
class Answer:
    """What the service answered, when it was asked (monotonic), and how many seconds it took."""

    status: int
    headers: dict[str, str]
    body: bytes
    asked: float
    seconds: float

    def json(self) -> Any:
        """The body, decoded."""
        return json.loads(self.body)

    @property
    def version(self) -> int:
        """The version of the task, from its ETag."""
        return int(self.headers["etag"].strip('"'))


def address(url: str) -> tuple[str, int]:
    """Host and port of the service."""
    parts = urlsplit(url)
    assert parts.hostname
    assert parts.port
    return parts.hostname, parts.port


def request(method: str, path: str, body: object = None, **headers: str) -> bytes:
    """A request as it goes over the wire. `if_match="1"` is the header If-Match."""
    content = b"" if body is None else json.dumps(body).encode()
    lines = [f"{method} {path} HTTP/1.1", "Host: tasks"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    if body is not None:
        lines += ["Content-Type: application/json", f"Content-Length: {len(content)}"]
    return "\r\n".join([*lines, "", ""]).encode() + content


class Client:
    """One connection, opened when it is needed and used for as long as the service keeps it."""

    def __init__(self, url: str) -> None:
        self._address = address(url)
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def open(self) -> None:
        """Open the connection, unless it is open."""
        if self._streams is None:
            self._streams = await asyncio.open_connection(*self._address)

    async def ask(self, method: str, path: str, body: object = None, **headers: str) -> Answer:
        """Send a request and return the answer, which must be one that the contract allows.

        Raises OSError when there is no connection, and EOFError when it ends before the answer.
        """
        asked = time.monotonic()
        await self.open()
        assert self._streams
        reader, writer = self._streams
        try:
            writer.write(request(method, path, body, **headers))
            status, received = await _head(reader)
            content = await reader.readexactly(int(received.get("content-length", "0")))
        except BaseException:
            self.close()
            raise
        if received.get("connection") == "close":
            self.close()
        answer = Answer(status, received, content, asked, time.monotonic() - asked)
        hold_to_contract(answer)
        return answer

    def close(self) -> None:
        """Close the connection, with whatever is under way."""
        if self._streams:
            self._streams[1].close()
            self._streams = None


async def _head(reader: asyncio.StreamReader) -> tuple[int, dict[str, str]]:
    first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")[:-2]
    pairs = (line.split(": ", 1) for line in lines)
    return int(first.split(" ")[1]), {name.lower(): value for name, value in pairs}


def hold_to_contract(answer: Answer) -> None:
    """A failure is a problem, and one that may be over soon says when to try again."""
    if answer.status >= 400:
        assert answer.status != 500, answer
        assert answer.headers["content-type"] == MEDIA_TYPE, answer
        assert answer.json()["status"] == answer.status
    if answer.status == 503:
        assert int(answer.headers["retry-after"]) > 0, answer


async def once(url: str, method: str, path: str, body: object = None, **headers: str) -> Answer:
    """Ask on a connection that is closed afterwards."""
    client = Client(url)
    try:
        return await client.ask(method, path, body, **headers)
    finally:
        client.close()
