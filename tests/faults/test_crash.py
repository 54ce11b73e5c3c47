"""The database dies under load, again and again: no write is lost, and none is made twice."""

import asyncio
import time
from collections import Counter
from dataclasses import dataclass, field
from itertools import count
from uuid import uuid4

from tests.faults.conftest import hold_log
from tests.faults.postgres import Postgres
from tests.faults.wire import Answer, Client
from tests.servers import relaying, service

CLIENTS = 200
CRASHES = 3
TIMEOUT = 5  # seconds, DATABASE_TIMEOUT
MARK = "a task of the crash test"  # in every task, and never in the log


@dataclass
class Known:
    """What a client knows of one task of its own, which nobody else writes to.

    After an answer 503 a write may have been carried out or not: both are possible then.
    """

    there: set[bool] = field(default_factory=lambda: {False})
    titles: set[str] = field(default_factory=set)
    versions: set[int] = field(default_factory=set)


class Writer:
    """A client that creates, changes and deletes tasks of its own user, and keeps book of them."""

    def __init__(self, url: str, answers: list[Answer]) -> None:
        self.client = Client(url)
        self.path = f"/api/user-{uuid4()}/tasks"
        self.book: dict[str, Known] = {}
        self.answers = answers  # of all clients

    async def run(self, end: asyncio.Event) -> None:
        try:
            for number in count():
                if end.is_set():
                    return
                await self._life(str(number), keyed=number % 2 == 0, guarded=number % 4 < 2, delete=number % 3 == 0)
        finally:
            self.client.close()

    async def _ask(self, method: str, path: str, body: object = None, **headers: str) -> Answer:
        answer = await self.client.ask(method, path, body, **headers)
        assert answer.status in (200, 201, 404, 412, 503), answer
        self.answers.append(answer)
        await asyncio.sleep(0.4)
        return answer

    async def _ask_until_known(self, method: str, path: str, body: object = None, **headers: str) -> Answer:
        for _ in range(200):
            answer = await self._ask(method, path, body, **headers)
            if answer.status != 503:
                return answer
        raise AssertionError("the database never came back")

    async def _life(self, number: str, *, keyed: bool, guarded: bool, delete: bool) -> None:
        """One task from its creation, until its end or until an answer leaves open what it is now."""
        task = self.book[number] = Known()
        body = {"title": "new", "description": f"{MARK} {number}"}
        if keyed:
            answer = await self._ask_until_known("POST", self.path, body, idempotency_key=number)
        else:
            answer = await self._ask("POST", self.path, body)
        if answer.status == 503:
            task.there, task.titles = {True, False}, {"new"}
            return
        assert answer.status == 201
        task.there, task.titles, task.versions = {True}, {"new"}, {answer.version}
        path = f"{self.path}/{answer.json()['id']}"

        for title in ("once", "twice"):
            if not await self._change(task, path, title, guarded=guarded):
                return
        if delete:
            answer = await self._ask_until_known("DELETE", path)
            assert answer.status in (200, 404)  # 404: an earlier one, answered with 503, was carried out
            task.there = {False}

    async def _change(self, task: Known, path: str, title: str, *, guarded: bool) -> bool:
        """Change the task, and say whether it is known what became of it."""
        (version,) = task.versions
        if guarded:  # 412: an earlier one, answered with 503, was carried out
            answer = await self._ask_until_known("PATCH", path, {"title": title}, if_match=f'"{version}"')
            assert answer.status in (200, 412)
            assert answer.status == 412 or answer.version == version + 1
        else:
            answer = await self._ask("PATCH", path, {"title": title})
            if answer.status == 503:
                task.titles.add(title)
                task.versions.add(version + 1)
                return False
            assert (answer.status, answer.version) == (200, version + 1)
        task.titles, task.versions = {title}, {version + 1}
        return True

    def hold(self, rows: dict[str, list[tuple[str, int]]]) -> None:
        """The tasks that are there now, title and version by number, are those of the book."""
        assert rows.keys() <= self.book.keys()
        for number, task in self.book.items():
            found = rows.get(number, [])
            assert len(found) < 2, "written twice"
            assert bool(found) in task.there, f"acknowledged, and lost: {number} {task}"
            for title, version in found:
                assert title in task.titles
                assert not task.versions or version in task.versions


def test_no_acknowledged_write_is_lost_and_none_made_twice_when_the_database_dies(postgres: Postgres) -> None:
    # Each answer takes its time to arrive, so that some are lost whose write was carried out.
    with (
        relaying(postgres.dsn(), delay=0.005) as relay,
        service(
            "--no-access-log", DATABASE_URL=postgres.dsn(port=relay.port), DATABASE_TIMEOUT=str(TIMEOUT)
        ) as started,
    ):
        answers: list[Answer] = []
        writers = [Writer(started.url, answers) for _ in range(CLIENTS)]
        times_up: list[tuple[float, float]] = []  # from when to when it took connections

        async def serve() -> None:
            """Let the service run until it has answered what was asked two seconds from now and later."""
            up = time.monotonic()
            for _ in range(200):
                await asyncio.sleep(0.05)
                if len(answers) > 50 and all(answer.asked > up + 2 for answer in answers[-50:]):
                    break
            times_up.append((up, time.monotonic()))

        async def scenario() -> None:
            end = asyncio.Event()
            async with asyncio.TaskGroup() as load:
                for writer in writers:
                    load.create_task(writer.run(end))
                for _ in range(CRASHES):
                    await serve()
                    relay.cut()
                    await asyncio.to_thread(postgres.kill)
                    await asyncio.sleep(0.3)
                    await asyncio.to_thread(postgres.start)
                await serve()
                end.set()

        asyncio.run(asyncio.wait_for(scenario(), 90))
        assert started.process.poll() is None
        hold_log(started.log, MARK)
        assert sum("Started server process" in line for line in started.log) == 1

    statuses = Counter(answer.status for answer in answers)
    assert statuses[503] > CRASHES, "nobody noticed that it died"
    assert statuses[201] > CLIENTS
    assert max(answer.seconds for answer in answers) < TIMEOUT + 1

    # Two seconds after it takes connections again, and until it dies the next time, all is well.
    for begin, end in times_up:
        then = [answer for answer in answers if begin + 2 < answer.asked and answer.asked + answer.seconds < end]
        assert then
        assert not [answer for answer in then if answer.status == 503]

    found: dict[str, dict[str, list[tuple[str, int]]]] = {}
    for user, number, title, version in postgres.administer(
        "SELECT user_id, split_part(description, %s, 2), title, version FROM tasks", f"{MARK} ", database="tasks"
    ):
        found.setdefault(f"/api/{user}/tasks", {}).setdefault(number, []).append((title, version))
    for writer in writers:
        writer.hold(found.get(writer.path, {}))
