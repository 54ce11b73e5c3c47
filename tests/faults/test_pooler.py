"""The service through a pooler in transaction mode, and with TLS of the strictest kind."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator

import httpx2
import pytest

from tests.faults.pgbouncer import PgBouncer
from tests.faults.postgres import Postgres
from tests.servers import HERE, service


@pytest.fixture(scope="module")
def postgres() -> Iterator[Postgres]:
    with Postgres(tls=True) as server:
        server.administer("ALTER ROLE tasks CREATEDB")  # the tests make databases of their own
        yield server


@pytest.fixture(scope="module")
def pgbouncer(postgres: Postgres) -> Iterator[PgBouncer]:
    with PgBouncer(postgres, pool_size=5) as pooler:
        yield pooler


def run_all_tests(url: str) -> None:
    """Run the whole suite as `make test` does, but on the database at `url`."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    ended = subprocess.run(
        [sys.executable, "-m", "pytest", "-n", "auto", "--quiet"],
        cwd=HERE, env=environment | {"TEST_DATABASE_URL": url}, timeout=600, check=False,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    print(ended.stdout)  # which pytest shows when this fails
    assert ended.returncode == 0


def test_every_test_passes_through_a_pooler_in_transaction_mode(pgbouncer: PgBouncer) -> None:
    run_all_tests(pgbouncer.dsn())


def test_every_test_passes_with_a_verified_server_and_channel_binding(postgres: Postgres) -> None:
    root = postgres.folder / "data/server.crt"
    run_all_tests(postgres.dsn(sslmode="verify-full", sslrootcert=str(root), channel_binding="require"))


def test_a_pooler_that_was_started_anew_costs_no_request(pgbouncer: PgBouncer) -> None:
    with service(DATABASE_URL=pgbouncer.dsn()) as started:
        for number in range(3):
            answer = httpx2.post(f"{started.url}/api/restart/tasks", json={"title": f"task {number}"})
            assert answer.status_code == 201, answer.text
            pgbouncer.stop()
            pgbouncer.start()
        assert len(httpx2.get(f"{started.url}/api/restart/tasks").json()) == 3
    assert not [line for line in started.log if "WARNING: Database" in line or "ERROR" in line]


def test_a_service_that_ended_leaves_no_connection_at_the_pooler(pgbouncer: PgBouncer) -> None:
    with service(DATABASE_URL=pgbouncer.dsn()) as started:
        assert httpx2.get(f"{started.url}/health/ready").status_code == 200
        assert pgbouncer.clients() > 0
        started.stop()
    for _ in range(50):  # the pooler needs a moment to see it
        if pgbouncer.clients() == 0:
            return
        time.sleep(0.1)
    raise AssertionError("a connection is left")
