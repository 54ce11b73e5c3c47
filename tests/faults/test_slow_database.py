"""A database with a high latency, and one that hangs."""

import asyncio
import statistics
import time
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import pytest
from psycopg2.extensions import connection

from main import app
from tests.faults.helpers import check_log, locked, wait_until
from tests.faults.postgres import Postgres
from tests.faults.wire import Client, Response, send_once
from tests.servers import Service, relaying, service

ONE_WAY = 0.02  # seconds, the latency in each direction
REPEATS = 11
POOL = 5
TIMEOUT = 2  # seconds, DATABASE_TIMEOUT

# The bodies of the endpoints that need one. `/` and `/health` do not use the database.
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


def test_every_endpoint_takes_less_than_1_3_round_trips(postgres: Postgres, user: str) -> None:
    seconds: dict[str, list[float]] = {}

    async def scenario(url: str) -> None:
        client = Client(url)
        await client.send("GET", f"/api/{user}")  # opens the connection to the database
        for endpoint in ENDPOINTS:
            for _ in range(REPEATS):
                task_id = ""
                if "{task_id}" in endpoint:
                    task_id = (await client.send("POST", f"/api/{user}/tasks", {"title": "t"})).json()["id"]
                method, path = endpoint.format(user_id=user, task_id=task_id).split()
                if endpoint == "DELETE /api/{user_id}":
                    path += f"?confirm={user}"
                response = await client.send(method, path, BODIES.get(endpoint))
                assert response.status in (200, 201), (endpoint, response)
                seconds.setdefault(endpoint, []).append(response.seconds)
        client.close()

    with (
        relaying(postgres.dsn(), delay=ONE_WAY) as relay,
        service("--no-access-log", DATABASE_URL=postgres.dsn(port=relay.port)) as started,
    ):
        asyncio.run(asyncio.wait_for(scenario(started.url), 60))
    medians = {endpoint: statistics.median(times) / (2 * ONE_WAY) for endpoint, times in seconds.items()}
    assert min(medians.values()) > 1, "the requests bypassed the relay"
    assert max(medians.values()) < 1.3, medians


@pytest.fixture(scope="module")
def started(postgres: Postgres) -> Iterator[Service]:
    url = postgres.dsn(application_name="hanging")
    with service(DATABASE_URL=url, DATABASE_POOL_SIZE=str(POOL), DATABASE_TIMEOUT=str(TIMEOUT)) as started:
        yield started
        check_log(started.log)


def active_statements(postgres: Postgres) -> int:
    """Return how many connections of the service are executing a statement or in a transaction."""
    [(number,)] = postgres.run_as_admin(
        "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'hanging' AND state <> 'idle'"
    )
    return int(number)


async def create(started: Service, user: str) -> dict[str, Any]:
    task: dict[str, Any] = (await send_once(started.url, "POST", f"/api/{user}/tasks", {"title": "t"})).json()
    return task


def check_timeouts(responses: list[Response]) -> None:
    """Assert that all responses are 503 and came soon after the timeout."""
    assert {response.status for response in responses} == {503}
    assert max(response.seconds for response in responses) < TIMEOUT + 1


def test_a_hanging_statement_times_out_without_slowing_other_users_down(
    postgres: Postgres, started: Service, user: str
) -> None:
    locked_tasks = [asyncio.run(create(started, f"{user}-{number}")) for number in range(POOL - 2)]
    other_path = f"/api/user-{uuid4()}/tasks"

    async def median_seconds() -> float:
        """Return the median response time of another user."""
        client = Client(started.url)
        responses = [await client.send("POST", other_path, {"title": "t"}) for _ in range(50)]
        client.close()
        assert {response.status for response in responses} == {201}
        assert max(response.seconds for response in responses) < TIMEOUT / 2
        return statistics.median(response.seconds for response in responses)

    async def scenario() -> None:
        before = await median_seconds()
        waiting = [
            asyncio.ensure_future(
                send_once(started.url, "PATCH", f"/api/{task['user_id']}/tasks/{task['id']}", {"title": "lost"})
            )
            for task in locked_tasks
        ]
        await asyncio.to_thread(wait_until, lambda: active_statements(postgres) == len(locked_tasks))
        during = await median_seconds()
        assert not any(task.done() for task in waiting), "the locked requests ended during the measurement"
        assert during < 2 * before + 0.02
        check_timeouts(await asyncio.gather(*waiting))

    with locked(postgres, "SELECT 1 FROM tasks WHERE user_id LIKE %s FOR UPDATE", f"{user}-%"):
        asyncio.run(asyncio.wait_for(scenario(), 30))
        wait_until(lambda: active_statements(postgres) == 0, 2)  # although the lock is still held
    [(titles,)] = postgres.run_as_admin(
        "SELECT array_agg(DISTINCT title) FROM tasks WHERE user_id LIKE %s", f"{user}-%", database="tasks"
    )
    assert titles == ["t"], "a cancelled write was executed later"


def test_requests_recover_as_soon_as_a_table_lock_is_released(postgres: Postgres, started: Service, user: str) -> None:
    with locked(postgres, "LOCK TABLE tasks IN ACCESS EXCLUSIVE MODE"):

        async def scenario() -> None:
            paths = [f"/api/{user}-{number}/tasks" for number in range(4 * POOL)]
            waiting = [asyncio.ensure_future(send_once(started.url, "GET", path)) for path in paths]
            await asyncio.to_thread(wait_until, lambda: active_statements(postgres) == POOL)
            assert (await send_once(started.url, "GET", "/health")).seconds < TIMEOUT / 2
            assert not any(task.done() for task in waiting)
            check_timeouts(await asyncio.gather(*waiting))

        asyncio.run(asyncio.wait_for(scenario(), 30))
        wait_until(lambda: active_statements(postgres) == 0, 2)
    begin = time.monotonic()
    assert asyncio.run(create(started, user))["title"] == "t"
    assert time.monotonic() - begin < TIMEOUT / 2
    assert len(asyncio.run(send_once(started.url, "GET", f"/api/{user}/tasks")).json()) == 1


def test_a_waiting_request_succeeds_when_the_lock_is_released(postgres: Postgres, started: Service, user: str) -> None:
    task = asyncio.run(create(started, user))

    async def scenario(other: connection) -> None:
        path = f"/api/{user}/tasks/{task['id']}"
        waiting = asyncio.ensure_future(send_once(started.url, "PATCH", path, {"title": "new"}))
        await asyncio.to_thread(wait_until, lambda: active_statements(postgres) == 1)
        other.rollback()
        response = await waiting
        assert (response.status, response.json()["title"]) == (200, "new")

    with locked(postgres, "SELECT 1 FROM tasks WHERE user_id = %s FOR UPDATE", user) as other:
        asyncio.run(asyncio.wait_for(scenario(other), 30))
