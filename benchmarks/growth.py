"""The cost of each list, the summary and the changes for users with few and many tasks: `make bench-growth`.

A user with 100 tasks is measured in a table of 10,000 and in one of 1,000,000 tasks. The large table
also has a user with 100,000 tasks, and one with 100 tasks who has deleted 100,000 others. PostgreSQL
logs the plan of each statement (auto_explain). Everything is measured with custom and with generic
plans, because PostgreSQL may choose either for a prepared statement. The times are those of the
execution, without planning.
"""

import argparse
import json
import re
import statistics
import tempfile
from datetime import UTC, datetime
from http.client import HTTPConnection
from pathlib import Path
from typing import IO, Any
from urllib.parse import quote

from benchmarks.data import Data, postgres, seed
from benchmarks.distance import send
from benchmarks.programs import SERVICE, running
from tests.faults.postgres import Postgres

ORDINARY, HEAVY, DELETING = "user-8", "heavy", "deleting"  # the users
CALLS = 9
EXPLAIN = {
    "session_preload_libraries": "auto_explain",
    "auto_explain.log_min_duration": "0",
    "auto_explain.log_analyze": "on",
    "auto_explain.log_timing": "off",  # timing every node would slow the statements down
    "auto_explain.log_format": "json",
}
NOW = f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"
FILTERS = {
    "completed": "false",
    "priority": "high",
    "tag": "home",
    "q": "words%20done",
    "due_before": NOW,
    "due_after": NOW,
    "completed_before": "2000-01-01T00:00:00Z",
    "completed_after": NOW,
    "updated_after": NOW,
    "id": "00000000-0000-4000-8000-000000000000",
    "total": "true",
}


def explain(client: HTTPConnection, log: IO[str], path: str) -> tuple[float, dict[str, Any]]:
    """Send a GET request CALLS times; return the median of the milliseconds, and the last plan."""
    runs = []
    for _ in range(CALLS):
        log.seek(0, 2)
        send(client, "GET", path)
        executed = re.findall(r"duration: ([\d.]+) ms  plan:\n((?:\t.*\n)+)", log.read())
        runs.append(max((float(milliseconds), explained) for milliseconds, explained in executed))
    return statistics.median(milliseconds for milliseconds, _ in runs), json.loads(runs[-1][1])["Plan"]


def describe(plan: dict[str, Any]) -> str:
    """Return the indexes of the plan, and the most rows that one of its nodes has read."""
    nodes = [plan]
    for node in nodes:
        nodes += node.get("Plans", [])
    indexes = dict.fromkeys(f"`{node['Index Name']}`" for node in nodes if "Index Name" in node)
    read = max(node["Actual Rows"] + node.get("Rows Removed by Filter", 0) for node in nodes)
    return f"{', '.join(indexes) or 'no index'}, {read:,.0f} rows"


def last_page(client: HTTPConnection) -> str:
    """Return the path of the last page of the user HEAVY, with 100 tasks per page."""
    path, pages = f"/api/{HEAVY}/tasks?limit=100", [""]
    while pages:
        client.request("GET", path)
        response = client.getresponse()
        response.read()
        pages = re.findall(r"<http://[^/]+(/[^>]+)>; rel=\"next\"", response.headers.get("Link", ""))
        path = pages[0] if pages else path
    return path


def newest_changes(client: HTTPConnection, user: str) -> str:
    """Return the path of a user's changes since the last one."""
    path, more = f"/api/{user}/changes", True
    while more:
        page = json.loads(send(client, "GET", path))
        path, more = f"/api/{user}/changes?since={quote(page['cursor'])}", page["more"]
    return path


def list_queries(client: HTTPConnection) -> list[str]:
    """Return a query for each sort and each filter of the list."""
    operation = json.loads(send(client, "GET", "/openapi.json"))["paths"]["/api/{user_id}/tasks"]["get"]
    known = {item["name"]: item["schema"] for item in operation["parameters"] if item["in"] == "query"}
    if unknown := set(known) - {*FILTERS, "sort", "limit", "cursor"}:
        raise RuntimeError(f"growth.py has no value for {', '.join(sorted(unknown))}")
    queries = [f"limit=20&sort={sort}" for sort in known["sort"]["enum"]]
    return [*queries, *(f"limit=20&{name}={value}" for name, value in FILTERS.items() if name in known), "limit=100"]


def paths_of(client: HTTPConnection, user: str) -> dict[str, str]:
    """Return the paths to measure, by title."""
    paths = {f"list, {query}": f"/api/{user}/tasks?{query}" for query in list_queries(client)}
    if user == HEAVY:
        paths["list, limit=100, last page"] = last_page(client)
    before = newest_changes(client, user)
    task = json.loads(send(client, "GET", f"/api/{user}/tasks?limit=1"))[0]
    send(client, "PATCH", f"/api/{user}/tasks/{task['id']}", {"order": 1})
    return paths | {
        "summary": f"/api/{user}",
        "changes, from the beginning, limit=100": f"/api/{user}/changes?limit=100",
        "changes, one new": before,
        "changes, nothing new": newest_changes(client, user),
    }


def measure(server: Postgres, data: Data, user: str, folder: Path, mode: str) -> dict[str, tuple[float, str]]:
    """Return the milliseconds and the description of the plan of each request, by title."""
    server.run_as_admin(f"ALTER ROLE tasks SET plan_cache_mode = force_{mode}_plan")
    log = (server.folder / "log").open()
    with log, running([SERVICE], data.dsn, 1, folder) as [service]:
        client = HTTPConnection("127.0.0.1", service.port, timeout=60)
        found = {title: explain(client, log, path) for title, path in paths_of(client, user).items()}
        client.close()
    return {title: (milliseconds, describe(plan)) for title, (milliseconds, plan) in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure how the cost grows with the number of tasks.")
    parser.add_argument("--tasks", type=int, default=1_000_000, help="in the large table; other numbers follow from it")
    tasks = parser.parse_args().tasks
    many = tasks // 10
    with tempfile.TemporaryDirectory(prefix="tasks-growth-") as name, postgres(**EXPLAIN) as server:
        folder = Path(name)
        small = seed(server, "small", folder, tasks=tasks // 100, users=tasks // 10_000)
        large = seed(server, "large", folder, tasks=tasks, users=tasks // 100)
        large.add(many, HEAVY)
        large.add(many + 100, DELETING, keep_every=many // 100 + 1)
        large.settle()
        columns = {
            f"100 tasks of {tasks // 100:,}": (small, ORDINARY),
            f"100 of {tasks:,}": (large, ORDINARY),
            f"{many:,}": (large, HEAVY),
            f"100, and {many:,} deleted": (large, DELETING),
        }
        print(f"| request | plan | {' | '.join(columns)} | reads for {many:,} | for 100, and {many:,} deleted |")
        print("|---" * 8 + "|")
        for mode in ("custom", "generic"):
            measured = [measure(server, data, user, folder, mode) for data, user in columns.values()]
            for title in measured[2]:  # which has all
                cells = [f"{found[title][0]:.2f} ms" if title in found else "-" for found in measured]
                cells += [found[title][1] if title in found else "-" for found in measured[2:]]
                print(f"| `{title}` | {mode} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
