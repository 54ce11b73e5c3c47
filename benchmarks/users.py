"""1,000 users who each send one request of the mix a second: run by `loads.thousand_users`.

The moments at which they send are fixed beforehand, spread over the second, and a request's time
runs from its moment, also when the user still waits for the answer before it. So a program that
stalls cannot hide it by being asked less.
"""

import asyncio
import json
import random
import re
import statistics
import sys
import time
from collections import Counter
from pathlib import Path

import uvloop

USERS, TIMEOUT = 1000, 10
BODY = b'{"title": "Buy milk", "priority": "high", "tags": ["home"]}'


class Users:
    """All of them, and what they have seen."""

    def __init__(self, url: str, sample: Path, users: int, seconds: int) -> None:
        self.host, port = url.removeprefix("http://").split(":")
        self.port, self.users, self.seconds = int(port), users, seconds
        self.tasks = [f"/api/{user}/tasks/{task}" for user, task in map(str.split, sample.read_text().splitlines())]
        self.times: list[float] = []
        self.errors: Counter[str] = Counter()

    def request(self) -> bytes:
        dice = random.random()  # noqa: S311
        some_task = random.choice(self.tasks)  # noqa: S311
        if dice < 0.6:
            return self.packed("GET", f"/api/user-{random.randrange(self.users)}/tasks?limit=20")  # noqa: S311
        if dice < 0.8:
            return self.packed("GET", some_task)
        if dice < 0.9:
            return self.packed("POST", f"/api/writer-{random.randrange(1000)}/tasks", BODY)  # noqa: S311
        return self.packed("PATCH", some_task + "/complete")

    def packed(self, method: str, path: str, body: bytes = b"") -> bytes:
        head = f"{method} {path} HTTP/1.1\r\nHost: {self.host}:{self.port}\r\n"
        if body:
            head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        return head.encode() + b"\r\n" + body

    async def user(self, begin: float) -> None:
        link = None
        for number in range(self.seconds):
            moment = begin + number
            await asyncio.sleep(moment - time.monotonic())
            try:
                async with asyncio.timeout_at(moment + TIMEOUT):
                    link = link or await asyncio.open_connection(self.host, self.port)
                    reader, writer = link
                    writer.write(self.request())
                    head = await reader.readuntil(b"\r\n\r\n")
                    length = re.search(rb"(?i)content-length: (\d+)", head)
                    await reader.readexactly(int(length[1]) if length else 0)
                    if not head.split(b" ", 2)[1].startswith(b"2"):
                        self.errors["status"] += 1
                    if re.search(rb"(?i)connection: close", head):
                        writer.close()
                        link = None
            except (OSError, EOFError, TimeoutError) as error:
                self.errors["timeout" if isinstance(error, TimeoutError) else "socket"] += 1
                if link:
                    link[1].close()
                link = None
            else:
                self.times.append((time.monotonic() - moment) * 1000)

    async def run(self) -> None:
        begin = time.monotonic() + 1
        await asyncio.gather(*(self.user(begin + random.random()) for _ in range(USERS)))  # noqa: S311


def main() -> None:
    url, sample, users, seconds = sys.argv[1:]
    everybody = Users(url, Path(sample), int(users), int(seconds))
    uvloop.run(everybody.run())
    cuts = statistics.quantiles(everybody.times, n=100) if len(everybody.times) > 1 else [0.0] * 99
    report = {
        "requests": len(everybody.times),
        "milliseconds": {"p50": cuts[49], "p95": cuts[94], "p99": cuts[98], "max": max(everybody.times, default=0)},
        "errors": dict(everybody.errors),
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
