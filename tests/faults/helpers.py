"""Functions that several fault tests share."""

import resource
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager

import psycopg2
import pytest
from psycopg2.extensions import connection

from tests.faults.postgres import PASSWORD, Postgres

FILES = 12_000


@contextmanager
def many_files() -> Iterator[None]:
    """Raise the limit of open files for thousands of sockets, in this process and its children."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < FILES:
        if hard != resource.RLIM_INFINITY and hard < FILES:
            pytest.skip(f"the hard limit of open files is {hard}")
        resource.setrlimit(resource.RLIMIT_NOFILE, (FILES, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def check_log(log: list[str], *secrets: str) -> None:
    """Assert that the log of a service has no traceback, no ERROR line, and none of the secrets."""
    text = "\n".join(log)
    for word in ("Traceback", "ERROR", "never retrieved", PASSWORD, PASSWORD.replace(" ", "%20"), *secrets):
        assert word not in text, text[-3000:]


def wait_until(condition: Callable[[], bool], seconds: float = 10) -> None:
    """Poll until the condition holds. Raises AssertionError after so many seconds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"the condition did not hold within {seconds} seconds"
        time.sleep(0.02)


@contextmanager
def locked(postgres: Postgres, sql: str, *values: object) -> Iterator[connection]:
    """Yield another session, whose open transaction holds the locks that `sql` acquires."""
    with closing(psycopg2.connect(postgres.dsn())) as other, other.cursor() as cursor:
        cursor.execute(sql, values)
        yield other
