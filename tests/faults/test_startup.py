"""The service as a process: start-up, shutdown, memory use, and the embedded PostgreSQL."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import quote
from uuid import uuid4

import httpx2
import psutil
import psycopg2
import pytest
from fastapi.testclient import TestClient
from psycopg2.extensions import parse_dsn

import embedded
from main import create_app
from settings import Settings
from tests.servers import HERE, Service, load, postgres_of, service, wait_for


def create(started: Service) -> None:
    response = httpx2.post(f"{started.url}/api/ann/tasks", json={"title": "kept"})
    assert response.status_code == 201


def titles(started: Service) -> list[str]:
    return [task["title"] for task in httpx2.get(f"{started.url}/api/ann/tasks").json()]


def test_the_embedded_database_starts_and_keeps_its_data(checkout: Path) -> None:
    with service(folder=checkout, DATABASE_URL="") as first:
        create(first)
        assert len(postgres_of(checkout)) == 1
        assert sum("Database: embedded PostgreSQL" in line for line in first.log) == 1
        first.stop()
    assert postgres_of(checkout) == []
    with service(folder=checkout, DATABASE_URL="") as second:
        assert titles(second) == ["kept"]


def test_two_services_share_one_embedded_database_until_the_last_ends(checkout: Path) -> None:
    with service(folder=checkout, DATABASE_URL="") as first, service(folder=checkout, DATABASE_URL="") as second:
        create(first)
        assert titles(second) == ["kept"]
        first.stop()
        create(second)
        assert len(postgres_of(checkout)) == 1
        second.stop()
    assert postgres_of(checkout) == []


@pytest.mark.skipif(os.name == "nt", reason="there is no SIGKILL")
def test_the_embedded_database_stops_after_a_service_was_killed(checkout: Path) -> None:
    with service(folder=checkout, DATABASE_URL="") as first:
        create(first)
        first.process.send_signal(signal.SIGKILL)
        first.process.wait(10)
    with service(folder=checkout, DATABASE_URL="") as second:
        assert titles(second) == ["kept"]
        second.stop()
    assert postgres_of(checkout) == [], "the killed process keeps the server running"


def test_a_killed_embedded_server_starts_again(checkout: Path) -> None:
    with service(folder=checkout, DATABASE_URL="") as first:
        create(first)
        (server,) = postgres_of(checkout)
        pid_file = (checkout / ".postgres/postmaster.pid").read_text()
        first.process.kill()
        first.process.wait(10)
        psutil.Process(server).kill()
        psutil.Process(server).wait(10)
    # After a restart of the machine, another process may have the same pid: here, this test.
    (checkout / ".postgres/postmaster.pid").write_text(pid_file.replace(str(server), str(os.getpid()), 1))
    with service(folder=checkout, DATABASE_URL="") as second:
        assert titles(second) == ["kept"]


@pytest.mark.parametrize("content", ["", "not a number", "{another}"])
def test_an_invalid_pid_file_does_not_prevent_a_start(checkout: Path, new_folder: Path, content: str) -> None:
    with service(folder=checkout, DATABASE_URL="") as first:
        create(first)
        pid_file = (checkout / ".postgres/postmaster.pid").read_text()
        first.stop()
    another = new_folder / str(uuid4())
    url = embedded.start(another)
    pid = (another / "postmaster.pid").read_text().partition("\n")[0]
    (checkout / ".postgres/postmaster.pid").write_text(
        pid_file.replace(pid_file.partition("\n")[0], pid, 1) if content == "{another}" else content
    )
    with service(folder=checkout, DATABASE_URL="") as second:
        assert titles(second) == ["kept"]
    psycopg2.connect(url).close()  # it was not stopped by mistake
    embedded.stop(another)


def test_a_data_directory_may_have_special_characters(new_folder: Path) -> None:
    folder = new_folder / "my projects' (1), x&y"
    folder.mkdir()
    psycopg2.connect(embedded.start(folder / "data")).close()
    embedded.stop(folder / "data")
    assert not (folder / "data/postmaster.pid").exists()


def test_a_process_can_join_a_shared_embedded_server_again(new_folder: Path) -> None:
    folder = new_folder / str(uuid4())
    embedded.start(folder)
    user = f"folder = pathlib.Path({str(folder)!r}); print(embedded.start(folder)); input(); embedded.stop(folder)"
    command = [sys.executable, "-u", "-c", f"import embedded, pathlib; {user}"]
    with subprocess.Popen(command, cwd=HERE, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout
        assert other.stdout.readline()
        embedded.stop(folder)
        url = embedded.start(folder)
        other.communicate(b"\n", timeout=30)
    psycopg2.connect(url).close()
    embedded.stop(folder)


def test_a_failed_start_stops_the_embedded_server(checkout: Path) -> None:
    (checkout / "migrations/versions/0001_tasks.py").write_text("raise RuntimeError('broken on purpose')")
    command = [sys.executable, "-m", "uvicorn", "main:app", "--port", "0"]
    environment = os.environ | {"DATABASE_URL": ""}
    completed = subprocess.run(
        command, cwd=checkout, env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert completed.returncode != 0
    assert "broken on purpose" in completed.stderr
    assert postgres_of(checkout) == []


def test_the_app_closes_its_connections_at_shutdown(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    connections = []
    connect = psycopg2.connect

    def record(*arguments: Any, **options: Any) -> Any:
        connections.append(connect(*arguments, **options))
        return connections[-1]

    monkeypatch.setattr(psycopg2, "connect", record)
    with TestClient(create_app(settings)) as client:
        assert client.get("/health/ready").status_code == 200
        assert [connection.closed for connection in connections].count(0) == 1
    assert {connection.closed for connection in connections} == {1}


def test_the_log_names_the_database_without_its_password(empty_database: str) -> None:
    password = parse_dsn(empty_database).get("password", "s3cret")
    url = f"{empty_database}&password={quote(password)}"
    with service(DATABASE_URL=url) as started:
        assert httpx2.get(f"{started.url}/health/ready").status_code == 200
    lines = [line for line in started.log if "Database" in line]
    assert len(lines) == 1
    assert "test_" in lines[0]
    assert password not in "\n".join(started.log)


def test_log_level_error_hides_info_and_warnings(empty_database: str) -> None:
    with service(DATABASE_URL=empty_database, LOG_LEVEL="error") as started:
        assert httpx2.get(f"{started.url}/health/ready").status_code == 200
    assert not [line for line in started.log if "Database" in line or "AUTH_" in line]


def test_eight_workers_start_at_once_on_an_empty_database(empty_database: str) -> None:
    with service("--workers", "8", DATABASE_URL=empty_database, DATABASE_POOL_SIZE="2") as started:
        wait_for(started.log, "Application startup complete", 8)
        create(started)
        assert titles(started) == ["kept"]
    assert not [line for line in started.log if "ERROR" in line or "Traceback" in line]


SESSIONS = "SELECT count(*) FROM pg_stat_activity WHERE datname = %s"


def test_sigterm_ends_the_service_and_its_sessions(empty_database: str, database_url: str, pooled: bool) -> None:
    with service(DATABASE_URL=empty_database) as started:
        create(started)
        assert started.stop() in (0, -signal.SIGTERM)
    name = empty_database.partition("?")[0].rpartition("/")[2]
    with closing(psycopg2.connect(database_url)) as connection, connection.cursor() as cursor:
        connection.autocommit = True
        for _ in range(100):  # the server notices a closed connection with a delay
            cursor.execute(SESSIONS + (" AND state <> 'idle'" if pooled else ""), [name])
            if cursor.fetchone() == (0,):
                return
            time.sleep(0.1)
    raise AssertionError("a session is left")


def test_a_worker_uses_under_100_mb_after_10_000_requests(empty_database: str) -> None:
    requests = []
    for number in range(2_500):
        path = f"/api/user-{number % 50}/tasks"
        requests += [
            ("POST", path, b'{"title": "t", "description": "%s", "tags": ["a", "b"]}' % (b"x" * 500)),
            ("GET", f"{path}?limit=20", b""),
            ("GET", path, b""),
            ("GET", "/health", b""),
        ]
    with service("--no-access-log", DATABASE_URL=empty_database) as started:
        statuses = asyncio.run(load(started.url, requests, connections=200))
        memory = psutil.Process(started.process.pid).memory_info().rss
    assert len(statuses) == 10_000
    assert set(statuses) == {200, 201}
    encrypted = parse_dsn(empty_database).get("sslmode", "disable") != "disable"
    limit = 110_000_000 if encrypted else 100_000_000  # TLS takes half a megabyte for each connection
    assert memory < limit, f"{memory / 1e6:.1f} MB"


@pytest.mark.parametrize("framing", ["Content-Length: 19", "Transfer-Encoding: chunked"])
def test_a_body_lost_in_an_upgrade_does_not_toggle(empty_database: str, framing: str) -> None:
    with service(DATABASE_URL=empty_database) as started:
        create(started)
        (task,) = httpx2.get(f"{started.url}/api/ann/tasks").json()
        httpx2.patch(f"{task['url']}/complete", json={"completed": True})
        host, port = started.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), 10) as connection:
            head = f"PATCH /api/ann/tasks/{task['id']}/complete HTTP/1.1\r\nHost: {host}\r\n{framing}\r\n"
            head += "Content-Type: application/json\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n"
            body = '{"completed": true}'
            connection.sendall((head + (body if "Length" in framing else f"13\r\n{body}\r\n0\r\n\r\n")).encode())
            assert connection.recv(65536).split()[1] == b"422"
        assert httpx2.get(task["url"]).json()["completed"] is True
