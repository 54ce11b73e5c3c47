"""PostgreSQL crashes repeatedly under load: no acknowledged write is lost, and none is executed twice."""

import asyncio
import time
from collections import Counter
from dataclasses import dataclass, field
from itertools import count
from uuid import uuid4

from tests.faults.helpers import check_log
from tests.faults.postgres import Postgres
from tests.faults.wire import Client, Response
from tests.servers import relaying, service

CLIENTS = 200
CRASHES = 3
TIMEOUT = 5  # seconds, DATABASE_TIMEOUT
MARK = "a task of the crash test"  # in every description, which must never be logged


@dataclass
class Expected:
    """The possible states of one task, as far as its only writer knows.

    After a 503 a write may have been executed or not, so that both states are possible.
    """

    exists: set[bool] = field(default_factory=lambda: {False})
    titles: set[str] = field(default_factory=set)
    versions: set[int] = field(default_factory=set)


class Writer:
    """A client that creates, changes and deletes tasks of its own user, and records what it expects of each."""

    def __init__(self, url: str, responses: list[Response]) -> None:
        self.client = Client(url)
        self.path = f"/api/user-{uuid4()}/tasks"
        self.expected: dict[str, Expected] = {}
        self.responses = responses  # shared by all clients

    async def run(self, end: asyncio.Event) -> None:
        try:
            for number in count():
                if end.is_set():
                    return
                await self._write_task(
                    str(number), keyed=number % 2 == 0, guarded=number % 4 < 2, delete=number % 3 == 0
                )
        finally:
            self.client.close()

    async def _send(self, method: str, path: str, body: object = None, **headers: str) -> Response:
        response = await self.client.send(method, path, body, **headers)
        assert response.status in (200, 201, 404, 412, 503), response
        self.responses.append(response)
        await asyncio.sleep(0.4)
        return response

    async def _send_until_known(self, method: str, path: str, body: object = None, **headers: str) -> Response:
        for _ in range(200):
            response = await self._send(method, path, body, **headers)
            if response.status != 503:
                return response
        raise AssertionError("the service still responded with 503")

    async def _write_task(self, number: str, *, keyed: bool, guarded: bool, delete: bool) -> None:
        """Create, change and perhaps delete a task; stop early when its state is unknown."""
        task = self.expected[number] = Expected()
        body = {"title": "new", "description": f"{MARK} {number}"}
        if keyed:
            response = await self._send_until_known("POST", self.path, body, idempotency_key=number)
        else:
            response = await self._send("POST", self.path, body)
        if response.status == 503:
            task.exists, task.titles = {True, False}, {"new"}
            return
        assert response.status == 201
        task.exists, task.titles, task.versions = {True}, {"new"}, {response.version}
        path = f"{self.path}/{response.json()['id']}"

        for title in ("once", "twice"):
            if not await self._change(task, path, title, guarded=guarded):
                return
        if delete:
            response = await self._send_until_known("DELETE", path)
            assert response.status in (200, 404)  # 404: an attempt with a 503 was executed
            task.exists = {False}

    async def _change(self, task: Expected, path: str, title: str, *, guarded: bool) -> bool:
        """Change the title, and return whether the new state is known."""
        (version,) = task.versions
        if guarded:
            response = await self._send_until_known("PATCH", path, {"title": title}, if_match=f'"{version}"')
            if response.status == 412:  # an attempt with a 503 was executed
                response = await self._send_until_known("GET", path)
                assert response.json()["title"] == title
        else:
            response = await self._send("PATCH", path, {"title": title})
            if response.status == 503:
                task.titles.add(title)
                task.versions = set()  # unknown
                return False
        assert response.status == 200
        assert response.version > version
        task.titles, task.versions = {title}, {response.version}
        return True

    def check(self, rows: dict[str, list[tuple[str, int]]]) -> None:
        """Assert that the rows (title and version by number) are as expected."""
        assert rows.keys() <= self.expected.keys()
        for number, task in self.expected.items():
            found = rows.get(number, [])
            assert len(found) < 2, "created twice"
            assert bool(found) in task.exists, f"an acknowledged write is lost: {number} {task}"
            for title, version in found:
                assert title in task.titles
                assert not task.versions or version in task.versions


def test_a_crash_loses_and_repeats_no_acknowledged_write(postgres: Postgres) -> None:
    # The delay makes it likely that a crash loses the result of an executed write.
    with (
        relaying(postgres.dsn(), delay=0.005) as relay,
        service(
            "--no-access-log", DATABASE_URL=postgres.dsn(port=relay.port), DATABASE_TIMEOUT=str(TIMEOUT)
        ) as started,
    ):
        responses: list[Response] = []
        writers = [Writer(started.url, responses) for _ in range(CLIENTS)]
        up_times: list[tuple[float, float]] = []  # when the database came up, and when it crashed

        async def wait_for_load() -> None:
            """Wait for 50 responses to requests that were sent two seconds from now or later."""
            up = time.monotonic()
            for _ in range(200):
                await asyncio.sleep(0.05)
                if len(responses) > 50 and all(response.sent_at > up + 2 for response in responses[-50:]):
                    break
            up_times.append((up, time.monotonic()))

        async def scenario() -> None:
            end = asyncio.Event()
            async with asyncio.TaskGroup() as load:
                for writer in writers:
                    load.create_task(writer.run(end))
                for _ in range(CRASHES):
                    await wait_for_load()
                    relay.cut()
                    await asyncio.to_thread(postgres.kill)
                    await asyncio.sleep(0.3)
                    await asyncio.to_thread(postgres.start)
                await wait_for_load()
                end.set()

        asyncio.run(asyncio.wait_for(scenario(), 90))
        assert started.process.poll() is None
        check_log(started.log, MARK)
        assert sum("Started server process" in line for line in started.log) == 1

    statuses = Counter(response.status for response in responses)
    assert statuses[503] > CRASHES, "no request met the crash"
    assert statuses[201] > CLIENTS
    assert max(response.seconds for response in responses) < TIMEOUT + 1

    # Two seconds after the database is up, and until its next crash, no request fails.
    for begin, end in up_times:
        between = [
            response
            for response in responses
            if begin + 2 < response.sent_at and response.sent_at + response.seconds < end
        ]
        assert between
        assert 503 not in {response.status for response in between}

    found: dict[str, dict[str, list[tuple[str, int]]]] = {}
    for user, number, title, version in postgres.run_as_admin(
        "SELECT user_id, split_part(description, %s, 2), title, version FROM tasks WHERE deleted_at IS NULL",
        f"{MARK} ",
        database="tasks",
    ):
        found.setdefault(f"/api/{user}/tasks", {}).setdefault(number, []).append((title, version))
    for writer in writers:
        writer.check(found.get(writer.path, {}))
