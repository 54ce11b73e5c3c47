"""Hold the responses of each program against the service's. Nothing is measured before they are the same."""

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
}
TIMESTAMP = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z")


def validate(started: list[Running], data: Data) -> None:
    """Raise AssertionError unless every peer among `started` responds and writes as the service does."""
    service = next(one for one in started if one.program is SERVICE)
    for peer in started:
        if {"read", "list20"} <= set(peer.program.loads):  # the constants answer no tasks
            reads(service, peer, data)
        if "toggle" in peer.program.loads:
            writes(service, peer, data)
    data.restore()


def ask(program: Running, method: str, path: str, body: Any = None) -> tuple[int, Any]:
    """Return the status and the response to one request, in which the port is left out."""
    content = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(  # noqa: S310
        program.url + path, content, {"Content-Type": "application/json"} if content else {}, method=method
    )
    with urllib.request.urlopen(request, timeout=30) as response:  # noqa: S310
        return response.status, json.loads(response.read().decode().replace(f":{program.port}/", "/"))


def reads(service: Running, peer: Running, data: Data) -> None:
    for limit in (20, 100):
        if f"list{limit}" in peer.program.loads:
            path = f"/api/user-0/tasks?limit={limit}"
            _, tasks = same(peer, path, ask(service, "GET", path), ask(peer, "GET", path))
            same(peer, "the number of tasks", limit, len(tasks))
    for user, task in data.lines()[:6]:
        path = f"/api/{user}/tasks/{task}"
        same(peer, path, ask(service, "GET", path), ask(peer, "GET", path))


def writes(service: Running, peer: Running, data: Data) -> None:
    user, task = data.lines()[0]
    path = f"/api/{user}/tasks/{task}"
    for _ in range(2):  # both ways
        _, before = ask(service, "GET", path)
        toggled = ask(peer, "PATCH", f"{path}/complete")
        _, after = same(peer, "toggle", ask(service, "GET", path), toggled)
        same(peer, "completed", not before["completed"], after["completed"])
        same(peer, "completed_at", after["completed"], after["completed_at"] is not None)
        same(peer, "updated_at is later", True, after["updated_at"] > before["updated_at"])

    status, created = ask(peer, "POST", "/api/writer-0/tasks", BODY)
    same(peer, "create", (201, created), (status, ask(service, "GET", f"/api/writer-0/tasks/{created['id']}")[1]))
    same(peer, "what was created", BODY, {name: created[name] for name in BODY})
    for name in ("created_at", "updated_at"):
        same(peer, f"microseconds and Z in {name}", True, TIMESTAMP.fullmatch(created[name]) is not None)


def same(peer: Running, what: str, expected: Any, found: Any) -> Any:
    if found != expected:
        raise AssertionError(
            f"{peer.program.title}, {what}:\nexpected {str(expected)[:2000]}\nfound    {str(found)[:2000]}"
        )
    return found
