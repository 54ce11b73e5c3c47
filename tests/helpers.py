"""Functions and values that several test files use."""

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg2
import psycopg2.extensions

from database import Database
from tests.servers import HERE

VERSION_TABLE = {"tasks_alembic_version", "tasks_alembic_version_pkc"}

# For each setting a value that is not its default.
OTHER_SETTINGS = {
    "DATABASE_URL": "postgresql://nobody@127.0.0.1:1/nothing",
    "DATABASE_POOL_SIZE": "1",
    "DATABASE_TIMEOUT": "0.001",
    "CORS_ORIGINS": "https://other.example",
    "AUTH_JWKS_URL": "https://other.example/jwks",
    "AUTH_SECRET": "another secret than that of any test",
    "AUTH_ISSUER": "https://other.example",
    "AUTH_AUDIENCE": "https://other.example",
    "LOG_LEVEL": "critical",
}


def alembic(url: str, *arguments: str, folder: Path = HERE) -> subprocess.CompletedProcess[str]:
    """Run the `alembic` command in `folder`, on the database at `url`."""
    return subprocess.run(
        [sys.executable, "-m", "alembic", *arguments],
        cwd=folder,
        env=os.environ | {"DATABASE_URL": url},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def schema_names(url: str) -> set[str]:
    """Return the names of all relations, constraints and enums in the schema `public`."""
    with closing(psycopg2.connect(url)) as connection, connection.cursor() as cursor:
        cursor.execute(
            "SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace "
            "UNION SELECT conname FROM pg_constraint WHERE connamespace = 'public'::regnamespace AND contype <> 'n' "
            "UNION SELECT typname FROM pg_type WHERE typnamespace = 'public'::regnamespace AND typtype = 'e'"
        )
        return {name for (name,) in cursor.fetchall()}


def concurrently(number: int, send: Callable[[int], Any]) -> list[Any]:
    """Call `send` with 0, 1, ..., `number` - 1 in one thread each, and return the responses in that order."""
    with ThreadPoolExecutor(number) as threads:
        return list(threads.map(send, range(number)))


def eventually(status: int, send: Callable[[], Any], *, seconds: float = 10) -> Any:
    """Call `send` until the response has this status, for at most so many seconds, and return that response."""
    deadline = time.monotonic() + seconds
    while True:
        response = send()
        if response.status_code == status:
            return response
        assert time.monotonic() < deadline, f"the last response was {response.status_code}: {response.text}"
        time.sleep(0.05)


async def until(condition: Callable[[], bool]) -> None:
    """Wait until the condition is true, for at most 20 seconds."""
    for _ in range(1000):
        if condition():
            return
        await asyncio.sleep(0.02)
    raise AssertionError("the condition did not become true")


@asynccontextmanager
async def open_pool(
    dsn: str,
    *,
    size: int = 3,
    timeout: float = 20,  # noqa: ASYNC109  # the pool's own option
    can_prepare: bool = False,
) -> AsyncIterator[Database]:
    """Return a pool that is closed when the test leaves it.

    `can_prepare` is only for a database of the test's own: it changes the settings of the session, and a pooler would
    pass that session on to other tests.
    """
    database = Database(dsn, size=size, timeout=timeout, can_prepare=can_prepare)
    try:
        yield database
    finally:
        await database.close()


def get_backend_pid(connection: psycopg2.extensions.connection) -> int:
    """Return the process id of the session that runs the open transaction. A pooler reports another one to clients."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        ((pid,),) = cursor.fetchall()
    return int(pid)


def fetch_value(url: str, sql: str, *values: object) -> Any:
    """Run `sql` on a connection outside of the pool, in autocommit mode. Return the first value, if there is one."""
    with closing(psycopg2.connect(url)) as connection:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute(sql, values)
            row = cursor.fetchone() if cursor.description else None
            return row and row[0]


def with_application_name(url: str) -> tuple[str, str]:
    """Return the URL with a new application name added, and that name."""
    name = f"test-{uuid4()}"
    return f"{url}{'&' if '?' in url else '?'}application_name={name}", name


def sleeping_sessions(url: str, application_name: str) -> int:
    """Return how many sessions with this application name run pg_sleep()."""
    sql = "SELECT count(*) FROM pg_stat_activity WHERE application_name = %s AND wait_event = 'PgSleep'"
    return int(fetch_value(url, sql, application_name))


async def until_sleeping(url: str, application_name: str, number: int) -> None:
    """Wait until at least `number` sessions with this application name run pg_sleep()."""
    await until(lambda: sleeping_sessions(url, application_name) >= number)
