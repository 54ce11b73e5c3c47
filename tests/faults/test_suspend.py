"""The server closes every connection while it is idle, as a serverless database does when it sleeps."""

import asyncio
from collections.abc import Iterator

import psutil
import pytest

from tests.faults.conftest import hold_log, wait_until
from tests.faults.postgres import Postgres
from tests.faults.wire import Answer, once
from tests.servers import Relay, Service, relaying, service

POOL = 5
TIMEOUT = 1.5  # seconds, DATABASE_TIMEOUT


@pytest.fixture(scope="module")
def relay(postgres: Postgres) -> Iterator[Relay]:
    with relaying(postgres.dsn(), delay=0.005) as relay:
        yield relay


@pytest.fixture(scope="module")
def started(postgres: Postgres, relay: Relay) -> Iterator[Service]:
    url = postgres.dsn(port=relay.port, application_name="suspended")
    with service(DATABASE_URL=url, DATABASE_POOL_SIZE=str(POOL), DATABASE_TIMEOUT=str(TIMEOUT)) as started:
        yield started
        hold_log(started.log)


async def create(started: Service, user: str) -> Answer:
    return await once(started.url, "POST", f"/api/{user}/tasks", {"title": "written"})


def fill_the_pool(started: Service, postgres: Postgres, relay: Relay) -> None:
    """Leave as many idle connections as there may be, and none of an earlier test."""
    postgres.administer(
        "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE application_name = 'suspended'"
    )

    async def ask() -> list[Answer]:
        paths = [f"/api/nobody-{number}/tasks" for number in range(4 * POOL)]
        return await asyncio.gather(*(once(started.url, "GET", path) for path in paths))

    for _ in range(20):
        assert {answer.status for answer in asyncio.run(ask())} == {200}
        if len(sessions(postgres)) == POOL:
            assert links(started, relay) == POOL
            return
    raise AssertionError("the pool never filled up")


def sessions(postgres: Postgres) -> set[int]:
    rows = postgres.administer("SELECT pid FROM pg_stat_activity WHERE application_name = 'suspended'")
    return {pid for (pid,) in rows}


def links(started: Service, relay: Relay) -> int:
    """How many connections of the service both sides hold open, as it sees it."""
    ours = psutil.Process(started.process.pid).net_connections("tcp")
    return sum(one.status == "ESTABLISHED" and one.raddr[1:] == (relay.port,) for one in ours)


def titles(postgres: Postgres, user: str) -> list[tuple[str]]:
    return postgres.administer("SELECT title FROM tasks WHERE user_id = %s", user, database="tasks")


@pytest.mark.parametrize("how", ["terminated", "stopped and started", "killed and started"])
@pytest.mark.parametrize("concurrently", [1, 2 * POOL])
def test_the_next_requests_succeed_when_idle_connections_were_closed(
    postgres: Postgres, relay: Relay, started: Service, user: str, how: str, concurrently: int
) -> None:
    fill_the_pool(started, postgres, relay)
    before = sessions(postgres)
    if how == "terminated":
        assert all(postgres.administer("SELECT pg_terminate_backend(%s, 10000)", pid) == [(True,)] for pid in before)
    else:
        postgres.stop() if how == "stopped and started" else postgres.kill()
        postgres.start()
    wait_until(lambda: links(started, relay) == 0)  # the end takes a moment to arrive

    async def scenario() -> list[Answer]:
        return await asyncio.gather(*(create(started, user) for _ in range(concurrently)))

    assert [answer.status for answer in asyncio.run(scenario())] == [201] * concurrently
    assert titles(postgres, user) == [("written",)] * concurrently
    assert before.isdisjoint(sessions(postgres))


def test_after_a_silent_drop_one_request_fails_in_time_and_the_next_succeeds(
    postgres: Postgres, relay: Relay, started: Service, user: str
) -> None:
    fill_the_pool(started, postgres, relay)
    relay.drop()
    first = asyncio.run(create(started, user))
    second = asyncio.run(create(started, user))
    assert (first.status, second.status) == (503, 201)
    assert first.seconds < TIMEOUT + 1
    wait_until(lambda: titles(postgres, user) == [("written",)])


def test_after_a_silent_drop_many_requests_at_once_end_in_time_and_the_next_succeed(
    postgres: Postgres, relay: Relay, started: Service, user: str
) -> None:
    fill_the_pool(started, postgres, relay)
    relay.drop()

    async def scenario() -> list[Answer]:
        return await asyncio.gather(*(create(started, user) for _ in range(2 * POOL)))

    first, second = asyncio.run(scenario()), asyncio.run(scenario())
    assert max(answer.seconds for answer in first) < TIMEOUT + 1
    assert {answer.status for answer in first} <= {201, 503}
    assert [answer.status for answer in second] == [201] * (2 * POOL)
    acknowledged = sum(answer.status == 201 for answer in first + second)
    wait_until(lambda: len(titles(postgres, user)) == acknowledged)


def test_a_network_that_is_silent_for_a_while_costs_no_more_than_that_while(
    relay: Relay, started: Service, user: str
) -> None:
    relay.silent = True
    try:
        for _ in range(2):  # on an idle connection, and while connecting
            answer = asyncio.run(create(started, user))
            assert answer.status == 503
            assert answer.seconds < TIMEOUT + 1
    finally:
        relay.silent = False
    assert asyncio.run(create(started, user)).status == 201
