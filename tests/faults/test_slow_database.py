"""A database that is far away, and one that hangs."""

import asyncio
import statistics
import time
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import pytest
from psycopg2.extensions import connection

from main import app
from tests.faults.conftest import hold_log, locked, wait_until
from tests.faults.postgres import Postgres
from tests.faults.wire import Answer, Client, once
from tests.servers import Service, relaying, service

ONE_WAY = 0.02  # seconds
TIMES = 11
POOL = 5
TIMEOUT = 2  # seconds, DATABASE_TIMEOUT

# What each endpoint is sent. `/health` asks no database.
BODIES: dict[str, object] = {
    "POST /api/{user_id}/tasks": {"title": "t", "tags": ["a"]},
    "PATCH /api/{user_id}/tasks": {"priority": "high"},
    "PUT /api/{user_id}/tasks/{task_id}": {"title": "another"},
    "PATCH /api/{user_id}/tasks/{task_id}": {"title": "a third"},
}
ENDPOINTS = sorted(
    f"{method.upper()} {path}"
    for path, operations in app.openapi()["paths"].items()
    for method in operations
    if path not in ("/", "/health")
)


def test_the_median_of_every_endpoint_stays_under_1_3_round_trips(postgres: Postgres, user: str) -> None:
    took: dict[str, list[float]] = {}

    async def scenario(url: str) -> None:
        client = Client(url)
        await client.ask("GET", f"/api/{user}")  # opens the connection to the database
        for endpoint in ENDPOINTS:
            for _ in range(TIMES):
                task_id = ""
                if "{task_id}" in endpoint:
                    task_id = (await client.ask("POST", f"/api/{user}/tasks", {"title": "t"})).json()["id"]
                method, path = endpoint.format(user_id=user, task_id=task_id).split()
                answer = await client.ask(method, path, BODIES.get(endpoint))
                assert answer.status in (200, 201), (endpoint, answer)
                took.setdefault(endpoint, []).append(answer.seconds)
        client.close()

    with (
        relaying(postgres.dsn(), delay=ONE_WAY) as relay,
        service("--no-access-log", DATABASE_URL=postgres.dsn(port=relay.port)) as started,
    ):
        asyncio.run(asyncio.wait_for(scenario(started.url), 60))
    medians = {endpoint: statistics.median(times) / (2 * ONE_WAY) for endpoint, times in took.items()}
    assert min(medians.values()) > 1, "the relay was not on the way"
    assert max(medians.values()) < 1.3, medians


@pytest.fixture(scope="module")
def started(postgres: Postgres) -> Iterator[Service]:
    url = postgres.dsn(application_name="hanging")
    with service(DATABASE_URL=url, DATABASE_POOL_SIZE=str(POOL), DATABASE_TIMEOUT=str(TIMEOUT)) as started:
        yield started
        hold_log(started.log)


def active(postgres: Postgres) -> int:
    """How many statements of the service are being carried out."""
    [(number,)] = postgres.administer(
        "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'hanging' AND state <> 'idle'"
    )
    return int(number)


async def create(started: Service, user: str) -> dict[str, Any]:
    task: dict[str, Any] = (await once(started.url, "POST", f"/api/{user}/tasks", {"title": "t"})).json()
    return task


def hold_in_time(answers: list[Answer]) -> None:
    assert {answer.status for answer in answers} == {503}
    assert max(answer.seconds for answer in answers) < TIMEOUT + 1


def test_a_query_that_hangs_is_503_in_time_and_gone_on_the_server_while_others_keep_their_speed(
    postgres: Postgres, started: Service, user: str
) -> None:
    hung = [asyncio.run(create(started, f"{user}-{number}")) for number in range(POOL - 2)]
    others = f"/api/user-{uuid4()}/tasks"

    async def speed() -> float:
        """The median of what somebody else's requests take."""
        client = Client(started.url)
        answers = [await client.ask("POST", others, {"title": "t"}) for _ in range(50)]
        client.close()
        assert {answer.status for answer in answers} == {201}
        assert max(answer.seconds for answer in answers) < TIMEOUT / 2
        return statistics.median(answer.seconds for answer in answers)

    async def scenario() -> None:
        before = await speed()
        waiting = [
            asyncio.ensure_future(
                once(started.url, "PATCH", f"/api/{task['user_id']}/tasks/{task['id']}", {"title": "lost"})
            )
            for task in hung
        ]
        await asyncio.to_thread(wait_until, lambda: active(postgres) == len(hung))
        during = await speed()
        assert not any(one.done() for one in waiting), "they did not hang long enough to tell"
        assert during < 2 * before + 0.02
        hold_in_time(await asyncio.gather(*waiting))

    with locked(postgres, "SELECT 1 FROM tasks WHERE user_id LIKE %s FOR UPDATE", f"{user}-%"):
        asyncio.run(asyncio.wait_for(scenario(), 30))
        wait_until(lambda: active(postgres) == 0, 2)  # while the lock is still held
    [(titles,)] = postgres.administer(
        "SELECT array_agg(DISTINCT title) FROM tasks WHERE user_id LIKE %s", f"{user}-%", database="tasks"
    )
    assert titles == ["t"], "a write that was cancelled was carried out afterwards"


def test_a_table_that_is_locked_stops_nothing_for_longer_than_it_is(
    postgres: Postgres, started: Service, user: str
) -> None:
    with locked(postgres, "LOCK TABLE tasks IN ACCESS EXCLUSIVE MODE"):

        async def scenario() -> None:
            paths = [f"/api/{user}-{number}/tasks" for number in range(4 * POOL)]
            waiting = [asyncio.ensure_future(once(started.url, "GET", path)) for path in paths]
            await asyncio.to_thread(wait_until, lambda: active(postgres) == POOL)
            assert (await once(started.url, "GET", "/health")).seconds < TIMEOUT / 2
            assert not any(one.done() for one in waiting)
            hold_in_time(await asyncio.gather(*waiting))

        asyncio.run(asyncio.wait_for(scenario(), 30))
        wait_until(lambda: active(postgres) == 0, 2)
    begin = time.monotonic()
    assert asyncio.run(create(started, user))["title"] == "t"
    assert time.monotonic() - begin < TIMEOUT / 2
    assert len(asyncio.run(once(started.url, "GET", f"/api/{user}/tasks")).json()) == 1


def test_a_request_that_comes_when_the_lock_goes_is_answered(postgres: Postgres, started: Service, user: str) -> None:
    task = asyncio.run(create(started, user))

    async def scenario(other: connection) -> None:
        path = f"/api/{user}/tasks/{task['id']}"
        waiting = asyncio.ensure_future(once(started.url, "PATCH", path, {"title": "new"}))
        await asyncio.to_thread(wait_until, lambda: active(postgres) == 1)
        other.rollback()
        answer = await waiting
        assert (answer.status, answer.json()["title"]) == (200, "new")

    with locked(postgres, "SELECT 1 FROM tasks WHERE user_id = %s FOR UPDATE", user) as other:
        asyncio.run(asyncio.wait_for(scenario(other), 30))
