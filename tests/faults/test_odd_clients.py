"""Clients that go away, that stop in the middle, and that are very slow: a thousand of each."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager

import pytest

from tests.faults.conftest import hold_log, locked, many_files, wait_until
from tests.faults.postgres import Postgres
from tests.faults.wire import Answer, Client, address, once, request
from tests.servers import Service, service

CLIENTS = 1_000
POOL = 3
TIMEOUT = 10  # seconds, DATABASE_TIMEOUT

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@pytest.fixture(scope="module")
def started(postgres: Postgres) -> Iterator[Service]:
    url = postgres.dsn(application_name="odd")
    settings = {"DATABASE_URL": url, "DATABASE_POOL_SIZE": str(POOL), "DATABASE_TIMEOUT": str(TIMEOUT)}
    with many_files(), service("--no-access-log", **settings) as started:
        yield started
        hold_log(started.log)


def busy(postgres: Postgres) -> int:
    """How many connections of the service are doing something, or are in a transaction."""
    [(number,)] = postgres.administer(
        "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'odd' AND state <> 'idle'"
    )
    return int(number)


@asynccontextmanager
async def connections(url: str, first: Callable[[int], bytes]) -> AsyncIterator[list[Streams]]:
    """A thousand connections, each of which has sent its first bytes."""
    opened: list[Streams] = []
    try:
        for number in range(CLIENTS):
            opened.append(await asyncio.open_connection(*address(url)))
            opened[-1][1].write(first(number))
        yield opened
    finally:
        for _, writer in opened:
            writer.transport.abort()


async def hold_others(started: Service, postgres: Postgres, user: str) -> None:
    """Somebody who behaves is served meanwhile, and nobody holds a connection of the pool."""
    client = Client(started.url)
    for _ in range(20):
        answer = await client.ask("POST", f"/api/{user}-other/tasks", {"title": "t"})
        assert answer.status == 201
        assert answer.seconds < TIMEOUT / 2
    client.close()
    await asyncio.to_thread(wait_until, lambda: busy(postgres) == 0)


def hold_pool(started: Service, postgres: Postgres, user: str) -> None:
    """All of the pool's places are there: as many statements as it has can run at once."""

    async def scenario() -> list[Answer]:
        waiting = [
            asyncio.ensure_future(once(started.url, "GET", f"/api/{user}-{number}/tasks")) for number in range(POOL)
        ]
        await asyncio.to_thread(wait_until, lambda: busy(postgres) == POOL)
        other.rollback()
        return await asyncio.gather(*waiting)

    with locked(postgres, "LOCK TABLE tasks IN ACCESS EXCLUSIVE MODE") as other:
        assert {answer.status for answer in asyncio.run(scenario())} == {200}


def written(postgres: Postgres, user: str) -> int:
    [(number,)] = postgres.administer("SELECT count(*) FROM tasks WHERE user_id = %s", user, database="tasks")
    return int(number)


def whole(user: str) -> bytes:
    return request("POST", f"/api/{user}/tasks", {"title": "t", "description": "d" * 100})


@pytest.mark.parametrize("sent", ["half a line", "half a head", "half a body", "all"])
def test_clients_that_disconnect_in_the_middle_hold_nothing_and_lose_nothing(
    postgres: Postgres, started: Service, user: str, sent: str
) -> None:
    message = whole(user)
    ends = {"half a line": 10, "half a head": 40, "half a body": len(message) - 50, "all": len(message)}

    async def scenario() -> None:
        async with connections(started.url, lambda _: message[: ends[sent]]):
            pass
        await hold_others(started, postgres, user)

    asyncio.run(asyncio.wait_for(scenario(), 30))
    assert written(postgres, user) <= (CLIENTS if sent == "all" else 0)
    hold_pool(started, postgres, user)


def test_clients_that_disconnect_while_their_query_runs_lose_nothing(
    postgres: Postgres, started: Service, user: str
) -> None:
    async def scenario() -> None:
        async with connections(started.url, lambda number: whole(f"{user}-{number}")):
            await asyncio.to_thread(wait_until, lambda: busy(postgres) == POOL)

    with locked(postgres, "LOCK TABLE tasks IN ACCESS EXCLUSIVE MODE"):
        asyncio.run(asyncio.wait_for(scenario(), 30))
    asyncio.run(asyncio.wait_for(hold_others(started, postgres, user), 30))
    hold_pool(started, postgres, user)


def test_clients_that_send_half_a_body_and_wait_hold_nothing_and_are_answered_in_the_end(
    postgres: Postgres, started: Service, user: str
) -> None:
    message = whole(user)

    async def scenario() -> None:
        async with connections(started.url, lambda _: message[:-50]) as waiting:
            await hold_others(started, postgres, user)
            for _, writer in waiting:
                writer.write(message[-50:])
            heads = await asyncio.gather(*(reader.readuntil(b"\r\n\r\n") for reader, _ in waiting))
            assert {head.split()[1] for head in heads} == {b"201"}

    asyncio.run(asyncio.wait_for(scenario(), 30))
    assert written(postgres, user) == CLIENTS
    hold_pool(started, postgres, user)


def test_clients_that_send_a_byte_a_second_hold_nothing_and_are_answered_in_the_end(
    postgres: Postgres, started: Service, user: str
) -> None:
    message = whole(user)
    starts = (1, 20, message.index(b"\r\n\r\n") - 1, len(message) - 60, len(message) - 5)  # in line, head and body

    def start(number: int) -> int:
        return starts[number % len(starts)]

    async def scenario() -> None:
        async with connections(started.url, lambda number: message[: start(number)]) as slow:
            for second in range(4):
                for number, (_, writer) in enumerate(slow):
                    writer.write(message[start(number) + second :][:1])
                await asyncio.sleep(1)
                await hold_others(started, postgres, user)
            for number, (_, writer) in enumerate(slow):
                writer.write(message[start(number) + 4 :])
            heads = await asyncio.gather(*(reader.readuntil(b"\r\n\r\n") for reader, _ in slow))
            assert {head.split()[1] for head in heads} == {b"201"}

    asyncio.run(asyncio.wait_for(scenario(), 30))
    assert written(postgres, user) == CLIENTS
    hold_pool(started, postgres, user)
