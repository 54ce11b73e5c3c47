"""Compare the service with a simple model in Python, for random histories of writes and of replicas (Hypothesis).

A replica is the copy of a client that follows `/changes` page by page, while others write between the pages.
"""

from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any
from urllib.parse import urlencode
from uuid import NAMESPACE_OID, UUID, uuid4, uuid5

import httpx2
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, multiple, rule, run_state_machine_as_test

from schemas import ChangesCursor
from tests.conftest import TASK_FIELDS
from tests.helpers import fetch_value

DEFAULTS: dict[str, Any] = {
    "description": None,
    "completed": False,
    "priority": "medium",
    "tags": [],
    "due_date": None,
    "order": None,
    "extra": {},
}
# There are only a few values, so that filters select some of the tasks.
FIELDS = {
    "title": st.sampled_from(["milk", "Milk and eggs", "eggs"]),
    "description": st.sampled_from([None, "the blue milk"]),
    "completed": st.booleans(),
    "priority": st.sampled_from(["low", "medium", "high"]),
    "tags": st.sampled_from([[], ["a"], ["a", "b"]]),
    "due_date": st.sampled_from([None, "2026-01-01T00:00:00.000000Z"]),
    "order": st.sampled_from([None, 1]),
    "extra": st.sampled_from([{}, {"color": "red"}]),
}
OPTIONAL = {name: FIELDS[name] for name in DEFAULTS}
BODY = st.fixed_dictionaries({"title": FIELDS["title"]}, optional=OPTIONAL)
CREATE = st.tuples(BODY, st.sampled_from(["plain", "key", "own"]))
PATCH = st.fixed_dictionaries({}, optional=FIELDS)
CHANGE = st.one_of(
    st.tuples(st.just("PUT"), st.just(""), BODY),
    st.tuples(st.just("PATCH"), st.just(""), PATCH),
    st.tuples(st.just("PATCH"), st.just("/complete"), st.none()),
    st.tuples(st.just("PATCH"), st.just("/complete"), st.fixed_dictionaries({"completed": st.booleans()})),
)
GUARD = st.sampled_from([None, None, "*", "current", "stale"])
FILTERS = st.sampled_from(
    [{}, {}, {}, {"completed": True}, {"completed": False}, {"priority": "high"}, {"tag": "a"}, {"q": "milk"}]
)
LIMIT = st.sampled_from([1, 2, 2, 3, 1000])
# No sum of these is close to 30 or 31, so that it does not matter how long the test takes.
DAYS = st.sampled_from([0.41, 12.3, 12.3, 30.3, 31.3])


@dataclass
class Entry:
    """What the model knows of one task."""

    id: str
    how: str  # it was created: "plain", with a "key", or with an "own" id
    body: dict[str, Any]  # that created it
    task: dict[str, Any] = field(default_factory=dict)  # the last response
    versions: list[int] = field(default_factory=list)
    deleted_on: float | None = None
    is_gone: bool = False

    def select(self, filters: dict[str, Any]) -> bool:
        """Return whether the task lives and matches the filters."""
        text = f"{self.task['title']}\n{self.task['description'] or ''}".lower()
        rules = {
            "completed": lambda value: self.task["completed"] is value,
            "priority": lambda value: self.task["priority"] == value,
            "tag": lambda value: value in self.task["tags"],
            "q": lambda value: value in text,
        }
        return self.deleted_on is None and all(rules[name](value) for name, value in filters.items())


@dataclass
class Replica:
    """The copy of one client."""

    cursor: str | None = None
    etag: str = ""
    tasks: dict[str, dict[str, Any]] = field(default_factory=dict)
    received: list[tuple[int, str]] = field(default_factory=list)  # the positions of all changes
    complete_on: float = 0  # the day on which it was last complete


class History(RuleBasedStateMachine):
    """Random writes of several clients and random requests of several replicas, of one user."""

    entries = Bundle("entries")

    def __init__(self, client: TestClient, database_url: str) -> None:
        super().__init__()
        self.client, self.database_url = client, database_url
        self.user = f"user-{uuid4()}"
        self.model: dict[str, Entry] = {}
        self.replicas = [Replica() for _ in range(3)]
        self.today = 0.0
        self.newest = 0  # the highest version of all
        self.number = 0

    # ---- Writes -------------------------------------------------------------------------

    @initialize(target=entries, creates=st.lists(CREATE, min_size=3, max_size=5))
    def create_some(self, creates: list[tuple[dict[str, Any], str]]) -> Any:
        return multiple(*(self.create_one(*create) for create in creates))

    @rule(target=entries, create=CREATE)
    def create(self, create: tuple[dict[str, Any], str]) -> Entry:
        return self.create_one(*create)

    def create_one(self, body: dict[str, Any], how: str) -> Entry:
        self.number += 1
        own_id = UUID(bytes=uuid5(NAMESPACE_OID, str(self.number)).bytes, version=4)
        entry = Entry(str(own_id), how, body)
        response = self.send_create(entry, body)
        entry.id = response.json()["id"]
        assert (how == "own") <= (entry.id == str(own_id))
        assert entry.id not in self.model
        self.model[entry.id] = entry
        self.check_created(entry, response)
        return entry

    @rule(entry=entries, other=st.none() | BODY)
    def repeat_create(self, entry: Entry, other: dict[str, Any] | None) -> None:
        self.repeat(entry, other)

    def repeat(self, entry: Entry, other: dict[str, Any] | None = None) -> None:
        body = entry.body if other is None else other
        is_same = entry.how != "plain" and DEFAULTS | body == DEFAULTS | entry.body
        if entry.how == "plain":  # a client makes an id that the service has made
            entry.how = "own" if entry.is_gone else "plain"
            response = self.send_create(Entry(entry.id, "own", body), body)
        else:
            response = self.send_create(entry, body)
        if entry.is_gone:
            entry.body, entry.deleted_on, entry.is_gone = body, None, False
            self.check_created(entry, response)
        elif entry.how == "key" and not is_same:
            assert response.status_code == 422
        elif entry.deleted_on is not None:
            assert response.status_code == 410
        elif is_same:
            assert response.status_code == 201
            assert response.headers["idempotent-replayed"] == "true"
            assert response.json() == entry.task
            assert response.headers["etag"] == f'"{entry.versions[-1]}"'
        else:
            assert response.status_code == 412

    def send_create(self, entry: Entry, body: dict[str, Any]) -> httpx2.Response:
        if entry.how == "own":
            return self.send("PUT", f"/tasks/{entry.id}", json=body, headers={"If-None-Match": "*"})
        # The number of the entry is its key.
        number = [*self.model, entry.id].index(entry.id)
        headers = {"Idempotency-Key": f"key-{number}"} if entry.how == "key" else {}
        return self.send("POST", "/tasks", json=body, headers=headers)

    def check_created(self, entry: Entry, response: httpx2.Response) -> None:
        assert response.status_code == 201
        assert "idempotent-replayed" not in response.headers
        self.check_written(entry, response.json(), DEFAULTS | entry.body)
        assert response.headers["etag"] == f'"{entry.versions[-1]}"'

    @rule(entry=entries, changes=st.lists(st.tuples(CHANGE, GUARD), min_size=1, max_size=4))
    def change(self, entry: Entry, changes: list[tuple[tuple[str, str, Any], str | None]]) -> None:
        for change, guard in changes:
            self.change_once(entry, *change, guard)

    def change_once(self, entry: Entry, method: str, suffix: str, body: Any, guard: str | None) -> None:
        response = self.send(method, f"/tasks/{entry.id}{suffix}", json=body, headers=self.if_match(entry, guard))
        if self.is_writable(entry, guard, response):
            fields = {"completed": not entry.task["completed"]} if body is None else body
            self.check_written(entry, response.json(), entry.task | (DEFAULTS if method == "PUT" else {}) | fields)
            assert response.headers["etag"] == f'"{entry.versions[-1]}"'

    @rule(entry=entries, guard=GUARD)
    def delete(self, entry: Entry, guard: str | None) -> None:
        response = self.send("DELETE", f"/tasks/{entry.id}", headers=self.if_match(entry, guard))
        if self.is_writable(entry, guard, response):
            self.check_written(entry, response.json(), entry.task)
            entry.deleted_on = self.today

    @rule(entry=entries)
    def restore(self, entry: Entry) -> None:
        response = self.send("POST", f"/tasks/{entry.id}/restore")
        if entry.is_gone or (entry.deleted_on is not None and self.today - entry.deleted_on > 30):
            assert response.status_code == 404
            return
        assert response.status_code == 200
        if entry.deleted_on is None:
            assert response.json() == entry.task
        else:
            entry.deleted_on = None
            self.check_written(entry, response.json(), entry.task)
        assert response.headers["etag"] == f'"{entry.versions[-1]}"'

    @rule(filters=FILTERS, fields=PATCH.filter(bool))
    def change_all(self, filters: dict[str, Any], fields: dict[str, Any]) -> None:
        selected = [entry for entry in self.model.values() if entry.select(filters)]
        response = self.send("PATCH", f"/tasks?{encode(filters)}", json=fields)
        assert (response.status_code, response.json()) == (200, {"updated": len(selected)})
        before, tasks = self.newest, self.list_tasks()
        assert len({tasks[entry.id]["version"] for entry in selected}) <= 1  # one change
        for entry in selected:
            self.newest = before
            self.check_written(entry, tasks[entry.id], entry.task | fields)

    @rule(filters=FILTERS)
    def delete_all(self, filters: dict[str, Any]) -> None:
        selected = [entry for entry in self.model.values() if entry.select(filters)]
        response = self.send("DELETE", f"/tasks?{encode(filters)}")
        assert (response.status_code, response.json()) == (200, {"deleted": len(selected)})
        for entry in selected:
            entry.deleted_on = self.today

    @rule(days=DAYS)
    def wait(self, days: float) -> None:
        self.pass_time(days)

    def pass_time(self, days: float) -> None:
        """Make all that has happened so much older, and purge as a start of the service does."""
        self.today += days
        sql = "UPDATE tasks SET deleted_at = deleted_at - %s WHERE user_id = %s"
        fetch_value(self.database_url, sql, timedelta(days), self.user)
        sql = "DELETE FROM tasks WHERE user_id = %s AND deleted_at < now() - interval '31 days'"
        fetch_value(self.database_url, sql, self.user)
        for entry in self.model.values():
            entry.is_gone = entry.deleted_on is not None and self.today - entry.deleted_on > 31
        for replica in self.replicas:
            if replica.cursor is not None:
                cursor = ChangesCursor.decode(replica.cursor, self.user)
                cursor = cursor._replace(complete_at=cursor.complete_at - timedelta(days))
                replica.cursor = cursor.encode(self.user)

    # ---- Reads --------------------------------------------------------------------------

    @rule(entry=entries)
    def read(self, entry: Entry) -> None:
        response = self.send("GET", f"/tasks/{entry.id}")
        if entry.deleted_on is not None:
            assert response.status_code == 404
            return
        assert (response.status_code, response.json()) == (200, entry.task)
        etag = response.headers["etag"]
        assert etag == f'"{entry.versions[-1]}"'
        assert self.send("GET", f"/tasks/{entry.id}", headers={"If-None-Match": etag}).status_code == 304

    @rule(number=st.integers(0, 2), limit=LIMIT)
    def read_page(self, number: int, limit: int) -> None:
        self.advance(number, limit)

    @rule(number=st.integers(0, 2), limit=LIMIT)
    def read_all_pages(self, number: int, limit: int) -> None:
        self.complete(number, limit)

    @rule(number=st.integers(0, 2), limit=LIMIT)
    def read_a_page_every_12_days(self, number: int, limit: int) -> None:
        for _ in range(3):
            self.pass_time(12.3)
            self.advance(number, limit)

    @rule(number=st.integers(0, 2))
    def lose_copy(self, number: int) -> None:
        self.replicas[number] = Replica()

    def teardown(self) -> None:
        for entry in self.model.values():
            if entry.deleted_on is not None:
                self.repeat(entry)
        for number in range(len(self.replicas)):
            self.complete(number, limit=2)
        assert self.list_tasks() == self.living_tasks()

    def advance(self, number: int, limit: int) -> bool:
        """Read one page of changes. Return whether there are more."""
        replica = self.replicas[number]
        since = {} if replica.cursor is None else {"since": replica.cursor}
        response = self.send("GET", f"/changes?{urlencode(since | {'limit': limit})}")
        if response.status_code == 410:
            assert replica.cursor is not None
            assert self.today - replica.complete_on > 29  # it takes a day until a cursor is renewed
            self.replicas[number] = Replica()
            return True
        assert response.status_code == 200, response.text
        assert replica.cursor is None or self.today - replica.complete_on < 30
        page, more = response.json()["changes"], response.json()["more"]
        assert len(page) == limit or (len(page) < limit and not more)
        for change in page:
            self.take(replica, change)
        if replica.cursor is None or not more:
            replica.complete_on = self.today
        replica.cursor, replica.etag = response.json()["cursor"], response.headers["etag"]
        if not more:
            assert replica.tasks == self.living_tasks()
        return bool(more)

    def take(self, replica: Replica, change: dict[str, Any]) -> None:
        """Take one change over into the copy."""
        assert list(change) == [*TASK_FIELDS, "deleted_at"]
        entry, position = self.model[change["id"]], (change["version"], change["id"])
        assert not replica.received or position > replica.received[-1]
        assert (change["deleted_at"] is None) is (entry.deleted_on is None)
        assert not entry.is_gone
        replica.received.append(position)
        replica.tasks.pop(entry.id, None)
        if change.pop("deleted_at") is None:
            assert change == entry.task
            replica.tasks[entry.id] = change

    def complete(self, number: int, limit: int) -> None:
        """Read pages until there are no more, and then once again."""
        pages = 0
        while self.advance(number, limit):
            pages += 1
            assert pages <= len(self.model) + 1
        replica = self.replicas[number]
        assert replica.tasks == self.list_tasks()
        path, received = f"/changes?{urlencode({'since': replica.cursor})}", len(replica.received)
        assert self.send("GET", path, headers={"If-None-Match": replica.etag}).status_code == 304
        assert not self.advance(number, limit)
        assert len(replica.received) == received

    # ---- Helpers ------------------------------------------------------------------------

    def send(self, method: str, path: str, **options: Any) -> httpx2.Response:
        return self.client.request(method, f"/api/{self.user}{path}", **options)

    def list_tasks(self) -> dict[str, dict[str, Any]]:
        return {task["id"]: task for task in self.send("GET", "/tasks").json()}

    def living_tasks(self) -> dict[str, dict[str, Any]]:
        return {entry.id: entry.task for entry in self.model.values() if entry.deleted_on is None}

    def if_match(self, entry: Entry, guard: str | None) -> dict[str, str]:
        if guard in (None, "*"):
            return {"If-Match": "*"} if guard else {}
        # The version before the last one is stale. After a bulk delete the last one is not known, but it is 404 then.
        version = entry.versions[-1] if guard == "current" else [0, *entry.versions][-2]
        return {"If-Match": f'"{version}"'}

    def is_writable(self, entry: Entry, guard: str | None, response: httpx2.Response) -> bool:
        """Check the status of a write, and return whether it was a success."""
        expected = 404 if entry.deleted_on is not None else 412 if guard == "stale" else 200
        assert response.status_code == expected
        return expected == 200

    def check_written(self, entry: Entry, task: dict[str, Any], expected: dict[str, Any]) -> None:
        """Check a task that was just written, and take it over into the model.

        `expected` has no `completed_at` when the task is new.
        """
        for name in ("title", *DEFAULTS):
            assert task[name] == expected[name], name
        assert task["version"] > self.newest
        if task["completed"] and expected.get("completed_at"):
            assert task["completed_at"] == expected["completed_at"]
        self.newest = task["version"]
        entry.versions.append(task["version"])
        entry.task = task


def encode(filters: dict[str, Any]) -> str:
    """Return the query string with these filters."""
    return urlencode({name: str(value).lower() for name, value in filters.items()})


def test_replicas_equal_the_tasks_after_any_history(client: TestClient, database_url: str) -> None:
    options = settings(
        max_examples=20,
        stateful_step_count=30,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
    run_state_machine_as_test(lambda: History(client, database_url), settings=options)
