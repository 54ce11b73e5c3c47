"""One task: create, read, replace, change, complete, delete."""

from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import pytest
from fastapi.testclient import TestClient

from tests.conftest import Create, local


def test_a_new_task_has_every_field_with_its_default(client: TestClient, url: str, user: str) -> None:
    before = datetime.now(UTC) - timedelta(seconds=5)
    answer = client.post(url, json={"title": "Buy milk"})
    assert answer.status_code == 201
    task = answer.json()
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
        "created_at": task["created_at"],
        "updated_at": task["created_at"],
    }
    assert answer.headers["location"] == task["url"]


def test_a_new_task_keeps_what_it_was_given(client: TestClient, create: Create) -> None:
    given = {
        "title": "Ünï\u202e\u05e1\u05d3\u05e8 🥛 'quoted' \"twice\" \\ % _ ; DROP TABLE tasks --",
        "description": "line\nline\ttab",
        "completed": True,
        "priority": "high",
        "tags": ["home", "a,b", '{"x"}', "🏠"],
        "due_date": "2026-12-24T17:00:00.500000Z",
        "order": -(2**31),
    }
    task = create(**given)
    assert task.items() >= given.items()
    assert client.get(local(task["url"])).json() == task


def test_completed_at_says_since_when(create: Create) -> None:
    task = create(completed=True)
    assert task["completed_at"] == task["created_at"]


def test_title_and_tags_are_trimmed_and_duplicate_tags_dropped(create: Create) -> None:
    task = create(title=" \t Buy milk\n", tags=[" b ", "a", "b", "a "])
    assert task["title"] == "Buy milk"
    assert task["tags"] == ["b", "a"]


@pytest.mark.parametrize(
    ("sent", "answered"),
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
def test_a_due_date_is_answered_in_utc(create: Create, sent: str, answered: str) -> None:
    assert create(due_date=sent)["due_date"] == answered


def test_read_only_fields_that_are_sent_are_ignored(client: TestClient, user: str, create: Create) -> None:
    theirs = {"id": str(uuid4()), "user_id": "mallory", "url": "http://evil", "created_at": "2000-01-01T00:00:00Z"}
    task = create(**theirs, completed_at="2000-01-01T00:00:00Z", updated_at="x")
    assert task["user_id"] == user
    assert task["id"] != theirs["id"]
    assert task["completed_at"] is None
    replaced = client.put(local(task["url"]), json=task | {"user_id": "mallory", "title": "new"}).json()
    assert replaced == task | {"title": "new", "updated_at": replaced["updated_at"]}
    assert client.get("/api/mallory/tasks/" + task["id"]).status_code == 404


def test_put_sets_what_is_left_out_back_to_its_default(client: TestClient, create: Create) -> None:
    old = create(description="d", completed=True, priority="low", tags=["t"], due_date="2026-12-24T17:00:00Z", order=7)
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
        "updated_at": new["updated_at"],
    }
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
        {},
    ],
)
def test_patch_changes_what_is_sent_and_nothing_else(
    client: TestClient, create: Create, change: dict[str, object]
) -> None:
    old = create(description="d", completed=True, priority="high", tags=["t"], due_date="2026-12-24T17:00:00Z", order=7)
    new = client.patch(local(old["url"]), json=change).json()
    assert new == old | change | {"updated_at": new["updated_at"]}
    assert new["updated_at"] > old["updated_at"]
    assert client.get(local(old["url"])).json() == new


@pytest.mark.parametrize("name", ["title", "completed", "priority", "tags"])
def test_patch_refuses_null_where_there_is_no_null(client: TestClient, create: Create, name: str) -> None:
    task = create(completed=True)
    answer = client.patch(local(task["url"]), json={name: None})
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["loc"] == ["body", name]
    assert client.get(local(task["url"])).json() == task


def test_completed_at_moves_only_when_completed_turns(client: TestClient, create: Create) -> None:
    task = create()
    path = local(task["url"])
    done = client.patch(path, json={"completed": True}).json()
    assert done["completed_at"] is not None
    assert client.patch(path, json={"completed": True}).json()["completed_at"] == done["completed_at"]
    assert client.put(path, json={"title": "t", "completed": True}).json()["completed_at"] == done["completed_at"]
    assert client.patch(path, json={"title": "u"}).json()["completed_at"] == done["completed_at"]
    assert client.patch(path, json={"completed": False}).json()["completed_at"] is None
    again = client.patch(path, json={"completed": True}).json()
    assert again["completed_at"] > done["completed_at"]


def test_complete_without_a_body_toggles(client: TestClient, create: Create) -> None:
    path = local(create()["url"])
    seen = [client.patch(f"{path}/complete").json()["completed"] for _ in range(3)]
    assert seen == [True, False, True]


def test_complete_with_a_body_sets_and_a_retry_is_harmless(client: TestClient, create: Create) -> None:
    path = local(create()["url"])
    first, second = (client.patch(f"{path}/complete", json={"completed": True}).json() for _ in range(2))
    assert first["completed"] is True
    assert second == first | {"updated_at": second["updated_at"]}
    assert client.patch(f"{path}/complete", json={"completed": False}).json()["completed"] is False


def test_delete_answers_with_the_task_and_then_it_is_gone(client: TestClient, create: Create) -> None:
    task = create(tags=["undo"])
    path = local(task["url"])
    answer = client.delete(path)
    assert (answer.status_code, answer.json()) == (200, task)
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
def test_the_url_is_the_address_that_the_client_used(
    client: TestClient, url: str, headers: dict[str, str], base: str
) -> None:
    answer = client.post(url, json={"title": "t"}, headers=headers)
    assert answer.json()["url"] == f"{base}{url}/{answer.json()['id']}"
    assert answer.headers["location"] == answer.json()["url"]


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
def test_a_user_id_is_any_text_without_a_slash(client: TestClient, user_id: str, encoded: str) -> None:
    created = client.post(f"/api/{encoded}/tasks", json={"title": "t"})
    assert created.json()["user_id"] == user_id
    assert created.json()["url"].startswith(f"http://testserver/api/{encoded}/tasks/")
    assert client.delete(local(created.json()["url"])).json() == created.json()
