"""Idle connections that the server closes, as a suspended serverless database does, or that drop silently."""

import asyncio
from collections.abc import Iterator

import psutil
import pytest

from tests.faults.helpers import check_log, wait_until
from tests.faults.postgres import Postgres
from tests.faults.wire import Response, send_once
from tests.servers import Relay, Service, relaying, service

POOL = 5
TIMEOUT = 1.5  # seconds, DATABASE_TIMEOUT


@pytest.fixture(scope="module")
def relay(postgres: Postgres) -> Iterator[Relay]:
    with relaying(postgres.dsn(), delay=0.005) as relay:
        yield relay


@pytest.fixture(scope="module")
def started(postgres: Postgres, relay: Relay) -> Iterator[Service]:
    url = postgres.dsn(port=relay.port, application_name="closed")
    with service(DATABASE_URL=url, DATABASE_POOL_SIZE=str(POOL), DATABASE_TIMEOUT=str(TIMEOUT)) as started:
        yield started
        check_log(started.log)


async def create(started: Service, user: str) -> Response:
    return await send_once(started.url, "POST", f"/api/{user}/tasks", {"title": "written"})


def fill_the_pool(started: Service, postgres: Postgres, relay: Relay) -> None:
    """Replace the connections of earlier tests by a full pool of new ones, all idle."""
    postgres.run_as_admin(
        "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE application_name = 'closed'"
    )

    async def send_many() -> list[Response]:
        paths = [f"/api/filler-{number}/tasks" for number in range(4 * POOL)]
        return await asyncio.gather(*(send_once(started.url, "GET", path) for path in paths))

    for _ in range(20):
        assert {response.status for response in asyncio.run(send_many())} == {200}
        if len(sessions(postgres)) == POOL:
            assert open_connections(started, relay) == POOL
            return
    raise AssertionError("the pool did not open all of its connections")


def sessions(postgres: Postgres) -> set[int]:
    rows = postgres.run_as_admin("SELECT pid FROM pg_stat_activity WHERE application_name = 'closed'")
    return {pid for (pid,) in rows}


def open_connections(started: Service, relay: Relay) -> int:
    """Return how many established connections to the relay the service has."""
    connections = psutil.Process(started.process.pid).net_connections("tcp")
    return sum(
        connection.status == "ESTABLISHED" and connection.raddr[1:] == (relay.port,) for connection in connections
    )


def titles(postgres: Postgres, user: str) -> list[tuple[str]]:
    return postgres.run_as_admin("SELECT title FROM tasks WHERE user_id = %s", user, database="tasks")


@pytest.mark.parametrize("how", ["sessions terminated", "server restarted", "server crashed"])
@pytest.mark.parametrize("requests", [1, 2 * POOL])
def test_requests_succeed_after_idle_connections_were_closed(
    postgres: Postgres, relay: Relay, started: Service, user: str, how: str, requests: int
) -> None:
    fill_the_pool(started, postgres, relay)
    before = sessions(postgres)
    if how == "sessions terminated":
        assert all(postgres.run_as_admin("SELECT pg_terminate_backend(%s, 10000)", pid) == [(True,)] for pid in before)
    else:
        postgres.stop() if how == "server restarted" else postgres.kill()
        postgres.start()
    wait_until(lambda: open_connections(started, relay) == 0)  # the service notices it a little later

    async def scenario() -> list[Response]:
        return await asyncio.gather(*(create(started, user) for _ in range(requests)))

    assert [response.status for response in asyncio.run(scenario())] == [201] * requests
    assert titles(postgres, user) == [("written",)] * requests
    assert before.isdisjoint(sessions(postgres))


def test_after_a_silent_drop_only_one_request_fails(
    postgres: Postgres, relay: Relay, started: Service, user: str
) -> None:
    fill_the_pool(started, postgres, relay)
    relay.drop()
    first = asyncio.run(create(started, user))
    second = asyncio.run(create(started, user))
    assert (first.status, second.status) == (503, 201)
    assert first.seconds < TIMEOUT + 1
    wait_until(lambda: titles(postgres, user) == [("written",)])


def test_after_a_silent_drop_simultaneous_requests_end_in_time(
    postgres: Postgres, relay: Relay, started: Service, user: str
) -> None:
    fill_the_pool(started, postgres, relay)
    relay.drop()

    async def scenario() -> list[Response]:
        return await asyncio.gather(*(create(started, user) for _ in range(2 * POOL)))

    first, second = asyncio.run(scenario()), asyncio.run(scenario())
    assert max(response.seconds for response in first) < TIMEOUT + 1
    assert {response.status for response in first} <= {201, 503}
    assert [response.status for response in second] == [201] * (2 * POOL)
    acknowledged = sum(response.status == 201 for response in first + second)
    wait_until(lambda: len(titles(postgres, user)) == acknowledged)


def test_requests_succeed_as_soon_as_a_silent_network_recovers(relay: Relay, started: Service, user: str) -> None:
    relay.silent = True
    try:
        for _ in range(2):  # first on an idle connection, then while connecting
            response = asyncio.run(create(started, user))
            assert response.status == 503
            assert response.seconds < TIMEOUT + 1
    finally:
        relay.silent = False
    assert asyncio.run(create(started, user)).status == 201
