"""Backup and restore with the commands of docs/operations.md."""

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from tests.faults.postgres import BINARIES, Postgres
from tests.servers import HERE, service

DUMP = ["pg_dump", "--format=custom", "--no-owner"]
RESTORE = ["pg_restore", "--no-owner", "--exit-on-error", "--single-transaction"]
OPERATIONS = (HERE / "docs/operations.md").read_text()
TASK = {"title": "Milch & Brötchen 🥛", "description": "it's \\ 100 %", "tags": ["a", "b,c"], "order": 7}


@pytest.fixture
def postgres() -> Iterator[Postgres]:
    with Postgres() as server:
        yield server


def run_documented(program: str, *arguments: str) -> None:
    """Run a program of PostgreSQL; its options, all but the last two arguments, must be those of the documentation."""
    assert " ".join([program, *arguments[:-2]]) in OPERATIONS
    completed = subprocess.run([str(BINARIES / program), *arguments], capture_output=True, text=True, check=False)
    assert completed.returncode == 0, completed.stderr
    assert completed.stderr == ""


def test_a_restored_backup_has_every_task_key_and_constraint(postgres: Postgres, tmp_path: Path) -> None:
    with service(DATABASE_URL=postgres.dsn()) as started:
        for number in range(30):
            for user in ("ann", "bob"):
                headers = {"Idempotency-Key": f"key-{number}"}
                body = TASK | {"completed": number % 2 == 0, "due_date": "2026-12-24T18:00:00+01:00"}
                response = httpx2.post(f"{started.url}/api/{user}/tasks", json=body, headers=headers)
                assert response.status_code == 201
        before = {user: httpx2.get(f"{started.url}/api/{user}/tasks").text for user in ("ann", "bob")}
        run_documented(*DUMP, f"--file={tmp_path / 'dump'}", postgres.dsn())
        httpx2.delete(f"{started.url}/api/ann/tasks")  # changes after the backup are not restored
        cursor = httpx2.get(f"{started.url}/api/ann/changes").json()["cursor"]
        old_url = started.url

    postgres.run_as_admin("CREATE DATABASE restored OWNER tasks TEMPLATE template0")
    target = postgres.dsn(database="restored")
    run_documented(*RESTORE, f"--dbname={target}", str(tmp_path / "dump"))
    (invalidate_cursors,) = re.findall(r"^```sql\n(WITH clock .*?)^```$", OPERATIONS, re.MULTILINE | re.DOTALL)
    postgres.run_as_admin(invalidate_cursors, database="restored")
    with service(DATABASE_URL=target) as started:
        changes = f"{started.url}/api/ann/changes"
        # Without the statement, this write would count up to the number of the cursor, which would be valid again.
        httpx2.post(f"{started.url}/api/ann/tasks", json={"title": "new"})
        assert httpx2.get(changes, params={"since": cursor}).status_code == 410
        copy = {task["id"]: task for task in httpx2.get(changes).json()["changes"] if not task.pop("deleted_at")}
        listed = httpx2.get(f"{started.url}/api/ann/tasks").json()
        assert copy == {task["id"]: task for task in listed}
        httpx2.delete(listed[0]["url"])
        for user, tasks in before.items():
            assert httpx2.get(f"{started.url}/api/{user}/tasks").text == tasks.replace(old_url, started.url)
        # The idempotency keys and the constraints are restored too.
        headers = {"Idempotency-Key": "key-1"}
        body = TASK | {"completed": False, "due_date": "2026-12-24T18:00:00+01:00"}
        repeat = httpx2.post(f"{started.url}/api/bob/tasks", json=body, headers=headers)
        assert repeat.headers["idempotent-replayed"] == "true"
        assert httpx2.post(f"{started.url}/api/bob/tasks", json=TASK).status_code == 201
    digest = "SELECT md5(string_agg(conname || pg_get_constraintdef(oid), '' ORDER BY conname)) FROM pg_constraint"
    assert postgres.run_as_admin(digest, database="restored") == postgres.run_as_admin(digest, database="tasks")
