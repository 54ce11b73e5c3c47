"""Fixtures and assertions that all tests share: a PostgreSQL server, a client, a new user for each test."""

import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import httpx2
import psycopg2
import pytest
from fastapi.testclient import TestClient
from pydantic import SecretStr

import embedded
from main import app, create_app
from schemas import Problem
from settings import Settings
from tests.servers import HERE

TASK_FIELDS = [
    "id",
    "user_id",
    "url",
    "title",
    "description",
    "completed",
    "completed_at",
    "priority",
    "tags",
    "due_date",
    "order",
    "extra",
    "version",
    "created_at",
    "updated_at",
]
TIMESTAMP = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z")

NOT_COPIED = shutil.ignore_patterns(".*", "__pycache__", "node_modules", "tests", "docs", "benchmarks")

Create = Callable[..., dict[str, Any]]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Return two workers for each core, because many tests wait for a timeout or for PostgreSQL."""
    return 2 * (os.cpu_count() or 1)


@pytest.fixture(scope="session")
def database_url() -> Iterator[str]:
    """Start the PostgreSQL server that all tests and all xdist workers share, and yield its URL.

    If TEST_DATABASE_URL is set, yield that URL instead and start nothing.
    """
    if given := os.environ.get("TEST_DATABASE_URL"):
        yield given
        return
    # Under root, PostgreSQL runs as another account, which has no access to pytest's temporary folders.
    run_id = os.environ.get("PYTEST_XDIST_TESTRUNUID", uuid4().hex)
    folder = Path(tempfile.gettempdir()) / f"tasks-{run_id}"
    folder.mkdir(exist_ok=True)
    yield embedded.start(folder / "postgres")
    embedded.stop(folder / "postgres")
    if not (folder / "postgres/postmaster.pid").exists():  # no other worker uses it any more
        shutil.rmtree(folder)


@pytest.fixture(scope="session")
def pooled(database_url: str) -> bool:
    """Return whether the URL leads to a pooler, which keeps idle connections to PostgreSQL open."""
    with closing(psycopg2.connect(database_url)) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        return cursor.fetchone() != (connection.info.backend_pid,)


@pytest.fixture(scope="module")
def new_folder() -> Iterator[Path]:
    """Yield a new folder for the data of a separate PostgreSQL server, and delete it afterwards."""
    with tempfile.TemporaryDirectory(prefix="tasks-") as folder:
        Path(folder).chmod(0o755)  # under root, PostgreSQL runs as another account
        yield Path(folder)


@pytest.fixture
def checkout(new_folder: Path) -> Path:
    """Return a folder with a copy of the service's files, without data."""
    copy = new_folder / str(uuid4())
    shutil.copytree(HERE, copy, ignore=NOT_COPIED)
    shutil.copy(HERE / ".env", copy)
    return copy


@pytest.fixture(scope="session")
def settings(database_url: str) -> Settings:
    """Return the default settings with the shared database."""
    return Settings(database_url=SecretStr(database_url))


@pytest.fixture(scope="session")
def client(settings: Settings) -> Iterator[TestClient]:
    """Yield a client of the running app, which asserts for each response that it keeps the contract."""
    with TestClient(create_app(settings), raise_server_exceptions=False) as client:
        client.event_hooks = {"response": [assert_contract]}
        yield client


@pytest.fixture
def user() -> str:
    """Return the id of a user that no other test uses."""
    return f"user-{uuid4()}"


@pytest.fixture
def url(user: str) -> str:
    """Return the path of the user's tasks."""
    return f"/api/{user}/tasks"


@pytest.fixture
def create(client: TestClient, url: str) -> Create:
    """Return a function that creates a task of the user from the given fields, and returns it as JSON.

    The title defaults to "any".
    """

    def create(**fields: object) -> dict[str, Any]:
        response = client.post(url, json={"title": "any"} | fields)
        assert response.status_code == 201, response.text
        return response.json()

    return create


def assert_contract(response: httpx2.Response) -> None:
    """Assert what holds for every response: status and headers, and the form of its body."""
    response.read()
    assert_status_is_declared(response)
    assert response.headers["x-content-type-options"] == "nosniff"
    if response.url.path.startswith("/api/"):
        assert response.headers["cache-control"] == "private, no-cache"
        assert {"Authorization", "Origin"} <= set(response.headers["vary"].split(", "))
    if response.request.method in ("HEAD", "OPTIONS"):
        return
    if response.status_code >= 400:
        assert response.headers["content-type"] == "application/problem+json"
        assert "traceback" not in response.text.lower()
        Problem.model_validate(response.json(), strict=True)
        assert response.json()["status"] == response.status_code
    elif response.url.path.endswith("/changes") and response.content:
        assert list(response.json()) == ["changes", "cursor", "more"]
        for change in response.json()["changes"]:
            assert list(change) == [*TASK_FIELDS, "deleted_at"]
            assert change["deleted_at"] is None or TIMESTAMP.fullmatch(change["deleted_at"])
    elif "/tasks" in response.url.path and response.content:
        assert response.headers["content-type"] == "application/json"
        body = response.json()
        if list(body) in (["updated"], ["deleted"]):
            assert type(*body.values()) is int
            return
        for task in body if isinstance(body, list) else [body]:
            assert_task(task)


def assert_status_is_declared(response: httpx2.Response) -> None:
    """Assert that openapi.json declares this status for this operation, if it declares the operation."""
    for template, operations in app.openapi()["paths"].items():
        if re.fullmatch(re.sub(r"\\{\w+\\}", "[^/]+", re.escape(template)), response.url.path):
            operation = operations.get(response.request.method.lower())
            assert operation is None or str(response.status_code) in operation["responses"], (template, response)


def assert_task(task: dict[str, Any]) -> None:
    """Assert that a task has all fields in order, timestamps in UTC, and a `completed_at` while it is completed."""
    assert list(task) == TASK_FIELDS
    for name in ("completed_at", "due_date", "created_at", "updated_at"):
        assert task[name] is None or TIMESTAMP.fullmatch(task[name])
    assert task["completed"] is (task["completed_at"] is not None)
    assert task["url"].endswith(f"/tasks/{task['id']}")
    assert 0 <= task["version"] < 2**53


def changed(task: dict[str, Any]) -> dict[str, Any]:
    """Return the fields that every change of a task sets, with their values."""
    return {name: task[name] for name in ("version", "updated_at")}


def local(url: str) -> str:
    """Return the path and the query of an absolute URL, as the test client takes them."""
    return re.sub(r"^http://[^/]+", "", url)


def get_pages(client: TestClient, path: str) -> Iterator[httpx2.Response]:
    """Get the list at `path` and then each next page by its `Link` header (RFC 8288), and yield the responses."""
    while path:
        response = client.get(path)
        assert response.status_code == 200, response.text
        path = local(response.links["next"]["url"]) if "next" in response.links else ""
        yield response


@pytest.fixture
def empty_database(database_url: str) -> Iterator[str]:
    """Create a database without tables, yield its URL, and drop it afterwards."""
    name = f"test_{uuid4().hex}"
    with closing(psycopg2.connect(database_url)) as connection:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute(f"CREATE DATABASE {name}")
            yield urlsplit(database_url)._replace(path=f"/{name}").geturl()
            cursor.execute(f"DROP DATABASE {name} WITH (FORCE)")
