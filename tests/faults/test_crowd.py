"""Thousands of connections at once on one worker."""

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

from tests.faults.conftest import hold_log, locked, many_files, wait_until
from tests.faults.health import watched
from tests.faults.postgres import Postgres
from tests.faults.wire import Answer, Client, once
from tests.servers import Service, service

CLIENTS = 2_000
SECONDS = 8

# A worker takes 75 MB, and each connection with a request in line up to 50 kB. What is kept of a
# request that is over shows in the growth: there are thousands of them, with 1 kB of text each.
MEMORY = 200_000_000  # bytes
GROWTH = 15_000_000  # bytes, from when all have asked to the end


@contextmanager
def started(postgres: Postgres, timeout: int) -> Iterator[Service]:
    # On a slow machine a request is in line for longer than uvicorn keeps an idle connection.
    options = ("--no-access-log", "--timeout-keep-alive", "60")
    with many_files(), service(*options, DATABASE_URL=postgres.dsn(), DATABASE_TIMEOUT=str(timeout)) as started:
        yield started
        hold_log(started.log)


@dataclass
class Turns:
    """How long the worker has run, and how long it was ready to and had to wait for a processor.

    Other programs of the machine can make everything slow. What the service itself takes is the
    time that its worker waited for a processor left out; time that it slept is not.
    """

    ran: int
    waited: int

    @classmethod
    def of(cls, started: Service) -> Self:
        # proc_pid_schedstat of the kernel's documentation: nanoseconds of the first thread, the event loop's
        ran, waited, _ = Path(f"/proc/{started.process.pid}/schedstat").read_text().split()
        return cls(int(ran), int(waited))

    def share_since(self, before: Self) -> float:
        """Which part of the time that it was ready to run it did."""
        ran, waited = self.ran - before.ran, self.waited - before.waited
        return ran / (ran + waited)


class Crowd:
    """The clients, all of them connected before the first of them asks."""

    def __init__(self, started: Service, user: str, clients: int = CLIENTS) -> None:
        path = f"/api/{user}/tasks"
        self.requests: list[tuple[str, str, object]] = [
            ("POST", path, {"title": "t", "description": "d" * 1000}),
            ("GET", f"{path}?limit=5", None),
        ]
        self.clients = [Client(started.url) for _ in range(clients)]
        self.process = psutil.Process(started.process.pid)
        self.memory: list[int] = []  # when all have asked, and from then on
        self.answers: list[Answer] = []

    async def run(self, seconds: float) -> tuple[float, float]:
        """Each asks again and again, for so long, and once at least; from when to when they did.

        For a moment at the start the worker only reads, 2,000 requests. Where that takes long, on
        a slow machine, the rest takes longer too, so that it is not that moment which is measured.
        """
        try:
            for begin in range(0, len(self.clients), 100):
                await asyncio.gather(*(client.open() for client in self.clients[begin : begin + 100]))
            await asyncio.to_thread(wait_until, lambda: len(self.process.net_connections("tcp")) > len(self.clients))
            begin = time.monotonic()
            self.end = begin + seconds
            asking = [asyncio.ensure_future(self._ask(client, number)) for number, client in enumerate(self.clients)]
            for _ in range(600):
                _, pending = await asyncio.wait(asking, timeout=0.1)
                if len(self.answers) > len(self.clients) / 4 or seconds == 0:
                    self.memory.append(self.process.memory_info().rss)
                if not pending:
                    break
            await asyncio.gather(*asking)
            return begin, time.monotonic()
        finally:
            for client in self.clients:
                client.close()

    async def _ask(self, client: Client, number: int) -> None:
        for turn in range(1_000):
            answer = await client.ask(*self.requests[(number + turn) % len(self.requests)])
            if not self.answers and self.end > answer.asked:
                self.end = max(self.end, answer.asked + min(4 * answer.seconds, 20))
            self.answers.append(answer)
            if time.monotonic() > self.end:
                return


def test_of_2000_at_once_each_gets_its_answer_in_bounded_memory_and_health_stays_quick(
    postgres: Postgres, user: str
) -> None:
    with started(postgres, timeout=60) as running:
        crowd = Crowd(running, user)
        before = Turns.of(running)
        with watched(running.url) as times:
            begin, end = asyncio.run(asyncio.wait_for(crowd.run(SECONDS), 100))
        share = Turns.of(running).share_since(before)
    took = [seconds for asked, seconds in times if begin < asked < end]
    assert Counter(answer.status for answer in crowd.answers).keys() == {200, 201}
    assert len(crowd.answers) >= CLIENTS
    assert statistics.median(took) * share < 0.2
    assert max(crowd.memory) < MEMORY
    assert crowd.memory[-1] - crowd.memory[0] < GROWTH


def test_of_2000_at_once_each_gets_an_answer_also_when_the_database_hangs(postgres: Postgres, user: str) -> None:
    with started(postgres, timeout=3) as running:
        crowd = Crowd(running, user)
        with locked(postgres, "LOCK TABLE tasks IN ACCESS EXCLUSIVE MODE"):
            asyncio.run(asyncio.wait_for(crowd.run(0), 60))
        assert Counter(answer.status for answer in crowd.answers) == {503: CLIENTS}
        assert max(crowd.memory) < MEMORY
        assert asyncio.run(once(running.url, "POST", f"/api/{user}/tasks", {"title": "t"})).status == 201


def test_of_5000_at_once_each_is_answered_in_bounded_memory(postgres: Postgres, user: str) -> None:
    with started(postgres, timeout=60) as running:
        crowd = Crowd(running, user, 5_000)
        asyncio.run(asyncio.wait_for(crowd.run(0), 100))
        assert Counter(answer.status for answer in crowd.answers).total() == 5_000
        assert max(crowd.memory) < MEMORY
