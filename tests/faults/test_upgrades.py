"""From the first schema to the newest and back, while a service of the first one goes on working."""
# ruff: noqa: S608  # statements are put together here from parts of this file alone

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
CLIENTS = 6  # each changes the tasks of one user; nobody touches those of the others
LONGEST = 3  # seconds that a statement may take, on a machine that has other things to do

# What the service of migration 0001 sent. It named its columns, so later ones are nothing to it.
COLUMNS = """tasks.user_id, tasks.id, tasks.title, tasks.description, tasks.completed, tasks.completed_at,
    tasks.priority, tasks.tags, tasks.due_date, tasks."order", tasks.created_at, tasks.updated_at"""
RFC3339 = """to_char(timezone('UTC', {0}), 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') AS {0}"""
FIELDS = f"""id, user_id, 'http://localhost/' || CAST(id AS TEXT) AS url, title, description, completed,
    {RFC3339.format("completed_at")}, priority, tags, {RFC3339.format("due_date")}, "order",
    {RFC3339.format("created_at")}, {RFC3339.format("updated_at")}"""
THIS = "tasks.user_id = %(user)s AND tasks.id = %(id)s::UUID"


def as_json(rows: str) -> str:
    return f"SELECT CAST(row_to_json(task) AS TEXT) FROM (SELECT {FIELDS} FROM {rows}) AS task"


def written(write: str) -> str:
    return f"WITH written AS ({write} RETURNING {COLUMNS}) {as_json('written')}"


CREATE = written(
    """INSERT INTO tasks (user_id, id, title, description, completed, completed_at, priority, tags, due_date, "order",
    created_at, updated_at) VALUES (%(user)s, %(id)s::UUID, %(title)s, NULL, false, NULL, 'low', '{a,b}', NULL, 1,
    now(), now())"""
)
UPDATE = written(f"UPDATE tasks SET title=%(title)s, updated_at=now() WHERE {THIS}")
TOGGLE = written(
    f"""UPDATE tasks SET completed=NOT tasks.completed, completed_at=CASE WHEN NOT tasks.completed
    THEN coalesce(tasks.completed_at, '2026-01-01T00:00:00Z'::TIMESTAMP WITH TIME ZONE) END, updated_at=now()
    WHERE {THIS}"""
)
DELETE = written(f"DELETE FROM tasks WHERE {THIS}")
READ = as_json(f"tasks WHERE {THIS}")
LIST = as_json("tasks WHERE tasks.user_id = %(user)s ORDER BY tasks.created_at DESC, tasks.id DESC LIMIT 1000")

FILL = """
    INSERT INTO tasks (user_id, id, title, completed, completed_at, tags, due_date, "order")
    SELECT 'user-' || n %% %s, gen_random_uuid(), 'task ' || n, n %% 2 = 0, CASE WHEN n %% 2 = 0 THEN now() END,
        ARRAY['tag ' || n], now(), n FROM generate_series(1, %s) AS n"""
REST = f"SELECT count(*), md5(string_agg(({COLUMNS})::text, '' ORDER BY id)) FROM tasks WHERE user_id <> ALL (%s)"
MINE = "SELECT id::text, title, completed FROM tasks WHERE user_id = %s"


@dataclass
class Load:
    """What the clients have done so far, and the tasks that each must find at the end."""

    expected: dict[str, dict[str, tuple[str, bool]]] = field(default_factory=dict)
    statements: int = 0
    longest: float = 0

    def work(self, dsn: str, user: str, over: threading.Event) -> None:
        """Create, change, read and delete tasks of `user`, over and over; fail where the database does."""
        with closing(psycopg2.connect(dsn)) as link, link.cursor() as cursor:
            link.autocommit = True
            cursor.execute(MINE, [user])
            tasks = self.expected[user] = {key: (title, completed) for key, title, completed in cursor.fetchall()}

            def run(sql: str, **values: str) -> int:
                start = time.monotonic()
                cursor.execute(sql, {"user": user, **values})
                self.longest = max(self.longest, time.monotonic() - start)
                self.statements += 1
                return cursor.rowcount

            deadline = time.monotonic() + 60
            while not over.is_set() and time.monotonic() < deadline:
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

    def goes_on(self) -> None:
        """Wait until so many statements more have passed that each kind was among them."""
        before = self.statements
        for _ in range(200):
            if self.statements > before + 20 * CLIENTS:
                return
            time.sleep(0.05)
        raise AssertionError("the load stands still")


@contextmanager
def load(dsn: str) -> Iterator[Load]:
    """Keep the database busy with statements of the first schema, until the block ends."""
    working, over = Load(), threading.Event()
    with ThreadPoolExecutor(CLIENTS) as threads:
        clients = [threads.submit(working.work, dsn, f"user-{number}", over) for number in range(CLIENTS)]
        try:
            working.goes_on()
            yield working
        finally:
            over.set()
            for client in clients:
                client.result(30)


@pytest.fixture
def postgres() -> Iterator[Postgres]:
    """A server whose database is at the first schema and has 10,000 tasks."""
    with Postgres() as server:
        assert alembic(server.dsn(), "upgrade", "0001").returncode == 0
        server.administer(FILL, USERS, USERS * TASKS_OF_EACH, database="tasks")
        yield server


def rest(server: Postgres) -> tuple[object, ...]:
    """How many tasks the users have whom the load does not touch, and a digest of all that is in them."""
    return server.administer(REST, [f"user-{number}" for number in range(CLIENTS)], database="tasks")[0]


def columns(server: Postgres) -> set[str]:
    found = server.administer(
        "SELECT column_name FROM information_schema.columns WHERE table_name = 'tasks'", database="tasks"
    )
    return {name for (name,) in found}


def test_up_to_the_newest_schema_and_down_again_nothing_is_lost_and_nobody_waits(postgres: Postgres) -> None:
    first, before = columns(postgres), rest(postgres)
    assert before[0] == (USERS - CLIENTS) * TASKS_OF_EACH
    with load(postgres.dsn()) as working:
        create_tables(postgres.dsn())
        working.goes_on()
        assert columns(postgres) > first
        assert rest(postgres) == before
        down = alembic(postgres.dsn(), "downgrade", "0001")
        assert down.returncode == 0, down.stderr
        working.goes_on()
    assert columns(postgres) == first
    assert rest(postgres) == before
    for user, tasks in working.expected.items():
        kept = postgres.administer(MINE, user, database="tasks")
        assert {key: (title, completed) for key, title, completed in kept} == tasks
    assert working.longest < LONGEST
    assert "ERROR" not in postgres.log()


def test_a_migration_that_must_wait_for_a_long_reader_does_not_stop_the_others(postgres: Postgres) -> None:
    with (
        load(postgres.dsn()) as working,
        ThreadPoolExecutor(1) as threads,
        closing(psycopg2.connect(postgres.dsn())) as reader,  # ends first, so that nothing waits for it
    ):
        reader.cursor().execute("SELECT count(*) FROM tasks")  # as a backup does, which lasts for minutes
        started = threads.submit(create_tables, postgres.dsn())
        deadline = time.monotonic() + 6
        while time.monotonic() < deadline:
            working.goes_on()
        assert not started.done()
        reader.rollback()
        started.result(30)
        working.goes_on()
    assert working.longest < LONGEST
