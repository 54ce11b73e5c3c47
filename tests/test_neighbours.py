"""A database shared with other applications: their tables are neither read nor changed."""

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

# Tables as Better Auth has them, and one object of each other kind.
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

# Version 1.0.0 used Alembic's default name for the version table.
OLD_VERSION_TABLE = {"alembic_version", "alembic_version_pkc"}


def run(url: str, sql: str, *values: object) -> list[tuple[Any, ...]]:
    """Run `sql` on a separate connection in autocommit mode, and return its rows."""
    with closing(psycopg2.connect(url)) as connection:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute(sql, values or None)
            return cursor.fetchall() if cursor.description else []


@contextmanager
def locked(url: str, table: str) -> Iterator[None]:
    """Lock the table; other statements that use it fail after one second."""
    run(url, f"ALTER DATABASE {parse_dsn(url)['dbname']} SET lock_timeout = '1s'")
    with closing(psycopg2.connect(url)) as connection, connection.cursor() as cursor:
        cursor.execute(f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE")
        yield


@pytest.fixture
def shared_database(empty_database: str) -> str:
    """The URL of a database with tables of another application."""
    run(empty_database, NEIGHBOUR)
    return empty_database


@pytest.fixture
def database_of_1_0_0(empty_database: str) -> str:
    """The URL of a database as version 1.0.0 of the service leaves it."""
    assert alembic(empty_database, "upgrade", "0002").returncode == 0
    run(empty_database, "INSERT INTO tasks (user_id, id, title) VALUES ('a', gen_random_uuid(), 'old')")
    return empty_database


def test_autogenerate_ignores_tables_of_other_applications(shared_database: str, checkout: Path) -> None:
    create_tables(shared_database)
    run(shared_database, VERSIONS)
    check = alembic(shared_database, "check")
    assert check.returncode == 0, check.stdout + check.stderr
    revision = alembic(shared_database, "revision", "--autogenerate", "--rev-id", "9999", "-m", "new", folder=checkout)
    assert revision.returncode == 0, revision.stderr
    migration = (checkout / "migrations/versions/9999_new.py").read_text()
    assert not re.search(r"\bop\.", migration), migration


def test_check_reports_a_missing_column_of_our_table(shared_database: str) -> None:
    create_tables(shared_database)
    run(shared_database, "ALTER TABLE tasks DROP COLUMN fingerprint")
    check = alembic(shared_database, "check")
    assert check.returncode != 0
    assert "fingerprint" in check.stdout + check.stderr


@pytest.mark.parametrize("version", ["0002", "8f2a0c61d3b4", None])
def test_the_version_table_of_another_application_is_not_used(shared_database: str, version: str | None) -> None:
    run(shared_database, VERSIONS)
    if version:
        run(shared_database, "INSERT INTO alembic_version VALUES (%s)", version)
    before = schema_names(shared_database)
    with locked(shared_database, "alembic_version"):
        create_tables(shared_database)
        for target in ("0002", "base"):
            downgrade = alembic(shared_database, "downgrade", target)
            assert downgrade.returncode == 0, downgrade.stderr
            create_tables(shared_database)
    assert schema_names(shared_database) > before | VERSION_TABLE
    assert run(shared_database, "SELECT version_num FROM alembic_version") == ([(version,)] if version else [])


def test_downgrade_keeps_objects_of_other_applications(shared_database: str) -> None:
    before = schema_names(shared_database)
    create_tables(shared_database)
    assert alembic(shared_database, "downgrade", "base").returncode == 0
    assert schema_names(shared_database) == before


def test_a_schema_named_like_the_role_is_used(shared_database: str) -> None:
    run(shared_database, VERSIONS)
    run(shared_database, "INSERT INTO alembic_version VALUES ('0002')")
    run(shared_database, "CREATE TABLE tasks (title text)")
    before = schema_names(shared_database)
    run(shared_database, "CREATE SCHEMA AUTHORIZATION CURRENT_USER")  # "$user" is first in the search_path
    create_tables(shared_database)
    assert schema_names(shared_database) == before
    assert alembic(shared_database, "check").returncode == 0
    assert alembic(shared_database, "downgrade", "0002").returncode == 0
    found = run(shared_database, "SELECT version_num, tableoid::regclass::text FROM alembic_version")
    assert found == [("0002", "alembic_version")]
    create_tables(shared_database)
    assert run(shared_database, "SELECT version_num FROM public.alembic_version") == [("0002",)]
    assert run(shared_database, "SELECT count(version) FROM tasks") == [(0,)]


def test_a_database_of_1_0_0_is_upgraded(database_of_1_0_0: str) -> None:
    with service("--workers", "4", DATABASE_URL=database_of_1_0_0) as started:
        wait_for(started.log, "Application startup complete", 4)
        assert [task["title"] for task in httpx2.get(f"{started.url}/api/a/tasks").json()] == ["old"]
    assert not [line for line in started.log if "ERROR" in line or "Traceback" in line]
    assert schema_names(database_of_1_0_0) >= VERSION_TABLE
    assert not OLD_VERSION_TABLE & schema_names(database_of_1_0_0)
    assert alembic(database_of_1_0_0, "check").returncode == 0


@pytest.mark.parametrize("command", ["current", "history"])
def test_current_and_history_change_nothing_of_1_0_0(database_of_1_0_0: str, command: str) -> None:
    before = schema_names(database_of_1_0_0)
    result = alembic(database_of_1_0_0, command)
    assert result.returncode == 0, result.stderr
    assert command != "current" or result.stdout.startswith("0002")
    assert schema_names(database_of_1_0_0) == before


@pytest.mark.parametrize("version", ["0001", "0002"])
def test_downgrade_restores_the_version_table_of_1_0_0(empty_database: str, version: str) -> None:
    create_tables(empty_database)
    newest = schema_names(empty_database)
    downgrade = alembic(empty_database, "downgrade", version)
    assert downgrade.returncode == 0, downgrade.stderr
    assert run(empty_database, "SELECT version_num FROM alembic_version") == [(version,)]
    found = schema_names(empty_database)
    assert found >= OLD_VERSION_TABLE
    assert not found & VERSION_TABLE
    create_tables(empty_database)
    assert schema_names(empty_database) == newest
