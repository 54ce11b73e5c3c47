"""How the cost of a statement grows with the table and with one user's tasks.

Run it with `make bench-growth`. It starts a PostgreSQL of its own in a temporary folder, fills one
database with 10,000 tasks and one with 1,000,000 (100 for each user in both, and one user with
100,000 in the large one), and runs the service's own statements in both by turns. It takes about
two minutes and prints Markdown. The ratios are what counts; times by themselves belong to the
machine and the hour.
"""

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg2

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import embedded
import queries
from database import create_tables
from schemas import SORTS

TURNS, CALLS = 9, 300
HEAVY, HEAVY_TASKS = "heavy", 100_000

FILL = """
INSERT INTO tasks (user_id, id, title, description, completed, completed_at, priority, tags, due_date, "order",
                   created_at, updated_at)
SELECT coalesce(%(user)s, 'user-' || n %% %(users)s), gen_random_uuid(), 'Task number ' || n,
       CASE WHEN n %% 3 = 0 THEN 'With some words about what is to be done' END,
       n %% 4 = 0, CASE WHEN n %% 4 = 0 THEN now() END,
       (ARRAY['low', 'medium', 'high'])[1 + n %% 3]::task_priority,
       CASE n %% 5 WHEN 0 THEN '{}' WHEN 1 THEN '{home}' ELSE '{work,home}' END::text[],
       CASE WHEN n %% 2 = 0 THEN now() + n * interval '1 minute' END, CASE WHEN n %% 7 = 0 THEN n END,
       now() - n * interval '1 second', now() - n * interval '1 second'
FROM generate_series(1, %(tasks)s) AS n
"""


class Side:
    """One database, with a task in it to read and to write."""

    def __init__(self, server: str, name: str, tasks: int, users: int) -> None:
        with closing(psycopg2.connect(server)) as link:
            link.autocommit = True
            link.cursor().execute(f"CREATE DATABASE {name}")
        url = server.replace("/tasks?", f"/{name}?")
        create_tables(url)
        self.link = psycopg2.connect(url)
        self.link.autocommit = True
        self.cursor = self.link.cursor()
        self.fill(tasks, users=users)
        self.values: dict[str, Any] = {
            "tasks_url": "http://127.0.0.1:8000/api/user-7/tasks/",
            "now": datetime.now(UTC),
            "user_id": "user-7",
            "limit": 21,
        }
        self.cursor.execute("SELECT id::text FROM tasks WHERE user_id = 'user-7' LIMIT 1")
        [(self.values["task_id"],)] = self.cursor.fetchall()

    def fill(self, tasks: int, *, users: int = 1, user: str | None = None) -> None:
        self.cursor.execute(FILL, {"tasks": tasks, "users": users, "user": user})
        self.cursor.execute("VACUUM ANALYZE tasks")
        self.cursor.execute("CHECKPOINT")

    def seconds(self, statement: queries.Statement[*tuple[Any, ...]], calls: int = CALLS, **more: Any) -> float:
        """The time that one call takes, in the mean of so many."""
        start = time.perf_counter()
        for _ in range(calls):
            values = statement.constants | self.values | {name: give() for name, give in more.items()}
            self.cursor.execute(statement.sql, values)
            self.cursor.fetchall()
        return (time.perf_counter() - start) / calls

    def plan(self, statement: queries.Statement[*tuple[Any, ...]], **more: Any) -> tuple[str, float]:
        """How PostgreSQL reads the table, and the median of its own time for it, in milliseconds."""
        times, kind = [], ""
        for _ in range(5):
            self.cursor.execute(
                "EXPLAIN (ANALYZE, FORMAT JSON) " + statement.sql, statement.constants | self.values | more
            )
            ((explained,),) = self.cursor.fetchall()
            (explained,) = explained if isinstance(explained, list) else json.loads(explained)
            times.append(explained["Execution Time"] + explained["Planning Time"])
            kind = describe(explained["Plan"])
        return kind, statistics.median(times)


def describe(plan: dict[str, Any]) -> str:
    """In words: which index, and whether it stops when the page is full."""
    nodes = [plan]
    for node in nodes:
        nodes += node.get("Plans", [])
    scans = [node for node in nodes if node.get("Relation Name") == "tasks" or "Index Name" in node]
    index = next((node["Index Name"] for node in scans if "Index Name" in node), "no index")
    read = max(node["Actual Rows"] + node.get("Rows Removed by Filter", 0) for node in scans)
    return f"`{index}`, {'all of the user' if read > HEAVY_TASKS // 2 else 'until the page is full'}"


def grown(name: str, small: Side, large: Side, statement: Any, **more: Any) -> str:
    """A row of the first table: the ratio of large to small, from turns that alternate."""
    ratios = []
    for _ in range(TURNS):
        ratios.append(large.seconds(statement, **more) / small.seconds(statement, **more))
    low, middle, high = min(ratios), statistics.median(ratios), max(ratios)
    return f"| {name} | {middle:.2f} | {low:.2f} to {high:.2f} |"


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="tasks-") as folder:
        Path(folder).chmod(0o755)  # as root the server is another account
        server = embedded.start(Path(folder) / "postgres")
        small, large = Side(server, "small", 10_000, 100), Side(server, "large", 1_000_000, 10_000)
        body = {"title": "New", "description": None, "priority": "medium", "tags": ["home"], "due_date": None}
        for side in (small, large):
            side.values |= body | {"order": None, "version": 1, "fingerprint": None}
        page = queries.list_tasks("-created_at", frozenset(), after=False, total=False)
        new_id: dict[str, Callable[[], Any]] = {"task_id": lambda: str(uuid4())}
        print("| 1,000,000 tasks against 10,000 | ratio | from the turns |\n|---|---|---|")
        print(grown("read one", small, large, queries.READ_TASK))
        print(grown("list 20", small, large, page))
        print(grown("toggle", small, large, queries.toggle_task(guarded=False)))
        print(grown("create", small, large, queries.create_task(completed=False, keyed=False), **new_id))
        pages(large)
        sorts_and_filters(large)
        indexes(large)
        large.link.close()
        small.link.close()
        embedded.stop(Path(folder) / "postgres")


def pages(side: Side) -> None:
    """Page 1,000 of 100 tasks each against page 1, for the user with 100,000 tasks."""
    side.fill(HEAVY_TASKS, user=HEAVY)
    side.values |= {"user_id": HEAVY, "limit": 101}
    side.cursor.execute(
        "SELECT created_at, id::text FROM tasks WHERE user_id = %s ORDER BY created_at DESC, id DESC OFFSET %s LIMIT 1",
        [HEAVY, 999 * 100 - 1],
    )
    [(created_at, task_id)] = side.cursor.fetchall()
    first = queries.list_tasks("-created_at", frozenset(), after=False, total=False)
    later = queries.list_tasks("-created_at", frozenset(), after=True, total=False)
    side.values |= {"after_value": created_at, "after_id": task_id}
    ratios = [side.seconds(later) / side.seconds(first) for _ in range(TURNS)]
    print(f"\nPage 1,000 against page 1 of 100,000 tasks: {statistics.median(ratios):.2f}", end=" ")
    print(f"({min(ratios):.2f} to {max(ratios):.2f})\n")


def sorts_and_filters(side: Side) -> None:
    """What each sort and filter reads, and how long it takes for a user with 100 and with 100,000 tasks."""
    filters = {
        "completed": False,
        "priority": ["high"],
        "tag": ["home"],
        "q": "words done",
        "due_before": datetime.now(UTC),
        "due_after": datetime.now(UTC),
        "updated_after": datetime.now(UTC),
    }
    print("| first 20 of the list | with 100 tasks | with 100,000 | how |\n|---|---|---|---|")
    for sort in [sign + name for name in SORTS for sign in ("-", "")]:
        row(side, f"`sort={sort}`", queries.list_tasks(sort, frozenset(), after=False, total=False))
    for name, value in filters.items():
        statement = queries.list_tasks("-created_at", frozenset([name]), after=False, total=False)
        row(side, f"`{name}=`", statement, **queries.filter_values({name: value}))
    row(side, "`total=true`", queries.list_tasks("-created_at", frozenset(), after=False, total=True))
    row(side, "the summary", queries.SUMMARY)


def row(side: Side, name: str, statement: Any, **more: Any) -> None:
    times = []
    for user in ("user-8", HEAVY):
        side.values |= {"user_id": user, "limit": 21}
        how, milliseconds = side.plan(statement, **more)
        times.append(f"{milliseconds:.2f} ms")
    print(f"| {name} | {times[0]} | {times[1]} | {how} |")


def indexes(side: Side) -> None:
    """What the index of the list costs a create: the same create, by turns with and without it."""
    create = queries.create_task(completed=False, keyed=False)
    ratios = []
    for _ in range(5):
        with_it = side.seconds(create, task_id=lambda: str(uuid4()))
        side.cursor.execute("DROP INDEX tasks_user_id_created_at_id_idx")
        without = side.seconds(create, task_id=lambda: str(uuid4()))
        side.cursor.execute("CREATE INDEX tasks_user_id_created_at_id_idx ON tasks (user_id, created_at, id)")
        ratios.append(with_it / without)
    print(f"\nA create with the index of the list against one without: {statistics.median(ratios):.2f}", end=" ")
    print(f"({min(ratios):.2f} to {max(ratios):.2f})")


if __name__ == "__main__":
    main()
