"""In one database with other applications: what is theirs is neither read nor written."""

import re
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import httpx2
import psycopg2
import pytest
from psycopg2.extensions import parse_dsn

from database import create_tables
from tests.helpers import VERSION_TABLE, alembic, schema_names
from tests.servers import service, wait_for

# Better Auth's tables, and one of each kind of thing that a database holds.
NEIGHBOUR = """
    CREATE TABLE "user" (id text PRIMARY KEY, email text UNIQUE);
    CREATE TABLE session (id serial PRIMARY KEY, user_id text REFERENCES "user", at timestamptz);
    CREATE INDEX session_at ON session (at);
    CREATE TYPE mood AS ENUM ('sad', 'happy');
    CREATE SEQUENCE numbers;
    CREATE VIEW users AS SELECT id FROM "user";
    CREATE MATERIALIZED VIEW emails AS SELECT email FROM "user";
    CREATE SCHEMA other;
    CREATE TABLE other.tasks (id integer);
    CREATE TABLE other.alembic_version (version_num text);
"""
VERSIONS = "CREATE TABLE alembic_version (version_num text CONSTRAINT alembic_version_pkc PRIMARY KEY)"

# The version table of 1.0.0 had Alembic's usual name.
AS_1_0_0_LEFT_IT = """
    ALTER TABLE tasks_alembic_version RENAME TO alembic_version;
    ALTER TABLE alembic_version RENAME CONSTRAINT tasks_alembic_version_pkc TO alembic_version_pkc;
    UPDATE alembic_version SET version_num = '0002';
"""
OLD_VERSION_TABLE = {"alembic_version", "alembic_version_pkc"}


def run(url: str, sql: str, *values: object) -> list[tuple[Any, ...]]:
    """Run `sql` beside the service, in autocommit, and return its rows."""
    with closing(psycopg2.connect(url)) as connection:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute(sql, values or None)
            return cursor.fetchall() if cursor.description else []


@contextmanager
def locked(url: str, table: str) -> Iterator[None]:
    """Nobody else can read or write the table; who tries fails after a second."""
    run(url, f"ALTER DATABASE {parse_dsn(url)['dbname']} SET lock_timeout = '1s'")
    with closing(psycopg2.connect(url)) as connection, connection.cursor() as cursor:
        cursor.execute(f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE")
        yield


@pytest.fixture
def shared_database(empty_database: str) -> str:
    """The URL of a database that another application has been using."""
    run(empty_database, NEIGHBOUR)
    return empty_database


@pytest.fixture
def database_of_1_0_0(empty_database: str) -> str:
    """The URL of a database that version 1.0.0 of the service has been using."""
    create_tables(empty_database)
    run(empty_database, AS_1_0_0_LEFT_IT)
    run(empty_database, "INSERT INTO tasks (user_id, id, title) VALUES ('a', gen_random_uuid(), 'old')")
    return empty_database


def test_autogenerate_proposes_nothing_for_tables_of_others(shared_database: str, checkout: Path) -> None:
    create_tables(shared_database)
    run(shared_database, VERSIONS)
    checked = alembic(shared_database, "check")
    assert checked.returncode == 0, checked.stdout + checked.stderr
    written = alembic(shared_database, "revision", "--autogenerate", "--rev-id", "9999", "-m", "new", folder=checkout)
    assert written.returncode == 0, written.stderr
    migration = (checkout / "migrations/versions/9999_new.py").read_text()
    assert not re.search(r"\bop\.", migration), migration


def test_check_still_sees_what_our_own_table_lacks(shared_database: str) -> None:
    create_tables(shared_database)
    run(shared_database, "ALTER TABLE tasks DROP COLUMN fingerprint")
    checked = alembic(shared_database, "check")
    assert checked.returncode != 0
    assert "fingerprint" in checked.stdout + checked.stderr


@pytest.mark.parametrize("version", ["0002", "8f2a0c61d3b4", None])
def test_the_version_table_of_another_application_is_left_alone(shared_database: str, version: str | None) -> None:
    run(shared_database, VERSIONS)
    if version:
        run(shared_database, "INSERT INTO alembic_version VALUES (%s)", version)
    before = schema_names(shared_database)
    with locked(shared_database, "alembic_version"):
        create_tables(shared_database)
        for version_to_go_to in ("0002", "base"):
            ended = alembic(shared_database, "downgrade", version_to_go_to)
            assert ended.returncode == 0, ended.stderr
            create_tables(shared_database)
    assert schema_names(shared_database) > before | VERSION_TABLE
    assert run(shared_database, "SELECT version_num FROM alembic_version") == ([(version,)] if version else [])


def test_downgrading_leaves_what_is_of_others(shared_database: str) -> None:
    before = schema_names(shared_database)
    create_tables(shared_database)
    assert alembic(shared_database, "downgrade", "base").returncode == 0
    assert schema_names(shared_database) == before


def test_a_schema_of_ones_own_is_used_beside_public(shared_database: str) -> None:
    run(shared_database, VERSIONS)
    run(shared_database, "INSERT INTO alembic_version VALUES ('0002')")
    run(shared_database, "CREATE TABLE tasks (title text)")
    before = schema_names(shared_database)
    run(shared_database, "CREATE SCHEMA AUTHORIZATION CURRENT_USER")  # "$user" comes first in the search_path
    create_tables(shared_database)
    assert schema_names(shared_database) == before
    assert alembic(shared_database, "check").returncode == 0
    assert alembic(shared_database, "downgrade", "0002").returncode == 0
    found = run(shared_database, "SELECT version_num, tableoid::regclass::text FROM alembic_version")
    assert found == [("0002", "alembic_version")]
    create_tables(shared_database)
    assert run(shared_database, "SELECT version_num FROM public.alembic_version") == [("0002",)]
    assert run(shared_database, "SELECT count(version) FROM tasks") == [(0,)]


def test_a_database_of_1_0_0_is_carried_over(database_of_1_0_0: str) -> None:
    with service("--workers", "4", DATABASE_URL=database_of_1_0_0) as started:
        wait_for(started.log, "Application startup complete", 4)
        assert [task["title"] for task in httpx2.get(f"{started.url}/api/a/tasks").json()] == ["old"]
    assert not [line for line in started.log if "ERROR" in line or "Traceback" in line]
    assert schema_names(database_of_1_0_0) >= VERSION_TABLE
    assert not OLD_VERSION_TABLE & schema_names(database_of_1_0_0)
    assert alembic(database_of_1_0_0, "check").returncode == 0


@pytest.mark.parametrize("command", ["current", "history"])
def test_looking_at_a_database_of_1_0_0_changes_nothing(database_of_1_0_0: str, command: str) -> None:
    before = schema_names(database_of_1_0_0)
    looked = alembic(database_of_1_0_0, command)
    assert looked.returncode == 0, looked.stderr
    assert command != "current" or looked.stdout.startswith("0002")
    assert schema_names(database_of_1_0_0) == before


@pytest.mark.parametrize("version", ["0001", "0002"])
def test_going_back_leaves_a_database_as_1_0_0_knows_it(empty_database: str, version: str) -> None:
    create_tables(empty_database)
    newest = schema_names(empty_database)
    ended = alembic(empty_database, "downgrade", version)
    assert ended.returncode == 0, ended.stderr
    assert run(empty_database, "SELECT version_num FROM alembic_version") == [(version,)]
    assert schema_names(empty_database) == newest - VERSION_TABLE | OLD_VERSION_TABLE
    create_tables(empty_database)
    assert schema_names(empty_database) == newest
