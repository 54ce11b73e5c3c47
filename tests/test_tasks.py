"""Tests of one task: create, read, replace, update, complete, delete."""

from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import pytest
from fastapi.testclient import TestClient

from tests.conftest import Create, changed, local


def test_create_returns_every_field_with_its_default(client: TestClient, url: str, user: str) -> None:
    before = datetime.now(UTC) - timedelta(seconds=5)
    response = client.post(url, json={"title": "Buy milk"})
    assert response.status_code == 201
    task = response.json()
    assert UUID(task["id"]).version == 4
    assert before < datetime.fromisoformat(task["created_at"]) < before + timedelta(seconds=60)
    assert task == {
        "id": task["id"],
        "user_id": user,
        "url": f"http://testserver{url}/{task['id']}",
        "title": "Buy milk",
        "description": None,
        "completed": False,
        "completed_at": None,
        "priority": "medium",
        "tags": [],
        "due_date": None,
        "order": None,
        "extra": {},
        "version": task["version"],
        "created_at": task["created_at"],
        "updated_at": task["created_at"],
    }
    assert response.headers["etag"] == f'"{task["version"]}"'
    assert response.headers["location"] == task["url"]


def test_create_stores_every_field_as_sent(client: TestClient, create: Create) -> None:
    fields = {
        "title": "Ünï\u202e\u05e1\u05d3\u05e8 🥛 'quoted' \"twice\" \\ % _ ; DROP TABLE tasks --",
        "description": "line\nline\ttab",
        "completed": True,
        "priority": "high",
        "tags": ["home", "a,b", '{"x"}', "🏠"],
        "due_date": "2026-12-24T17:00:00.500000Z",
        "order": -(2**31),
        "extra": {"color": "red", "repeat": {"every": 2, "on": ["mon", None]}, "done": True},
    }
    task = create(**fields)
    assert task.items() >= fields.items()
    assert client.get(local(task["url"])).json() == task


def test_completed_at_equals_created_at_if_created_completed(create: Create) -> None:
    task = create(completed=True)
    assert task["completed_at"] == task["created_at"]


def test_title_and_tags_are_trimmed_and_duplicate_tags_removed(create: Create) -> None:
    task = create(title=" \t Buy milk\n", tags=[" b ", "a", "b", "a "])
    assert task["title"] == "Buy milk"
    assert task["tags"] == ["b", "a"]


@pytest.mark.parametrize(
    ("sent", "returned"),
    [
        ("2026-12-24T18:00:00+01:00", "2026-12-24T17:00:00.000000Z"),
        ("2026-12-24t18:00:00z", "2026-12-24T18:00:00.000000Z"),
        ("2026-12-24T18:00:00.123456789Z", "2026-12-24T18:00:00.123456Z"),
        ("0001-01-01T00:00:00Z", "0001-01-01T00:00:00.000000Z"),
        ("9999-12-31T23:59:59.999999Z", "9999-12-31T23:59:59.999999Z"),
        ("2026-01-01T00:00:00-23:59", "2026-01-01T23:59:00.000000Z"),
        ("2026-01-01T00:00:00+23:59", "2025-12-31T00:01:00.000000Z"),
    ],
)
def test_due_date_is_returned_in_utc(create: Create, sent: str, returned: str) -> None:
    assert create(due_date=sent)["due_date"] == returned


def test_read_only_fields_in_a_request_are_ignored(client: TestClient, user: str, create: Create) -> None:
    read_only = {"id": str(uuid4()), "user_id": "mallory", "url": "http://evil", "created_at": "2000-01-01T00:00:00Z"}
    task = create(**read_only, completed_at="2000-01-01T00:00:00Z", updated_at="x", version=-1)
    assert task["user_id"] == user
    assert task["id"] != read_only["id"]
    assert task["completed_at"] is None
    replaced = client.put(local(task["url"]), json=task | {"user_id": "mallory", "title": "new"}).json()
    assert replaced == task | {"title": "new"} | changed(replaced)
    assert replaced["version"] > task["version"]
    assert client.get("/api/mallory/tasks/" + task["id"]).status_code == 404


def test_put_resets_omitted_fields_to_their_defaults(client: TestClient, create: Create) -> None:
    fields = {"description": "d", "completed": True, "priority": "low", "tags": ["t"], "order": 7, "extra": {"a": 1}}
    old = create(due_date="2026-12-24T17:00:00Z", **fields)
    new = client.put(local(old["url"]), json={"title": "new"}).json()
    assert new == old | {
        "title": "new",
        "description": None,
        "completed": False,
        "completed_at": None,
        "priority": "medium",
        "tags": [],
        "due_date": None,
        "order": None,
        "extra": {},
    } | changed(new)
    assert new["updated_at"] > old["updated_at"]


@pytest.mark.parametrize(
    "change",
    [
        {"title": "new"},
        {"description": "new"},
        {"description": None},
        {"priority": "low"},
        {"tags": ["new"]},
        {"tags": []},
        {"due_date": None},
        {"due_date": "2030-01-01T00:00:00.000000Z"},
        {"order": None},
        {"order": 2**31 - 1},
        {"title": "new", "order": 0},
        {"extra": {"b": [2]}},
        {"extra": {}},
        {},
    ],
)
def test_patch_changes_only_the_fields_that_are_sent(
    client: TestClient, create: Create, change: dict[str, object]
) -> None:
    fields = {"description": "d", "completed": True, "priority": "high", "tags": ["t"], "order": 7, "extra": {"a": 1}}
    old = create(due_date="2026-12-24T17:00:00Z", **fields)
    new = client.patch(local(old["url"]), json=change).json()
    assert new == old | change | changed(new)
    assert new["version"] > old["version"]
    assert new["updated_at"] > old["updated_at"]
    assert client.get(local(old["url"])).json() == new


@pytest.mark.parametrize("name", ["title", "completed", "priority", "tags", "extra"])
def test_patch_rejects_null_for_fields_that_cannot_be_null(client: TestClient, create: Create, name: str) -> None:
    task = create(completed=True)
    response = client.patch(local(task["url"]), json={name: None})
    assert response.status_code == 422
    assert response.json()["errors"][0]["loc"] == ["body", name]
    assert client.get(local(task["url"])).json() == task


def test_completed_at_changes_only_when_completed_changes(client: TestClient, create: Create) -> None:
    task = create()
    path = local(task["url"])
    completed = client.patch(path, json={"completed": True}).json()
    assert completed["completed_at"] is not None
    assert client.patch(path, json={"completed": True}).json()["completed_at"] == completed["completed_at"]
    assert client.put(path, json={"title": "t", "completed": True}).json()["completed_at"] == completed["completed_at"]
    assert client.patch(path, json={"title": "u"}).json()["completed_at"] == completed["completed_at"]
    assert client.patch(path, json={"completed": False}).json()["completed_at"] is None
    again = client.patch(path, json={"completed": True}).json()
    assert again["completed_at"] > completed["completed_at"]


def test_complete_without_a_body_toggles_completed(client: TestClient, create: Create) -> None:
    path = local(create()["url"])
    states = [client.patch(f"{path}/complete").json()["completed"] for _ in range(3)]
    assert states == [True, False, True]


def test_complete_with_a_body_is_idempotent(client: TestClient, create: Create) -> None:
    path = local(create()["url"])
    first, second = (client.patch(f"{path}/complete", json={"completed": True}).json() for _ in range(2))
    assert first["completed"] is True
    assert second == first | changed(second)
    assert client.patch(f"{path}/complete", json={"completed": False}).json()["completed"] is False


def test_delete_returns_the_task_and_removes_it(client: TestClient, create: Create) -> None:
    task = create(tags=["undo"])
    path = local(task["url"])
    response = client.delete(path)
    assert (response.status_code, response.json()) == (200, task | changed(response.json()))
    assert response.json()["version"] > task["version"]
    assert client.get(path).status_code == 404
    assert client.delete(path).status_code == 404


@pytest.mark.parametrize(
    ("headers", "base"),
    [
        ({"X-Forwarded-Proto": "https", "X-Forwarded-Host": "api.example.com"}, "https://api.example.com"),
        ({"X-Forwarded-Host": "outer.example:8443, inner"}, "http://outer.example:8443"),
        ({"X-Forwarded-Proto": "javascript"}, "http://testserver"),
        ({"X-Forwarded-Proto": "wss"}, "https://testserver"),
        ({"X-Forwarded-Host": "["}, "http://testserver"),
        ({"X-Forwarded-Host": "a:b:c"}, "http://testserver"),
        ({"X-Forwarded-Host": "[2001:db8::1]:444"}, "http://[2001:db8::1]:444"),
        ({"X-Forwarded-Host": "evil.example/path?x="}, "http://testserver"),
        ({"Host": "[::1]:8000"}, "http://[::1]:8000"),
    ],
)
def test_task_url_has_the_scheme_and_host_of_the_request(
    client: TestClient, url: str, headers: dict[str, str], base: str
) -> None:
    response = client.post(url, json={"title": "t"}, headers=headers)
    assert response.json()["url"] == f"{base}{url}/{response.json()['id']}"
    assert response.headers["location"] == response.json()["url"]


@pytest.mark.parametrize(
    ("user_id", "encoded"),
    [
        ("ann@example.com", "ann%40example.com"),
        ("auth0|12 3", "auth0%7C12%203"),
        ("a.b..c", "a.b..c"),
        ("?#%", "%3F%23%25"),
        ("ünï🥛" + "x" * 124, "%C3%BCn%C3%AF%F0%9F%A5%9B" + "x" * 124),
    ],
)
def test_user_id_may_be_any_text_without_a_slash(client: TestClient, user_id: str, encoded: str) -> None:
    created = client.post(f"/api/{encoded}/tasks", json={"title": "t"})
    assert created.json()["user_id"] == user_id
    assert created.json()["url"].startswith(f"http://testserver/api/{encoded}/tasks/")
    deleted = client.delete(local(created.json()["url"])).json()
    assert deleted == created.json() | changed(deleted)
