"""What the tests share: a PostgreSQL of their own, a client, a user that nobody else has."""

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
    "created_at",
    "updated_at",
]
MOMENT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z")

NOT_COPIED = shutil.ignore_patterns(".*", "__pycache__", "node_modules", "tests", "docs", "benchmarks")

Create = Callable[..., dict[str, Any]]


@pytest.fixture(scope="session")
def database_url() -> Iterator[str]:
    """The PostgreSQL that all tests share, in parallel as well. TEST_DATABASE_URL names another."""
    if given := os.environ.get("TEST_DATABASE_URL"):
        yield given
        return
    # Not in pytest's own folder: as root the server is another user, whom pytest locks out there.
    run = os.environ.get("PYTEST_XDIST_TESTRUNUID", uuid4().hex)
    folder = Path(tempfile.gettempdir()) / f"tasks-{run}"
    folder.mkdir(exist_ok=True)
    yield embedded.start(folder / "postgres")
    embedded.stop(folder / "postgres")
    if not (folder / "postgres/postmaster.pid").exists():  # the last one out
        shutil.rmtree(folder)


@pytest.fixture(scope="session")
def pooled(database_url: str) -> bool:
    """Whether a pooler is in front, which keeps the server's sessions open as it likes."""
    with closing(psycopg2.connect(database_url)) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        return cursor.fetchone() != (connection.info.backend_pid,)


@pytest.fixture(scope="module")
def new_folder() -> Iterator[Path]:
    """A folder for a PostgreSQL that no other test uses."""
    with tempfile.TemporaryDirectory(prefix="tasks-") as folder:
        Path(folder).chmod(0o755)  # as root the server is another account
        yield Path(folder)


@pytest.fixture
def checkout(new_folder: Path) -> Path:
    """A copy of the service, with no data of its own yet."""
    copy = new_folder / str(uuid4())
    shutil.copytree(HERE, copy, ignore=NOT_COPIED)
    shutil.copy(HERE / ".env", copy)
    return copy


@pytest.fixture(scope="session")
def settings(database_url: str) -> Settings:
    """The defaults, on the database that all tests share."""
    return Settings(database_url=SecretStr(database_url))


@pytest.fixture(scope="session")
def client(settings: Settings) -> Iterator[TestClient]:
    """A client of the running app, which holds each answer against the contract."""
    with TestClient(create_app(settings), raise_server_exceptions=False) as client:
        client.event_hooks = {"response": [hold_to_contract]}
        yield client


@pytest.fixture
def user() -> str:
    return f"user-{uuid4()}"


@pytest.fixture
def url(user: str) -> str:
    """The path of the user's tasks."""
    return f"/api/{user}/tasks"


@pytest.fixture
def create(client: TestClient, url: str) -> Create:
    """Creates a task of the user, with any title unless one is given, and returns it."""

    def create(**fields: object) -> dict[str, Any]:
        answer = client.post(url, json={"title": "any"} | fields)
        assert answer.status_code == 201, answer.text
        return answer.json()

    return create


def hold_to_contract(answer: Any) -> None:
    """Every answer, in whichever test, is of the form that the contract promises."""
    answer.read()
    hold_to_openapi(answer)
    assert answer.headers["x-content-type-options"] == "nosniff"
    if answer.url.path.startswith("/api/"):
        assert answer.headers["cache-control"] == "private, no-cache"
        assert {"Authorization", "Origin"} <= set(answer.headers["vary"].split(", "))
    if answer.request.method in ("HEAD", "OPTIONS"):
        return
    if answer.status_code >= 400:
        assert answer.headers["content-type"] == "application/problem+json"
        assert "traceback" not in answer.text.lower()
        Problem.model_validate(answer.json(), strict=True)
        assert answer.json()["status"] == answer.status_code
    elif "/tasks" in answer.url.path and answer.content:
        assert answer.headers["content-type"] == "application/json"
        body = answer.json()
        if list(body) in (["updated"], ["deleted"]):
            assert type(*body.values()) is int
            return
        for task in body if isinstance(body, list) else [body]:
            hold_task_to_contract(task)


def hold_to_openapi(answer: Any) -> None:
    """Every status that comes is declared for its operation."""
    path = answer.url.path
    for template, operations in app.openapi()["paths"].items():
        if re.fullmatch(re.sub(r"\\{\w+\\}", "[^/]+", re.escape(template)), path):
            operation = operations.get(answer.request.method.lower())
            assert operation is None or str(answer.status_code) in operation["responses"], (template, answer)


def hold_task_to_contract(task: dict[str, Any]) -> None:
    assert list(task) == TASK_FIELDS
    for name in ("completed_at", "due_date", "created_at", "updated_at"):
        assert task[name] is None or MOMENT.fullmatch(task[name])
    assert task["completed"] is (task["completed_at"] is not None)
    assert task["url"].endswith(f"/tasks/{task['id']}")


def local(url: str) -> str:
    """An absolute URL of an answer, as a path that the client can follow."""
    return re.sub(r"^http://[^/]+", "", url)


@pytest.fixture
def empty_database(database_url: str) -> Iterator[str]:
    """The URL of a new database with nothing in it."""
    name = f"test_{uuid4().hex}"
    with closing(psycopg2.connect(database_url)) as connection:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute(f"CREATE DATABASE {name}")
            yield urlsplit(database_url)._replace(path=f"/{name}").geturl()
            cursor.execute(f"DROP DATABASE {name} WITH (FORCE)")
