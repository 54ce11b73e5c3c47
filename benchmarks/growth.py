"""The cost of each sort and filter of the list for users with 100 and 100,000 tasks: `make bench-growth`.

The table also has 1,000,000 tasks of other users. PostgreSQL logs the plan of each statement
(auto_explain). Everything is measured with custom and with generic plans, because PostgreSQL may
choose either for a prepared statement. The times are those of the execution, without planning.
"""

import json
import re
import statistics
import tempfile
from datetime import UTC, datetime
from http.client import HTTPConnection
from pathlib import Path
from typing import IO, Any

from benchmarks.data import postgres, seed
from benchmarks.distance import send
from benchmarks.programs import SERVICE, running

HEAVY, HEAVY_TASKS, CALLS = "heavy", 100_000, 9
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
    """Send a GET request; return the milliseconds and the plan of its longest statement."""
    log.seek(0, 2)
    send(client, "GET", path)
    executed = re.findall(r"duration: ([\d.]+) ms  plan:\n((?:\t.*\n)+)", log.read())
    milliseconds, explained = max(executed, key=lambda logged: float(logged[0]))
    return float(milliseconds), json.loads(explained)["Plan"]


def describe(plan: dict[str, Any]) -> str:
    """Return the indexes of the plan, and whether it stops reading when the page is full."""
    nodes = [plan]
    for node in nodes:
        nodes += node.get("Plans", [])
    indexes = dict.fromkeys(f"`{node['Index Name']}`" for node in nodes if "Index Name" in node)
    read = max(node["Actual Rows"] + node.get("Rows Removed by Filter", 0) for node in nodes)
    return f"{', '.join(indexes) or 'no index'}, {'all of the user' if read > HEAVY_TASKS // 2 else 'until it is full'}"


def page_1000(client: HTTPConnection) -> str:
    """Return the path of page 1,000, with 100 tasks per page."""
    path = f"/api/{HEAVY}/tasks?limit=100"
    for _ in range(999):
        client.request("GET", path)
        response = client.getresponse()
        response.read()
        [path] = re.findall(r"<http://[^/]+(/[^>]+)>; rel=\"next\"", response.headers["Link"])
    return path


def main() -> None:
    print("| first page of the list | plan | with 100 tasks | with 100,000 | reads |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory(prefix="tasks-growth-") as folder, postgres(**EXPLAIN) as server:
        data = seed(server, "large", Path(folder), tasks=1_000_000, users=10_000)
        data.add(HEAVY_TASKS, HEAVY)
        data.settle()
        log = (server.folder / "log").open()
        for mode in ("custom", "generic"):
            server.run_as_admin(f"ALTER ROLE tasks SET plan_cache_mode = force_{mode}_plan")
            with running([SERVICE], data.dsn, 1, Path(folder)) as [service]:
                client = HTTPConnection("127.0.0.1", service.port, timeout=60)
                operation = json.loads(send(client, "GET", "/openapi.json"))["paths"]["/api/{user_id}/tasks"]["get"]
                known = {item["name"]: item["schema"] for item in operation["parameters"] if item["in"] == "query"}
                if unknown := set(known) - {*FILTERS, "sort", "limit", "cursor"}:
                    raise RuntimeError(f"growth.py has no value for {', '.join(sorted(unknown))}")
                queries = [f"sort={sort}" for sort in known["sort"]["enum"]]
                queries += [f"{name}={value}" for name, value in FILTERS.items() if name in known]
                paths = {query: f"/api/%s/tasks?limit=20&{query}" for query in queries}
                paths |= {"limit=100": "/api/%s/tasks?limit=100", "limit=100, page 1,000": page_1000(client)}
                for title, path in paths.items():
                    cells = []
                    for user in ("user-8", HEAVY):
                        if user != HEAVY and "%s" not in path:
                            cells.append("-")
                            continue
                        runs = [explain(client, log, path.replace("%s", user)) for _ in range(CALLS)]
                        cells.append(f"{statistics.median(milliseconds for milliseconds, _ in runs):.2f} ms")
                    print(f"| `{title}` | {mode} | {' | '.join(cells)} | {describe(runs[-1][1])} |", flush=True)


if __name__ == "__main__":
    main()
