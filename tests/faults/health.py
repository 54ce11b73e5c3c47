"""How long /health takes, asked from a process of its own, so that busy clients do not count.

As a program it asks the service of its argument twenty times a second, whether the last one has
been answered or not: what waits longest must count as often as what is quick. It does so until
its input ends, for a minute at most, and writes a list of (when asked, seconds taken).
"""

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from tests.faults.wire import Answer, Client

PAUSE = 0.05  # seconds


@contextmanager
def watched(url: str) -> Iterator[list[tuple[float, float]]]:
    """Measure inside of the block; afterwards the list holds what was measured."""
    times: list[tuple[float, float]] = []
    command = [sys.executable, "-m", "tests.faults.health", url]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        try:
            assert process.stdout.readline() == "begun\n"
            yield times
        finally:
            written, _ = process.communicate(timeout=60)
        times += [(asked, seconds) for asked, seconds in json.loads(written)]


async def main(url: str) -> None:
    idle: list[Client] = []

    async def ask() -> Answer:
        client = idle.pop() if idle else Client(url)
        answer = await client.ask("GET", "/health")
        idle.append(client)
        return answer

    await ask()
    print("begun", flush=True)
    end = asyncio.ensure_future(asyncio.to_thread(sys.stdin.read))
    asked = []
    for _ in range(int(60 / PAUSE)):
        asked.append(asyncio.ensure_future(ask()))
        await asyncio.wait([end], timeout=PAUSE)
        if end.done():
            break
    answers = await asyncio.gather(*asked)
    assert {answer.status for answer in answers} <= {200}
    for client in idle:
        client.close()
    print(json.dumps([(answer.asked, answer.seconds) for answer in answers]))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
