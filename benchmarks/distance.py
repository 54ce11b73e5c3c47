"""The cost of 20 ms of network latency between a program and PostgreSQL, in round trips per request.

The time of an endpoint is the median of sequential requests over one connection. The time of one
round trip is that of `SELECT 1` on an open connection over the same network.
"""

import http.client
import json
import re
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg2

from benchmarks.data import Data
from benchmarks.programs import SERVICE, TEXTBOOK, running
from tests.servers import relaying

ONE_WAY = 0.010  # seconds, the latency in each direction
BODY = {"title": "Buy milk", "priority": "high", "tags": ["home"]}
TASKS, ONE = "/api/{user_id}/tasks", "/api/{user_id}/tasks/{task_id}"
RESTORE = f"POST {ONE}/restore"

# The query and the body for each endpoint that uses the database.
REQUESTS: dict[str, tuple[str, Any]] = {
    f"GET {TASKS}": ("?limit=20", None),
    f"POST {TASKS}": ("", BODY),
    f"PATCH {TASKS}": ("?completed=false", {"completed": True}),
    f"DELETE {TASKS}": ("", None),
    f"GET {ONE}": ("", None),
    f"PUT {ONE}": ("", BODY),
    f"PATCH {ONE}": ("", {"title": "Buy more milk"}),
    f"DELETE {ONE}": ("", None),
    f"PATCH {ONE}/complete": ("", None),
    RESTORE: ("", None),
    "GET /api/{user_id}/changes": ("?limit=20", None),
    "GET /api/{user_id}": ("", None),
    "DELETE /api/{user_id}": ("?confirm={user_id}", None),
    "GET /health/ready": ("", None),
}
NO_DATABASE = {"GET /health"}


def measure(data: Data, folder: Path, times: int) -> Iterator[dict[str, Any]]:
    """Yield the milliseconds of a round trip and of each endpoint, for the service and the textbook program."""
    with relaying(data.dsn, delay=ONE_WAY) as relay:
        dsn = re.sub(r":\d+/", f":{relay.port}/", data.dsn)
        with closing(psycopg2.connect(dsn)) as connection, connection.cursor() as cursor:
            connection.autocommit = True
            round_trip = statistics.median(timed(lambda: cursor.execute("SELECT 1")) for _ in range(times))
        for program in (SERVICE, TEXTBOOK):
            with running([program], dsn, 1, folder) as [started]:
                client = http.client.HTTPConnection("127.0.0.1", started.port, timeout=30)
                paths = json.loads(send(client, "GET", "/openapi.json"))["paths"]
                operations = [f"{method.upper()} {path}" for path, methods in paths.items() for method in methods]
                if unknown := set(operations) - set(REQUESTS) - NO_DATABASE:
                    raise RuntimeError(f"distance.py has no request for {', '.join(sorted(unknown))}")
                medians = {name: median_milliseconds(client, name, times) for name in operations if name in REQUESTS}
                client.close()
            yield {"program": program.name, "round_trip": round_trip, "endpoints": medians}


def median_milliseconds(client: http.client.HTTPConnection, name: str, times: int) -> float:
    """Return the median of so many requests, each of a new user with one task, after three that do not count."""
    method, path = name.split()
    query, body = REQUESTS[name]
    milliseconds = []
    for _ in range(times + 3):
        user = f"writer-{uuid4()}"
        task = json.loads(send(client, "POST", TASKS.format(user_id=user), BODY))["id"]
        if name == RESTORE:
            send(client, "DELETE", ONE.format(user_id=user, task_id=task))
        target = (path + query).format(user_id=user, task_id=task)
        milliseconds.append(timed(lambda: send(client, method, target, body)))  # noqa: B023  # called at once
    return statistics.median(milliseconds[3:])


def send(client: http.client.HTTPConnection, method: str, path: str, body: Any = None) -> bytes:
    headers = {} if body is None else {"Content-Type": "application/json"}
    client.request(method, path, None if body is None else json.dumps(body), headers)
    response = client.getresponse()
    text = response.read()
    if response.status >= 300:
        raise RuntimeError(f"{response.status} for {method} {path}")
    return text


def timed(call: Callable[[], Any]) -> float:
    """Return the milliseconds that a call takes."""
    begin = time.perf_counter()
    call()
    return (time.perf_counter() - begin) * 1000
