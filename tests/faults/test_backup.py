"""A backup, as docs/operations.md says to make one, and back from it."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from tests.faults.postgres import BINARIES, Postgres
from tests.servers import HERE, service

DUMP = ["pg_dump", "--format=custom", "--no-owner"]
RESTORE = ["pg_restore", "--no-owner", "--exit-on-error", "--single-transaction"]
TASK = {"title": "Milch & Brötchen 🥛", "description": "it's \\ 100 %", "tags": ["a", "b,c"], "order": 7}


@pytest.fixture
def postgres() -> Iterator[Postgres]:
    with Postgres() as server:
        yield server


def run(program: str, *arguments: str) -> None:
    assert " ".join([program, *arguments[:-2]]) in (HERE / "docs/operations.md").read_text()
    ended = subprocess.run([str(BINARIES / program), *arguments], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr == ""


def test_a_service_on_a_restored_backup_has_every_task(postgres: Postgres, tmp_path: Path) -> None:
    with service(DATABASE_URL=postgres.dsn()) as started:
        for number in range(30):
            for user in ("ann", "bob"):
                headers = {"Idempotency-Key": f"key-{number}"}
                body = TASK | {"completed": number % 2 == 0, "due_date": "2026-12-24T18:00:00+01:00"}
                answer = httpx2.post(f"{started.url}/api/{user}/tasks", json=body, headers=headers)
                assert answer.status_code == 201
        before = {user: httpx2.get(f"{started.url}/api/{user}/tasks").text for user in ("ann", "bob")}
        run(*DUMP, f"--file={tmp_path / 'dump'}", postgres.dsn())
        httpx2.delete(f"{started.url}/api/ann/tasks")  # what came after the backup is not in it
        old = started.url

    postgres.administer("CREATE DATABASE restored OWNER tasks TEMPLATE template0")
    target = postgres.dsn(database="restored")
    run(*RESTORE, f"--dbname={target}", str(tmp_path / "dump"))
    with service(DATABASE_URL=target) as started:
        for user, tasks in before.items():
            assert httpx2.get(f"{started.url}/api/{user}/tasks").text == tasks.replace(old, started.url)
        # What is no part of a task's JSON came along as well: its key, and the rules of the table.
        headers = {"Idempotency-Key": "key-1"}
        body = TASK | {"completed": False, "due_date": "2026-12-24T18:00:00+01:00"}
        repeat = httpx2.post(f"{started.url}/api/bob/tasks", json=body, headers=headers)
        assert repeat.headers["idempotent-replayed"] == "true"
        assert httpx2.post(f"{started.url}/api/bob/tasks", json=TASK).status_code == 201
    digest = "SELECT md5(string_agg(conname || pg_get_constraintdef(oid), '' ORDER BY conname)) FROM pg_constraint"
    assert postgres.administer(digest, database="restored") == postgres.administer(digest, database="tasks")
