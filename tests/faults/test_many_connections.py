"""Thousands of simultaneous connections to one worker."""

import asyncio
import statistics
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import psutil

from tests.faults.health import measured_health
from tests.faults.helpers import check_log, locked, many_files, wait_until
from tests.faults.postgres import Postgres
from tests.faults.wire import Client, Response, send_once
from tests.servers import Service, service

CLIENTS = 2_000
SECONDS = 8

# A worker needs 75 MB, and each connection with a waiting request up to 50 kB. If the worker kept
# objects of completed requests, GROWTH would show it: there are thousands, with 1 kB of text each.
MEMORY = 200_000_000  # bytes
GROWTH = 15_000_000  # bytes, after all clients have sent a request


@contextmanager
def started(postgres: Postgres, timeout: int) -> Iterator[Service]:
    # On a slow machine a client waits for longer than uvicorn keeps an idle connection.
    options = ("--no-access-log", "--timeout-keep-alive", "60")
    with many_files(), service(*options, DATABASE_URL=postgres.dsn(), DATABASE_TIMEOUT=str(timeout)) as started:
        yield started
        check_log(started.log)


@dataclass
class Scheduling:
    """How long the worker ran on a CPU, and how long it was runnable and waited for one, in nanoseconds.

    Other programs on the machine slow the service down. The share of the CPU that the worker got
    serves to discount that.
    """

    ran: int
    waited: int

    @classmethod
    def of(cls, started: Service) -> Self:
        # See the kernel's documentation of /proc/<pid>/schedstat. It is of the main thread, which runs the event loop.
        ran, waited, _ = Path(f"/proc/{started.process.pid}/schedstat").read_text().split()
        return cls(int(ran), int(waited))

    def share_since(self, before: Self) -> float:
        """Return the fraction of its runnable time in which the worker ran."""
        ran, waited = self.ran - before.ran, self.waited - before.waited
        return ran / (ran + waited)


class Clients:
    """Clients that are all connected before the first of them sends a request."""

    def __init__(self, started: Service, user: str, clients: int = CLIENTS) -> None:
        path = f"/api/{user}/tasks"
        self.requests: list[tuple[str, str, object]] = [
            ("POST", path, {"title": "t", "description": "d" * 1000}),
            ("GET", f"{path}?limit=5", None),
        ]
        self.clients = [Client(started.url) for _ in range(clients)]
        self.process = psutil.Process(started.process.pid)
        self.memory: list[int] = []  # samples in bytes, once most clients have sent a request
        self.responses: list[Response] = []

    async def run(self, seconds: float) -> tuple[float, float]:
        """Let each client send requests for so many seconds, at least one; return the begin and the end.

        First the worker does nothing but read 2,000 requests. When this is slow, the run is
        extended (see `_send_requests`), so that it is not mainly this phase which is measured.
        """
        try:
            for begin in range(0, len(self.clients), 100):
                await asyncio.gather(*(client.open() for client in self.clients[begin : begin + 100]))
            await asyncio.to_thread(wait_until, lambda: len(self.process.net_connections("tcp")) > len(self.clients))
            begin = time.monotonic()
            self.end = begin + seconds
            sending = [
                asyncio.ensure_future(self._send_requests(client, number)) for number, client in enumerate(self.clients)
            ]
            for _ in range(600):
                _, pending = await asyncio.wait(sending, timeout=0.1)
                if len(self.responses) > len(self.clients) / 4 or seconds == 0:
                    self.memory.append(self.process.memory_info().rss)
                if not pending:
                    break
            await asyncio.gather(*sending)
            return begin, time.monotonic()
        finally:
            for client in self.clients:
                client.close()

    async def _send_requests(self, client: Client, number: int) -> None:
        for sent in range(1_000):
            response = await client.send(*self.requests[(number + sent) % len(self.requests)])
            if not self.responses and self.end > response.sent_at:
                self.end = max(self.end, response.sent_at + min(4 * response.seconds, 20))
            self.responses.append(response)
            if time.monotonic() > self.end:
                return


def test_2000_clients_are_served_in_bounded_memory_with_quick_health(postgres: Postgres, user: str) -> None:
    with started(postgres, timeout=60) as running:
        clients = Clients(running, user)
        before = Scheduling.of(running)
        with measured_health(running.url) as times:
            begin, end = asyncio.run(asyncio.wait_for(clients.run(SECONDS), 100))
        share = Scheduling.of(running).share_since(before)
    health_times = [seconds for sent_at, seconds in times if begin < sent_at < end]
    assert Counter(response.status for response in clients.responses).keys() == {200, 201}
    assert len(clients.responses) >= CLIENTS
    assert statistics.median(health_times) * share < 0.2
    assert max(clients.memory) < MEMORY
    assert clients.memory[-1] - clients.memory[0] < GROWTH


def test_2000_clients_get_503_while_the_database_hangs(postgres: Postgres, user: str) -> None:
    with started(postgres, timeout=3) as running:
        clients = Clients(running, user)
        with locked(postgres, "LOCK TABLE tasks IN ACCESS EXCLUSIVE MODE"):
            asyncio.run(asyncio.wait_for(clients.run(0), 60))
        assert Counter(response.status for response in clients.responses) == {503: CLIENTS}
        assert max(clients.memory) < MEMORY
        assert asyncio.run(send_once(running.url, "POST", f"/api/{user}/tasks", {"title": "t"})).status == 201


def test_5000_clients_get_responses_in_bounded_memory(postgres: Postgres, user: str) -> None:
    with started(postgres, timeout=60) as running:
        clients = Clients(running, user, 5_000)
        asyncio.run(asyncio.wait_for(clients.run(0), 100))
        assert Counter(response.status for response in clients.responses).total() == 5_000
        assert max(clients.memory) < MEMORY
