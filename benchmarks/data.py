"""The PostgreSQL that all programs share, and the tasks in it."""

from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import psycopg2

from benchmarks.growth import FILL
from database import create_tables
from tests.faults.postgres import Postgres

SAMPLE = 50_000  # tasks that are read and toggled

CONFIGURATION = {
    "shared_buffers": "256MB",
    "effective_cache_size": "2GB",
    "max_connections": "600",
    "max_wal_size": "8GB",  # no checkpoint but those between two loads
    "checkpoint_timeout": "1h",
    "autovacuum": "off",  # it would hit whoever is measured just then: `restore` does its work
    "timezone": "UTC",
}


@dataclass(frozen=True)
class Data:
    """A database with tasks. `sample` is a file with a user and a task of theirs in each line."""

    tasks: int
    users: int
    dsn: str
    sample: Path

    def restore(self) -> None:
        """Remove what loads have created, and what changes have left behind."""
        self._run("DELETE FROM tasks WHERE user_id >= 'writer-' AND user_id < 'writer.'")  # the order is C's
        self._run("VACUUM ANALYZE tasks")

    def settle(self) -> None:
        """Have everything written, so that no load pays for the one before it."""
        self.restore()
        self._run("CHECKPOINT")

    def _run(self, sql: str) -> None:
        with closing(psycopg2.connect(self.dsn)) as link, link.cursor() as cursor:
            link.autocommit = True
            cursor.execute(sql)


def postgres() -> Postgres:
    """Debian's PostgreSQL in a temporary folder. It writes to disk as in production."""
    return Postgres(tls=False, **CONFIGURATION)


def seed(server: Postgres, name: str, folder: Path, *, tasks: int, users: int) -> Data:
    """Make a database with so many tasks, which belong to user-0, user-1 and so on by turns."""
    server.administer(f"CREATE DATABASE {name} OWNER tasks TEMPLATE template0 LC_COLLATE 'C.UTF-8' LC_CTYPE 'C.UTF-8'")
    server.administer("GRANT pg_checkpoint TO tasks")
    dsn = server.dsn(database=name).removesuffix("?")
    create_tables(dsn)
    data = Data(tasks, users, dsn, folder / f"{name}.txt")
    with closing(psycopg2.connect(dsn)) as link, link.cursor() as cursor:
        link.autocommit = True
        cursor.execute(FILL, {"tasks": tasks, "users": users, "user": None})
        cursor.execute("SELECT user_id, id::text FROM tasks ORDER BY random() LIMIT %s", [SAMPLE])
        data.sample.write_text("".join(f"{user} {task}\n" for user, task in cursor.fetchall()))
    data.settle()
    return data
