"""Shutdown of a busy service that was started with the production command of the README."""

import asyncio
import json
import re
import shlex
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from uuid import uuid4

import pytest

from tests.faults.helpers import check_log, locked, wait_until
from tests.faults.postgres import Postgres
from tests.faults.wire import Client, Response, address, request, send_once
from tests.raw import connect, read_to_end, statuses
from tests.servers import HERE, Service, service

POOL = 8  # of each worker
GRACE = 4  # seconds, --timeout-graceful-shutdown

workers_1_and_2 = pytest.mark.parametrize("workers", [1, 2])


def production_options(workers: int) -> list[str]:
    """Return the options of the README's production command, with the numbers of this test, on 127.0.0.1."""
    found = re.search(r"uvicorn main:app (.*--timeout-graceful-shutdown.*)", (HERE / "README.md").read_text())
    assert found, "README names no production command with --timeout-graceful-shutdown"
    options = shlex.split(found[1], comments=True)
    for name, value in (("--timeout-graceful-shutdown", GRACE), ("--host", "127.0.0.1")):
        options[options.index(name) + 1] = str(value)
    options += ["--workers", str(workers)] if workers > 1 else []
    if "--port" in options:
        del options[options.index("--port") : options.index("--port") + 2]
    return options


@contextmanager
def started(postgres: Postgres, workers: int, timeout: int = 20) -> Iterator[Service]:
    url = postgres.dsn(application_name="ending")
    settings = {"DATABASE_URL": url, "DATABASE_POOL_SIZE": str(POOL), "DATABASE_TIMEOUT": str(timeout)}
    with service(*production_options(workers), **settings) as started:
        wait_until(lambda: sum("startup complete" in line for line in started.log) == workers, 30)
        yield started


def sessions(postgres: Postgres, state: str = "%") -> int:
    [(number,)] = postgres.run_as_admin(
        "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'ending' AND state LIKE %s", state
    )
    return int(number)


def check_exit(started: Service, postgres: Postgres, seconds: float) -> None:
    """Assert that the service exits within so many seconds and leaves no database session."""
    begin = time.monotonic()
    assert started.process.wait(60) in (0, -signal.SIGTERM)
    assert time.monotonic() - begin < seconds
    wait_until(lambda: sessions(postgres) == 0)


async def until_refused(url: str) -> None:
    """Wait until the operating system refuses new connections.

    This works with one worker only. With several, uvicorn's parent process keeps the listening
    socket open until all workers have exited, so that the kernel still accepts connections.
    """
    for _ in range(100):
        try:
            _, writer = await asyncio.open_connection(*address(url))
        except ConnectionRefusedError:
            return
        writer.close()
        await asyncio.sleep(0.02)
    raise AssertionError("new connections are still accepted")


class Load:
    """A client that creates tasks until its connection is closed."""

    def __init__(self, url: str) -> None:
        self.client = Client(url)
        self.path = f"/api/user-{uuid4()}/tasks"
        self.acknowledged: list[str] = []
        self.last_sent_at = 0.0

    async def run(self) -> None:
        for number in range(10_000):
            self.last_sent_at = time.monotonic()
            try:
                response = await self.client.send("POST", self.path, {"title": str(number)})
            except (OSError, EOFError):  # closed between two requests
                return
            assert (response.status, response.json()["title"]) == (201, str(number))
            self.acknowledged.append(response.json()["id"])
            if response.headers.get("connection") == "close":
                return
            await asyncio.sleep(0.02)


def test_a_request_on_a_new_connection_gets_its_response(postgres: Postgres) -> None:
    with started(postgres, 1) as running:
        with connect(running) as connection, connect(running) as idle:
            running.process.terminate()
            wait_until(lambda: any("Shutting down" in line for line in running.log))
            connection.sendall(b"GET /health/ready HTTP/1.1\r\nHost: x\r\n\r\n")
            assert statuses(read_to_end(connection)) == [b"200"]
            assert read_to_end(idle) == b""
        check_exit(running, postgres, GRACE)


@workers_1_and_2
def test_requests_in_flight_complete_and_new_connections_are_refused(
    postgres: Postgres, user: str, workers: int
) -> None:
    with started(postgres, workers) as running:
        loads = [Load(running.url) for _ in range(20)]
        in_flight = POOL - 2

        async def scenario() -> list[Response]:
            load_tasks = [asyncio.ensure_future(load.run()) for load in loads]
            waiting = [
                asyncio.ensure_future(send_once(running.url, "PATCH", path, {"title": f"new {number}"}))
                for number, path in enumerate(paths)
            ]
            try:
                await asyncio.to_thread(wait_until, lambda: lock_waits(postgres) == in_flight)
                await asyncio.to_thread(wait_until, lambda: all(len(load.acknowledged) > 1 for load in loads))
                running.process.terminate()
                terminated_at = time.monotonic()
                await asyncio.gather(*load_tasks)
                assert max(load.last_sent_at for load in loads) > terminated_at - 1, "there was no load"
                if workers == 1:
                    await until_refused(running.url)
                assert not any(task.done() for task in waiting)
            finally:
                other.rollback()
            return await asyncio.gather(*waiting)

        paths = []
        for number in range(in_flight):  # one per user, because no user may use the whole pool
            tasks = f"/api/{user}-{number}/tasks"
            paths.append(f"{tasks}/{asyncio.run(send_once(running.url, 'POST', tasks, {'title': 'old'})).json()['id']}")
        with locked(postgres, "SELECT 1 FROM tasks WHERE user_id LIKE %s FOR UPDATE", f"{user}-%") as other:
            responses = asyncio.run(asyncio.wait_for(scenario(), 30))
        assert [(response.status, response.json()["title"]) for response in responses] == [
            (200, f"new {number}") for number in range(in_flight)
        ]
        check_exit(running, postgres, GRACE)
        check_log(running.log)
    stored = {str(task_id) for (task_id,) in postgres.run_as_admin("SELECT id FROM tasks", database="tasks")}
    assert sum(len(load.acknowledged) for load in loads) > len(loads)
    assert stored >= {task_id for load in loads for task_id in load.acknowledged}


def lock_waits(postgres: Postgres) -> int:
    [(number,)] = postgres.run_as_admin(
        "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'ending' AND wait_event_type = 'Lock'"
    )
    return int(number)


@workers_1_and_2
def test_hanging_clients_do_not_delay_the_shutdown(postgres: Postgres, user: str, workers: int) -> None:
    create = request("POST", f"/api/{user}/tasks", {"title": "t"})
    list_all = request("GET", f"/api/{user}/tasks")
    with started(postgres, workers) as running:
        postgres.run_as_admin(
            "INSERT INTO tasks (user_id, id, title, description, completed, priority, tags, version,"
            " created_at, updated_at) SELECT %s, gen_random_uuid(), 'large', repeat('x', 2000), false, 'low',"
            " '{}', 1, now(), now() FROM generate_series(1, 1000)",
            user,
            database="tasks",
        )

        async def scenario() -> list[bytes]:
            opened = []
            for sent in (b"", b"POST /api", list_all * 10, create[:-5]):  # the third reads no response
                for _ in range(3):
                    opened.append(await asyncio.open_connection(*address(running.url), limit=1024))
                    opened[-1][1].write(sent)
            assert (await send_once(running.url, "GET", "/health/ready")).status == 200
            await asyncio.sleep(1)
            running.process.terminate()
            await asyncio.to_thread(check_exit, running, postgres, GRACE + 3)
            responses = [await reader.read() for reader, _ in opened[-3:]]
            for _, writer in opened:
                writer.close()
            return responses

        for response in asyncio.run(asyncio.wait_for(scenario(), 60)):
            head, _, body = response.partition(b"\r\n\r\n")
            assert head.split()[1] == b"503"
            assert b"application/problem+json" in head
            assert b"retry-after: 1" in head.lower()
            logged = f"[POST /api/{{user_id}}/tasks {json.loads(body)['request_id']}] Not finished before"
            assert [line for line in running.log if logged in line]
        assert not [line for line in running.log if "Traceback" in line], "\n".join(running.log)


def test_a_hanging_database_does_not_delay_the_shutdown(postgres: Postgres, user: str) -> None:
    with started(postgres, 1, timeout=2) as running:

        async def scenario() -> Response:
            request_task = asyncio.ensure_future(send_once(running.url, "GET", f"/api/{user}/tasks"))
            await asyncio.to_thread(wait_until, lambda: lock_waits(postgres) == 1)
            running.process.terminate()
            return await request_task

        with locked(postgres, "LOCK TABLE tasks IN ACCESS EXCLUSIVE MODE"):
            assert asyncio.run(asyncio.wait_for(scenario(), 30)).status == 503
            check_exit(running, postgres, GRACE)
        check_log(running.log)
