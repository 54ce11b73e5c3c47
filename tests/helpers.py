"""Functions and values that several test files share."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg2

from tests.servers import HERE

VERSION_TABLE = {"tasks_alembic_version", "tasks_alembic_version_pkc"}

# Of each setting a value that is not its default.
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
    """Run Alembic as in `folder`, on the database at `url`."""
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
    """Of everything that the schema `public` holds."""
    with closing(psycopg2.connect(url)) as connection, connection.cursor() as cursor:
        cursor.execute(
            "SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace "
            "UNION SELECT conname FROM pg_constraint WHERE connamespace = 'public'::regnamespace AND contype <> 'n' "
            "UNION SELECT typname FROM pg_type WHERE typnamespace = 'public'::regnamespace AND typtype = 'e'"
        )
        return {name for (name,) in cursor.fetchall()}


def concurrently(number: int, ask: Callable[[int], Any]) -> list[Any]:
    """Call `ask` so many times at once, with 0, 1, 2, ..., and return the answers."""
    with ThreadPoolExecutor(number) as threads:
        return list(threads.map(ask, range(number)))


def eventually(status: int, ask: Callable[[], Any]) -> Any:
    """Ask until the answer has this status, for at most ten seconds."""
    for _ in range(200):
        answer = ask()
        if answer.status_code == status:
            return answer
        time.sleep(0.05)
    raise AssertionError(f"it stayed {answer.status_code}: {answer.text}")
