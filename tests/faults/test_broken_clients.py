"""A thousand clients that disconnect early, stop sending, or send very slowly."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager

import pytest

from tests.faults.helpers import check_log, locked, many_files, wait_until
from tests.faults.postgres import Postgres
from tests.faults.wire import Client, Response, address, request, send_once
from tests.servers import Service, service

CLIENTS = 1_000
POOL = 3
TIMEOUT = 10  # seconds, DATABASE_TIMEOUT

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@pytest.fixture(scope="module")
def started(postgres: Postgres) -> Iterator[Service]:
    url = postgres.dsn(application_name="broken-clients")
    settings = {"DATABASE_URL": url, "DATABASE_POOL_SIZE": str(POOL), "DATABASE_TIMEOUT": str(TIMEOUT)}
    with many_files(), service("--no-access-log", **settings) as started:
        yield started
        check_log(started.log)


def active_connections(postgres: Postgres) -> int:
    """Return how many database connections of the service are not idle."""
    [(number,)] = postgres.run_as_admin(
        "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'broken-clients' AND state <> 'idle'"
    )
    return int(number)


@asynccontextmanager
async def connections(url: str, first_bytes: Callable[[int], bytes]) -> AsyncIterator[list[Streams]]:
    """Open a thousand connections, send the first bytes on each, and abort them afterwards."""
    opened: list[Streams] = []
    try:
        for number in range(CLIENTS):
            opened.append(await asyncio.open_connection(*address(url)))
            opened[-1][1].write(first_bytes(number))
        yield opened
    finally:
        for _, writer in opened:
            writer.transport.abort()


async def check_other_clients(started: Service, postgres: Postgres, user: str) -> None:
    """Assert that an ordinary client is served, and that the database connections become idle."""
    client = Client(started.url)
    for _ in range(20):
        response = await client.send("POST", f"/api/{user}-other/tasks", {"title": "t"})
        assert response.status == 201
        assert response.seconds < TIMEOUT / 2
    client.close()
    await asyncio.to_thread(wait_until, lambda: active_connections(postgres) == 0)


def check_pool(started: Service, postgres: Postgres, user: str) -> None:
    """Assert that no slot of the pool is lost: as many statements as it has slots run at once."""

    async def scenario() -> list[Response]:
        waiting = [
            asyncio.ensure_future(send_once(started.url, "GET", f"/api/{user}-{number}/tasks"))
            for number in range(POOL)
        ]
        await asyncio.to_thread(wait_until, lambda: active_connections(postgres) == POOL)
        other.rollback()
        return await asyncio.gather(*waiting)

    with locked(postgres, "LOCK TABLE tasks IN ACCESS EXCLUSIVE MODE") as other:
        assert {response.status for response in asyncio.run(scenario())} == {200}


def count_tasks(postgres: Postgres, user: str) -> int:
    [(number,)] = postgres.run_as_admin("SELECT count(*) FROM tasks WHERE user_id = %s", user, database="tasks")
    return int(number)


def create_request(user: str) -> bytes:
    return request("POST", f"/api/{user}/tasks", {"title": "t", "description": "d" * 100})


@pytest.mark.parametrize("sent", ["half the request line", "half the header", "half the body", "everything"])
def test_clients_that_disconnect_early_leak_no_connection(
    postgres: Postgres, started: Service, user: str, sent: str
) -> None:
    message = create_request(user)
    ends = {
        "half the request line": 10,
        "half the header": 40,
        "half the body": len(message) - 50,
        "everything": len(message),
    }

    async def scenario() -> None:
        async with connections(started.url, lambda _: message[: ends[sent]]):
            pass
        await check_other_clients(started, postgres, user)

    asyncio.run(asyncio.wait_for(scenario(), 30))
    assert count_tasks(postgres, user) <= (CLIENTS if sent == "everything" else 0)
    check_pool(started, postgres, user)


def test_clients_that_disconnect_during_their_statement_leak_no_connection(
    postgres: Postgres, started: Service, user: str
) -> None:
    async def scenario() -> None:
        async with connections(started.url, lambda number: create_request(f"{user}-{number}")):
            await asyncio.to_thread(wait_until, lambda: active_connections(postgres) == POOL)

    with locked(postgres, "LOCK TABLE tasks IN ACCESS EXCLUSIVE MODE"):
        asyncio.run(asyncio.wait_for(scenario(), 30))
    asyncio.run(asyncio.wait_for(check_other_clients(started, postgres, user), 30))
    check_pool(started, postgres, user)


def test_clients_that_pause_within_the_body_hold_no_connection(postgres: Postgres, started: Service, user: str) -> None:
    message = create_request(user)

    async def scenario() -> None:
        async with connections(started.url, lambda _: message[:-50]) as waiting:
            await check_other_clients(started, postgres, user)
            for _, writer in waiting:
                writer.write(message[-50:])
            heads = await asyncio.gather(*(reader.readuntil(b"\r\n\r\n") for reader, _ in waiting))
            assert {head.split()[1] for head in heads} == {b"201"}

    asyncio.run(asyncio.wait_for(scenario(), 30))
    assert count_tasks(postgres, user) == CLIENTS
    check_pool(started, postgres, user)


def test_clients_that_send_a_byte_a_second_hold_no_connection(postgres: Postgres, started: Service, user: str) -> None:
    message = create_request(user)
    # Two positions are in the request line, one is at the end of the headers, and two are in the body.
    starts = (1, 20, message.index(b"\r\n\r\n") - 1, len(message) - 60, len(message) - 5)

    def start(number: int) -> int:
        return starts[number % len(starts)]

    async def scenario() -> None:
        async with connections(started.url, lambda number: message[: start(number)]) as slow:
            for second in range(4):
                for number, (_, writer) in enumerate(slow):
                    writer.write(message[start(number) + second :][:1])
                await asyncio.sleep(1)
                await check_other_clients(started, postgres, user)
            for number, (_, writer) in enumerate(slow):
                writer.write(message[start(number) + 4 :])
            heads = await asyncio.gather(*(reader.readuntil(b"\r\n\r\n") for reader, _ in slow))
            assert {head.split()[1] for head in heads} == {b"201"}

    asyncio.run(asyncio.wait_for(scenario(), 30))
    assert count_tasks(postgres, user) == CLIENTS
    check_pool(started, postgres, user)
