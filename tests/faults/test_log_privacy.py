"""PostgreSQL logs users and titles by default, and neither with the settings that docs/operations.md names."""

import re
from collections.abc import Iterator
from contextlib import closing

import httpx2
import psycopg2
import pytest
from psycopg2.errors import CheckViolation

from tests.faults.helpers import locked
from tests.faults.pgbouncer import PgBouncer
from tests.faults.postgres import Postgres
from tests.servers import HERE, service

TITLE = "a confidential title"
SETTINGS = re.findall(r"^ALTER ROLE tasks SET .*;$", (HERE / "docs/operations.md").read_text(), re.MULTILINE)


@pytest.fixture
def postgres() -> Iterator[Postgres]:
    """Yield a server that logs as much as administrators commonly ask for."""
    with Postgres(tls=True, log_min_duration_statement="0", log_lock_waits="on", deadlock_timeout="100ms") as server:
        yield server


def cause_log_messages(postgres: Postgres, url: str, user: str) -> None:
    """Write a task, let a write wait for a lock until PostgreSQL cancels it, and violate a constraint."""
    with service(DATABASE_URL=url, DATABASE_TIMEOUT="1") as started:
        tasks = f"{started.url}/api/{user}/tasks"
        assert httpx2.post(tasks, json={"title": TITLE}).status_code == 201
        with locked(postgres, "SELECT FROM task_users WHERE user_id = %s FOR UPDATE", user):
            assert httpx2.post(tasks, json={"title": TITLE}, timeout=30).status_code == 503
    insert = "INSERT INTO tasks (user_id, id, title) VALUES (%s, gen_random_uuid(), '')"
    with closing(psycopg2.connect(url)) as other, other.cursor() as sql, pytest.raises(CheckViolation):
        sql.execute(insert, [user])


@pytest.mark.parametrize("pooled", [False, True], ids=["directly", "through a pooler"])
def test_the_documented_settings_keep_titles_and_users_unlogged(postgres: Postgres, user: str, *, pooled: bool) -> None:
    def check(*, logged: bool) -> None:
        before = len(postgres.log())
        if pooled:
            with PgBouncer(postgres) as pgbouncer:
                cause_log_messages(postgres, pgbouncer.dsn(), user)
        else:
            cause_log_messages(postgres, postgres.dsn(), user)
        log = postgres.log()[before:]
        assert "canceling statement due to statement timeout" in log
        assert "still waiting for" in log
        assert "violates check constraint" in log
        assert [text in log for text in (TITLE, user)] == [logged, logged]

    check(logged=True)
    assert len(SETTINGS) > 3
    for statement in SETTINGS:
        postgres.run_as_admin(statement)
    check(logged=False)
