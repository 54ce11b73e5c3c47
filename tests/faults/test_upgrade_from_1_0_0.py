"""The upgrade from version 1.0.0, whose processes may still write to the database after the migration."""

import hashlib
from typing import Any
from uuid import UUID, uuid4

import psycopg2
import pytest
from fastapi.testclient import TestClient
from pydantic import SecretStr

from database import create_tables
from main import create_app
from settings import Settings
from tests.conftest import assert_contract
from tests.helpers import alembic, fetch_value
from tests.servers import HERE

# The writes of version 1.0.0, without what it selects for its response.
INSERT = """
    INSERT INTO tasks (user_id, id, title, description, completed, completed_at, priority, tags, due_date, "order",
        created_at, updated_at, version, fingerprint)
    VALUES (%s, %s, %s, NULL, false, NULL, 'medium', '{}', NULL, NULL, now(), now(), 5123456789012345, %s)"""
UPDATE = """
    UPDATE tasks SET title = %s, updated_at = greatest(now(), updated_at + interval '1 microsecond'),
        version = version + 1
    WHERE user_id = %s AND id = %s"""
DELETE = "DELETE FROM tasks WHERE user_id = %s AND id = %s"
# The upgrade was a day ago. The service reads its time at the start.
RESTART_PERIOD = "UPDATE tasks_alembic_version SET upgraded_at = now() - interval '1 day'"  # as documented
END_PERIOD = f"{RESTART_PERIOD} WHERE upgraded_at IS NOT NULL"


class OldProcess:
    """The writes of a process of version 1.0.0."""

    def __init__(self, url: str, user: str) -> None:
        self.url, self.user = url, user

    def create(self, title: str, task_id: str = "", fingerprint: UUID | None = None) -> str:
        """Create a task and return its id."""
        task_id = task_id or str(uuid4())
        fetch_value(self.url, INSERT, self.user, task_id, title, fingerprint)
        return task_id

    def update(self, task_id: str, title: str) -> None:
        """Change the title of a task."""
        fetch_value(self.url, UPDATE, title, self.user, task_id)

    def delete(self, task_id: str) -> None:
        """Delete a task, as version 1.0.0 did: the row is removed."""
        fetch_value(self.url, DELETE, self.user, task_id)


class Copy:
    """A client that keeps a copy of a user's tasks: their titles by id."""

    def __init__(self, user: str, limit: int = 2) -> None:
        self.path, self.cursor, self.titles = f"/api/{user}/changes?limit={limit}", "", dict[str, str]()

    def update(self, client: TestClient) -> int:
        """Get all changes since the last time. Return the last status: 200, or 410 when the cursor is too old."""
        more = True
        while more:
            response = client.get(self.path + (f"&since={self.cursor}" if self.cursor else ""))
            if response.status_code != 200:
                return response.status_code
            body = response.json()
            for task in body["changes"]:
                if task["deleted_at"]:
                    self.titles.pop(task["id"], None)
                else:
                    self.titles[task["id"]] = task["title"]
            self.cursor, more = body["cursor"], body["more"]
        return 200


@pytest.fixture
def old(empty_database: str, user: str) -> OldProcess:
    """Return a process of version 1.0.0 on a database with its schema."""
    assert alembic(empty_database, "upgrade", "0002").returncode == 0
    return OldProcess(empty_database, user)


def start(url: str) -> TestClient:
    """Return a client of this version, which runs on the database within a `with` statement."""
    client = TestClient(create_app(Settings(database_url=SecretStr(url))), raise_server_exceptions=False)
    client.event_hooks = {"response": [assert_contract]}
    return client


def titles(client: TestClient, user: str) -> dict[str, str]:
    """Return the titles of the user's tasks by id."""
    return {task["id"]: task["title"] for task in client.get(f"/api/{user}/tasks").json()}


def test_a_copy_of_the_upgrade_period_becomes_exact_after_it(old: OldProcess, user: str) -> None:
    assert RESTART_PERIOD in (HERE / "docs/operations.md").read_text()
    changed, deleted = [old.create(f"task {number}") for number in range(2)]
    copies = [Copy(user) for _ in range(3)]  # of which two were complete before the writes of 1.0.0
    with start(old.url) as client:
        for copy in copies[:2]:
            assert copy.update(client) == 200
            assert copy.titles == {changed: "task 0", deleted: "task 1"}
        old.update(changed, "changed")
        old.delete(deleted)
        created = old.create("created")
        assert [copy.update(client) for copy in copies] == [200, 200, 200]
    fetch_value(old.url, RESTART_PERIOD)
    with start(old.url) as client:
        for copy in copies:
            assert copy.update(client) == 410
            copy.cursor, copy.titles = "", {}
            assert copy.update(client) == 200
            assert copy.titles == titles(client, user) == {changed: "changed", created: "created"}
        client.patch(f"/api/{user}/tasks/{created}", json={"title": "new"})
        for copy in copies:
            assert copy.update(client) == 200
            assert copy.titles == titles(client, user) == {changed: "changed", created: "new"}


def test_a_cursor_of_the_upgrade_period_is_valid_within_it(old: OldProcess, user: str) -> None:
    old.create("old")
    with start(old.url) as client:
        copy = Copy(user)
        assert copy.update(client) == 200
    fetch_value(old.url, "UPDATE tasks_alembic_version SET upgraded_at = now() - interval '23 hours'")
    with start(old.url) as client:
        assert copy.update(client) == 200


def test_a_copy_after_an_upgrade_of_no_tasks_becomes_exact(old: OldProcess, user: str) -> None:
    copy = Copy(user)
    with start(old.url) as client:
        assert copy.update(client) == 200
        client.post(f"/api/{user}/tasks", json={"title": "new"})
        assert copy.update(client) == 200
        created = old.create("of the old process")
    fetch_value(old.url, END_PERIOD)
    with start(old.url) as client:
        assert copy.update(client) == 410
        copy.cursor = ""
        assert copy.update(client) == 200
        assert created in copy.titles
        assert copy.titles == titles(client, user)


def test_a_new_database_has_no_upgrade_period(empty_database: str) -> None:
    assert create_tables(empty_database).upgraded_at is None
    assert create_tables(empty_database).upgraded_at is None


@pytest.mark.parametrize("when", ["before", "after"])
def test_first_changes_of_a_1_0_0_user_are_complete(old: OldProcess, user: str, when: str) -> None:
    created = {old.create(f"task {number}") for number in range(5)} if when == "before" else set()
    with start(old.url) as client:
        created = created or {old.create(f"task {number}") for number in range(5)}
        copy = Copy(user)
        assert copy.update(client) == 200
        assert copy.titles == titles(client, user)
        assert set(copy.titles) == created
        counters = fetch_value(old.url, "SELECT count(*) FROM task_users WHERE user_id = %s", user)
        assert counters == (1 if when == "before" else 0)  # the migration creates it
        # The first write creates a counter where there is none: the copy begins again once.
        first, second, *_ = created
        client.patch(f"/api/{user}/tasks/{first}", json={"title": "new"})
        client.delete(f"/api/{user}/tasks/{second}")
        client.post(f"/api/{user}/tasks", json={"title": "newest"})
        if when == "after":
            assert copy.update(client) == 410
            copy = Copy(user)
        assert copy.update(client) == 200
        assert copy.titles == titles(client, user)
        assert second not in copy.titles
        assert len(copy.titles) == 5


def test_pages_of_changes_are_complete_across_the_first_write(old: OldProcess, user: str) -> None:
    created = sorted(old.create(f"task {number}") for number in range(6))
    with start(old.url) as client:
        copy = Copy(user)
        copy.cursor = client.get(copy.path).json()["cursor"]  # after the first two
        copy.titles = dict.fromkeys(created[:2], "")
        for task_id in (created[0], created[-1]):
            client.patch(f"/api/{user}/tasks/{task_id}", json={"title": "new"})
        assert copy.update(client) == 200
        assert copy.titles == titles(client, user) | {created[1]: ""}


def test_tasks_of_1_0_0_have_etags_that_work(old: OldProcess, user: str) -> None:
    task_id = old.create("old")
    path = f"/api/{user}/tasks/{task_id}"
    with start(old.url) as client:
        read = client.get(path)
        etag = read.headers["etag"]
        assert etag == f'"{read.json()["version"]}"'
        assert client.get(f"/api/{user}/tasks").json() == [read.json()]
        assert client.get(path, headers={"If-None-Match": etag}).status_code == 304
        assert client.patch(path, json={"title": "no"}, headers={"If-Match": '"1"'}).status_code == 412
        changed = client.patch(path, json={"title": "new"}, headers={"If-Match": etag})
        assert changed.status_code == 200
        assert changed.json()["version"] > read.json()["version"]
        assert client.get(path, headers={"If-None-Match": etag}).json() == changed.json()
        for method in ("PATCH", "PUT", "DELETE"):
            assert client.request(method, path, json={"title": "no"}, headers={"If-Match": etag}).status_code == 412
        deleted = client.delete(path, headers={"If-Match": changed.headers["etag"]})
        assert deleted.status_code == 200
        restored = client.post(f"{path}/restore")
        assert restored.status_code == 200
        assert restored.json()["version"] > changed.json()["version"]
        assert restored.json()["title"] == "new"


@pytest.mark.parametrize("written", ["by 1.0.0", "by this version"])
def test_a_write_of_1_0_0_changes_the_etag(old: OldProcess, user: str, written: str) -> None:
    task_id = old.create("old")
    path = f"/api/{user}/tasks/{task_id}"
    with start(old.url) as client:
        if written == "by this version":
            client.patch(path, json={"title": "new"})
        etags = [client.get(path).headers["etag"]]
        for title in ("of 1.0.0", "of 1.0.0 again"):
            old.update(task_id, title)
            read = client.get(path, headers={"If-None-Match": etags[-1]})
            assert read.json()["title"] == title
            assert client.patch(path, json={"title": "no"}, headers={"If-Match": etags[-1]}).status_code == 412
            etags.append(read.headers["etag"])
        changed = client.patch(path, json={"title": "newest"}, headers={"If-Match": etags[-1]})
        assert changed.status_code == 200
        etags.append(changed.headers["etag"])
        numbers = [int(etag.strip('"')) for etag in etags]
        assert numbers == sorted(set(numbers))


def test_a_task_of_1_0_0_has_an_empty_extra(old: OldProcess, user: str) -> None:
    with start(old.url) as client:
        task_id = old.create("old")
        task: dict[str, Any] = client.get(f"/api/{user}/tasks/{task_id}").json()
        assert task["extra"] == {}
        replaced = client.put(f"/api/{user}/tasks/{task_id}", json=task | {"extra": {"color": "red"}})
        assert replaced.json()["extra"] == {"color": "red"}


def test_creates_of_1_0_0_can_be_repeated_after_upgrading(old: OldProcess, user: str) -> None:
    def digest(*parts: str) -> UUID:
        return UUID(bytes=hashlib.blake2b("\0".join(parts).encode(), digest_size=16).digest(), version=4)

    # The digest of a body in version 1.0.0, which had no `extra`.
    body = '{"title":"old","description":null,"completed":false,"priority":"medium","tags":[],'
    body += '"due_date":null,"order":null}'
    task_id = old.create("old", str(digest(user, "key")), digest(body))
    with start(old.url) as client:
        path, headers = f"/api/{user}/tasks", {"Idempotency-Key": "key"}
        repeated = client.post(path, json={"title": "old"}, headers=headers)
        assert repeated.status_code == 201
        assert repeated.headers["idempotent-replayed"] == "true"
        assert repeated.json()["id"] == task_id
        for other in ({"title": "other"}, {"title": "old", "extra": {"color": "red"}}):
            assert client.post(path, json=other, headers=headers).status_code == 422


def test_processes_of_1_0_0_may_remove_deleted_tasks(old: OldProcess, user: str) -> None:
    task_id = old.create("old")
    with start(old.url) as client:
        copy = Copy(user)
        assert copy.update(client) == 200
        client.delete(f"/api/{user}/tasks/{task_id}")
        old.delete(task_id)
        assert client.post(f"/api/{user}/tasks/{task_id}/restore").status_code == 404
    fetch_value(old.url, END_PERIOD)
    with start(old.url) as client:
        assert copy.update(client) == 410
        copy.cursor, copy.titles = "", {}
        assert copy.update(client) == 200
        assert copy.titles == {}


@pytest.mark.parametrize("target", ["0003", "0002"])
def test_downgrade_keeps_living_tasks_and_removes_the_rest(old: OldProcess, user: str, target: str) -> None:
    kept, deleted = old.create("kept"), old.create("deleted")
    with start(old.url) as client:
        client.delete(f"/api/{user}/tasks/{deleted}")
        created = client.post(f"/api/{user}/tasks", json={"title": "new", "extra": {"color": "red"}}).json()["id"]
    down = alembic(old.url, "downgrade", target)
    assert down.returncode == 0, down.stderr
    assert set(fetch_value(old.url, "SELECT array_agg(id::text) FROM tasks")) == {kept, created}
    assert fetch_value(old.url, "SELECT to_regclass('task_users')") is None
    indexes = "SELECT array_agg(indexname::text ORDER BY indexname) FROM pg_indexes WHERE tablename = 'tasks'"
    assert fetch_value(old.url, indexes) == ["tasks_pkey", "tasks_user_id_created_at_id_idx"]
    old.update(kept, "changed")
    old.create("newest")
    with start(old.url) as client:
        assert sorted(titles(client, user).values()) == ["changed", "new", "newest"]


def test_a_cursor_from_before_a_downgrade_is_410(old: OldProcess, user: str) -> None:
    with start(old.url) as client:
        client.post(f"/api/{user}/tasks", json={"title": "new"})
        copy = Copy(user)
        assert copy.update(client) == 200
    assert alembic(old.url, "downgrade", "0002").returncode == 0
    with start(old.url) as client:
        assert copy.update(client) == 410
        client.post(f"/api/{user}/tasks", json={"title": "newest"})
        assert copy.update(client) == 410


@pytest.mark.parametrize("direction", ["upgrade", "downgrade"])
def test_an_invalid_index_is_replaced(old: OldProcess, direction: str) -> None:
    name, condition, target = "tasks_list_idx", "WHERE deleted_at IS NULL", "head"
    if direction == "downgrade":
        create_tables(old.url)
        name, condition, target = "tasks_user_id_created_at_id_idx", "", "0002"
    fetch_value(old.url, "ALTER TABLE tasks ADD COLUMN IF NOT EXISTS deleted_at timestamptz")
    old.create("same")
    old.create("same")
    with pytest.raises(psycopg2.errors.UniqueViolation):  # it fails halfway
        fetch_value(old.url, f"CREATE UNIQUE INDEX CONCURRENTLY {name} ON tasks ((1)) {condition}")
    is_valid = f"SELECT indisvalid FROM pg_index WHERE indexrelid = '{name}'::regclass"  # noqa: S608  # a constant
    assert fetch_value(old.url, is_valid) is False
    run = alembic(old.url, direction, target)
    assert run.returncode == 0, run.stderr
    assert fetch_value(old.url, is_valid) is True
    assert "(user_id, created_at, id)" in fetch_value(old.url, f"SELECT pg_get_indexdef('{name}'::regclass)")
