"""Clients that send on a fixed schedule (an open workload), whether or not the program keeps up.

So a program that stalls receives no fewer requests. Latencies count from the time at which the
request was due.
"""

import asyncio
import random
import re
import time
from dataclasses import dataclass

BODY = b'{"title": "Buy milk", "priority": "high", "tags": ["home"]}'


@dataclass
class Outcome:
    """The outcome of a request. `status` is 0 after a timeout of the client, and -1 after a connection error."""

    due: float  # seconds since the start of the load
    seconds: float
    status: int


class Client:
    """A keep-alive connection, opened again after it was closed."""

    def __init__(self, url: str, timeout: float) -> None:
        """Send to `url`. A request that takes longer than `timeout` seconds closes the connection."""
        self._host, _, self._port = url.removeprefix("http://").partition(":")
        self._timeout = timeout
        self._writer: asyncio.StreamWriter | None = None

    async def send(self, begin: float, due: float, method: str, path: str, body: bytes = b"") -> Outcome:
        """Send the request when it is due, `due` seconds after the monotonic time `begin`."""
        await asyncio.sleep(begin + due - time.monotonic())
        try:
            async with asyncio.timeout_at(begin + due + self._timeout):
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
        response_head = await self._reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"(?i)content-length: (\d+)", response_head)
        await self._reader.readexactly(int(length[1]) if length else 0)
        if re.search(rb"(?i)connection: close", response_head):
            self.close()
        return int(response_head.split(b" ", 2)[1])

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None


async def thousand_users(url: str, sample: list[tuple[str, str]], users: int, seconds: int) -> list[Outcome]:
    """Let 1,000 users send one request of the mix a second, at different times within the second."""
    begin = time.monotonic() + 1
    random_ = random.Random(1)  # noqa: S311  # repeatable data

    async def user(offset: float) -> list[Outcome]:
        client = Client(url, timeout=10)
        outcomes = []
        for second in range(seconds):
            owner, task = random_.choice(sample)
            task_path = f"/api/{owner}/tasks/{task}"
            list_path = f"/api/user-{random_.randrange(users)}/tasks?limit=20"
            kinds = [("GET", list_path)] * 6 + [("GET", task_path)] * 2 + [("PATCH", f"{task_path}/complete")]
            kinds.append(("POST", f"/api/writer-{random_.randrange(1000)}/tasks"))
            method, path = random_.choice(kinds)
            body = BODY if method == "POST" else b""
            outcomes.append(await client.send(begin, offset + second, method, path, body))
        client.close()
        return outcomes

    by_user = await asyncio.gather(*(user(random_.random()) for _ in range(1000)))
    return [outcome for outcomes in by_user for outcome in outcomes]
