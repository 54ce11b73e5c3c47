"""The service with a pooler in transaction mode, and with verified TLS and channel binding."""

import os
import subprocess
import sys
from collections.abc import Iterator

import httpx2
import pytest

from tests.faults.helpers import wait_until
from tests.faults.pgbouncer import PgBouncer
from tests.faults.postgres import Postgres
from tests.servers import HERE, service


@pytest.fixture(scope="module")
def postgres() -> Iterator[Postgres]:
    with Postgres(tls=True) as server:
        server.run_as_admin("ALTER ROLE tasks CREATEDB")  # some tests create databases
        yield server


@pytest.fixture(scope="module")
def pgbouncer(postgres: Postgres) -> Iterator[PgBouncer]:
    with PgBouncer(postgres, pool_size=5) as pooler:
        yield pooler


# What uses the connection in every way: statements of all kinds, migrations, timeouts, a full pool.
CONNECTION_TESTS = [f"tests/test_{name}.py" for name in ("database", "migrations", "pressure", "round_trips", "tasks")]


def run_tests(python: str, url: str, *files: str) -> None:
    """Run the test suite, or the tests in these files, as `make test` does, but with the database at `url`."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    completed = subprocess.run(
        [python, "-m", "pytest", "-n", "auto", "--quiet", *files],
        cwd=HERE, env=environment | {"TEST_DATABASE_URL": url}, timeout=600, check=False,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    print(completed.stdout)  # pytest prints it when this test fails
    assert completed.returncode == 0


def test_every_test_passes_with_a_pooler_in_transaction_mode(pgbouncer: PgBouncer) -> None:
    # On another version of Python where CI has one: then the suite runs on both.
    run_tests(os.environ.get("OTHER_PYTHON", sys.executable), pgbouncer.dsn())


def test_the_connection_works_with_verified_tls_and_channel_binding(postgres: Postgres) -> None:
    root = postgres.folder / "data/server.crt"
    url = postgres.dsn(sslmode="verify-full", sslrootcert=str(root), channel_binding="require")
    run_tests(sys.executable, url, *CONNECTION_TESTS)


def test_no_request_fails_after_a_restart_of_the_pooler(pgbouncer: PgBouncer) -> None:
    with service(DATABASE_URL=pgbouncer.dsn()) as started:
        for number in range(3):
            response = httpx2.post(f"{started.url}/api/restart/tasks", json={"title": f"task {number}"})
            assert response.status_code == 201, response.text
            pgbouncer.stop()
            pgbouncer.start()
        assert len(httpx2.get(f"{started.url}/api/restart/tasks").json()) == 3
    assert not [line for line in started.log if "WARNING: Database" in line or "ERROR" in line]


def test_a_shutdown_leaves_no_connection_at_the_pooler(pgbouncer: PgBouncer) -> None:
    with service(DATABASE_URL=pgbouncer.dsn()) as started:
        assert httpx2.get(f"{started.url}/health/ready").status_code == 200
        assert pgbouncer.client_connections() > 0
        started.stop()
    wait_until(lambda: pgbouncer.client_connections() == 0)  # the pooler notices the end a little later
