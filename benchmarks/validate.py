"""Check that every program responds as the service does, before anything is measured.

Only `version` differs: a peer counts the changes of one task, the service those of a user.
"""

import json
import re
import urllib.request
from typing import Any

from benchmarks.data import Data
from benchmarks.programs import SERVICE, Running

BODY = {
    "title": "Buy milk",
    "description": "Two litres",
    "priority": "high",
    "tags": ["home", "shop"],
    "due_date": "2030-12-24T17:00:00.500001Z",
    "order": 3,
    "extra": {"color": "red", "sizes": [1, 2.5, None]},
}
TIMESTAMP = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z")


def validate(started: list[Running], data: Data) -> None:
    """Raise AssertionError unless every peer responds and writes as the service does."""
    service = next(program for program in started if program.program is SERVICE)
    for peer in started:
        if {"read", "list20"} <= set(peer.program.loads):  # the others return constants
            compare_reads(service, peer, data)
        if "toggle" in peer.program.loads:
            compare_writes(service, peer, data)
    data.restore()


def send(program: Running, method: str, path: str, body: Any = None) -> tuple[int, Any]:
    """Send a request; return the status and the decoded body, in which the port is removed from URLs."""
    content = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(  # noqa: S310
        program.url + path, content, {"Content-Type": "application/json"} if content else {}, method=method
    )
    with urllib.request.urlopen(request, timeout=30) as response:  # noqa: S310
        return response.status, json.loads(response.read().decode().replace(f":{program.port}/", "/"))


def read(program: Running, path: str) -> tuple[int, Any]:
    return without_version(send(program, "GET", path))


def without_version(response: tuple[int, Any]) -> tuple[int, Any]:
    """Return the response without `version` in its tasks, which must have one."""
    _, body = response
    for task in body if isinstance(body, list) else [body]:
        version = task.pop("version")
        if not isinstance(version, int):
            raise AssertionError(f"version should be an integer: {version!r}")
    return response


def compare_reads(service: Running, peer: Running, data: Data) -> None:
    for limit in (20, 100):
        if f"list{limit}" in peer.program.loads:
            path = f"/api/user-0/tasks?limit={limit}"
            _, tasks = check_equal(peer, path, read(service, path), read(peer, path))
            check_equal(peer, "the number of tasks", limit, len(tasks))
    for user, task in data.sample_tasks()[:6]:
        path = f"/api/{user}/tasks/{task}"
        check_equal(peer, path, read(service, path), read(peer, path))


def compare_writes(service: Running, peer: Running, data: Data) -> None:
    user, task = data.sample_tasks()[0]
    path = f"/api/{user}/tasks/{task}"
    for _ in range(2):  # to completed and back
        _, before = send(peer, "GET", path)
        status, after = send(peer, "PATCH", f"{path}/complete")
        check_equal(peer, "version grows", True, after["version"] > before["version"])
        check_equal(peer, "toggle", read(service, path), without_version((status, after)))
        check_equal(peer, "completed", not before["completed"], after["completed"])
        check_equal(peer, "completed_at", after["completed"], after["completed_at"] is not None)
        check_equal(peer, "updated_at is later", True, after["updated_at"] > before["updated_at"])

    status, created = without_version(send(peer, "POST", "/api/writer-0/tasks", BODY))
    path = f"/api/writer-0/tasks/{created['id']}"
    check_equal(peer, "create", (201, created), (status, read(service, path)[1]))
    check_equal(peer, "what was created", BODY, {name: created[name] for name in BODY})
    for name in ("created_at", "updated_at"):
        check_equal(peer, f"microseconds and Z in {name}", True, TIMESTAMP.fullmatch(created[name]) is not None)


def check_equal(peer: Running, name: str, expected: Any, found: Any) -> Any:
    if found != expected:
        raise AssertionError(
            f"{peer.program.title}, {name}:\nexpected {str(expected)[:2000]}\nfound    {str(found)[:2000]}"
        )
    return found
