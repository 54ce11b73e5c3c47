"""Check capacity.py with a day of 10,000 users in four minutes: `python -m benchmarks.capacity_check`.

First it measures what each kind of request costs, which are the figures of `capacity.COSTS`. Then it replays a
day, and compares what it used with the prediction of `capacity.need`.
"""

import asyncio
import json
import random
import re
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import psutil
import uvloop

from benchmarks import capacity
from benchmarks.capacity import ACTIVE, DELETED, REQUESTS, TASKS, WRITES
from benchmarks.data import Data, postgres
from benchmarks.programs import SERVICE, Running, running
from database import create_tables
from tests.faults.postgres import BINARIES, Postgres

USERS = 10_000
MEASURED = 4_000  # users who send each kind of request when its cost is measured
SECONDS = 240  # for the day
RATE = 1000  # requests a second while the costs are measured
CONNECTIONS = 64
SETTINGS = {
    "autovacuum": "on",
    "shared_buffers": "1536MB",  # all of the database
}
RELATIONS = ("tasks", "tasks_pkey", "tasks_list_idx", "tasks_changes_idx", "tasks_deleted_idx")
USER_RELATIONS = ("task_users", "task_users_pkey")

# The tasks of one user lie apart, as if they had been created over months. 12 of 112 are deleted.
FILL = """
INSERT INTO tasks (user_id, id, title, description, completed, completed_at, priority, tags, due_date,
                   created_at, updated_at, version, revision, deleted_at)
SELECT md5(u::text), gen_random_uuid(), left('Ask the landlord about the repair of the kitchen window', 10 + n %% 46),
       CASE WHEN n %% 3 = 0 THEN repeat('With some words about it. ', 1 + n %% 8) END,
       n %% 4 = 0, CASE WHEN n %% 4 = 0 THEN now() END, 'medium',
       CASE n %% 5 WHEN 0 THEN '{}' WHEN 1 THEN '{home}' ELSE '{work,home}' END::text[],
       CASE WHEN n %% 2 = 0 THEN now() END, now() - (1000 - k) * interval '1 hour' - u * interval '1 ms', now(),
       %(epoch)s + k, %(epoch)s + k, CASE WHEN k > %(living)s THEN now() - random() * interval '29 days' END
FROM (SELECT k, u, k + u AS n FROM generate_series(1, %(tasks)s) AS k, generate_series(1, %(users)s) AS u
      ORDER BY k) AS task
"""
COUNT = "INSERT INTO task_users SELECT user_id, %(epoch)s, max(revision) FROM tasks GROUP BY user_id"
INDEX = "CREATE INDEX ON tasks (user_id, created_at, id) WHERE deleted_at IS NULL"
DUMP = [str(BINARIES / "pg_dump"), "--format=custom"]


@dataclass
class User:
    """What a client of this user remembers: the cursor of `changes`, and the ids of the tasks."""

    path: str
    cursor: str = ""
    tasks: list[str] = field(default_factory=list)

    def request(self, kind: str) -> tuple[str, str, Any]:
        """Return the method, the path and the body of a request of this kind."""
        tasks = f"{self.path}/tasks"
        match kind:
            case "list of 100":
                return "GET", f"{tasks}?limit=100", None
            case "list of 20":
                return "GET", f"{tasks}?limit=20&completed=false", None
            case "summary":
                return "GET", self.path, None
            case "changes, none" | "changes, one":
                since = f"?since={quote(self.cursor)}" if self.cursor else ""
                return "GET", f"{self.path}/changes{since}", None
            case "create":
                return "POST", tasks, {"title": "Ask the landlord about the window", "tags": ["home"]}
        place = random.randrange(len(self.tasks))  # noqa: S311  # no secret
        task = f"{tasks}/{self.tasks.pop(place) if kind == 'delete' else self.tasks[place]}"
        return {
            "read": ("GET", task, None),
            "complete": ("PATCH", f"{task}/complete", None),
            "edit": ("PATCH", task, {"title": "Ask the landlord about the door"}),
            "delete": ("DELETE", task, None),
        }[kind]

    def receive(self, kind: str, body: bytes) -> None:
        """Remember what later requests need from the response."""
        if kind == "create":
            self.tasks.append(json.loads(body)["id"])
        elif kind.startswith("changes"):
            self.cursor = json.loads(body)["cursor"]


Event = tuple[float, User, str]  # when it is due, in seconds
Outcome = tuple[float, bool]  # the latency in seconds, and whether it succeeded


async def send(url: str, events: Iterable[Event], begin: float) -> list[Outcome]:
    """Send the requests on one connection, none before it is due; return the outcomes."""
    host, port = url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    outcomes = []
    for due, user, kind in events:
        await asyncio.sleep(begin + due - time.monotonic())
        method, path, body = user.request(kind)
        text = b"" if body is None else json.dumps(body).encode()
        head = f"{method} {path} HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Length: {len(text)}\r\n"
        writer.write(f"{head}Content-Type: application/json\r\n\r\n".encode() + text)
        response = await reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"(?i)content-length: (\d+)", response)
        received = await reader.readexactly(int(length[1]) if length else 0)
        succeeded = response.split(b" ", 2)[1] in (b"200", b"201")
        outcomes.append((time.monotonic() - begin - due, succeeded))
        if succeeded:
            user.receive(kind, received)
    writer.close()
    return outcomes


async def load(url: str, events: list[Event]) -> list[Outcome]:
    """Send all requests. Those of one user are on the same connection, so that they keep their order."""
    shares: list[list[Event]] = [[] for _ in range(CONNECTIONS)]
    for event in sorted(events, key=lambda event: event[0]):
        shares[hash(event[1].path) % CONNECTIONS].append(event)
    begin = time.monotonic() + 1
    return [
        outcome for sent in await asyncio.gather(*(send(url, share, begin) for share in shares)) for outcome in sent
    ]


class Usage(NamedTuple):
    """What has been used so far, or by a load."""

    service: float  # seconds of CPU
    postgres: float  # seconds of CPU
    wal: float  # bytes
    database: float  # bytes


@dataclass(frozen=True)
class Bench:
    """The started PostgreSQL, its database, and the service."""

    server: Postgres
    data: Data
    service: Running

    def used(self) -> Usage:
        """Return what has been used so far."""
        parent = psutil.Process(int((self.server.folder / "data/postmaster.pid").read_text().split()[0]))
        cpu = 0.0
        for child in parent.children():
            with suppress(psutil.NoSuchProcess):  # it has just ended, and its parent has its CPU time
                cpu += sum(child.cpu_times()[:2])
        cpu += sum(parent.cpu_times()[:4])  # with its children that have ended
        [[wal, size]] = self.data.run(
            "SELECT pg_current_wal_lsn() - '0/0', sum(pg_relation_size(name::regclass)) FROM unnest(%(names)s) AS name",
            names=[*RELATIONS, *USER_RELATIONS],
        )
        return Usage(self.service.cpu_seconds(), cpu, float(wal), float(size))

    def send(self, events: list[Event]) -> tuple[Usage, list[Outcome]]:
        """Send the requests, and return what they have used, and their outcomes."""
        before = self.used()
        outcomes = uvloop.run(load(self.service.url, events))
        return Usage(*(after - earlier for earlier, after in zip(before, self.used(), strict=True))), outcomes

    def users(self) -> list[User]:
        """Return some users at random, with their tasks."""
        rows = self.data.run(
            "SELECT user_id, array_agg(id::text) FROM tasks WHERE deleted_at IS NULL"
            " GROUP BY user_id ORDER BY md5(user_id) LIMIT %(number)s",
            number=MEASURED,
        )
        return [User(f"/api/{name}", tasks=list(tasks)) for name, tasks in rows]


def measure(bench: Bench, users: list[User]) -> None:
    """Print what each kind of request costs. Each user sends it after a checkpoint, and once more."""
    print("| request | service, µs | PostgreSQL, µs | WAL, bytes | WAL of the second, bytes |\n|---|---|---|---|---|")
    for kind in [kind for kind in REQUESTS if kind != "changes, one"]:
        bench.data.run("CHECKPOINT")
        measured: dict[str, list[Usage]] = {}
        for _ in range(2):
            for part in [kind, "changes, one"] if kind in WRITES else [kind]:
                used, outcomes = bench.send([(number / RATE, user, part) for number, user in enumerate(users)])
                if failed := sum(not succeeded for _, succeeded in outcomes):
                    raise RuntimeError(f"{failed} requests failed: {part}")
                measured.setdefault(part, []).append(used)
        for part, [first, second] in measured.items():
            cpu = [(first.service + second.service) / 2 * 1e6, (first.postgres + second.postgres) / 2 * 1e6]
            cells = [f"{figure / len(users):,.0f}" for figure in (*cpu, first.wal, second.wal)]
            print(f"| {part} | {' | '.join(cells)} |", flush=True)


def day(users: list[User]) -> list[Event]:
    """Return the requests of a day. A client asks for the changes after each of its writes."""
    events = []
    for user in users:
        for kind, times in REQUESTS.items():
            if kind == "changes, one":
                continue
            for _ in range(times):
                due = random.uniform(0, SECONDS)  # noqa: S311  # no secret
                events.append((due, user, kind))
                if kind in WRITES:
                    events.append((due, user, "changes, one"))  # sorting keeps the order
    return events


def compare(used: Usage, megabytes: float) -> None:
    """Print what the day was predicted to use, and what it has used."""
    predicted = capacity.day(USERS)
    rows = {
        "CPU of the service, s": (predicted.service, used.service),
        "CPU of PostgreSQL, s": (predicted.postgres, used.postgres),
        "memory of the service, MB": (capacity.PROCESS_BYTES / 1e6, megabytes),
        "growth of the database, MB": (predicted.versions / 1e6, used.database / 1e6),
        "WAL, MB": (predicted.wal / 1e6, used.wal / 1e6),
    }
    print("\n| | predicted | seen | seen / predicted |\n|---|---|---|---|")
    for name, (expected, seen) in rows.items():
        print(f"| {name} | {expected:,.0f} | {seen:,.0f} | {seen / expected:.2f} |")


def seconds(call: Callable[[], object]) -> float:
    """Return the seconds that a call takes."""
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="tasks-capacity-") as folder, postgres(**SETTINGS) as server:
        server.run_as_admin("GRANT pg_checkpoint TO tasks")
        dsn = server.dsn().removesuffix("?")
        create_tables(dsn)
        data, epoch, tasks_each = Data(USERS, dsn, Path()), int(time.time() * 1_000_000), TASKS + round(DELETED)
        data.run(FILL, users=USERS, living=TASKS, tasks=tasks_each, epoch=epoch)
        data.run(COUNT, epoch=epoch)
        data.run("VACUUM ANALYZE")
        rows = dict.fromkeys(RELATIONS, USERS * tasks_each) | dict.fromkeys(USER_RELATIONS, USERS)
        for name, number in rows.items():
            [[size]] = data.run("SELECT pg_relation_size(%(name)s::regclass)", name=name)
            print(f"{name}: {int(size) / number:.0f} bytes", flush=True)
        with running([SERVICE], dsn, 1, Path(folder)) as [service]:
            bench = Bench(server, data, service)
            users = bench.users()
            uvloop.run(load(service.url, [(n / 200, user, "changes, none") for n, user in enumerate(users)]))
            measure(bench, users)
            # The least that PostgreSQL accepts. A day in four minutes has 8 checkpoints, and a real one 288.
            server.run_as_admin("ALTER SYSTEM SET checkpoint_timeout = '30s'")
            server.run_as_admin("SELECT pg_reload_conf()")
            data.run("CHECKPOINT")
            with service.memory_watched() as megabytes:
                used, outcomes = bench.send(day(users[: round(USERS * ACTIVE)]))
            compare(used, megabytes[0])
            cuts = statistics.quantiles((latency * 1000 for latency, _ in outcomes), n=100)
            failed = sum(not succeeded for _, succeeded in outcomes)
            print(f"\n{len(outcomes):,} requests in {SECONDS} s, {failed} failed.", end=" ")
            print(f"p50 {cuts[49]:.0f} ms, p95 {cuts[94]:.0f} ms, p99 {cuts[98]:.0f} ms.")
            index = seconds(lambda: data.run(INDEX))
            dump = seconds(lambda: subprocess.run([*DUMP, dsn], stdout=subprocess.DEVNULL, check=True))
            print(f"An index took {index:.1f} s, and pg_dump {dump:.1f} s.")


if __name__ == "__main__":
    main()
