"""Clients that send at moments which are fixed beforehand, whether or not the program keeps up.

So a program that stalls cannot hide it by being asked less. A time runs from the moment at which
the request was due.
"""

import asyncio
import random
import re
import time
from dataclasses import dataclass

BODY = b'{"title": "Buy milk", "priority": "high", "tags": ["home"]}'


@dataclass
class Outcome:
    """What came of a request: `status` is 0 when its client gave up, and -1 when the connection broke."""

    due: float  # seconds since the begin
    seconds: float
    status: int


class Client:
    """One connection, which is opened anew where it was lost."""

    def __init__(self, url: str, patience: float) -> None:
        """Send to `url`, and give up and close the connection after `patience` seconds."""
        self._host, _, self._port = url.removeprefix("http://").partition(":")
        self._patience = patience
        self._writer: asyncio.StreamWriter | None = None

    async def send(self, begin: float, due: float, method: str, path: str, body: bytes = b"") -> Outcome:
        """Wait until the request is due and send it."""
        await asyncio.sleep(begin + due - time.monotonic())
        try:
            async with asyncio.timeout_at(begin + due + self._patience):
                status = await self._exchange(method, path, body)
        except (OSError, EOFError) as error:  # TimeoutError is an OSError
            status = 0 if isinstance(error, TimeoutError) else -1
            self.close()
        return Outcome(due, time.monotonic() - begin - due, status)

    async def _exchange(self, method: str, path: str, body: bytes) -> int:
        if self._writer is None:
            self._reader, self._writer = await asyncio.open_connection(self._host, int(self._port))
        head = f"{method} {path} HTTP/1.1\r\nHost: {self._host}:{self._port}\r\n"
        if body:
            head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        self._writer.write(head.encode() + b"\r\n" + body)
        answer = await self._reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"(?i)content-length: (\d+)", answer)
        await self._reader.readexactly(int(length[1]) if length else 0)
        if re.search(rb"(?i)connection: close", answer):
            self.close()
        return int(answer.split(b" ", 2)[1])

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None


async def thousand_users(url: str, sample: list[tuple[str, str]], users: int, seconds: int) -> list[Outcome]:
    """Let 1,000 users send one request of the mix a second, each at a moment of their own."""
    begin = time.monotonic() + 1
    random_ = random.Random(1)  # noqa: S311

    async def user(offset: float) -> list[Outcome]:
        client = Client(url, patience=10)
        outcomes = []
        for second in range(seconds):
            owner, task = random_.choice(sample)
            one = f"/api/{owner}/tasks/{task}"
            some = f"/api/user-{random_.randrange(users)}/tasks?limit=20"
            kinds = [("GET", some)] * 6 + [("GET", one)] * 2 + [("PATCH", f"{one}/complete")]
            kinds.append(("POST", f"/api/writer-{random_.randrange(1000)}/tasks"))
            method, path = random_.choice(kinds)
            body = BODY if method == "POST" else b""
            outcomes.append(await client.send(begin, offset + second, method, path, body))
        client.close()
        return outcomes

    everybody = await asyncio.gather(*(user(random_.random()) for _ in range(1000)))
    return [outcome for outcomes in everybody for outcome in outcomes]
