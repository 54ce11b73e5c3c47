"""Text in every language is stored and returned unchanged."""

import asyncio
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from urllib.parse import quote, urlsplit
from uuid import uuid4

import psycopg2
import pytest
from fastapi.testclient import TestClient
from pydantic import SecretStr
from sqlalchemy import text

from database import Database, create_tables, migration_engine
from main import create_app
from queries import Statement
from settings import Settings
from tests.helpers import schema_names
from tests.servers import HERE

TEXT = "Käse für 3 € 🥛 牛乳"
ENCODING = Statement[bytes]("SELECT current_setting('client_encoding')")


@contextmanager
def new_database(server: str, options: str) -> Iterator[str]:
    """Create a database with these options of CREATE DATABASE, and return its URL."""
    name = f"test_{uuid4().hex}"
    with closing(psycopg2.connect(server)) as connection:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute(f"CREATE DATABASE {name} TEMPLATE template0 {options}")
            yield urlsplit(server)._replace(path=f"/{name}").geturl()
            cursor.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.mark.parametrize("encoding", ["SQL_ASCII", "LATIN1", "KOI8R", "EUC_JP"])
def test_a_database_in_another_encoding_is_rejected(database_url: str, encoding: str) -> None:
    with new_database(database_url, f"ENCODING '{encoding}' LC_COLLATE 'C' LC_CTYPE 'C'") as url:
        with pytest.raises(SystemExit, match=rf"^The database has encoding {encoding}, .* UTF8: [^.]*\.$"):
            create_tables(url)
        assert schema_names(url) == set()


def test_a_rejected_encoding_is_one_line_in_the_log(database_url: str) -> None:
    with new_database(database_url, "ENCODING 'SQL_ASCII' LC_COLLATE 'C' LC_CTYPE 'C'") as url:
        command = [sys.executable, "-m", "uvicorn", "main:app", "--port", "0"]
        process = subprocess.run(
            command, cwd=HERE, env=os.environ | {"DATABASE_URL": url}, capture_output=True, text=True, timeout=60,
            check=False,
        )  # fmt: skip
    assert process.returncode != 0
    assert sum("encoding SQL_ASCII" in line for line in process.stderr.splitlines()) == 1
    assert "Traceback" not in process.stderr


@pytest.mark.parametrize(("locale", "warnings"), [("C", 1), ("C.UTF-8", 0)])
def test_a_locale_with_english_letters_only_logs_one_warning(
    database_url: str, caplog: pytest.LogCaptureFixture, locale: str, warnings: int
) -> None:
    with (
        new_database(database_url, f"ENCODING 'UTF8' LC_COLLATE '{locale}' LC_CTYPE '{locale}'") as url,
        caplog.at_level(logging.WARNING, "tasks"),
    ):
        for _ in range(2):  # once without tables and once with them
            caplog.clear()
            create_tables(url)
            messages = [record.getMessage() for record in caplog.records if record.name == "tasks"]
            assert len(messages) == warnings
            assert all("lower('Ä')" in message and "\n" not in message for message in messages)


@pytest.fixture(params=["DSN", "DSN's options", "PGCLIENTENCODING", "PGOPTIONS", "role"])
def url_with_latin1(
    request: pytest.FixtureRequest, empty_database: str, pooled: bool, monkeypatch: pytest.MonkeyPatch
) -> str:
    """The URL of a database for which the DSN, the environment or the role sets LATIN1."""
    options = "-c client_encoding=LATIN1"
    if request.param == "DSN":
        return f"{empty_database}&client_encoding=LATIN1"
    if request.param == "role":
        with closing(psycopg2.connect(empty_database)) as connection, connection.cursor() as cursor:
            name = urlsplit(empty_database).path[1:]
            cursor.execute(f"ALTER ROLE CURRENT_USER IN DATABASE {name} SET client_encoding = 'LATIN1'")
            connection.commit()
        return empty_database
    if "PTIONS" in request.param.upper() and pooled:
        pytest.skip("a pooler does not accept options")
    if request.param == "DSN's options":
        return f"{empty_database}&options={quote(options)}"
    monkeypatch.setenv(request.param, options if request.param == "PGOPTIONS" else "LATIN1")
    return empty_database


def test_another_client_encoding_does_not_change_text(url_with_latin1: str, settings: Settings, url: str) -> None:
    app = create_app(settings.model_copy(update={"database_url": SecretStr(url_with_latin1)}))
    with TestClient(app) as client:
        created = client.post(url, json={"title": TEXT})
        assert created.status_code == 201
        assert created.json()["title"] == TEXT
        assert [task["title"] for task in client.get(url, params={"q": "€"}).json()] == [TEXT]


def test_all_connections_to_the_database_use_utf8(url_with_latin1: str) -> None:
    async def pool_encoding() -> bytes:
        pool = Database(url_with_latin1, size=1, timeout=20)
        [(encoding,)] = await pool.fetch(ENCODING.bind())
        await pool.close()
        return encoding

    assert asyncio.run(pool_encoding()) == b"UTF8"
    with migration_engine(url_with_latin1).connect() as connection:
        assert connection.scalar(text(ENCODING.sql)) == "UTF8"
