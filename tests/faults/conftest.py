"""What the tests of faults share."""

import resource
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager

import psycopg2
import pytest
from psycopg2.extensions import connection

from tests.faults.postgres import PASSWORD, Postgres

FILES = 12_000


@pytest.fixture(scope="module")
def postgres() -> Iterator[Postgres]:
    """A PostgreSQL of this file's own, which its tests may kill."""
    with Postgres() as server:
        yield server


@contextmanager
def many_files() -> Iterator[None]:
    """Room for thousands of sockets, in this process and in those that it starts."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < FILES:
        if hard != resource.RLIM_INFINITY and hard < FILES:
            pytest.skip(f"no more than {hard} files may be open here")
        resource.setrlimit(resource.RLIMIT_NOFILE, (FILES, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def hold_log(log: list[str], *secrets: str) -> None:
    """An outage is no mistake of the service: no stack, no error, and no secret in its log."""
    text = "\n".join(log)
    for word in ("Traceback", "ERROR", "never retrieved", PASSWORD, PASSWORD.replace(" ", "%20"), *secrets):
        assert word not in text, text[-3000:]


def wait_until(condition: Callable[[], bool], seconds: float = 10) -> None:
    """Wait until the condition holds, for at most so long."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never held"
        time.sleep(0.02)


@contextmanager
def locked(postgres: Postgres, sql: str, *values: object) -> Iterator[connection]:
    """Another session, in a transaction that holds the locks which `sql` takes."""
    with closing(psycopg2.connect(postgres.dsn())) as other, other.cursor() as cursor:
        cursor.execute(sql, values)
        yield other
