"""Migrations from the schema of version 1.0.0 to the newest and back, under the load of version 1.0.0."""
# ruff: noqa: S608  # the statements consist of constants of this file

import re
import secrets
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import psycopg2
import pytest

from database import create_tables
from tests.faults.postgres import Postgres
from tests.helpers import alembic
from tests.servers import HERE

USERS, TASKS_OF_EACH = 50, 200
CLIENTS = 6  # each changes the tasks of one user; the tasks of the other users do not change
MAX_SECONDS = 3  # of one statement, on a busy machine

# The statements of version 1.0.0. They name their columns, so that later columns do not matter.
COLUMNS = """tasks.user_id, tasks.id, tasks.title, tasks.description, tasks.completed, tasks.completed_at,
    tasks.priority, tasks.tags, tasks.due_date, tasks."order", tasks.created_at, tasks.updated_at, tasks.version,
    tasks.fingerprint"""
RFC3339 = """to_char(timezone('UTC', {0}), 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') AS {0}"""
FIELDS = f"""id, user_id, 'http://localhost/' || CAST(id AS TEXT) AS url, title, description, completed,
    {RFC3339.format("completed_at")}, priority, tags, {RFC3339.format("due_date")}, "order",
    {RFC3339.format("created_at")}, {RFC3339.format("updated_at")}"""
ONE_TASK = "tasks.user_id = %(user)s AND tasks.id = %(id)s::UUID"
CHANGED = """updated_at=greatest(now(), timezone('UTC', timezone('UTC', tasks.updated_at) + interval '1 microsecond')),
    version=(tasks.version + 1)"""


def as_json(rows: str) -> str:
    """Select the JSON and the version of the rows."""
    return f"""SELECT CAST(row_to_json(task) AS TEXT) AS json, version
        FROM {rows} JOIN LATERAL (SELECT {FIELDS}) AS task ON true"""


def returning_json(write: str) -> str:
    return f"WITH written AS ({write} RETURNING {COLUMNS}) {as_json('written')}"


def if_match(write: str) -> str:
    """Execute the write if the task has the version `version`; otherwise return a row of NULLs."""
    return f"""WITH written AS ({write} AND tasks.version = ANY (%(versions)s::BIGINT[]) RETURNING {COLUMNS})
        SELECT answer.json, answer.version FROM
        (SELECT tasks.id FROM tasks WHERE {ONE_TASK} FOR NO KEY UPDATE) AS existing
        LEFT OUTER JOIN ({as_json("written")}) AS answer ON true"""


CREATE = returning_json(
    """INSERT INTO tasks (user_id, id, title, description, completed, completed_at, priority, tags, due_date, "order",
    created_at, updated_at, version, fingerprint) VALUES (%(user)s, %(id)s::UUID, %(title)s, NULL, false, NULL, 'low',
    '{a,b}', NULL, 1, now(), now(), %(version)s, %(id)s::UUID)
    ON CONFLICT (user_id, id) DO UPDATE SET version = tasks.version"""
)
UPDATE = if_match(f"UPDATE tasks SET title=%(title)s, {CHANGED} WHERE {ONE_TASK}")
TOGGLE = returning_json(
    f"""UPDATE tasks SET completed=NOT tasks.completed, completed_at=CASE WHEN NOT tasks.completed
    THEN coalesce(tasks.completed_at, greatest('2026-01-01T00:00:00Z', tasks.created_at)) END, {CHANGED}
    WHERE {ONE_TASK}"""
)
DELETE = returning_json(f"DELETE FROM tasks WHERE {ONE_TASK}")
READ = f"{as_json('tasks')} WHERE {ONE_TASK}"
LIST = f"""SELECT CAST(row_to_json(task) AS TEXT), NULL FROM (SELECT {FIELDS} FROM tasks
    WHERE tasks.user_id = %(user)s ORDER BY tasks.created_at DESC, tasks.id DESC LIMIT 1000) AS task"""
UPDATE_COMPLETED = f"""WITH turn AS (SELECT pg_advisory_xact_lock(hashtextextended(%(user)s, 0)) AS waited),
    written AS (UPDATE tasks SET priority='high', {CHANGED} WHERE tasks.user_id = %(user)s AND tasks.completed
    AND (EXISTS (SELECT turn.waited FROM turn)) RETURNING tasks.id) SELECT count(*) FROM written"""

FILL = """
    INSERT INTO tasks (user_id, id, title, completed, completed_at, tags, due_date, "order")
    SELECT 'user-' || n %% %s, gen_random_uuid(), 'task ' || n, n %% 2 = 0, CASE WHEN n %% 2 = 0 THEN now() END,
        ARRAY['tag ' || n], now(), n FROM generate_series(1, %s) AS n"""
UNCHANGED = f"SELECT count(*), md5(string_agg(({COLUMNS})::text, '' ORDER BY id)) FROM tasks WHERE user_id <> ALL (%s)"
DELETING_USER = f"user-{USERS - 1}"  # whose tasks the newest version has deleted
DELETE_TASKS = "UPDATE tasks SET deleted_at = now(), revision = 1 WHERE user_id = %s"
PREPARATION = {"upgrade": "**A big table.**", "downgrade": "### Downgrade"}
INDEXES = {
    "upgrade": {"tasks_list_idx", "tasks_changes_idx", "tasks_deleted_idx"},
    "downgrade": {"tasks_user_id_created_at_id_idx"},
}
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

            def run(sql: str, **values: object) -> list[tuple[Any, ...]]:
                start = time.monotonic()
                cursor.execute(sql, {"user": user, **values})
                self.max_seconds = max(self.max_seconds, time.monotonic() - start)
                self.statements += 1
                return cursor.fetchall()

            deadline = time.monotonic() + 60
            while not stop.is_set() and time.monotonic() < deadline:
                new, old = str(uuid4()), next(iter(tasks))
                [(_, version)] = run(CREATE, id=new, title="new", version=secrets.randbits(53))
                tasks[new] = ("new", False)
                assert run(UPDATE, id=new, title="changed", versions=[version])[0][1] == version + 1
                tasks[new] = ("changed", False)
                assert run(UPDATE, id=new, title="of another version", versions=[version]) == [(None, None)]
                assert run(TOGGLE, id=new)[0][1] == version + 2
                tasks[new] = ("changed", True)
                assert run(READ, id=new)[0][1] == version + 2
                assert len(run(DELETE, id=old)) == 1
                del tasks[old]
                assert len(run(LIST)) == len(tasks)
                assert run(UPDATE_COMPLETED) == [(sum(completed for _, completed in tasks.values()),)]

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
    """Execute statements of version 1.0.0 during the block."""
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
    """A server whose database has the schema of version 1.0.0 and 10,000 tasks."""
    with Postgres() as server:
        assert alembic(server.dsn(), "upgrade", "0002").returncode == 0
        server.run_as_admin(FILL, USERS, USERS * TASKS_OF_EACH, database="tasks")
        yield server


def unchanged_tasks(server: Postgres) -> tuple[object, ...]:
    """Return the number and a digest of the tasks that neither the load nor a test changes."""
    users = [DELETING_USER, *(f"user-{number}" for number in range(CLIENTS))]
    return server.run_as_admin(UNCHANGED, users, database="tasks")[0]


def schema(server: Postgres) -> set[str]:
    """Return the names of all tables, and the definitions of all columns, constraints and indexes."""
    found = server.run_as_admin(
        """SELECT table_name || '.' || column_name || ' ' || data_type || coalesce(column_default, '')
            FROM information_schema.columns WHERE table_schema = 'public'
        UNION SELECT indexdef FROM pg_indexes WHERE schemaname = 'public'
        UNION SELECT pg_get_constraintdef(oid) FROM pg_constraint WHERE connamespace = 'public'::regnamespace""",
        database="tasks",
    )
    return {name for (name,) in found}


def test_upgrade_and_downgrade_lose_no_data_and_block_no_statement(postgres: Postgres) -> None:
    old_schema, before = schema(postgres), unchanged_tasks(postgres)
    assert before[0] == (USERS - CLIENTS - 1) * TASKS_OF_EACH
    with running_load(postgres.dsn()) as load:
        create_tables(postgres.dsn())
        load.wait_for_progress()
        new_schema = schema(postgres)
        assert unchanged_tasks(postgres) == before
        postgres.run_as_admin(DELETE_TASKS, DELETING_USER, database="tasks")
        for version in ("0003", "0002"):
            down = alembic(postgres.dsn(), "downgrade", version)
            assert down.returncode == 0, down.stderr
            load.wait_for_progress()
    assert schema(postgres) == old_schema != new_schema
    assert unchanged_tasks(postgres) == before
    expected = load.expected | {DELETING_USER: {}}
    for user, tasks in expected.items():
        kept = postgres.run_as_admin(TASKS_OF_USER, user, database="tasks")
        assert {key: (title, completed) for key, title, completed in kept} == tasks
    assert load.max_seconds < MAX_SECONDS
    assert "ERROR" not in postgres.log()


@pytest.mark.parametrize("direction", ["upgrade", "downgrade"])
def test_documented_preparation_creates_the_indexes_of_the_migration(postgres: Postgres, direction: str) -> None:
    """The lines for a big table in docs/operations.md, and then the migration, which only keeps what they made."""
    if direction == "downgrade":
        create_tables(postgres.dsn())
    section = (HERE / "docs/operations.md").read_text().partition(PREPARATION[direction])[2]
    lines = re.split(r";\s*", section.partition("```sql\n")[2].partition("```")[0])[:-1]
    names = re.findall(r"CREATE INDEX CONCURRENTLY IF NOT EXISTS (\w+)", " ".join(lines))
    indexes = (
        "SELECT relname, oid FROM pg_class JOIN pg_index ON oid = indexrelid WHERE relname = ANY (%s) AND indisvalid"
    )
    with running_load(postgres.dsn()) as load:
        with closing(psycopg2.connect(postgres.dsn())) as operator, operator.cursor() as cursor:
            operator.autocommit = True
            for line in lines:
                cursor.execute(line)
        load.wait_for_progress()
        prepared = postgres.run_as_admin(indexes, names, database="tasks")
        assert {name for name, _ in prepared} == set(names) == INDEXES[direction]
        if direction == "upgrade":
            create_tables(postgres.dsn())
            check = alembic(postgres.dsn(), "check")
            assert check.returncode == 0, check.stdout + check.stderr
        else:
            assert alembic(postgres.dsn(), "downgrade", "0002").returncode == 0
        load.wait_for_progress()
    assert postgres.run_as_admin(indexes, names, database="tasks") == prepared
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
