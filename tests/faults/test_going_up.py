"""Starts: many at once, with the database away for a while or for good, or with a newer schema."""

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
from tests.faults.postgres import Postgres, free_port
from tests.helpers import alembic, schema_names
from tests.servers import HERE, service


@pytest.fixture
def postgres() -> Iterator[Postgres]:
    with Postgres(tls=True) as server:
        yield server


def trouble(log: str) -> list[str]:
    """The lines that somebody would have to look into."""
    return [line for line in log.splitlines() if re.search("ERROR|FATAL|PANIC|Traceback|Database unavailable", line)]


def failed_start(url: str, *options: str) -> tuple[int, str, float]:
    """Start a service that cannot serve; its exit status, what it says, and the seconds it took."""
    start = time.monotonic()
    ended = subprocess.run(
        [sys.executable, "-m", "uvicorn", "main:app", "--port", "0", *options],
        cwd=HERE, env=os.environ | {"DATABASE_URL": url}, capture_output=True, text=True, timeout=90, check=False,
    )  # fmt: skip
    return ended.returncode, ended.stderr, time.monotonic() - start


@pytest.fixture(scope="module", autouse=True)
def given_up() -> Iterator[Future[tuple[int, str, float]]]:
    """A start without a database, under way while the other tests run: it takes half a minute."""
    with ThreadPoolExecutor(1) as thread:
        yield thread.submit(failed_start, f"postgresql://tasks:s3cret@127.0.0.1:{free_port()}/tasks")


@pytest.mark.parametrize("pooled", [False, True], ids=["directly", "through a pooler"])
def test_eight_processes_at_once_on_an_empty_database_make_one_schema(postgres: Postgres, pooled: bool) -> None:
    before = len(trouble(postgres.log()))  # of the server's own start
    with ExitStack() as stack:
        pooler = stack.enter_context(PgBouncer(postgres)) if pooled else None
        url = pooler.dsn() if pooler else postgres.dsn(sslmode="require")
        with ThreadPoolExecutor(8) as threads:
            starts = [threads.submit(stack.enter_context, service(DATABASE_URL=url)) for _ in range(8)]
            services = [start.result(90) for start in starts]
        for one in services:
            answer = httpx2.post(f"{one.url}/api/up/tasks", json={"title": "any"})
            assert answer.status_code == 201, answer.text
        assert len(httpx2.get(f"{services[0].url}/api/up/tasks").json()) == 8
        assert {"tasks", "task_priority", "tasks_alembic_version"} <= schema_names(url)
        if pooler:
            assert not re.search("ERROR|FATAL|WARNING", pooler.log())
    for one in services:
        assert not trouble("\n".join(one.log))
    assert trouble(postgres.log())[before:] == []


def pauses(log: str) -> list[float]:
    """How long it says to wait before it tries again, in seconds."""
    return [float(seconds) for seconds in re.findall(r"trying again in ([\d.]+) s", log)]


def test_a_database_that_comes_up_meanwhile_is_used(postgres: Postgres) -> None:
    postgres.stop()
    later = threading.Timer(4, postgres.start)
    later.start()
    try:
        with service(DATABASE_URL=postgres.dsn(sslmode="require")) as started:
            assert httpx2.post(f"{started.url}/api/late/tasks", json={"title": "any"}).status_code == 201
    finally:
        later.join(60)
    assert pauses("\n".join(started.log))
    assert "Traceback" not in "\n".join(started.log)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_schema_newer_than_the_code_is_refused_with_one_sentence(postgres: Postgres, workers: int) -> None:
    url = postgres.dsn(sslmode="require")
    assert alembic(url, "upgrade", "head").returncode == 0
    postgres.administer("UPDATE tasks_alembic_version SET version_num = '9999'", database="tasks")
    status, said, took = failed_start(url, "--workers", str(workers))
    assert status != 0 or workers > 1  # uvicorn's parent of several workers ends with 0
    assert 1 <= said.count("The database has schema 9999") <= workers
    assert "start a newer version" in said
    assert "Traceback" not in said
    assert pauses(said) == []
    assert took < 30


def test_without_a_database_a_start_tries_for_thirty_seconds_and_ends_with_one_sentence(
    given_up: Future[tuple[int, str, float]],
) -> None:
    status, said, took = given_up.result(90)
    assert status != 0
    assert database.STARTUP_TIMEOUT - database.RETRY_DELAYS[-1] < took < database.STARTUP_TIMEOUT + 30
    tried = pauses(said)
    assert len(tried) >= 5
    assert tried == sorted(tried)
    assert tried[0] < tried[-1]
    assert said.count("The database was not ready within 30 seconds: ") == 1
    assert "Traceback" not in said
    assert "s3cret" not in said
