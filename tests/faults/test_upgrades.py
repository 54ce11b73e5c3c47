"""Migrations from the first schema to the newest and back, under the load of the first version of the service."""
# ruff: noqa: S608  # the statements consist of constants of this file

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from uuid import uuid4

import psycopg2
import pytest

from database import create_tables
from tests.faults.postgres import Postgres
from tests.helpers import alembic

USERS, TASKS_OF_EACH = 50, 200
CLIENTS = 6  # each changes the tasks of one user; the tasks of the other users do not change
MAX_SECONDS = 3  # of one statement, on a busy machine

# The statements of the service at migration 0001. They name their columns, so that later columns do not matter.
COLUMNS = """tasks.user_id, tasks.id, tasks.title, tasks.description, tasks.completed, tasks.completed_at,
    tasks.priority, tasks.tags, tasks.due_date, tasks."order", tasks.created_at, tasks.updated_at"""
RFC3339 = """to_char(timezone('UTC', {0}), 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') AS {0}"""
FIELDS = f"""id, user_id, 'http://localhost/' || CAST(id AS TEXT) AS url, title, description, completed,
    {RFC3339.format("completed_at")}, priority, tags, {RFC3339.format("due_date")}, "order",
    {RFC3339.format("created_at")}, {RFC3339.format("updated_at")}"""
ONE_TASK = "tasks.user_id = %(user)s AND tasks.id = %(id)s::UUID"


def as_json(rows: str) -> str:
    return f"SELECT CAST(row_to_json(task) AS TEXT) FROM (SELECT {FIELDS} FROM {rows}) AS task"


def returning_json(write: str) -> str:
    return f"WITH written AS ({write} RETURNING {COLUMNS}) {as_json('written')}"


CREATE = returning_json(
    """INSERT INTO tasks (user_id, id, title, description, completed, completed_at, priority, tags, due_date, "order",
    created_at, updated_at) VALUES (%(user)s, %(id)s::UUID, %(title)s, NULL, false, NULL, 'low', '{a,b}', NULL, 1,
    now(), now())"""
)
UPDATE = returning_json(f"UPDATE tasks SET title=%(title)s, updated_at=now() WHERE {ONE_TASK}")
TOGGLE = returning_json(
    f"""UPDATE tasks SET completed=NOT tasks.completed, completed_at=CASE WHEN NOT tasks.completed
    THEN coalesce(tasks.completed_at, '2026-01-01T00:00:00Z'::TIMESTAMP WITH TIME ZONE) END, updated_at=now()
    WHERE {ONE_TASK}"""
)
DELETE = returning_json(f"DELETE FROM tasks WHERE {ONE_TASK}")
READ = as_json(f"tasks WHERE {ONE_TASK}")
LIST = as_json("tasks WHERE tasks.user_id = %(user)s ORDER BY tasks.created_at DESC, tasks.id DESC LIMIT 1000")

FILL = """
    INSERT INTO tasks (user_id, id, title, completed, completed_at, tags, due_date, "order")
    SELECT 'user-' || n %% %s, gen_random_uuid(), 'task ' || n, n %% 2 = 0, CASE WHEN n %% 2 = 0 THEN now() END,
        ARRAY['tag ' || n], now(), n FROM generate_series(1, %s) AS n"""
UNCHANGED = f"SELECT count(*), md5(string_agg(({COLUMNS})::text, '' ORDER BY id)) FROM tasks WHERE user_id <> ALL (%s)"
TASKS_OF_USER = "SELECT id::text, title, completed FROM tasks WHERE user_id = %s"


@dataclass
class Load:
    """The number of statements so far, the seconds of the longest, and the tasks that each user should have."""

    expected: dict[str, dict[str, tuple[str, bool]]] = field(default_factory=dict)
    statements: int = 0
    max_seconds: float = 0

    def work(self, dsn: str, user: str, stop: threading.Event) -> None:
        """Create, change, read and delete tasks of `user` until `stop` is set. Raises any error of the database."""
        with closing(psycopg2.connect(dsn)) as connection, connection.cursor() as cursor:
            connection.autocommit = True
            cursor.execute(TASKS_OF_USER, [user])
            tasks = self.expected[user] = {key: (title, completed) for key, title, completed in cursor.fetchall()}

            def run(sql: str, **values: str) -> int:
                start = time.monotonic()
                cursor.execute(sql, {"user": user, **values})
                self.max_seconds = max(self.max_seconds, time.monotonic() - start)
                self.statements += 1
                return cursor.rowcount

            deadline = time.monotonic() + 60
            while not stop.is_set() and time.monotonic() < deadline:
                new, old = str(uuid4()), next(iter(tasks))
                assert run(CREATE, id=new, title="new") == 1
                tasks[new] = ("new", False)
                assert run(UPDATE, id=new, title="changed") == 1
                tasks[new] = ("changed", False)
                assert run(TOGGLE, id=new) == 1
                tasks[new] = ("changed", True)
                assert run(READ, id=new) == 1
                assert run(DELETE, id=old) == 1
                del tasks[old]
                assert run(LIST) == len(tasks)

    def wait_for_progress(self) -> None:
        """Wait for 20 more statements per client, which include each kind of statement."""
        before = self.statements
        for _ in range(200):
            if self.statements > before + 20 * CLIENTS:
                return
            time.sleep(0.05)
        raise AssertionError("the load makes no progress")


@contextmanager
def running_load(dsn: str) -> Iterator[Load]:
    """Execute statements of the first version during the block."""
    load, stop = Load(), threading.Event()
    with ThreadPoolExecutor(CLIENTS) as threads:
        clients = [threads.submit(load.work, dsn, f"user-{number}", stop) for number in range(CLIENTS)]
        try:
            load.wait_for_progress()
            yield load
        finally:
            stop.set()
            for client in clients:
                client.result(30)


@pytest.fixture
def postgres() -> Iterator[Postgres]:
    """A server whose database has the first schema and 10,000 tasks."""
    with Postgres() as server:
        assert alembic(server.dsn(), "upgrade", "0001").returncode == 0
        server.run_as_admin(FILL, USERS, USERS * TASKS_OF_EACH, database="tasks")
        yield server


def unchanged_tasks(server: Postgres) -> tuple[object, ...]:
    """Return the number and a digest of the tasks that the load does not change."""
    return server.run_as_admin(UNCHANGED, [f"user-{number}" for number in range(CLIENTS)], database="tasks")[0]


def columns(server: Postgres) -> set[str]:
    found = server.run_as_admin(
        "SELECT column_name FROM information_schema.columns WHERE table_name = 'tasks'", database="tasks"
    )
    return {name for (name,) in found}


def test_upgrade_and_downgrade_lose_no_data_and_block_no_statement(postgres: Postgres) -> None:
    first_columns, before = columns(postgres), unchanged_tasks(postgres)
    assert before[0] == (USERS - CLIENTS) * TASKS_OF_EACH
    with running_load(postgres.dsn()) as load:
        create_tables(postgres.dsn())
        load.wait_for_progress()
        assert columns(postgres) > first_columns
        assert unchanged_tasks(postgres) == before
        down = alembic(postgres.dsn(), "downgrade", "0001")
        assert down.returncode == 0, down.stderr
        load.wait_for_progress()
    assert columns(postgres) == first_columns
    assert unchanged_tasks(postgres) == before
    for user, tasks in load.expected.items():
        kept = postgres.run_as_admin(TASKS_OF_USER, user, database="tasks")
        assert {key: (title, completed) for key, title, completed in kept} == tasks
    assert load.max_seconds < MAX_SECONDS
    assert "ERROR" not in postgres.log()


def test_a_migration_waiting_for_a_long_transaction_blocks_no_statement(postgres: Postgres) -> None:
    with (
        running_load(postgres.dsn()) as load,
        ThreadPoolExecutor(1) as threads,
        closing(psycopg2.connect(postgres.dsn())) as reader,  # closed first, because the migration waits for it
    ):
        reader.cursor().execute("SELECT count(*) FROM tasks")  # as a backup does, for minutes
        migration = threads.submit(create_tables, postgres.dsn())
        deadline = time.monotonic() + 6
        while time.monotonic() < deadline:
            load.wait_for_progress()
        assert not migration.done()
        reader.rollback()
        migration.result(30)
        load.wait_for_progress()
    assert load.max_seconds < MAX_SECONDS
