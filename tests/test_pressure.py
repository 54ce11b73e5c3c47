"""The pool when there are more requests than it can take: fair, useful, and honest at once."""

import asyncio
import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from typing import Any
from uuid import uuid4

import psycopg2
import pytest
from starlette.requests import ClientDisconnect

from database import Database, DatabaseUnavailable
from queries import READY, Statement

SLEEP = Statement[int, bytes]("SELECT 1, pg_sleep(%(seconds)s)::text")


@asynccontextmanager
async def opened(dsn: str, *, size: int, within: float = 20, direct: bool = True) -> AsyncIterator[Database]:
    database = Database(dsn, size=size, timeout=within, direct=direct)
    try:
        yield database
    finally:
        await database.close()


async def hold(database: Database, seconds: float, user: str | None = None) -> asyncio.Task[Any]:
    """Begin a query that takes so long."""
    values = {} if user is None else {"user_id": user}
    query = asyncio.ensure_future(database.fetch(SLEEP.bind(seconds=seconds, **values)))
    await asyncio.sleep(0)
    return query


def ask(url: str, sql: str, *values: object) -> Any:
    """The one value that `sql` returns, asked beside the pool."""
    with closing(psycopg2.connect(url)) as connection:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute(sql, values)
            return cursor.fetchone()[0] if cursor.description else None


def test_one_user_has_at_most_a_quarter_of_the_slots(empty_database: str, database_url: str) -> None:
    name = f"test-{uuid4()}"

    async def scenario() -> None:
        async with opened(
            f"{empty_database}{'&' if '?' in empty_database else '?'}application_name={name}", size=8
        ) as database:
            mine = [await hold(database, 2, "ann") for _ in range(6)]
            await asyncio.sleep(0.5)
            assert await database.fetch(SLEEP.bind(seconds=0, user_id="bob")) == [(1, b"")]
            assert not any(one.done() for one in mine)
            running = "SELECT count(*) FROM pg_stat_activity WHERE application_name = %s AND wait_event = 'PgSleep'"
            assert await asyncio.to_thread(ask, database_url, running, name) == 2
            await asyncio.gather(*mine)

    asyncio.run(scenario())


def test_a_user_whose_requests_are_given_up_can_go_on(database_url: str) -> None:
    async def scenario() -> None:
        async with opened(database_url, size=4) as database:
            for _ in range(3):
                asked = [await hold(database, 30, "ann") for _ in range(5)]
                await asyncio.sleep(0.1)
                for one in reversed(asked):  # those in line first
                    one.cancel()
                await asyncio.gather(*asked, return_exceptions=True)
            assert await database.fetch(SLEEP.bind(seconds=0, user_id="ann")) == [(1, b"")]

    asyncio.run(scenario())


def test_whoever_waits_for_half_the_timeout_is_refused(database_url: str) -> None:
    async def scenario() -> None:
        async with opened(database_url, size=1, within=4) as database:
            first = await hold(database, 3.5)
            start = time.monotonic()
            with pytest.raises(DatabaseUnavailable, match=r"no slot after 2\.\d seconds in line, behind 0 others"):
                await database.fetch(READY.bind())
            assert time.monotonic() - start < 3.4
            assert await first

    asyncio.run(scenario())


@pytest.mark.parametrize(("held", "order"), [(2, [0, 1, 2]), (4.4, [2, 1, 0])], ids=["in time", "too slow"])
def test_the_line_is_fifo_while_it_is_in_time_and_lifo_when_not(
    database_url: str, held: float, order: list[int]
) -> None:
    async def scenario() -> None:
        served: list[int] = []

        async def query(number: int) -> None:
            await database.fetch(READY.bind(user_id=str(number)))
            served.append(number)

        async with opened(database_url, size=1, within=10) as database:
            await hold(database, held, "holder")
            await asyncio.gather(*(query(number) for number in range(3)))
            assert served == order

    asyncio.run(scenario())


def test_a_line_that_is_long_but_in_time_refuses_nobody(database_url: str) -> None:
    async def client(database: Database, number: int) -> None:
        for _ in range(3):  # as soon as it is served, it stands in line again
            await database.fetch(SLEEP.bind(seconds=0.02, user_id=str(number)))

    async def scenario() -> None:
        async with opened(database_url, size=2, within=10) as database:
            await asyncio.gather(*(client(database, number) for number in range(200)))

    asyncio.run(scenario())


def test_who_cannot_be_served_any_more_is_refused_at_once(database_url: str) -> None:
    async def scenario() -> None:
        async with opened(database_url, size=1, within=8) as database:
            queries = []
            for number in range(600):  # ten times what it can take
                queries.append(await hold(database, 0.1, str(number)))
                await asyncio.sleep(0.01)
            results = await asyncio.gather(*queries, return_exceptions=True)
            refused = [
                float(found[1]) for found in (re.search(r"after ([\d.]+) s", str(one)) for one in results) if found
            ]
            assert min(refused) < 3, "they were left to wait for half the timeout"

    asyncio.run(scenario())


def test_a_request_without_a_user_goes_first(database_url: str) -> None:
    async def scenario() -> None:
        served: list[str | None] = []

        async def query(user: str | None) -> None:
            await database.fetch(READY.bind(**({} if user is None else {"user_id": user})))
            served.append(user)

        async with opened(database_url, size=1) as database:
            holding = await hold(database, 0.5, "holder")
            waiting = [asyncio.ensure_future(query(user)) for user in ("ann", "bob", None)]
            await asyncio.gather(holding, *waiting)
            assert served == [None, "ann", "bob"]

    asyncio.run(scenario())


def test_a_request_whose_client_has_gone_does_not_reach_the_database(empty_database: str) -> None:
    insert = Statement[int]("INSERT INTO seen VALUES (1) RETURNING 1")

    async def gone() -> bool:
        return True

    async def scenario() -> None:
        async with opened(empty_database, size=1) as database:
            holding = await hold(database, 1.5)
            with pytest.raises(ClientDisconnect):
                await database.fetch(insert.bind(), gone)
            await holding
            assert await database.fetch(READY.bind()) == [(1,)]

    ask(empty_database, "CREATE TABLE seen (n int)")
    asyncio.run(scenario())
    assert ask(empty_database, "SELECT count(*) FROM seen") == 0


def test_the_cause_tells_waiting_from_working(database_url: str) -> None:
    async def scenario() -> None:
        async with opened(database_url, size=1, within=4) as database:
            await hold(database, 1.5)
            cause = r"within 4 seconds: 1\.\d s in line behind 0 others, 2\.\d s in the database"
            with pytest.raises(DatabaseUnavailable, match=cause):
                await database.fetch(SLEEP.bind(seconds=30))

    asyncio.run(scenario())


# ---- Prepared statements --------------------------------------------------------------------


def prepared(name: str, sql: str) -> Statement[int]:
    return Statement(sql, name, f"PREPARE {name} AS {sql}", f"EXECUTE {name}")


COUNT = prepared("counted", "INSERT INTO seen VALUES (1) RETURNING n")
LOSE = {
    "deallocated": "DEALLOCATE ALL; SELECT 1",
    "discarded": "DISCARD PLANS; DEALLOCATE ALL; SELECT 1",
    "the type of a column changed": "ALTER TABLE seen ALTER n TYPE bigint; SELECT 1",
    "the table made anew": "DROP TABLE seen; CREATE TABLE seen (n int); SELECT 1",
}


@pytest.mark.parametrize("lose", LOSE.values(), ids=LOSE)
def test_a_statement_that_the_server_has_lost_is_prepared_again_and_done_once(empty_database: str, lose: str) -> None:
    async def scenario() -> None:
        async with opened(empty_database, size=1) as database:
            for _ in range(7):  # from the sixth time on the plan may be a generic one
                assert await database.fetch(COUNT.bind()) == [(1,)]
            await database.fetch(Statement[int]("DELETE FROM seen RETURNING 1").bind())
            await database.fetch(Statement[int](lose).bind())
            assert await database.fetch(COUNT.bind()) == [(1,)]
            assert await database.fetch(COUNT.bind()) == [(1,)]

    ask(empty_database, "CREATE TABLE seen (n int)")
    asyncio.run(scenario())
    assert ask(empty_database, "SELECT count(*) FROM seen") == 2


def test_a_statement_of_that_name_that_is_there_already_does_no_harm(empty_database: str) -> None:
    async def scenario() -> None:
        async with opened(empty_database, size=1) as database:
            await database.fetch(Statement[int](f"{COUNT.prepare}; SELECT 1").bind())
            assert await database.fetch(COUNT.bind()) == [(1,)]

    ask(empty_database, "CREATE TABLE seen (n int)")
    asyncio.run(scenario())
    assert ask(empty_database, "SELECT count(*) FROM seen") == 1


def test_an_error_takes_back_no_time_limit(database_url: str) -> None:
    limit = Statement[bytes]("SELECT current_setting('statement_timeout')")

    async def scenario() -> None:
        async with opened(database_url, size=1, within=20) as database:
            for _ in range(2):
                assert await database.fetch(limit.bind()) == [(b"20s",)]
                with pytest.raises(psycopg2.errors.DivisionByZero):
                    await database.fetch(Statement[int]("SELECT 1 / 0").bind())

    asyncio.run(scenario())


def test_a_connection_prepares_no_more_than_so_many(empty_database: str) -> None:
    many = [prepared(f"number_{number}", f"SELECT {number}") for number in range(130)]
    count = Statement[int]("SELECT count(*)::int FROM pg_prepared_statements")

    async def scenario() -> None:
        async with opened(empty_database, size=1) as database:
            for number, statement in enumerate(many):
                assert await database.fetch(statement.bind()) == [(number,)]
            assert await database.fetch(count.bind()) == [(100,)]

    asyncio.run(scenario())


def test_through_a_pooler_nothing_is_prepared(empty_database: str) -> None:
    count = Statement[int]("SELECT count(*)::int FROM pg_prepared_statements")

    async def scenario() -> None:
        async with opened(empty_database, size=1, direct=False) as database:
            await database.fetch(COUNT.bind())
            assert await database.fetch(count.bind()) == [(0,)]

    ask(empty_database, "CREATE TABLE seen (n int)")
    asyncio.run(scenario())
