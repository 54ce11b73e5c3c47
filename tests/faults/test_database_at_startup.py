"""Start-up: of several processes at once, without a database, and with a newer schema."""

import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack

import httpx2
import pytest

import database
from tests.faults.pgbouncer import PgBouncer
from tests.faults.postgres import Postgres
from tests.faults.processes import free_port
from tests.helpers import alembic, schema_names
from tests.servers import HERE, service


@pytest.fixture
def postgres() -> Iterator[Postgres]:
    with Postgres(tls=True) as server:
        yield server


def problems(log: str) -> list[str]:
    """Return the lines that report a problem."""
    return [line for line in log.splitlines() if re.search("ERROR|FATAL|PANIC|Traceback|Database unavailable", line)]


def failed_start(url: str, *options: str) -> tuple[int, str, float]:
    """Start a service whose start-up fails; return its exit status, its output and the seconds it took."""
    start = time.monotonic()
    completed = subprocess.run(
        [sys.executable, "-m", "uvicorn", "main:app", "--port", "0", *options],
        cwd=HERE, env=os.environ | {"DATABASE_URL": url}, capture_output=True, text=True, timeout=90, check=False,
    )  # fmt: skip
    return completed.returncode, completed.stderr, time.monotonic() - start


@pytest.fixture(scope="module", autouse=True)
def start_without_database() -> Iterator[Future[tuple[int, str, float]]]:
    """A start-up without a database, in parallel to the other tests, because it takes half a minute."""
    with ThreadPoolExecutor(1) as thread:
        yield thread.submit(failed_start, f"postgresql://tasks:s3cret@127.0.0.1:{free_port()}/tasks")


@pytest.mark.parametrize("pooled", [False, True], ids=["direct connection", "pooler"])
def test_eight_simultaneous_starts_create_one_schema(postgres: Postgres, pooled: bool) -> None:
    before = len(problems(postgres.log()))  # the server's own start-up messages
    with ExitStack() as stack:
        pooler = stack.enter_context(PgBouncer(postgres)) if pooled else None
        url = pooler.dsn() if pooler else postgres.dsn(sslmode="require")
        with ThreadPoolExecutor(8) as threads:
            starts = [threads.submit(stack.enter_context, service(DATABASE_URL=url)) for _ in range(8)]
            services = [start.result(90) for start in starts]
        for started in services:
            response = httpx2.post(f"{started.url}/api/up/tasks", json={"title": "any"})
            assert response.status_code == 201, response.text
        assert len(httpx2.get(f"{services[0].url}/api/up/tasks").json()) == 8
        assert {"tasks", "task_priority", "tasks_alembic_version"} <= schema_names(url)
        if pooler:
            assert not re.search("ERROR|FATAL|WARNING", pooler.log())
    for started in services:
        assert not problems("\n".join(started.log))
    assert problems(postgres.log())[before:] == []


def retry_delays(log: str) -> list[float]:
    """Return the delays before each retry, in seconds, from the log."""
    return [float(seconds) for seconds in re.findall(r"trying again in ([\d.]+) s", log)]


def test_startup_waits_for_a_database_that_starts_later(postgres: Postgres) -> None:
    postgres.stop()
    timer = threading.Timer(4, postgres.start)
    timer.start()
    try:
        with service(DATABASE_URL=postgres.dsn(sslmode="require")) as started:
            assert httpx2.post(f"{started.url}/api/late/tasks", json={"title": "any"}).status_code == 201
    finally:
        timer.join(60)
    assert retry_delays("\n".join(started.log))
    assert "Traceback" not in "\n".join(started.log)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_newer_schema_is_rejected_with_one_message(postgres: Postgres, workers: int) -> None:
    url = postgres.dsn(sslmode="require")
    assert alembic(url, "upgrade", "head").returncode == 0
    postgres.run_as_admin("UPDATE tasks_alembic_version SET version_num = '9999'", database="tasks")
    status, output, seconds = failed_start(url, "--workers", str(workers))
    assert status != 0 or workers > 1  # with several workers uvicorn's parent process exits with 0
    assert 1 <= output.count("The database has schema 9999") <= workers
    assert "start a newer version" in output
    assert "Traceback" not in output
    assert retry_delays(output) == []
    assert seconds < 30


def test_startup_without_a_database_fails_after_thirty_seconds(
    start_without_database: Future[tuple[int, str, float]],
) -> None:
    status, output, seconds = start_without_database.result(90)
    assert status != 0
    assert database.STARTUP_TIMEOUT - database.RETRY_DELAYS[-1] < seconds < database.STARTUP_TIMEOUT + 30
    delays = retry_delays(output)
    assert len(delays) >= 5
    assert delays == sorted(delays)
    assert delays[0] < delays[-1]
    assert output.count("The database was not ready within 30 seconds: ") == 1
    assert "Traceback" not in output
    assert "s3cret" not in output
