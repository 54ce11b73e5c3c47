"""Compute what so many users need: `make capacity`, or `make capacity USERS=50000`.

docs/capacity.md explains the result. To change an assumption, edit it here.
"""

import math
import sys
from dataclasses import dataclass

# ---- Assumptions ----------------------------------------------------------------------------

SIZES = (10_000, 1_000_000, 100_000_000)  # users
REQUESTS = {  # of an active user on a day
    "list of 100": 5,
    "list of 20": 10,
    "read": 5,
    "summary": 5,
    "changes, none": 60,
    "changes, one": 12,
    "create": 4,
    "complete": 4,
    "edit": 2,
    "delete": 2,
}
WRITES = ("create", "complete", "edit", "delete")
ACTIVE = 0.2
PEAK = 3
UTILIZATION = 0.5
TASKS = 100
DELETED = REQUESTS["delete"] * ACTIVE * 30
BLOAT = 1.2
POOL = 20

ASSUMPTIONS = [
    ("users who are active on a day", f"{ACTIVE:.0%}"),
    ("requests in the busiest hour, of those in the mean hour", f"{PEAK} times as many"),
    ("cores that are busy in the busiest hour", f"{UTILIZATION:.0%}"),
    ("tasks of a user", f"{TASKS}"),
    ("deleted tasks of a user, which are kept for 30 days", f"{DELETED:.0f}"),
    ("old row versions that autovacuum has not removed yet", f"{BLOAT - 1:.0%} of the data"),
    ("database connections of a process (`DATABASE_POOL_SIZE`)", f"{POOL}"),
]

# ---- Measured by capacity_check.py ----------------------------------------------------------


@dataclass(frozen=True)
class Cost:
    """The cost of a request."""

    service: float  # µs of CPU
    postgres: float  # µs of CPU
    wal: float = 0  # bytes, for a write that is the first to its pages after a checkpoint


COSTS = {
    "list of 100": Cost(451, 1157),
    "list of 20": Cost(430, 350),
    "read": Cost(280, 133),
    "summary": Cost(265, 500),
    "changes, none": Cost(377, 155),
    "changes, one": Cost(400, 232),
    "create": Cost(377, 330, 20_262),
    "complete": Cost(327, 419, 27_979),
    "edit": Cost(349, 420, 27_182),
    "delete": Cost(311, 379, 22_890),
}
TASK_BYTES = 252
INDEX_BYTES = 101 + 92 + 119 + 9  # of a task: primary key, list, changes, deleted
USER_BYTES = 171 + 75  # of a row of task_users, and its index
PROCESS_BYTES = 100e6


# ---- Arithmetic -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Day:
    """What the requests of one day use."""

    requests: float
    writes: float
    service: float  # seconds of CPU
    postgres: float  # seconds of CPU
    wal: float  # bytes
    versions: float  # bytes of the rows and index entries that are written


def day(users: float) -> Day:
    """Return what the requests of so many users use on one day."""
    sent = {kind: users * ACTIVE * times for kind, times in REQUESTS.items()}
    writes = sum(number for kind, number in sent.items() if kind in WRITES)
    return Day(
        requests=sum(sent.values()),
        writes=writes,
        service=sum(number * COSTS[kind].service for kind, number in sent.items()) / 1e6,
        postgres=sum(number * COSTS[kind].postgres for kind, number in sent.items()) / 1e6,
        wal=sum(number * COSTS[kind].wal for kind, number in sent.items()),
        versions=writes * (TASK_BYTES + INDEX_BYTES),
    )


def need(users: float) -> dict[str, str]:
    """Return what so many users need, as the rows of the table."""
    used, peak = day(users), PEAK / 86_400  # from a day to a second of the busiest hour
    service, postgres = used.service * peak, used.postgres * peak
    processes = math.ceil(service / UTILIZATION)
    tasks = users * (TASKS + DELETED)
    table, indexes, counters = tasks * TASK_BYTES, tasks * INDEX_BYTES, users * USER_BYTES
    return {
        "tasks, deleted ones included": f"{tasks:,.0f}",
        "requests a second, mean": number(used.requests / 86_400),
        "requests a second, busiest hour": number(used.requests * peak),
        "of these, writes": number(used.writes * peak),
        "cores that the service keeps busy": number(service),
        "**processes of the service**": f"**{processes:,}**",
        "their memory": size(processes * PROCESS_BYTES),
        "their database connections": f"{processes * POOL:,}",
        "cores that PostgreSQL keeps busy": number(postgres),
        "**cores of the database**": f"**{math.ceil(postgres / UTILIZATION):,}**",
        "`tasks`": size(table),
        "indexes of `tasks`": size(indexes),
        "`task_users` and its index": size(counters),
        "**storage, and memory to hold it all**": f"**{size((table + indexes + counters) * BLOAT)}**",
        "WAL a day": size(used.wal),
        "WAL a second, busiest hour": size(used.wal * peak),
    }


def number(value: float) -> str:
    """Return a number with two significant digits."""
    return f"{float(f'{value:.2g}'):,.{max(0, 1 - math.floor(math.log10(value)))}f}"


def size(value: float) -> str:
    """Return a number of bytes with two significant digits."""
    thousands = max(0, math.floor(math.log10(float(f"{value:.2g}")) / 3))
    return f"{number(value / 1000**thousands)} {('bytes', 'kB', 'MB', 'GB', 'TB')[thousands]}"


def table(*rows: tuple[str, ...]) -> str:
    """Return a table in Markdown. The first row is its head."""
    head, *others = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([head, f"|{'---|' * len(rows[0])}", *others, ""])


def page(*sizes: float) -> str:
    """Return the tables for these numbers of users."""
    costs = [
        (kind, f"{REQUESTS[kind]}", f"{cost.service:,.0f}", f"{cost.postgres:,.0f}", f"{cost.wal:,.0f}")
        for kind, cost in COSTS.items()
    ]
    needs = [need(users) for users in sizes]
    rows = [(name, *(column[name] for column in needs)) for name in needs[0]]
    return "\n".join(
        [
            table(("assumption", "value"), *ASSUMPTIONS),
            table(("request", "a day", "service, µs", "PostgreSQL, µs", "WAL, bytes"), *costs),
            table(("users", *(f"{users:,.0f}" for users in sizes)), *rows),
        ]
    )


if __name__ == "__main__":
    print(page(*(map(float, sys.argv[1:]) if sys.argv[1:] else SIZES)), end="")
