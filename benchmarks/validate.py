"""Do all programs give the same answers? Nothing is measured before they do."""

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
FIELDS = (
    *("id", "user_id", "url", "title", "description", "completed", "completed_at", "priority", "tags", "due_date"),
    *("order", "created_at", "updated_at"),
)
TIMESTAMP = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z")


def ask(program: Running, method: str, path: str, body: Any = None) -> tuple[int, str | None, Any]:
    """Send one request; return the status, the ETag and the answer, in which the port is left out."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(  # noqa: S310
        program.url + path, data, {"Content-Type": "application/json"} if data else {}, method=method
    )
    with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310
        text = answer.read().decode().replace(f":{program.port}/", "/")
        return answer.status, answer.headers["ETag"], json.loads(text)


def same_answers(service: Running, peer: Running, data: Data) -> None:
    """Raise AssertionError unless `peer` answers as `service` does, and writes what it would write."""

    def same(path: str) -> Any:
        expected, found = (ask(program, "GET", path) for program in (service, peer))
        expect(found[0] == expected[0] and found[2] == expected[2], peer, path, expected[2], found[2])
        return found[2]

    user, _ = data.sample.read_text().split()[:2]
    for limit in (20, 100):
        tasks = same(f"/api/{user}/tasks?limit={limit}")
        expect(len(tasks) == limit, peer, "the length of the list", limit, len(tasks))
    for task in tasks[:6]:
        same(f"/api/{user}/tasks/{task['id']}")

    for _ in range(2):  # both ways
        path = f"/api/{user}/tasks/{tasks[0]['id']}"
        _, version, before = ask(service, "GET", path)
        status, _, after = ask(peer, "PATCH", path + "/complete")
        _, newer, read = ask(service, "GET", path)
        expect(status == 200 and after == read, peer, "toggle", read, after)
        expect(after["completed"] is not before["completed"], peer, "toggle", before, after)
        expect((after["completed_at"] is not None) == after["completed"], peer, "completed_at", before, after)
        expect(after["updated_at"] > before["updated_at"], peer, "updated_at", before, after)
        expect(int(str(newer)[1:-1]) == int(str(version)[1:-1]) + 1, peer, "version", version, newer)

    status, _, created = ask(peer, "POST", "/api/writer-0/tasks", BODY)
    _, _, read = ask(service, "GET", f"/api/writer-0/tasks/{created['id']}")
    expect(status == 201 and created == read, peer, "create", read, created)
    expect(sorted(created) == sorted(FIELDS), peer, "fields", FIELDS, created)
    expect(BODY.items() <= created.items(), peer, "create", BODY, created)
    expect(created["completed"] is False and created["completed_at"] is None, peer, "create", BODY, created)
    for name in ("created_at", "updated_at"):
        expect(TIMESTAMP.fullmatch(created[name]) is not None, peer, name, "microseconds and Z", created[name])


def expect(right: bool, peer: Running, what: str, expected: Any, found: Any) -> None:
    if not right:
        raise AssertionError(f"{peer.program.title}, {what}:\nexpected {expected}\nfound    {found}")


def validate(started: list[Running], data: Data) -> None:
    """Hold every peer that is started against the service, which must be one of them."""
    service = next(one for one in started if one.program is SERVICE)
    for peer in started:
        if peer.program.name != "ceiling":
            same_answers(service, peer, data)
    data.restore()
