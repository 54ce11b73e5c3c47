"""Each request sends one SQL statement, according to PostgreSQL's log."""

import os
import re
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, get_args
from urllib.parse import parse_qsl
from uuid import uuid4

import psycopg2
import pytest
from fastapi.testclient import TestClient
from pydantic import SecretStr

import embedded
from main import create_app
from schemas import Filters, Sort
from settings import Settings
from tests.conftest import local

pytestmark = pytest.mark.skipif(os.name == "nt", reason="the log of the embedded server is read from its folder")


class Log:
    """The log of the statements that the service has sent, found by its application name."""

    def __init__(self, url: str, file: Path) -> None:
        self.url = url
        self.file = file
        self.start = 0

    def statements(self) -> list[str]:
        """Return the logged statements since the last call."""
        text = self.file.read_text()[self.start :]
        self.start += len(text)
        return [line for line in text.splitlines() if line.startswith("service|LOG:  statement: ")]

    def drop_connections(self) -> None:
        """Terminate all connections of the service, as a serverless database does when it suspends."""
        with closing(psycopg2.connect(self.url)) as connection, connection.cursor() as cursor:
            cursor.execute(
                "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE application_name = 'service'"
            )
            assert cursor.fetchall() == [(True,)]


@pytest.fixture(scope="module")
def log(new_folder: Path) -> Iterator[Log]:
    folder = new_folder / "postgres"
    url = embedded.start(folder)
    with closing(psycopg2.connect(url)) as connection:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute("ALTER SYSTEM SET log_statement = 'all'")
            cursor.execute("ALTER SYSTEM SET log_line_prefix = '%a|'")
            cursor.execute("SELECT pg_reload_conf()")
    yield Log(url, folder / "log")
    embedded.stop(folder)


@pytest.fixture(scope="module")
def logged_client(log: Log, settings: Settings) -> Iterator[TestClient]:
    url = SecretStr(f"{log.url}&application_name=service")
    with TestClient(create_app(settings.model_copy(update={"database_url": url}))) as client:
        yield client


TASK = {"title": "t", "tags": ["a"], "due_date": "2026-12-24T17:00:00Z"}
MISSING_ID = "00000000-0000-4000-8000-000000000000"
ALL_FILTERS = (
    "completed=false&priority=low&priority=medium&tag=a&q=t&due_before=2030-01-01T00:00:00Z"
    "&due_after=2020-01-01T00:00:00Z&updated_after=2020-01-01T00:00:00Z&completed_before=2030-01-01T00:00:00Z"
    f"&completed_after=2020-01-01T00:00:00Z&id={MISSING_ID}&id=8a39bd2c-0a0b-4a4f-9f1d-9a6f8d0c0b5e"
)


def test_the_tests_below_use_all_filters() -> None:
    assert {name for name, _ in parse_qsl(ALL_FILTERS)} == set(Filters.model_fields)


@pytest.mark.parametrize("closed", [False, True], ids=["open connection", "all connections closed"])
@pytest.mark.parametrize(
    ("method", "suffix", "body", "status"),
    [
        *(("GET", f"?sort={sort}", None, 200) for sort in get_args(Sort)),
        ("GET", f"?{ALL_FILTERS}&total=true", None, 200),
        ("GET", "?total=true", None, 200),
        ("PATCH", "", {"completed": True}, 200),
        ("PATCH", f"?{ALL_FILTERS}", {"completed": True, "title": "u"}, 200),
        ("DELETE", f"?{ALL_FILTERS}", None, 200),
        ("DELETE", "", None, 200),
        ("POST", "", TASK, 201),
        ("POST", "", TASK | {"completed": True}, 201),
        ("GET", "", None, 200),
        ("GET", "?limit=1", None, 200),
        ("GET", "/{id}", None, 200),
        ("PUT", "/{id}", TASK, 200),
        ("PATCH", "/{id}", {"title": "u", "completed": True}, 200),
        ("PATCH", "/{id}", {}, 200),
        ("PATCH", "/{id}", {"extra": {"a": [1]}}, 200),
        ("PATCH", "?completed=false", {"extra": {"a": [1]}}, 200),
        ("POST", "/{id}/restore", None, 200),
        ("POST", f"/{MISSING_ID}/restore", None, 404),
        ("PATCH", "/{id}/complete", None, 200),
        ("PATCH", "/{id}/complete", {"completed": True}, 200),
        ("DELETE", "/{id}", None, 200),
        ("DELETE", f"/{MISSING_ID}", None, 404),
    ],
)
def test_each_request_sends_one_statement(
    logged_client: TestClient, log: Log, url: str, method: str, suffix: str, body: object, status: int, closed: bool
) -> None:
    task = logged_client.post(url, json=TASK).json()
    logged_client.post(url, json=TASK)
    if closed:
        log.drop_connections()
    log.statements()
    response = logged_client.request(method, url + suffix.format(id=task["id"]), json=body)
    assert response.status_code == status
    statements = log.statements()
    assert len(statements) == 1, statements
    assert re.match(
        r"service\|LOG:  statement: (SET statement_timeout = \d+00; )?(PREPARE (\w+) .*|EXECUTE|SELECT|WITH) ",
        statements[0],
    )


@pytest.mark.parametrize(
    ("method", "suffix", "body", "headers", "status"),
    [
        ("GET", "", None, {"If-None-Match": "*"}, 304),
        ("GET", "/{id}", None, {"If-None-Match": "*"}, 304),
        *(
            (method, suffix, body, {"If-Match": tag}, 412 if tag == '"0"' else 200)
            for method, suffix, body in [
                ("PUT", "/{id}", TASK),
                ("PATCH", "/{id}", {"title": "u"}),
                ("PATCH", "/{id}/complete", None),
                ("PATCH", "/{id}/complete", {"completed": True}),
                ("DELETE", "/{id}", None),
            ]
            for tag in ("{etag}", '"0"', "*")
        ),
        ("PUT", f"/{MISSING_ID}", TASK, {"If-Match": '"0"'}, 404),
        ("POST", "", TASK, {"Idempotency-Key": "new"}, 201),
        ("POST", "", TASK, {"Idempotency-Key": "sent-before"}, 201),
        ("POST", "", {"title": "other"}, {"Idempotency-Key": "sent-before"}, 422),
        ("PUT", f"/{MISSING_ID}", TASK, {"If-None-Match": "*"}, 201),
        ("PUT", "/{id}", TASK, {"If-None-Match": "*"}, 412),
    ],
)
def test_conditional_and_idempotent_requests_send_one_statement(
    logged_client: TestClient,
    log: Log,
    url: str,
    method: str,
    suffix: str,
    body: object,
    headers: dict[str, str],
    status: int,
) -> None:
    task = logged_client.post(url, json=TASK, headers={"Idempotency-Key": "sent-before"})
    headers = {name: value.replace("{etag}", task.headers["etag"]) for name, value in headers.items()}
    log.statements()
    response = logged_client.request(method, url + suffix.format(id=task.json()["id"]), json=body, headers=headers)
    assert response.status_code == status
    assert len(log.statements()) == 1


def test_requests_for_a_deleted_task_send_one_statement(logged_client: TestClient, log: Log, url: str) -> None:
    path = f"{url}/{uuid4()}"
    create = {"method": "PUT", "url": path, "json": TASK, "headers": {"If-None-Match": "*"}}
    key = {"method": "POST", "url": url, "json": TASK, "headers": {"Idempotency-Key": "k"}}
    requests: list[tuple[Any, int]] = [
        (create, 201),
        (create, 201),
        (key, 201),
        ({"method": "DELETE", "url": url}, 200),
        (create, 410),
        (key, 410),
        ({"method": "GET", "url": path}, 404),
        ({"method": "DELETE", "url": path}, 404),
        ({"method": "POST", "url": f"{path}/restore"}, 200),
    ]
    log.statements()
    for request, status in requests:
        assert logged_client.request(**request).status_code == status
        assert len(log.statements()) == 1


def test_the_changes_send_one_statement(logged_client: TestClient, log: Log, url: str, user: str) -> None:
    path = f"/api/{user}/changes"
    cursor = logged_client.get(path).json()["cursor"]
    for _ in range(3):
        logged_client.post(url, json=TASK)
    log.statements()
    more = True
    while more:
        response = logged_client.get(path, params={"since": cursor, "limit": 2})
        assert len(log.statements()) == 1
        cursor, more = response.json()["cursor"], response.json()["more"]
    for query in ({}, {"since": cursor}):
        response = logged_client.get(path, params=query, headers={"If-None-Match": response.headers["etag"]})
        assert response.status_code == 304
        assert len(log.statements()) == 1
    logged_client.delete(f"/api/{user}", params={"confirm": user})
    log.statements()
    assert logged_client.get(path, params={"since": cursor}).status_code == 410
    assert len(log.statements()) == 1


def test_erasing_a_user_sends_one_statement(logged_client: TestClient, log: Log, url: str, user: str) -> None:
    logged_client.post(url, json=TASK)
    for deleted in (1, 0):
        log.statements()
        assert logged_client.delete(f"/api/{user}", params={"confirm": user}).json() == {"deleted": deleted}
        assert len(log.statements()) == 1


def test_the_summary_sends_one_statement(logged_client: TestClient, log: Log, user: str) -> None:
    logged_client.get("/health/ready")
    log.statements()
    assert logged_client.get(f"/api/{user}").status_code == 200
    assert len(log.statements()) == 1


@pytest.mark.parametrize("sort", get_args(Sort))
def test_the_next_page_sends_one_statement(logged_client: TestClient, log: Log, url: str, sort: str) -> None:
    for _ in range(3):
        logged_client.post(url, json=TASK)
    next_page = local(logged_client.get(f"{url}?limit=2&total=true&sort={sort}").links["next"]["url"])
    log.statements()
    assert len(logged_client.get(next_page).json()) == 1
    assert len(log.statements()) == 1


def test_a_statement_contains_only_the_requested_filters(logged_client: TestClient, log: Log, url: str) -> None:
    conditions = {
        "completed=true": "tasks.completed = ",
        "priority=low": "tasks.priority = ANY",
        "tag=a": "tasks.tags @>",
        "q=a": "strpos(",
        "due_before=2030-01-01T00:00:00Z": "tasks.due_date <",
        "due_after=2030-01-01T00:00:00Z": "tasks.due_date >",
        "updated_after=2030-01-01T00:00:00Z": "tasks.updated_at >",
        "completed_before=2030-01-01T00:00:00Z": "tasks.completed_at <",
        "completed_after=2030-01-01T00:00:00Z": "tasks.completed_at >",
        f"id={MISSING_ID}": "tasks.id = ANY",
        "total=true": "count(*)",
    }
    logged_client.get(url)
    for requested in ["", *conditions]:
        log.statements()
        start = log.start
        assert logged_client.get(f"{url}?{requested}").status_code == 200
        sql = log.file.read_text()[start:]
        for query, condition in conditions.items():
            assert (condition in sql) is (query == requested), (requested, condition)


def test_readiness_sends_one_statement_and_health_sends_none(logged_client: TestClient, log: Log) -> None:
    logged_client.get("/health/ready")
    log.statements()
    logged_client.get("/health/ready")
    assert len(log.statements()) == 1
    logged_client.get("/health")
    assert log.statements() == []


def test_invalid_input_sends_no_statement(logged_client: TestClient, log: Log, url: str, user: str) -> None:
    log.statements()
    assert logged_client.post(url, json={"title": "t", "titel": "t"}).status_code == 422
    assert logged_client.get(f"/api/{user}/changes?since=x").status_code == 422
    assert logged_client.delete(f"/api/{user}?confirm=x").status_code == 422
    not_version_4 = "c232ab00-9414-11ec-b3c8-9f6bdeced846"
    response = logged_client.put(f"{url}/{not_version_4}", json=TASK, headers={"If-None-Match": "*"})
    assert response.status_code == 422
    assert logged_client.post(url, json={"title": ""}).status_code == 422
    assert logged_client.get(f"{url}?limit=0").status_code == 422
    assert log.statements() == []
