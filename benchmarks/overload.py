"""Twice the load that the database can handle, and one user whose requests wait for a lock: `make bench-overload`.

A row-level security policy counts each read of a task and makes it wait 200 ms in PostgreSQL
without using CPU, so that 20 connections can execute 100 statements a second. The clients send
twice as many requests.
"""

import asyncio
import random
import statistics
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import psycopg2

from benchmarks.clients import Client, Outcome
from benchmarks.data import Data, seed
from benchmarks.programs import SERVICE, running
from tests.faults.postgres import Postgres

USERS, RATE, SECONDS, COUNTED_FROM = 500, 200, 20, 8
TIMEOUTS = (10, 2)  # seconds, of the clients

# By key of the results: the title of the row, the target, and the results of version 1.0.0 in five runs.
MEASURED = "2026-11-24"
ROWS = {
    "served 10": ("clients that wait 10 s: served, of what they sent after 8 s", "at least 45 %", "1 to 20 %"),
    "reached 10": ("statements that reached PostgreSQL", "", "1,166 to 1,530"),
    "for nobody 10": ("of these, after the client gave up", "at most 5 %", "7 to 32 %"),
    "refused 10": ("503, of 4,000, and after how long", "", "2,057 to 2,928; median 5.5 to 6.3 s"),
    "served 2": ("clients that wait 2 s: served, of what they sent after 8 s", "at least 45 %", "0 %"),
    "reached 2": ("statements that reached PostgreSQL", "", "862 to 1,481"),
    "for nobody 2": ("of these, after the client gave up", "at most 5 %", "63 to 79 %"),
    "refused 2": ("503, of 4,000, and after how long", "", "0"),
    "lock": (
        "another user's reads beside 60 requests that wait for a lock",
        "median under 20 ms",
        "median 3.0 to 3.4 s",
    ),
    "lock refused": ("of these, 503", "none", "0 to 7 of 80"),
}

SLOW = """
CREATE SEQUENCE reached;
CREATE FUNCTION slow() RETURNS boolean LANGUAGE plpgsql AS
  'BEGIN PERFORM nextval(''reached''), pg_sleep(0.2); RETURN true; END';
CREATE POLICY slow ON tasks USING (slow());
ALTER TABLE tasks ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
"""


def measure(server: Postgres, folder: Path) -> dict[str, str]:
    """Return the results as texts, by the keys of ROWS."""
    data = seed(server, "overload", folder, tasks=USERS, users=USERS)
    results: dict[str, str] = {}
    data.run(SLOW)
    for timeout in TIMEOUTS:
        results |= twice_the_load(data, folder, timeout)
    data.run("ALTER TABLE tasks DISABLE ROW LEVEL SECURITY")
    return results | beside_a_lock(data, folder)


def twice_the_load(data: Data, folder: Path, timeout: int) -> dict[str, str]:
    """Send 200 reads a second to a pool that can execute 100; clients wait `timeout` seconds."""
    sample = data.sample_tasks()
    random_ = random.Random(1)  # noqa: S311  # repeatable data

    async def load(url: str) -> list[Outcome]:
        begin = time.monotonic() + 1

        async def send(due: float) -> Outcome:
            user, task = random_.choice(sample)
            client = Client(url, timeout)
            outcome = await client.send(begin, due, "GET", f"/api/{user}/tasks/{task}")
            client.close()
            return outcome

        return await asyncio.gather(*(send(number / RATE) for number in range(RATE * SECONDS)))

    data.run("SELECT setval('reached', 1, false)")
    with running([SERVICE], data.dsn, 1, folder) as [service]:
        outcomes = asyncio.run(load(service.url))
    [(reached,)] = data.run("SELECT last_value FROM reached")
    served = [outcome for outcome in outcomes if outcome.status == 200]
    rejected = [outcome.seconds * 1000 for outcome in outcomes if outcome.status == 503]
    late = [outcome for outcome in outcomes if outcome.due >= COUNTED_FROM]
    late_served = sum(outcome.status == 200 for outcome in late)
    return {
        f"served {timeout}": f"{100 * late_served / len(late):.0f} %",
        f"reached {timeout}": f"{int(reached):,}",
        f"for nobody {timeout}": f"{100 - 100 * len(served) / int(reached):.0f} %",
        f"refused {timeout}": f"{len(rejected):,}; {latencies(rejected)}",
    }


def beside_a_lock(data: Data, folder: Path) -> dict[str, str]:
    """Let 60 requests of one user wait for a lock, and measure the reads of another user."""
    (busy, locked), (other, task) = data.sample_tasks()[:2]

    async def load(url: str) -> list[Outcome]:
        begin = time.monotonic() + 0.5
        path = f"/api/{busy}/tasks/{locked}/complete"
        waiting = [asyncio.ensure_future(Client(url, 10).send(begin, 0, "PATCH", path)) for _ in range(60)]
        reads = (
            Client(url, 10).send(begin, 0.5 + number / 20, "GET", f"/api/{other}/tasks/{task}") for number in range(80)
        )
        outcomes = await asyncio.gather(*reads)
        await asyncio.gather(*waiting)
        return outcomes

    with running([SERVICE], data.dsn, 1, folder) as [service], row_locked(data, locked):
        outcomes = asyncio.run(load(service.url))
    rejected = sum(outcome.status == 503 for outcome in outcomes)
    return {
        "lock": latencies([outcome.seconds * 1000 for outcome in outcomes]),
        "lock refused": f"{rejected} of {len(outcomes)}",
    }


@contextmanager
def row_locked(data: Data, task: str) -> Iterator[None]:
    with closing(psycopg2.connect(data.dsn)) as connection:
        connection.cursor().execute("SELECT FROM tasks WHERE id = %s FOR UPDATE", [task])
        yield


def latencies(milliseconds: list[float]) -> str:
    """Return the median and the 95th percentile as a text."""
    if len(milliseconds) < 2:
        return "none to time"
    cuts = statistics.quantiles(milliseconds, n=20)
    return f"median {duration(cuts[9])}, p95 {duration(cuts[18])}"


def duration(milliseconds: float) -> str:
    return f"{milliseconds / 1000:.1f} s" if milliseconds >= 1000 else f"{milliseconds:.0f} ms"
