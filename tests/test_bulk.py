"""Many tasks at once: change, delete, and count."""

import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import psycopg2
import pytest
from fastapi.testclient import TestClient

from tests.conftest import Create


def titles(client: TestClient, path: str) -> set[str]:
    return {task["title"] for task in client.get(path).json()}


def test_all_tasks_are_set_at_once(client: TestClient, url: str, create: Create) -> None:
    done, open_ = create(title="done", completed=True), create(title="open")
    answer = client.patch(url, json={"completed": True})
    assert (answer.status_code, answer.json()) == (200, {"updated": 2})
    now = {task["title"]: task for task in client.get(f"{url}?completed=true").json()}
    assert now["done"]["completed_at"] == done["completed_at"]
    assert now["open"] == open_ | {name: now["open"][name] for name in ("completed", "completed_at", "updated_at")}
    assert client.patch(f"{url}?completed=true", json={"completed": False}).json() == {"updated": 2}
    assert all(task["completed_at"] is None for task in client.get(url).json())


def test_what_is_completed_is_cleared_and_nothing_else(client: TestClient, url: str, create: Create) -> None:
    create(title="a", completed=True), create(title="b"), create(title="c", completed=True)
    answer = client.delete(f"{url}?completed=true")
    assert (answer.status_code, answer.json()) == (200, {"deleted": 2})
    assert titles(client, url) == {"b"}


def test_delete_without_a_filter_deletes_all_of_the_user_and_of_nobody_else(
    client: TestClient, url: str, create: Create
) -> None:
    other = f"/api/user-{uuid4()}/tasks"
    client.post(other, json={"title": "theirs"})
    create(), create()
    assert client.delete(url).json() == {"deleted": 2}
    assert client.delete(url).json() == {"deleted": 0}
    assert titles(client, other) == {"theirs"}


@pytest.mark.parametrize(
    ("query", "selected"),
    [
        ("priority=high", {"c"}),
        ("priority=high&priority=low", {"a", "c"}),
        ("tag=x", {"a", "b"}),
        ("tag=x&tag=y", {"b"}),
        ("q=A", {"a"}),
        ("due_before=2027-01-01T00:00:00Z", {"a"}),
        ("due_after=2027-01-01T00:00:00Z&priority=medium", {"b"}),
        ("updated_after=2000-01-01T00:00:00Z", {"a", "b", "c"}),
        ("completed=false&tag=y&q=zzz", set()),
    ],
)
def test_the_filters_of_the_list_select_for_change_and_delete(
    client: TestClient, url: str, create: Create, query: str, selected: set[str]
) -> None:
    create(title="a", priority="low", tags=["x"], due_date="2026-01-01T00:00:00Z")
    create(title="b", tags=["x", "y"], due_date="2028-01-01T00:00:00Z")
    create(title="c", priority="high")
    assert titles(client, f"{url}?{query}") == selected
    assert client.patch(f"{url}?{query}", json={"description": "seen", "priority": "low"}).json() == {
        "updated": len(selected)
    }
    assert {task["title"] for task in client.get(url).json() if task["description"] == "seen"} == selected
    if "priority" in query:
        query = "q=seen"  # the change has moved them out of their own filter
    assert client.delete(f"{url}?{query}").json() == {"deleted": len(selected)}
    assert titles(client, url) == {"a", "b", "c"} - selected


def test_a_change_of_nothing_is_refused(client: TestClient, url: str, create: Create) -> None:
    task = create()
    assert client.patch(url, json={}).status_code == 422
    assert client.patch(url, json={"user_id": "x"}).status_code == 422
    assert client.get(url).json() == [task]


@pytest.mark.parametrize(
    "query",
    [
        "sort=title",
        "limit=1",
        "cursor=x",
        "total=true",
        "unknown=1",
        "completed=yes",
        "q=",
        "q=%20",
        "q=any&q=x",
        "completed=true&completed=false",
    ],
)
def test_what_selects_nothing_is_refused_where_it_would_be_dangerous(
    client: TestClient, url: str, create: Create, query: str
) -> None:
    task = create()
    assert client.delete(f"{url}?{query}").status_code == 422
    assert client.patch(f"{url}?{query}", json={"title": "x"}).status_code == 422
    assert client.get(url).json() == [task]


@pytest.mark.parametrize("method", ["PATCH", "DELETE"])
def test_bulk_changes_of_one_user_wait_for_one_another_so_that_none_deadlocks(
    client: TestClient, url: str, user: str, create: Create, database_url: str, method: str
) -> None:
    create()
    with (
        closing(psycopg2.connect(database_url)) as another,
        closing(psycopg2.connect(database_url)) as watcher,
        ThreadPoolExecutor(1) as threads,
    ):
        watcher.autocommit = True
        another.cursor().execute("SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))", [user])
        with watcher.cursor() as cursor:
            body = {"title": "x"} if method == "PATCH" else None
            asked = threads.submit(client.request, method, url, json=body)
            waiting = (
                "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted "
                "AND (classid::bigint << 32) | objid::bigint = hashtextextended(%s, 0)"
            )
            for _ in range(100):
                cursor.execute(waiting, [user])
                if cursor.fetchone() == (1,):
                    break
                time.sleep(0.02)
            else:
                raise AssertionError("it never waited")
        assert client.delete(f"/api/user-{uuid4()}/tasks").status_code == 200, "another user waited too"
        another.rollback()
        assert asked.result().status_code == 200


def test_a_bulk_change_gives_each_task_a_new_etag(client: TestClient, url: str) -> None:
    created = client.post(url, json={"title": "t"})
    client.patch(url, json={"title": "u"})
    path = f"{url}/{created.json()['id']}"
    stale = client.patch(path, json={"title": "v"}, headers={"If-Match": created.headers["etag"]})
    assert stale.status_code == 412


def summary(client: TestClient, user: str) -> Any:
    answer = client.get(f"/api/{user}")
    assert answer.status_code == 200
    return answer.json()


def test_the_summary_of_a_user_without_tasks_is_zeros(client: TestClient, user: str) -> None:
    assert summary(client, user) == {
        "user_id": user,
        "total": 0,
        "completed": 0,
        "pending": 0,
        "overdue": 0,
        "priorities": {"low": 0, "medium": 0, "high": 0},
        "tags": {},
    }


def test_the_summary_counts_the_users_tasks(client: TestClient, user: str, create: Create) -> None:
    past = (datetime.now(UTC) - timedelta(days=1)).isoformat()
    future = (datetime.now(UTC) + timedelta(days=1)).isoformat()
    create(priority="high", tags=["work", 'q"{}'], due_date=past)
    create(priority="high", tags=["work", "home"], due_date=past, completed=True)
    create(tags=["work"], due_date=future)
    create()
    client.post(f"/api/user-{uuid4()}/tasks", json={"title": "theirs", "tags": ["work"]})
    assert summary(client, user) == {
        "user_id": user,
        "total": 4,
        "completed": 1,
        "pending": 3,
        "overdue": 1,
        "priorities": {"low": 0, "medium": 2, "high": 2},
        "tags": {"home": 1, 'q"{}': 1, "work": 3},
    }
