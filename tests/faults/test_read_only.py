"""A database that rejects writes: it is read-only, as a replica is, or its disk is full."""

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
from tests.faults.helpers import check_log, wait_until
from tests.faults.postgres import Postgres
from tests.faults.processes import server_account
from tests.faults.wire import Response, send_once
from tests.servers import Service, service

SECRET = "a description that must not be logged"  # noqa: S105
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
        check_log(started.log, SECRET)


def send(started: Service, endpoint: str, **path_parameters: str) -> Response:
    method, path = endpoint.format(**path_parameters).split()
    if endpoint == "DELETE /api/{user_id}":
        path += f"?confirm={path_parameters['user_id']}"
    return asyncio.run(send_once(started.url, method, path, BODIES.get(endpoint)))


def create(started: Service, user: str) -> dict[str, Any]:
    response = send(started, "POST /api/{user_id}/tasks", user_id=user)
    assert response.status == 201
    task: dict[str, Any] = response.json()
    return task


def read(started: Service, user: str) -> list[dict[str, Any]]:
    response = send(started, "GET /api/{user_id}/tasks", user_id=user)
    assert response.status == 200
    tasks: list[dict[str, Any]] = response.json()
    return tasks


def warnings(started: Service) -> list[str]:
    return [line for line in started.log if line.startswith("WARNING") and "unavailable" in line]


@contextmanager
def read_only(postgres: Postgres) -> Iterator[None]:
    """Make every new transaction read-only during the block."""

    def configure(sql: str, state: str) -> None:
        postgres.run_as_admin(sql)
        postgres.run_as_admin("SELECT pg_reload_conf()")
        wait_until(lambda: postgres.run_as_admin("SHOW default_transaction_read_only") == [(state,)])

    configure("ALTER SYSTEM SET default_transaction_read_only = on", "on")
    try:
        yield
    finally:
        configure("ALTER SYSTEM RESET default_transaction_read_only", "off")


def test_a_read_only_database_means_503_for_writes_only(postgres: Postgres, started: Service, user: str) -> None:
    task = create(started, user)
    path_parameters = {"user_id": user, "task_id": task["id"]}
    with read_only(postgres):
        for number, endpoint in enumerate(WRITES, 1):
            assert send(started, endpoint, **path_parameters).status == 503, endpoint
            wait_until(lambda number=number: len(warnings(started)) == number)  # type: ignore[misc]
        assert all("read-only" in line for line in warnings(started)), "the log does not state the cause"
        for endpoint in [*READS, "GET /health/ready"]:
            assert send(started, endpoint, **path_parameters).status == 200, endpoint
        assert read(started, user) == [task]
    for endpoint in WRITES:
        task = create(started, user)
        assert send(started, endpoint, user_id=user, task_id=task["id"]).status in (200, 201), endpoint


@pytest.fixture
def small_disk() -> Iterator[Path]:
    """A file system of 2 MB."""
    folder = Path(tempfile.mkdtemp(prefix="tasks-disk-"))
    mounted = False
    try:
        command = ["mount", "-t", "tmpfs", "-o", "size=2m,mode=0777", "tmpfs", str(folder)]
        completed = subprocess.run(command, capture_output=True, text=True, check=False)
        mounted = completed.returncode == 0
        if not mounted:
            pytest.skip(f"tmpfs cannot be mounted: {completed.stderr.strip()}")
        yield folder
    finally:
        if mounted:
            subprocess.run(["umount", str(folder)], check=True)
        folder.rmdir()


@pytest.fixture
def on_small_disk(postgres: Postgres, small_disk: Path) -> Iterator[Path]:
    """The small disk, with the table of tasks on it."""
    (small_disk / "tasks").mkdir()
    if server_account():
        shutil.chown(small_disk / "tasks", "postgres", "postgres")
    postgres.run_as_admin(f"CREATE TABLESPACE small LOCATION '{small_disk / 'tasks'}'")
    with service(DATABASE_URL=postgres.dsn()):  # creates the tables
        pass
    postgres.run_as_admin("ALTER TABLE tasks SET TABLESPACE small", database="tasks")
    try:
        yield small_disk
    finally:
        postgres.run_as_admin("ALTER TABLE tasks SET TABLESPACE pg_default", database="tasks")
        postgres.run_as_admin("CHECKPOINT")  # removes the remaining files
        postgres.run_as_admin("DROP TABLESPACE small")


def test_a_full_disk_means_503_for_inserts_only(on_small_disk: Path, started: Service, user: str) -> None:
    task = create(started, user)
    ballast = on_small_disk / "ballast"
    with ballast.open("wb", buffering=0) as file, suppress(OSError):
        for _ in range(1024):  # four times the size of the disk
            file.write(bytes(8192))
    created = [task]
    for _ in range(100):  # until the allocated pages are full
        response = send(started, "POST /api/{user_id}/tasks", user_id=user)
        if response.status == 503:
            break
        assert response.status == 201
        created.append(response.json())
    else:
        raise AssertionError("100 inserts did not fill the disk")
    wait_until(lambda: any("No space left on device" in line for line in warnings(started)))
    assert len(warnings(started)) == 1
    assert read(started, user) == created[::-1]
    assert send(started, "GET /health/ready").status == 200

    ballast.unlink()
    created.append(create(started, user))
    assert read(started, user) == created[::-1]
