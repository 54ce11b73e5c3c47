"""A database that takes no writes: read-only, as a replica or an account over its limit, or with a full disk."""

import asyncio
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from main import app
from tests.faults.conftest import hold_log, wait_until
from tests.faults.postgres import Postgres, account
from tests.faults.wire import Answer, once
from tests.servers import Service, service

SECRET = "a description that is nobody's business"  # noqa: S105
BODIES: dict[str, object] = {
    "POST /api/{user_id}/tasks": {"title": "t", "description": SECRET},
    "PATCH /api/{user_id}/tasks": {"title": "changed"},
    "PUT /api/{user_id}/tasks/{task_id}": {"title": "changed", "description": SECRET},
    "PATCH /api/{user_id}/tasks/{task_id}": {"title": "changed"},
}
ENDPOINTS = [
    f"{method.upper()} {path}"
    for path, operations in app.openapi()["paths"].items()
    for method in operations
    if path.startswith("/api/")
]
WRITES = [endpoint for endpoint in ENDPOINTS if not endpoint.startswith("GET ")]
READS = [endpoint for endpoint in ENDPOINTS if endpoint.startswith("GET ")]


@pytest.fixture
def started(postgres: Postgres) -> Iterator[Service]:
    with service(DATABASE_URL=postgres.dsn(), DATABASE_TIMEOUT="2") as started:
        yield started
        hold_log(started.log, SECRET)


def ask(started: Service, endpoint: str, **names: str) -> Answer:
    method, path = endpoint.format(**names).split()
    return asyncio.run(once(started.url, method, path, BODIES.get(endpoint)))


def create(started: Service, user: str) -> dict[str, Any]:
    answer = ask(started, "POST /api/{user_id}/tasks", user_id=user)
    assert answer.status == 201
    task: dict[str, Any] = answer.json()
    return task


def read(started: Service, user: str) -> list[dict[str, Any]]:
    answer = ask(started, "GET /api/{user_id}/tasks", user_id=user)
    assert answer.status == 200
    tasks: list[dict[str, Any]] = answer.json()
    return tasks


def warnings(started: Service) -> list[str]:
    return [line for line in started.log if line.startswith("WARNING") and "unavailable" in line]


@contextmanager
def read_only(postgres: Postgres) -> Iterator[None]:
    """Every transaction that begins from now on may only read."""

    def switch(sql: str, state: str) -> None:
        postgres.administer(sql)
        postgres.administer("SELECT pg_reload_conf()")
        wait_until(lambda: postgres.administer("SHOW default_transaction_read_only") == [(state,)])

    switch("ALTER SYSTEM SET default_transaction_read_only = on", "on")
    try:
        yield
    finally:
        switch("ALTER SYSTEM RESET default_transaction_read_only", "off")


def test_a_read_only_database_is_503_for_every_write_and_still_read(
    postgres: Postgres, started: Service, user: str
) -> None:
    task = create(started, user)
    names = {"user_id": user, "task_id": task["id"]}
    with read_only(postgres):
        for number, endpoint in enumerate(WRITES, 1):
            assert ask(started, endpoint, **names).status == 503, endpoint
            wait_until(lambda number=number: len(warnings(started)) == number)  # type: ignore[misc]
        assert all("read-only" in line for line in warnings(started)), "the log does not say what is wrong"
        for endpoint in [*READS, "GET /health/ready"]:
            assert ask(started, endpoint, **names).status == 200, endpoint
        assert read(started, user) == [task]
    for endpoint in WRITES:
        again = create(started, user)
        assert ask(started, endpoint, user_id=user, task_id=again["id"]).status in (200, 201), endpoint


@pytest.fixture
def small_disk() -> Iterator[Path]:
    """A disk of 2 MB."""
    folder = Path(tempfile.mkdtemp(prefix="tasks-disk-"))
    mounted = False
    try:
        command = ["mount", "-t", "tmpfs", "-o", "size=2m,mode=0777", "tmpfs", str(folder)]
        tried = subprocess.run(command, capture_output=True, text=True, check=False)
        mounted = tried.returncode == 0
        if not mounted:
            pytest.skip(f"no disk can be mounted here: {tried.stderr.strip()}")
        yield folder
    finally:
        if mounted:
            subprocess.run(["umount", str(folder)], check=True)
        folder.rmdir()


@pytest.fixture
def on_small_disk(postgres: Postgres, small_disk: Path) -> Iterator[Path]:
    """The small disk, with all tasks on it."""
    (small_disk / "tasks").mkdir()
    if account():
        shutil.chown(small_disk / "tasks", "postgres", "postgres")
    postgres.administer(f"CREATE TABLESPACE small LOCATION '{small_disk / 'tasks'}'")
    with service(DATABASE_URL=postgres.dsn()):  # makes the tables
        pass
    postgres.administer("ALTER TABLE tasks SET TABLESPACE small", database="tasks")
    try:
        yield small_disk
    finally:
        postgres.administer("ALTER TABLE tasks SET TABLESPACE pg_default", database="tasks")
        postgres.administer("CHECKPOINT")  # which removes what is left of the files
        postgres.administer("DROP TABLESPACE small")


def test_a_full_disk_is_503_for_a_write_that_needs_room_and_still_read(
    on_small_disk: Path, started: Service, user: str
) -> None:
    task = create(started, user)
    ballast = on_small_disk / "ballast"
    with ballast.open("wb", buffering=0) as file, suppress(OSError):
        for _ in range(1024):  # four times what there is room for
            file.write(bytes(8192))
    created = [task]
    for _ in range(100):  # until the pages that are there already are full
        answer = ask(started, "POST /api/{user_id}/tasks", user_id=user)
        if answer.status == 503:
            break
        assert answer.status == 201
        created.append(answer.json())
    else:
        raise AssertionError("the disk never filled up")
    wait_until(lambda: any("No space left on device" in line for line in warnings(started)))
    assert len(warnings(started)) == 1
    assert read(started, user) == created[::-1]
    assert ask(started, "GET /health/ready").status == 200

    ballast.unlink()
    created.append(create(started, user))
    assert read(started, user) == created[::-1]
