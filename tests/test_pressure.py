"""The pool under overload: limits per user, queues, load shedding, and prepared statements."""

import asyncio
import re
import time
from typing import Any

import pytest
from starlette.requests import ClientDisconnect

from database import Database, DatabaseUnavailable
from queries import READY, Statement
from tests.helpers import fetch_value, open_pool, sleeping_sessions, until_sleeping, with_application_name

SLEEP = Statement[int, bytes]("SELECT 1, pg_sleep(%(seconds)s)::text")


async def start_query(database: Database, seconds: float, user: str | None = None) -> asyncio.Task[Any]:
    """Start a query that sleeps, and return its task once it has a slot or is in the queue."""
    values = {} if user is None else {"user_id": user}
    query = asyncio.ensure_future(database.fetch(SLEEP.bind(seconds=seconds, **values)))
    await asyncio.sleep(0)
    return query


def test_one_user_has_at_most_a_quarter_of_the_slots(empty_database: str, database_url: str) -> None:
    url, name = with_application_name(empty_database)

    async def scenario() -> None:
        async with open_pool(url, size=8) as database:
            queries = [await start_query(database, 3, "ann") for _ in range(6)]
            await until_sleeping(database_url, name, 2)
            assert await database.fetch(SLEEP.bind(seconds=0, user_id="bob")) == [(1, b"")]
            assert not any(query.done() for query in queries)
            assert sleeping_sessions(database_url, name) == 2
            await asyncio.gather(*queries)

    asyncio.run(scenario())


def test_cancelled_requests_do_not_count_towards_the_limit(empty_database: str, database_url: str) -> None:
    url, name = with_application_name(empty_database)

    async def scenario() -> None:
        async with open_pool(url, size=4) as database:
            for number in range(1, 4):
                queries = [await start_query(database, 10, "ann") for _ in range(5)]
                await until_sleeping(database_url, name, number)
                for query in reversed(queries):  # the waiters first
                    query.cancel()
                await asyncio.gather(*queries, return_exceptions=True)
            assert await database.fetch(SLEEP.bind(seconds=0, user_id="ann")) == [(1, b"")]

    asyncio.run(scenario())


def test_a_cancelled_waiter_does_not_count_towards_the_limit(empty_database: str) -> None:
    async def scenario() -> None:
        async with open_pool(empty_database, size=1) as database:
            await start_query(database, 0.5, "bob")
            waiting = await start_query(database, 0, "ann")
            waiting.cancel()
            query = database.fetch(SLEEP.bind(seconds=0, user_id="ann"))
            assert await asyncio.wait_for(query, 10) == [(1, b"")]

    asyncio.run(scenario())


def test_a_waiter_is_rejected_after_half_the_timeout(empty_database: str) -> None:
    async def scenario() -> None:
        async with open_pool(empty_database, size=1, timeout=4) as database:
            first = await start_query(database, 3.5)
            start = time.monotonic()
            with pytest.raises(DatabaseUnavailable, match=r"no slot after 2\.\d seconds in the queue, behind 0 others"):
                await database.fetch(READY.bind())
            assert time.monotonic() - start < 3.4
            assert await first

    asyncio.run(scenario())


@pytest.mark.parametrize(("seconds", "order"), [(2, [0, 1, 2]), (6.2, [2, 1, 0])], ids=["not overloaded", "overloaded"])
def test_the_queue_is_fifo_and_when_overloaded_lifo(empty_database: str, seconds: float, order: list[int]) -> None:
    async def scenario() -> None:
        served: list[int] = []

        async def query(number: int) -> None:
            await database.fetch(READY.bind(user_id=str(number)))
            served.append(number)

        async with open_pool(empty_database, size=1, timeout=14) as database:
            await start_query(database, seconds, "other")
            await asyncio.gather(*(query(number) for number in range(3)))
            assert served == order

    asyncio.run(scenario())


def test_a_long_queue_without_overload_rejects_no_request(empty_database: str) -> None:
    async def client(database: Database, number: int) -> None:
        for _ in range(3):
            await database.fetch(SLEEP.bind(seconds=0.02, user_id=str(number)))

    async def scenario() -> None:
        async with open_pool(empty_database, size=2, timeout=10) as database:
            await asyncio.gather(*(client(database, number) for number in range(200)))

    asyncio.run(scenario())


def test_an_overloaded_queue_rejects_early(empty_database: str) -> None:
    async def scenario() -> None:
        async with open_pool(empty_database, size=1, timeout=8) as database:
            queries = []
            for number in range(600):  # ten times the capacity
                queries.append(await start_query(database, 0.1, str(number)))
                await asyncio.sleep(0.01)
            results = await asyncio.gather(*queries, return_exceptions=True)
            matches = [re.search(r"after ([\d.]+) seconds in the queue", str(result)) for result in results]
            assert min(float(match[1]) for match in matches if match) < 3, "all waited for half the timeout"

    asyncio.run(scenario())


def test_a_request_without_a_user_is_served_first(empty_database: str) -> None:
    async def scenario() -> None:
        served: list[str | None] = []

        async def query(user: str | None) -> None:
            await database.fetch(READY.bind(**({} if user is None else {"user_id": user})))
            served.append(user)

        async with open_pool(empty_database, size=1) as database:
            running = await start_query(database, 0.5, "other")
            waiting = [asyncio.ensure_future(query(user)) for user in ("ann", "bob", None)]
            await asyncio.gather(running, *waiting)
            assert served == [None, "ann", "bob"]

    asyncio.run(scenario())


def test_a_request_of_a_disconnected_client_is_not_executed(empty_database: str) -> None:
    insert = Statement[int]("INSERT INTO numbers VALUES (1) RETURNING 1")

    async def disconnected() -> bool:
        return True

    async def scenario() -> None:
        async with open_pool(empty_database, size=1) as database:
            running = await start_query(database, 1.5)
            with pytest.raises(ClientDisconnect):
                await database.fetch(insert.bind(), disconnected)
            await running
            assert await database.fetch(READY.bind()) == [(1,)]

    fetch_value(empty_database, "CREATE TABLE numbers (n int)")
    asyncio.run(scenario())
    assert fetch_value(empty_database, "SELECT count(*) FROM numbers") == 0


def test_the_error_states_the_time_in_queue_and_database(empty_database: str) -> None:
    async def scenario() -> None:
        async with open_pool(empty_database, size=1, timeout=4) as database:
            await start_query(database, 1.5)
            cause = r"within 4 seconds: 1\.\d s in the queue behind 0 others, 2\.\d s in the database"
            with pytest.raises(DatabaseUnavailable, match=cause):
                await database.fetch(SLEEP.bind(seconds=30))

    asyncio.run(scenario())


# ---- Prepared statements --------------------------------------------------------------------


def prepared(name: str, sql: str) -> Statement[int]:
    return Statement(sql, name, f"PREPARE {name} AS {sql}", f"EXECUTE {name}")


INSERT = prepared("insert_row", "INSERT INTO numbers VALUES (1) RETURNING n")
INVALIDATIONS = {
    "deallocated": "DEALLOCATE ALL; SELECT 1",
    "discarded": "DISCARD PLANS; DEALLOCATE ALL; SELECT 1",
    "the type of a column changed": "ALTER TABLE numbers ALTER n TYPE bigint; SELECT 1",
    "the table was created again": "DROP TABLE numbers; CREATE TABLE numbers (n int); SELECT 1",
}


@pytest.mark.parametrize("invalidate", INVALIDATIONS.values(), ids=INVALIDATIONS)
def test_a_stale_prepared_statement_is_prepared_again_and_executed_once(empty_database: str, invalidate: str) -> None:
    async def scenario() -> None:
        async with open_pool(empty_database, size=1, can_prepare=True) as database:
            for _ in range(7):  # PostgreSQL may use a generic plan from the sixth execution on
                assert await database.fetch(INSERT.bind()) == [(1,)]
            await database.fetch(Statement[int]("DELETE FROM numbers RETURNING 1").bind())
            await database.fetch(Statement[int](invalidate).bind())
            assert await database.fetch(INSERT.bind()) == [(1,)]
            assert await database.fetch(INSERT.bind()) == [(1,)]

    fetch_value(empty_database, "CREATE TABLE numbers (n int)")
    asyncio.run(scenario())
    assert fetch_value(empty_database, "SELECT count(*) FROM numbers") == 2


def test_a_statement_the_session_has_already_prepared_is_executed_once(empty_database: str) -> None:
    async def scenario() -> None:
        async with open_pool(empty_database, size=1, can_prepare=True) as database:
            await database.fetch(Statement[int](f"{INSERT.prepare}; SELECT 1").bind())
            assert await database.fetch(INSERT.bind()) == [(1,)]

    fetch_value(empty_database, "CREATE TABLE numbers (n int)")
    asyncio.run(scenario())
    assert fetch_value(empty_database, "SELECT count(*) FROM numbers") == 1


def test_the_statement_timeout_is_set_again_after_a_canceled_statement(empty_database: str) -> None:
    setting = Statement[int]("SELECT setting::int FROM pg_settings WHERE name = 'statement_timeout'")  # milliseconds

    async def scenario() -> None:
        async with open_pool(empty_database, size=1, timeout=2, can_prepare=True) as database:
            for _ in range(2):
                with pytest.raises(DatabaseUnavailable, match=r"in the database"):
                    await database.fetch(SLEEP.bind(seconds=30))
                [(milliseconds,)] = await database.fetch(setting.bind())
                assert 0 < milliseconds <= 2000

    asyncio.run(scenario())


def test_the_number_of_prepared_statements_is_limited(empty_database: str) -> None:
    statements = [prepared(f"number_{number}", f"SELECT {number}") for number in range(130)]
    count = Statement[int]("SELECT count(*)::int FROM pg_prepared_statements")

    async def scenario() -> None:
        async with open_pool(empty_database, size=1, can_prepare=True) as database:
            for number, statement in enumerate(statements):
                assert await database.fetch(statement.bind()) == [(number,)]
            assert await database.fetch(count.bind()) == [(100,)]

    asyncio.run(scenario())


def test_nothing_is_prepared_behind_a_pooler(empty_database: str) -> None:
    count = Statement[int]("SELECT count(*)::int FROM pg_prepared_statements")

    async def scenario() -> None:
        async with open_pool(empty_database, size=1, can_prepare=False) as database:
            await database.fetch(INSERT.bind())
            assert await database.fetch(count.bind()) == [(0,)]

    fetch_value(empty_database, "CREATE TABLE numbers (n int)")
    asyncio.run(scenario())
