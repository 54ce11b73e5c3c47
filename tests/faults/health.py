"""Measure the response times of /health from a separate process, so that busy test clients do not distort them.

As a program it sends 20 requests a second to the service at the URL in its argument, each on time
even when earlier ones are still waiting, so that slow responses are not undercounted. It stops
when its standard input is closed, or after a minute, and prints a JSON list of pairs (monotonic
time of sending, seconds).
"""

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from tests.faults.wire import Client, Response

INTERVAL = 0.05  # seconds
DURATION = 60  # seconds, the maximum


@contextmanager
def measured_health(url: str) -> Iterator[list[tuple[float, float]]]:
    """Measure during the block; the yielded list is filled when the block ends."""
    times: list[tuple[float, float]] = []
    command = [sys.executable, "-m", "tests.faults.health", url]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        try:
            assert process.stdout.readline() == "started\n"
            yield times
        finally:
            output, _ = process.communicate(timeout=60)
        times += [(sent_at, seconds) for sent_at, seconds in json.loads(output)]


async def main(url: str) -> None:
    idle: list[Client] = []

    async def send() -> Response:
        client = idle.pop() if idle else Client(url)
        response = await client.send("GET", "/health")
        idle.append(client)
        return response

    await send()
    print("started", flush=True)
    end = asyncio.ensure_future(asyncio.to_thread(sys.stdin.read))
    requests = []
    for _ in range(int(DURATION / INTERVAL)):
        requests.append(asyncio.ensure_future(send()))
        await asyncio.wait([end], timeout=INTERVAL)
        if end.done():
            break
    responses = await asyncio.gather(*requests)
    assert {response.status for response in responses} <= {200}
    for client in idle:
        client.close()
    print(json.dumps([(response.sent_at, response.seconds) for response in responses]))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
