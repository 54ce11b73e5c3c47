"""Tests of what happens to deleted tasks: they are kept for 30 days, restored, purged and erased."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any
from urllib.parse import quote
from uuid import uuid4

import psycopg2
import pytest
from fastapi.testclient import TestClient
from pydantic import SecretStr

from database import create_tables
from main import create_app
from settings import Settings
from tests.conftest import Create, changed, local
from tests.helpers import concurrently, fetch_value, get_backend_pid

FIELDS: dict[str, Any] = {
    "title": "t",
    "description": "d",
    "completed": True,
    "priority": "high",
    "tags": ["a", "b"],
    "due_date": "2026-01-01T00:00:00.000000Z",
    "order": 7,
    "extra": {"color": "red"},
}


def set_deleted(database_url: str, user: str, ago: str) -> None:
    """Set the time at which the user's deleted tasks were deleted, as an interval before now."""
    statement = "UPDATE tasks SET deleted_at = now() - %s::interval WHERE user_id = %s AND deleted_at IS NOT NULL"
    fetch_value(database_url, statement, ago, user)


@pytest.fixture
def own_client(settings: Settings, empty_database: str) -> Iterator[TestClient]:
    """Yield a client of an app with a database of its own. A start on the shared one purges all old deletions."""
    own_settings = settings.model_copy(update={"database_url": SecretStr(empty_database)})
    with TestClient(create_app(own_settings)) as client:
        yield client


def count_rows(database_url: str, user: str) -> int:
    """Return the number of the user's tasks in the table, deleted ones included."""
    return int(fetch_value(database_url, "SELECT count(*) FROM tasks WHERE user_id = %s", user))


def delete(client: TestClient, task: dict[str, Any]) -> dict[str, Any]:
    """Delete a task, and return the response as JSON."""
    response = client.delete(local(task["url"]))
    assert response.status_code == 200
    return response.json()


# ---- Deleted --------------------------------------------------------------------------------


@pytest.mark.parametrize("headers", [{}, {"If-Match": "*"}, {"If-Match": '"{version}"'}, {"If-Match": '"0"'}])
@pytest.mark.parametrize(
    ("method", "suffix", "body"),
    [
        ("GET", "", None),
        ("PUT", "", {"title": "new"}),
        ("PATCH", "", {"title": "new"}),
        ("PATCH", "", {}),
        ("PATCH", "/complete", None),
        ("PATCH", "/complete", {"completed": True}),
        ("DELETE", "", None),
    ],
)
def test_deleted_task_is_404_to_everything_but_restore(
    client: TestClient, create: Create, method: str, suffix: str, body: Any, headers: dict[str, str]
) -> None:
    task = delete(client, create())
    path = local(task["url"])
    headers = {name: value.format(version=task["version"]) for name, value in headers.items()}
    assert client.request(method, path + suffix, json=body, headers=headers).status_code == 404
    restored = client.post(f"{path}/restore").json()
    assert restored == task | changed(restored)


def test_deleted_task_is_in_no_list_and_no_count(client: TestClient, url: str, user: str, create: Create) -> None:
    deleted, kept = create(**FIELDS), create()
    delete(client, deleted)
    listed = client.get(f"{url}?total=true")
    assert (listed.json(), listed.headers["x-total-count"]) == ([kept], "1")
    for query in (f"id={deleted['id']}", "completed=true", "tag=a", "q=d", "priority=high", "sort=title&q=t"):
        response = client.get(f"{url}?{query}&total=true")
        assert (response.json(), response.headers["x-total-count"]) == ([], "0")
    assert client.get(f"/api/{user}").json() == {
        "user_id": user,
        "total": 1,
        "completed": 0,
        "pending": 1,
        "overdue": 0,
        "priorities": {"low": 0, "medium": 1, "high": 0},
        "tags": {},
    }


def test_bulk_requests_leave_deleted_tasks_unchanged(client: TestClient, url: str, create: Create) -> None:
    task = delete(client, create(tags=["a"]))
    assert client.patch(f"{url}?tag=a", json={"title": "new"}).json() == {"updated": 0}
    assert client.patch(url, json={"title": "new"}).json() == {"updated": 0}
    assert client.delete(url).json() == {"deleted": 0}
    restored = client.post(f"{local(task['url'])}/restore").json()
    assert restored == task | changed(restored)


# ---- Restored -------------------------------------------------------------------------------


def test_restore_returns_the_task_with_all_its_fields(client: TestClient, url: str, create: Create) -> None:
    task = create(**FIELDS)
    deleted = delete(client, task)
    response = client.post(f"{local(task['url'])}/restore")
    restored = response.json()
    assert response.status_code == 200
    assert restored == task | changed(restored)
    assert task["version"] < deleted["version"] < restored["version"]
    assert task["updated_at"] < deleted["updated_at"] < restored["updated_at"]
    assert response.headers["etag"] == f'"{restored["version"]}"'
    assert client.get(url).json() == [client.get(local(task["url"])).json()] == [restored]
    headers = {"If-Match": response.headers["etag"]}
    assert client.patch(local(task["url"]), json={"title": "new"}, headers=headers).status_code == 200


def test_each_task_of_a_bulk_delete_can_be_restored(client: TestClient, url: str, create: Create) -> None:
    tasks = [create(title=title) for title in "abc"]
    assert client.delete(url).json() == {"deleted": 3}
    for task in tasks:
        assert client.post(f"{local(task['url'])}/restore").status_code == 200
    assert [task["title"] for task in client.get(url).json()] == ["c", "b", "a"]


def test_restore_of_a_living_task_changes_nothing(client: TestClient, url: str, create: Create) -> None:
    task = create(**FIELDS)
    response = client.post(f"{local(task['url'])}/restore")
    assert (response.status_code, response.json()) == (200, task)
    assert response.headers["etag"] == f'"{task["version"]}"'
    assert client.get(url).json() == [task]


def test_concurrent_restores_are_one_change(client: TestClient, create: Create) -> None:
    path = local(delete(client, create())["url"])
    responses = concurrently(20, lambda _: client.post(f"{path}/restore"))
    assert [response.status_code for response in responses] == [200] * 20
    assert all(response.json() == client.get(path).json() for response in responses)


def test_restore_of_a_task_that_never_existed_is_404(client: TestClient, url: str, create: Create) -> None:
    task = delete(client, create())
    assert client.post(f"{url}/{uuid4()}/restore").status_code == 404
    assert client.post(f"/api/user-{uuid4()}/tasks/{task['id']}/restore").status_code == 404
    assert client.get(local(task["url"])).status_code == 404


def test_task_can_be_restored_for_30_days(client: TestClient, user: str, create: Create, database_url: str) -> None:
    path = local(delete(client, create())["url"])
    set_deleted(database_url, user, "30 days")
    assert client.post(f"{path}/restore").status_code == 404
    set_deleted(database_url, user, "29 days 23 hours")
    assert client.post(f"{path}/restore").status_code == 200


# ---- Purged ---------------------------------------------------------------------------------


@pytest.mark.parametrize("bulk", [False, True])
def test_next_delete_purges_what_was_deleted_31_days_ago(
    own_client: TestClient, url: str, user: str, empty_database: str, *, bulk: bool
) -> None:
    old, recent, living = (own_client.post(url, json={"title": "t"}).json() for _ in range(3))
    delete(own_client, old)
    set_deleted(empty_database, user, "31 days")
    delete(own_client, recent)
    fetch_value(
        empty_database,
        "UPDATE tasks SET deleted_at = now() - interval '30 days 23 hours' WHERE user_id = %s AND id = %s",
        user,
        recent["id"],
    )
    fetch_value(
        empty_database,
        "INSERT INTO tasks (user_id, id, title, deleted_at) VALUES (%s, %s, 'old', now() - interval '31 days')",
        user,
        old["id"],
    )
    assert count_rows(empty_database, user) == 3
    if bulk:
        assert own_client.delete(url).json() == {"deleted": 1}
    else:
        delete(own_client, living)
    changes = own_client.get(f"/api/{user}/changes").json()["changes"]
    assert [change["id"] for change in changes] == [recent["id"], living["id"]]
    assert count_rows(empty_database, user) == 2


def test_delete_purges_no_living_task_and_no_other_user(
    own_client: TestClient, url: str, user: str, empty_database: str
) -> None:
    other = f"user-{uuid4()}"
    living, mine = (own_client.post(url, json={"title": "mine"}).json() for _ in range(2))
    delete(own_client, own_client.post(f"/api/{other}/tasks", json={"title": "theirs"}).json())
    set_deleted(empty_database, other, "90 days")
    fetch_value(empty_database, "UPDATE tasks SET created_at = now() - interval '90 days' WHERE user_id = %s", user)
    delete(own_client, mine)
    assert count_rows(empty_database, other) == 1
    assert [task["id"] for task in own_client.get(f"/api/{user}/tasks").json()] == [living["id"]]


def test_purged_id_and_key_can_be_used_again(client: TestClient, url: str, user: str, database_url: str) -> None:
    path = f"{url}/{uuid4()}"
    requests: list[dict[str, Any]] = [
        {"method": "PUT", "url": path, "json": {"title": "t"}, "headers": {"If-None-Match": "*"}},
        {"method": "POST", "url": url, "json": {"title": "t"}, "headers": {"Idempotency-Key": "k"}},
    ]
    first = [client.request(**request).json() for request in requests]
    client.delete(url)
    assert [client.request(**request).status_code for request in requests] == [410, 410]
    set_deleted(database_url, user, "31 days")
    client.delete(url)
    second = [client.request(**request).json() for request in requests]
    assert [task["id"] for task in second] == [task["id"] for task in first]
    assert min(task["version"] for task in second) > max(task["version"] for task in first)


def test_start_purges_the_old_deletions_of_all_users(empty_database: str) -> None:
    create_tables(empty_database)
    for user, ago in (("a", "31 days"), ("b", "32 days"), ("c", "30 days 23 hours")):
        statement = "INSERT INTO tasks (user_id, id, title, deleted_at) VALUES (%s, %s, 't', now() - %s::interval)"
        fetch_value(empty_database, statement, user, str(uuid4()), ago)
    fetch_value(empty_database, "INSERT INTO tasks (user_id, id, title) VALUES ('a', %s, 't')", str(uuid4()))
    create_tables(empty_database)
    assert [count_rows(empty_database, user) for user in "abc"] == [1, 0, 1]


# ---- Erased ---------------------------------------------------------------------------------


@pytest.mark.parametrize("query", ["", "?confirm=", "?confirm=wrong", "?confirm={upper}", "?confirm={user}%20", "?x=1"])
def test_erase_without_the_right_confirm_is_rejected(
    client: TestClient, url: str, user: str, create: Create, query: str
) -> None:
    task = create()
    response = client.delete(f"/api/{user}{query.format(user=user, upper=user.upper())}")
    assert response.status_code == 422
    assert response.json()["errors"][0]["loc"] == ["query", "confirm"]
    assert client.get(url).json() == [task]


def test_erase_removes_all_of_the_user_and_nobody_else(
    client: TestClient, url: str, user: str, create: Create, database_url: str
) -> None:
    other_url = f"/api/user-{uuid4()}/tasks"
    theirs = client.post(other_url, json={"title": "theirs"}).json()
    tasks = [create(), create(), create()]
    delete(client, tasks[0])
    response = client.delete(f"/api/{user}?confirm={user}")
    assert (response.status_code, response.json()) == (200, {"deleted": 2})
    assert count_rows(database_url, user) == 0
    assert fetch_value(database_url, "SELECT count(*) FROM task_users WHERE user_id = %s", user) == 0
    assert client.get(url).json() == []
    assert client.get(f"/api/{user}/changes").json()["changes"] == []
    for task in tasks:
        assert client.post(f"{local(task['url'])}/restore").status_code == 404
    assert client.get(other_url).json() == [theirs]


def test_erase_of_an_unknown_user_deletes_nothing(client: TestClient, user: str) -> None:
    for _ in range(2):
        assert client.delete(f"/api/{user}?confirm={user}").json() == {"deleted": 0}


def test_erased_user_may_begin_again_with_higher_versions(client: TestClient, url: str, user: str) -> None:
    path = f"{url}/{uuid4()}"
    before = client.put(path, json={"title": "t"}, headers={"If-None-Match": "*"}).json()
    client.delete(f"/api/{user}?confirm={user}")
    response = client.put(path, json={"title": "t"}, headers={"If-None-Match": "*"})
    assert response.status_code == 201
    assert "idempotent-replayed" not in response.headers
    assert response.json()["version"] > before["version"]


def test_erase_confirms_the_decoded_user_id(client: TestClient) -> None:
    user = f"ann|{uuid4()}+?&= é@example.com"
    client.post(f"/api/{quote(user, safe='')}/tasks", json={"title": "t"})
    response = client.delete(f"/api/{quote(user, safe='')}", params={"confirm": user})
    assert response.json() == {"deleted": 1}


def test_erase_removes_a_task_whose_create_it_waited_for(
    client: TestClient, url: str, user: str, create: Create, database_url: str
) -> None:
    create()
    with closing(psycopg2.connect(database_url)) as holder, ThreadPoolExecutor(1) as executor:
        with holder.cursor() as cursor:  # as the service creates a task
            cursor.execute(
                "UPDATE task_users SET revision = revision + 1 WHERE user_id = %s RETURNING revision", [user]
            )
            ((revision,),) = cursor.fetchall()
            statement = "INSERT INTO tasks (user_id, id, title, revision) VALUES (%s, %s, 't', %s)"
            cursor.execute(statement, [user, str(uuid4()), revision])
        erase = executor.submit(client.delete, f"/api/{user}?confirm={user}")
        blocked = "SELECT count(*) FROM pg_stat_activity WHERE %s = ANY (pg_blocking_pids(pid))"
        for _ in range(200):
            if fetch_value(database_url, blocked, get_backend_pid(holder)):
                break
            time.sleep(0.02)
        holder.commit()
        assert erase.result().status_code == 200
    assert client.get(url).json() == []
    since = client.get(f"/api/{user}/changes").json()["cursor"]
    assert client.get(f"/api/{user}/changes", params={"since": since}).status_code == 200
