"""Tests of the bulk update, the bulk delete, and the summary."""

import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import psycopg2
import pytest
from fastapi.testclient import TestClient

from tests.conftest import Create, changed
from tests.helpers import get_backend_pid


def list_titles(client: TestClient, path: str) -> set[str]:
    """Return the titles of the tasks in the list at `path`."""
    return {task["title"] for task in client.get(path).json()}


def test_bulk_update_sets_completed_on_all_selected_tasks(client: TestClient, url: str, create: Create) -> None:
    completed, pending = create(title="completed", completed=True), create(title="pending")
    response = client.patch(url, json={"completed": True})
    assert (response.status_code, response.json()) == (200, {"updated": 2})
    tasks = {task["title"]: task for task in client.get(f"{url}?completed=true").json()}
    assert tasks["completed"]["completed_at"] == completed["completed_at"]
    completion = {name: tasks["pending"][name] for name in ("completed", "completed_at")}
    assert tasks["pending"] == pending | completion | changed(tasks["pending"])
    assert tasks["pending"]["version"] == tasks["completed"]["version"] > pending["version"]
    assert client.patch(f"{url}?completed=true", json={"completed": False}).json() == {"updated": 2}
    assert all(task["completed_at"] is None for task in client.get(url).json())


def test_bulk_delete_of_completed_tasks_keeps_the_others(client: TestClient, url: str, create: Create) -> None:
    create(title="a", completed=True), create(title="b"), create(title="c", completed=True)
    response = client.delete(f"{url}?completed=true")
    assert (response.status_code, response.json()) == (200, {"deleted": 2})
    assert list_titles(client, url) == {"b"}


def test_bulk_delete_without_filters_deletes_all_tasks_of_one_user(
    client: TestClient, url: str, create: Create
) -> None:
    other_url = f"/api/user-{uuid4()}/tasks"
    client.post(other_url, json={"title": "other"})
    create(), create()
    assert client.delete(url).json() == {"deleted": 2}
    assert client.delete(url).json() == {"deleted": 0}
    assert list_titles(client, other_url) == {"other"}


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
        ("completed_after=2000-01-01T00:00:00Z", {"a"}),
        ("completed_before=2000-01-01T00:00:00Z", set()),
        ("id={a}", {"a"}),
        ("id={a}&id={c}", {"a", "c"}),
        ("id={a}&priority=high", set()),
        ("completed=false&tag=y&q=zzz", set()),
    ],
)
def test_bulk_update_and_delete_use_the_filters_of_the_list(
    client: TestClient, url: str, create: Create, query: str, selected: set[str]
) -> None:
    a = create(title="a", priority="low", tags=["x"], due_date="2026-01-01T00:00:00Z", completed=True)
    create(title="b", tags=["x", "y"], due_date="2028-01-01T00:00:00Z")
    c = create(title="c", priority="high")
    query = query.format(a=a["id"], c=c["id"])
    assert list_titles(client, f"{url}?{query}") == selected
    assert client.patch(f"{url}?{query}", json={"description": "changed", "priority": "low"}).json() == {
        "updated": len(selected)
    }
    assert {task["title"] for task in client.get(url).json() if task["description"] == "changed"} == selected
    if "priority" in query:
        query = "q=changed"  # the update set another priority, so the filter no longer selects the tasks
    assert client.delete(f"{url}?{query}").json() == {"deleted": len(selected)}
    assert list_titles(client, url) == {"a", "b", "c"} - selected


def test_bulk_update_without_fields_is_rejected(client: TestClient, url: str, create: Create) -> None:
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
def test_bulk_requests_reject_parameters_that_are_no_valid_filter(
    client: TestClient, url: str, create: Create, query: str
) -> None:
    task = create()
    assert client.delete(f"{url}?{query}").status_code == 422
    assert client.patch(f"{url}?{query}", json={"title": "x"}).status_code == 422
    assert client.get(url).json() == [task]


WRITES: list[tuple[str, str, Any, dict[str, str]]] = [
    ("PATCH", "", {"title": "x"}, {}),
    ("DELETE", "", None, {}),
    ("POST", "", {"title": "x"}, {}),
    ("POST", "", {"title": "x"}, {"Idempotency-Key": "k"}),
    ("PUT", "/00000000-0000-4000-8000-000000000000", {"title": "x"}, {"If-None-Match": "*"}),
    ("PUT", "/{id}", {"title": "x"}, {}),
    ("PATCH", "/{id}", {"title": "x"}, {}),
    ("PATCH", "/{id}", {"title": "x"}, {"If-Match": '"{version}"'}),
    ("PATCH", "/{id}/complete", None, {}),
    ("DELETE", "/{id}", None, {}),
    ("DELETE", "/{id}", None, {"If-Match": '"{version}"'}),
    ("POST", "/{id}/restore", None, {}),
    ("ERASE", "", None, {}),
]


@pytest.mark.parametrize(("method", "suffix", "body", "headers"), WRITES)
def test_every_write_locks_the_users_counter_before_a_task(
    client: TestClient,
    url: str,
    user: str,
    create: Create,
    database_url: str,
    method: str,
    suffix: str,
    body: Any,
    headers: dict[str, str],
) -> None:
    task = create()
    path = url + suffix.replace("{id}", task["id"])
    if method == "ERASE":
        method, path = "DELETE", f"/api/{user}?confirm={user}"
    headers = {name: value.format(version=task["version"]) for name, value in headers.items()}
    with (
        closing(psycopg2.connect(database_url)) as holder,
        closing(psycopg2.connect(database_url)) as observer,
        ThreadPoolExecutor(1) as executor,
    ):
        observer.autocommit = True
        holder.cursor().execute("SELECT FROM task_users WHERE user_id = %s FOR UPDATE", [user])
        with observer.cursor() as cursor:
            pending = executor.submit(client.request, method, path, json=body, headers=headers)
            statement = "SELECT count(*) FROM pg_stat_activity WHERE %s = ANY (pg_blocking_pids(pid))"
            waiters, deadline = 0, time.monotonic() + 4  # the request times out after 5 seconds
            while waiters == 0:
                assert time.monotonic() < deadline, "the request did not wait for the counter"
                cursor.execute(statement, [get_backend_pid(holder)])
                ((waiters,),) = cursor.fetchall()
                time.sleep(0.02)
            cursor.execute("SELECT id::text FROM tasks WHERE user_id = %s FOR UPDATE NOWAIT", [user])
            assert cursor.fetchall() == [(task["id"],)]
        assert client.delete(f"/api/user-{uuid4()}/tasks").status_code == 200, "a request of another user waited too"
        holder.rollback()
        assert pending.result().status_code in (200, 201)


def test_bulk_update_changes_the_etag_of_each_task(client: TestClient, url: str) -> None:
    created = client.post(url, json={"title": "t"})
    client.patch(url, json={"title": "u"})
    path = f"{url}/{created.json()['id']}"
    response = client.patch(path, json={"title": "v"}, headers={"If-Match": created.headers["etag"]})
    assert response.status_code == 412


def get_summary(client: TestClient, user: str) -> Any:
    """Return the summary of the user's tasks as JSON."""
    response = client.get(f"/api/{user}")
    assert response.status_code == 200
    return response.json()


def test_summary_is_all_zeros_for_a_user_without_tasks(client: TestClient, user: str) -> None:
    assert get_summary(client, user) == {
        "user_id": user,
        "total": 0,
        "completed": 0,
        "pending": 0,
        "overdue": 0,
        "priorities": {"low": 0, "medium": 0, "high": 0},
        "tags": {},
    }


def test_summary_counts_only_the_tasks_of_the_user(client: TestClient, user: str, create: Create) -> None:
    past = (datetime.now(UTC) - timedelta(days=1)).isoformat()
    future = (datetime.now(UTC) + timedelta(days=1)).isoformat()
    create(priority="high", tags=["work", 'q"{}'], due_date=past)
    create(priority="high", tags=["work", "home"], due_date=past, completed=True)
    create(tags=["work"], due_date=future)
    create()
    client.post(f"/api/user-{uuid4()}/tasks", json={"title": "other", "tags": ["work"]})
    assert get_summary(client, user) == {
        "user_id": user,
        "total": 4,
        "completed": 1,
        "pending": 3,
        "overdue": 1,
        "priorities": {"low": 0, "medium": 2, "high": 2},
        "tags": {"home": 1, 'q"{}': 1, "work": 3},
    }
