"""The schema that migrations create at start-up."""

import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import psycopg2
import pytest
from alembic.script import ScriptDirectory

from database import MIGRATIONS, create_tables
from tests.helpers import VERSION_TABLE, alembic, schema_names


def test_models_and_migrations_agree(empty_database: str) -> None:
    create_tables(empty_database)
    check = alembic(empty_database, "check")
    assert check.returncode == 0, check.stdout + check.stderr


def test_the_newest_schema_has_the_names_of_the_models(empty_database: str) -> None:
    create_tables(empty_database)
    assert schema_names(empty_database) - VERSION_TABLE == {
        "task_priority",
        "task_users",
        "task_users_pkey",
        "task_users_user_id_length",
        "tasks",
        "tasks_completed_at_when_completed",
        "tasks_changes_idx",
        "tasks_deleted_idx",
        "tasks_description_length",
        "tasks_list_idx",
        "tasks_pkey",
        "tasks_tags_count",
        "tasks_title_length",
        "tasks_user_id_length",
    }


def test_a_migration_file_starts_with_its_revision_number() -> None:
    script = ScriptDirectory(str(MIGRATIONS))
    revisions = {Path(revision.path).stem.partition("_")[0]: revision.revision for revision in script.walk_revisions()}
    assert all(number == revision for number, revision in revisions.items())
    assert script.get_heads() == [max(revisions)]


def test_a_second_start_does_not_change_the_schema(empty_database: str) -> None:
    create_tables(empty_database)
    before = schema_names(empty_database)
    create_tables(empty_database)
    assert schema_names(empty_database) == before


def test_a_start_waits_while_another_process_migrates(empty_database: str) -> None:
    create_tables(empty_database)
    assert alembic(empty_database, "downgrade", "base").returncode == 0
    with (
        closing(psycopg2.connect(empty_database)) as other,
        closing(psycopg2.connect(empty_database)) as watcher,
        ThreadPoolExecutor(1) as threads,
    ):
        other.cursor().execute("SELECT pg_advisory_xact_lock(7461736115)")
        watcher.autocommit = True
        started = threads.submit(create_tables, empty_database)
        with watcher.cursor() as cursor:
            for _ in range(100):
                cursor.execute(
                    "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted "
                    "AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
                )
                if cursor.fetchone() == (1,):
                    break
                time.sleep(0.1)
            else:
                raise AssertionError("it did not wait for the lock")
        assert not started.done()
        other.rollback()
        started.result(20)


def test_downgrade_removes_the_schema_and_upgrade_restores_it(empty_database: str) -> None:
    create_tables(empty_database)
    before = schema_names(empty_database)
    assert alembic(empty_database, "downgrade", "base").returncode == 0
    assert schema_names(empty_database) == set()
    assert alembic(empty_database, "upgrade", "head").returncode == 0
    assert schema_names(empty_database) == before


@pytest.mark.parametrize(
    "values",
    [
        "('', gen_random_uuid(), 't', false, null)",
        "(repeat('x', 129), gen_random_uuid(), 't', false, null)",
        "('u', gen_random_uuid(), '', false, null)",
        "('u', gen_random_uuid(), repeat('x', 201), false, null)",
        "('u', gen_random_uuid(), 't', true, null)",
        "('u', gen_random_uuid(), 't', false, now())",
    ],
)
@pytest.mark.usefixtures("client")  # its app creates the table
def test_check_constraints_reject_invalid_rows(database_url: str, values: str) -> None:
    insert = f"INSERT INTO tasks (user_id, id, title, completed, completed_at) VALUES {values}"  # noqa: S608
    with closing(psycopg2.connect(database_url)) as connection, connection.cursor() as cursor:
        with pytest.raises(psycopg2.errors.CheckViolation):
            cursor.execute(insert)
        connection.rollback()
