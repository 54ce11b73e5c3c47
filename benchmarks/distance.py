"""What 20 ms of network between a program and PostgreSQL cost each endpoint.

The time of an endpoint is the median of requests sent one after the other over one connection. It
is divided by what a single `SELECT 1` takes over the same network, which is one round trip.
"""

import http.client
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Any

import psycopg2

from benchmarks.data import Data
from benchmarks.programs import ROOT, SERVICE, Running

BODY = {"title": "Buy milk", "priority": "high", "tags": ["home"]}


@contextmanager
def network(port: int) -> Iterator[int]:
    """20 ms in front of `port`; yields the port that programs are to use."""
    with subprocess.Popen(
        [sys.executable, "-m", "benchmarks.relay", str(port)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as relay:
        assert relay.stdout  # noqa: S101
        try:
            yield int(relay.stdout.readline())
        finally:
            relay.terminate()


def round_trip(dsn: str, times: int) -> float:
    """The milliseconds that one statement takes over a connection that is open and in autocommit."""
    with closing(psycopg2.connect(dsn)) as link, link.cursor() as cursor:
        link.autocommit = True
        return median(lambda: cursor.execute("SELECT 1"), times)


def endpoints(program: Running, data: Data, times: int) -> dict[str, float]:
    """The median of each endpoint, in milliseconds; of a peer, those that it has."""
    lines = data.sample.read_text().splitlines()
    user, task = lines[0].split()
    tasks, one = f"/api/{user}/tasks", f"/api/{user}/tasks/{task}"
    client = http.client.HTTPConnection("127.0.0.1", program.port, timeout=30)

    def send(method: str, path: str, body: Any = None) -> Callable[[], Any]:
        def call() -> Any:
            data = None if body is None else json.dumps(body)
            client.request(method, path, data, {"Content-Type": "application/json"} if data else {})
            answer = client.getresponse()
            text = answer.read()
            if answer.status >= 300:
                raise RuntimeError(f"{program.program.title}: {answer.status} for {method} {path}")
            return json.loads(text)

        return call

    def delete() -> Callable[[], Any]:  # each a task of its own
        new = send("POST", "/api/writer-0/tasks", BODY)()
        return send("DELETE", f"/api/writer-0/tasks/{new['id']}")

    found = {
        "GET one": median(send("GET", one), times),
        "GET list": median(send("GET", tasks + "?limit=20"), times),
        "POST": median(send("POST", "/api/writer-0/tasks", BODY), times),
        "PATCH complete": median(send("PATCH", one + "/complete"), times),
    }
    if program.program is SERVICE:
        found |= {
            "PUT": median(send("PUT", one, BODY), times),
            "PATCH": median(send("PATCH", one, {"title": "Buy more milk"}), times),
            "DELETE": statistics.median(median(delete(), 1, warm=0) for _ in range(times)),
            "PATCH many": median(send("PATCH", tasks + "?completed=true", {"completed": True}), times),
            "DELETE many": median(send("DELETE", "/api/nobody/tasks"), times),
            "GET summary": median(send("GET", f"/api/{user}"), times),
            "GET /health/ready": median(send("GET", "/health/ready"), times),
        }
    client.close()
    return found


def median(call: Callable[[], Any], times: int, warm: int = 3) -> float:
    """The median of so many calls, in milliseconds, after some that are not counted."""
    for _ in range(warm):
        call()
    taken = []
    for _ in range(times):
        begin = time.perf_counter()
        call()
        taken.append((time.perf_counter() - begin) * 1000)
    return statistics.median(taken)
