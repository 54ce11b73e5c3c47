"""Histories in which a client that keeps a copy could miss a change: each is one that a design had to exclude."""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import httpx2
import psycopg2
import pytest
from fastapi.testclient import TestClient
from psycopg2.extensions import cursor

import queries
import routes.users
from tests.conftest import Create, local
from tests.helpers import fetch_value, get_backend_pid

TASK_OF_1_0_0 = (
    "INSERT INTO tasks (user_id, id, title, tags, created_at, updated_at) VALUES (%s, %s, 't', '{}', now(), now())"
)
FIELDS = {"title": "t", "completed": False, "priority": "medium", "tags": [], "extra": {}} | dict.fromkeys(
    ["description", "due_date", "order"]
)


class Follower:
    """A client that keeps a copy, and begins again when its cursor is refused."""

    def __init__(self, client: TestClient, user: str, limit: int = 1000) -> None:
        self.client, self.path, self.limit = client, f"/api/{user}/changes", limit
        self.begin()

    def begin(self) -> None:
        self.since: dict[str, str] = {}
        self.titles: dict[str, str] = {}

    def get(self, **headers: str) -> httpx2.Response:
        return self.client.get(self.path, params=self.since | {"limit": str(self.limit)}, headers=headers)

    def follow(self) -> list[str]:
        """Follow the changes to the end, and return the titles of the copy."""
        for _ in range(20):
            response = self.get()
            if response.status_code == 410:
                self.begin()
            elif not self.take(response):
                return sorted(self.titles.values())
        raise AssertionError("the changes have no end")

    def take(self, response: httpx2.Response) -> bool:
        body = response.json()
        for task in body["changes"]:
            self.titles.pop(task["id"], None)
            if task["deleted_at"] is None:
                self.titles[task["id"]] = task["title"]
        self.since = {"since": body["cursor"]}
        return bool(body["more"])


@contextmanager
def open_transaction(url: str) -> Iterator[cursor]:
    """Yield a cursor in a transaction, which is committed afterwards."""
    with closing(psycopg2.connect(url)) as connection, connection, connection.cursor() as cursor:
        yield cursor


def wait_for_lock(url: str, blocker: int) -> None:
    """Wait until a session waits for a lock of the session `blocker`, for at most 20 seconds."""
    sql = "SELECT count(*) FROM pg_stat_activity WHERE %s = ANY (pg_blocking_pids(pid))"
    for _ in range(400):
        if fetch_value(url, sql, blocker):
            return
        time.sleep(0.05)
    raise AssertionError("no session waits")


def run_during(
    url: str, query: queries.Query[*tuple[Any, ...]], send: Callable[[], httpx2.Response]
) -> httpx2.Response:
    """Send a request that waits for a write which has not committed yet, and return its response."""
    with ThreadPoolExecutor(1) as threads:
        with open_transaction(url) as cursor:
            cursor.execute(query.statement.sql, query.values)
            waiting: Future[httpx2.Response] = threads.submit(send)
            wait_for_lock(url, get_backend_pid(cursor.connection))
        return waiting.result(30)


@pytest.mark.parametrize("limit", [1, 2, 3])
def test_pages_may_end_within_a_bulk_change(client: TestClient, user: str, create: Create, limit: int) -> None:
    for _ in range(5):
        create()
    client.patch(f"/api/{user}/tasks", json={"title": "new"})
    assert Follower(client, user, limit).follow() == ["new"] * 5


def test_repeated_page_with_its_etag_shows_that_more_follows(client: TestClient, user: str, create: Create) -> None:
    create()
    follower = Follower(client, user, limit=1)
    first = follower.get()
    assert not first.json()["more"]
    create()
    repeated = follower.get(**{"If-None-Match": first.headers["etag"]})
    assert repeated.status_code == 200
    assert repeated.json()["more"]


def test_the_etag_of_equal_changes_differs_each_day(
    client: TestClient, user: str, create: Create, monkeypatch: pytest.MonkeyPatch
) -> None:
    create()
    follower = Follower(client, user)
    first = follower.get()
    # As if the first response came a month ago. A browser's cache still has it, with a cursor that gets 410 now.
    monkeypatch.setattr(routes.users, "EPOCH", routes.users.EPOCH - timedelta(days=31))
    assert follower.get(**{"If-None-Match": first.headers["etag"]}).status_code == 200


@pytest.mark.parametrize("comes_back", [False, True])
def test_erased_user_of_the_last_release_is_always_empty(
    client: TestClient, database_url: str, user: str, comes_back: bool
) -> None:
    fetch_value(database_url, TASK_OF_1_0_0, user, str(uuid4()))
    follower = Follower(client, user)
    assert follower.follow() == ["t"]
    assert client.delete(f"/api/{user}", params={"confirm": user}).json() == {"deleted": 1}
    if comes_back:
        client.post(f"/api/{user}/tasks", json={"title": "new"})
    assert follower.follow() == ["new"] * comes_back


def test_changes_after_an_erasure_during_a_create_are_complete(
    client: TestClient, database_url: str, user: str, create: Create
) -> None:
    create(title="old")
    follower = Follower(client, user)
    follower.follow()
    write = queries.create_task(user, uuid4(), tasks_url="/", fields=FIELDS, fingerprint=None)
    erased = run_during(database_url, write, lambda: client.delete(f"/api/{user}", params={"confirm": user}))
    assert erased.status_code == 200
    for _ in range(2):
        titles = [task["title"] for task in client.get(f"/api/{user}/tasks").json()]
        assert follower.follow() == titles
        response = follower.get()
        assert (response.status_code, response.json()["changes"]) == (200, [])
    create(title="new")
    assert follower.follow() == sorted([*titles, "new"])


def test_erasure_waits_for_a_change_and_removes_its_task(
    client: TestClient, database_url: str, user: str, create: Create
) -> None:
    task = create()
    write = queries.update_task(user, UUID(task["id"]), tasks_url="/", fields={"title": "new"})
    erased = run_during(database_url, write, lambda: client.delete(f"/api/{user}", params={"confirm": user}))
    assert erased.json() == {"deleted": 1}
    sql = (
        "SELECT (SELECT count(*) FROM tasks WHERE user_id = %s) + (SELECT count(*) FROM task_users WHERE user_id = %s)"
    )
    assert fetch_value(database_url, sql, user, user) == 0


def test_write_that_waited_has_a_higher_version(
    client: TestClient, database_url: str, user: str, create: Create
) -> None:
    task = create()
    path, task_id = local(task["url"]), UUID(task["id"])
    follower = Follower(client, user)
    follower.follow()
    writes = [
        (
            queries.update_task(user, task_id, tasks_url="/", fields={"order": 1}),
            lambda: client.patch(path, json={"title": "a"}),
        ),
        (queries.delete_task(user, task_id, tasks_url="/"), lambda: client.post(f"{path}/restore")),
        (
            queries.toggle_task(user, task_id, tasks_url="/"),
            lambda: client.patch(path[: -len(task["id"]) - 1], json={"title": "b"}),
        ),
        (queries.update_task(user, task_id, tasks_url="/", fields={"title": "c"}), lambda: client.delete(path)),
    ]
    version = task["version"]
    for (first, second), expected in zip(writes, (["a"], ["a"], ["b"], []), strict=True):
        assert run_during(database_url, first, second).status_code == 200
        assert follower.follow() == expected
        sql = "SELECT revision FROM tasks WHERE user_id = %s"
        assert fetch_value(database_url, sql, user) == version + 2
        version += 2


def test_repeated_create_during_a_delete_returns_410(client: TestClient, database_url: str, user: str) -> None:
    def create() -> httpx2.Response:
        return client.post(f"/api/{user}/tasks", json={"title": "t"}, headers={"Idempotency-Key": "k"})

    task_id = UUID(create().json()["id"])
    assert run_during(database_url, queries.delete_task(user, task_id, tasks_url="/"), create).status_code == 410


def test_key_of_a_task_of_the_last_release_is_recognized(client: TestClient, database_url: str, user: str) -> None:
    def create() -> httpx2.Response:
        body = {"title": "t", "tags": ["a"], "due_date": "2026-01-01T00:00:00Z"}
        return client.post(f"/api/{user}/tasks", json=body, headers={"Idempotency-Key": "k"})

    created = create()
    # As 1.0.0 calculated it: blake2b of the JSON of all fields that a task had.
    sql = "UPDATE tasks SET fingerprint = %s WHERE user_id = %s"
    fetch_value(database_url, sql, "2a58390e-6216-467b-8ca7-27e4f72e2a47", user)
    repeated = create()
    assert (repeated.status_code, repeated.json()) == (201, created.json())
