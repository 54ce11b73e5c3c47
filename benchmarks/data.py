"""The PostgreSQL that all programs use, and its tasks."""

import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import psycopg2

from database import create_tables
from tests.faults.postgres import Postgres

SAMPLE = 50_000  # tasks that are read and toggled

CONFIGURATION = {
    "shared_buffers": "256MB",
    "effective_cache_size": "2GB",
    "max_connections": "600",
    "max_wal_size": "8GB",  # no checkpoint during a load
    "checkpoint_timeout": "1h",
    "autovacuum": "off",  # it would disturb single runs; `restore` vacuums instead
    "timezone": "UTC",
}

FILL = """
INSERT INTO tasks (user_id, id, title, description, completed, completed_at, priority, tags, due_date, "order",
                   created_at, updated_at, extra, revision, deleted_at)
SELECT coalesce(%(user)s, 'user-' || n %% %(users)s), gen_random_uuid(), 'Task number ' || n,
       CASE WHEN n %% 3 = 0 THEN 'With some words about what is to be done' END,
       n %% 4 = 0, CASE WHEN n %% 4 = 0 THEN now() END,
       (ARRAY['low', 'medium', 'high'])[1 + n %% 3]::task_priority,
       CASE n %% 5 WHEN 0 THEN '{}' WHEN 1 THEN '{home}' ELSE '{work,home}' END::text[],
       CASE WHEN n %% 2 = 0 THEN now() + n * interval '1 minute' END, CASE WHEN n %% 7 = 0 THEN n END,
       now() - n * interval '1 second', now() - n * interval '1 second',
       CASE WHEN n %% 5 = 0 THEN '{"color": "red"}' ELSE '{}' END::json, %(epoch)s + n,
       CASE WHEN n %% %(keep_every)s > 0 THEN now() - interval '1 day' END
FROM generate_series(1, %(tasks)s) AS n
"""

COUNT = """
INSERT INTO task_users (user_id, epoch, revision)
SELECT user_id, %(epoch)s, max(revision) FROM tasks WHERE revision > %(epoch)s GROUP BY user_id
"""


@dataclass(frozen=True)
class Data:
    """A database with tasks. Each line of the file `sample` has a user and the id of one of their tasks."""

    users: int
    dsn: str
    sample: Path

    def run(self, sql: str, **values: object) -> list[tuple[str, ...]]:
        """Execute `sql` as the owner of the tables, in autocommit mode, and return its rows."""
        with closing(psycopg2.connect(self.dsn)) as connection, connection.cursor() as cursor:
            connection.autocommit = True
            cursor.execute(sql, values or None)
            return cursor.fetchall() if cursor.description else []

    def add(self, tasks: int, user: str | None = None, *, keep_every: int = 1) -> None:
        """Insert so many tasks, for `user` or distributed evenly over user-0, user-1 and so on.

        Only one of `keep_every` tasks is not deleted. The users must be new.
        """
        epoch = int(time.time() * 1_000_000)
        self.run(FILL, tasks=tasks, users=self.users, user=user, epoch=epoch, keep_every=keep_every)
        self.run(COUNT, epoch=epoch)

    def restore(self) -> None:
        """Remove the tasks that loads have created, and vacuum."""
        for table in ("tasks", "task_users"):
            # The collation of the database sorts by code point.
            self.run(f"DELETE FROM {table} WHERE user_id >= 'writer-' AND user_id < 'writer.'")  # noqa: S608  # constants
        self.run("VACUUM ANALYZE")

    def settle(self) -> None:
        """Restore the data and write a checkpoint, so that no load pays for the previous one."""
        self.restore()
        self.run("CHECKPOINT")

    def sample_tasks(self) -> list[tuple[str, str]]:
        """Return the sample as pairs of a user and the id of one of their tasks."""
        return [(user, task) for user, task in map(str.split, self.sample.read_text().splitlines())]


def postgres(**configuration: str) -> Postgres:
    """Return a PostgreSQL in a temporary folder, with fsync as in production."""
    return Postgres(tls=False, **CONFIGURATION | configuration)


def seed(server: Postgres, name: str, folder: Path, *, tasks: int, users: int) -> Data:
    """Create the database `name` with so many tasks of so many users; `folder` is for the sample."""
    server.run_as_admin(
        f"CREATE DATABASE {name} OWNER tasks TEMPLATE template0 LC_COLLATE 'C.UTF-8' LC_CTYPE 'C.UTF-8'"
    )
    server.run_as_admin("GRANT pg_checkpoint TO tasks")
    data = Data(users, server.dsn(database=name).removesuffix("?"), folder / f"{name}.txt")
    create_tables(data.dsn)
    data.add(tasks)
    sample = data.run("SELECT user_id, id::text FROM tasks ORDER BY random() LIMIT %(number)s", number=SAMPLE)
    data.sample.write_text("".join(f"{user} {task}\n" for user, task in sample))
    data.settle()
    return data
