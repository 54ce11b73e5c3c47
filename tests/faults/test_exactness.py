"""Clients that keep a copy hold exactly the server's tasks, whatever was written, killed or held back meanwhile."""
# ruff: noqa: S311  # the random numbers protect nothing

import asyncio
import os
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID, uuid4

import psycopg2
import pytest

import queries
from database import create_tables
from schemas import TaskInput
from tests.faults.helpers import locked, wait_until
from tests.faults.pgbouncer import PgBouncer
from tests.faults.postgres import Postgres
from tests.faults.wire import Client, Response
from tests.helpers import until
from tests.servers import Service, service

RUNS = int(os.environ.get("EXACTNESS_RUNS", "1"))
WRITERS = 4  # of each user
SECONDS_BETWEEN = 1.5  # between the faults
TIMEOUT = 3  # seconds, DATABASE_TIMEOUT
MAX_HOLD = 0.15  # seconds for which a commit is held back

Task = dict[str, Any]


@pytest.fixture(scope="module")
def postgres() -> Iterator[Postgres]:
    """A PostgreSQL that looks for deadlocks soon."""
    with Postgres(deadlock_timeout="20ms") as server:
        yield server


class Cluster:
    """Two processes of the service on one database, which a test may kill."""

    def __init__(self, **environment: str) -> None:
        self._environment = environment
        self._stacks = [ExitStack(), ExitStack()]
        self.processes: list[Service] = [self._start(stack) for stack in self._stacks]

    def _start(self, stack: ExitStack) -> Service:
        return stack.enter_context(service("--no-access-log", **self._environment))  # type: ignore[arg-type]

    def restart(self, number: int) -> None:
        """Kill one process and start it again, on another port."""
        self.processes[number].process.kill()
        self._stacks[number].close()
        self.processes[number] = self._start(self._stacks[number])

    def close(self) -> None:
        for stack in self._stacks:
            stack.close()


@contextmanager
def cluster(**environment: str) -> Iterator[Cluster]:
    """Start two processes of the service, and stop them afterwards."""
    started = Cluster(**environment)
    try:
        yield started
    finally:
        started.close()


class Connection:
    """A client of either process, which changes over when a process does not respond."""

    def __init__(self, services: Cluster) -> None:
        self._services = services
        self._client: Client | None = None

    async def send(self, method: str, path: str, body: object = None, **headers: str) -> Response | None:
        """Send a request. Return None when it is unknown whether it was executed: after a 503 or a lost connection."""
        if self._client is None or random.random() < 0.1:
            self.close()
            self._client = Client(random.choice(self._services.processes).url)
        try:
            async with asyncio.timeout(2 * TIMEOUT):
                response = await self._client.send(method, path, body, **headers)
        except (OSError, EOFError):  # TimeoutError is an OSError
            self.close()
            await asyncio.sleep(0.02)
            return None
        if response.status == 503:
            await asyncio.sleep(0.02)
            return None
        return response

    async def send_until_known(self, method: str, path: str, body: object = None, **headers: str) -> Response:
        """Send a request that is safe to repeat until there is a response."""
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            if response := await self.send(method, path, body, **headers):
                return response
        raise AssertionError("the service did not respond")

    def close(self) -> None:
        if self._client:
            self._client.close()
            self._client = None


class Follower:
    """A client that keeps a copy of a user's tasks."""

    def __init__(self, connection: Connection, user: str) -> None:
        self._connection = connection
        self._path = f"/api/{user}/changes"
        self._cursor = ""
        self.tasks: dict[str, Task] = {}

    async def catch_up(self) -> None:
        """Take over all changes since the last time."""
        more = True
        while more:
            limit = random.choice((1, 3, 10, 100, 1000))
            since = f"&since={self._cursor}" if self._cursor else ""
            response = await self._connection.send_until_known("GET", f"{self._path}?limit={limit}{since}")
            if response.status == 410:
                self.tasks, self._cursor = {}, ""
                continue
            assert response.status == 200, response
            page = response.json()
            for change in page["changes"]:
                if change.pop("deleted_at") is None:
                    self.tasks[change["id"]] = change
                else:
                    self.tasks.pop(change["id"], None)
            self._cursor, more = page["cursor"], page["more"]

    async def follow(self, end: asyncio.Event) -> None:
        """Ask for changes all the time."""
        while not end.is_set():
            await self.catch_up()
            await asyncio.sleep(0.01)


async def list_all(connection: Connection, user: str) -> dict[str, Task]:
    """Return all tasks of the user, by id."""
    path, tasks = f"/api/{user}/tasks", dict[str, Task]()
    while path:
        response = await connection.send_until_known("GET", path)
        tasks |= {task["id"]: task for task in response.json()}
        link = response.headers.get("link", "")
        path = link.partition(">")[0].removeprefix("<http://tasks")
    return tasks


# What a writer knows of one of its tasks: the values of its fields, or None when it has deleted the task.
FIELDS = ("title", "description", "completed", "priority", "tags", "due_date", "order", "extra")


@dataclass
class Writer:
    """A client that writes to tasks of its own, and to tasks that all writers of the user share.

    When it does not learn whether a write was executed, it leaves the tasks in question alone, because the
    write may still be executed later.
    """

    connection: Connection
    user: str
    number: int
    counts: Counter[str]  # of the acknowledged writes, shared by all writers
    known: dict[str, Task | None] = field(default_factory=dict)
    versions: dict[str, tuple[int, Task, bool]] = field(default_factory=dict)
    living: list[str] = field(default_factory=list)
    deleted: list[str] = field(default_factory=list)
    generation: int = 0

    def __post_init__(self) -> None:
        self.path = f"/api/{self.user}/tasks"

    async def write(self, end: asyncio.Event) -> None:
        """Write until `end` is set."""
        kinds: list[Callable[[], Awaitable[None]]] = [
            *(self.create, self.create_with_key, self.create_with_id, self.update, self.update, self.replace),
            *(self.toggle, self.toggle, self.delete, self.restore, self.update_many, self.delete_many),
            *(self.write_shared, self.write_shared, self.write_shared),
        ]
        while not end.is_set():
            await random.choice(kinds)()

    def body(self) -> Task:
        return {
            "title": f"task {uuid4()}",
            "tags": [self.tag],
            "priority": random.choice(("low", "high")),
            "extra": {"writer": self.number},
        }

    @property
    def tag(self) -> str:
        return f"writer {self.number}, generation {self.generation}"

    def acknowledge(self, kind: str, response: Response, *, is_deleted: bool = False) -> Task:
        """Record the newest version of a task that the service has acknowledged."""
        self.counts[kind] += 1
        task: Task = response.json()
        if task["version"] >= self.versions.get(task["id"], (0,))[0]:
            self.versions[task["id"]] = task["version"], task, is_deleted
        return task

    def learn(self, task: Task) -> None:
        self.known[task["id"]] = {name: task[name] for name in FIELDS}

    def begin_generation(self) -> None:
        """Leave the living tasks alone from now on. Those whose state is known are compared at the end."""
        self.living = []
        self.generation += 1

    async def create(self) -> None:
        response = await self.connection.send("POST", self.path, self.body())
        if response is None:
            self.begin_generation()
            return
        assert response.status == 201, response
        task = self.acknowledge("create", response)
        self.learn(task)
        self.living.append(task["id"])

    async def create_with_key(self) -> None:
        key, body = str(uuid4()), self.body()
        response = await self.connection.send_until_known("POST", self.path, body, idempotency_key=key)
        assert response.status == 201, response
        task = self.acknowledge("create with key", response)
        assert task["title"] == body["title"]
        self.learn(task)
        self.living.append(task["id"])

    async def create_with_id(self) -> None:
        task_id, body = str(uuid4()), self.body()
        path = f"{self.path}/{task_id}"
        response = await self.connection.send_until_known("PUT", path, body, if_none_match="*")
        assert response.status == 201, response
        task = self.acknowledge("create with id", response)
        assert (task["id"], task["title"]) == (task_id, body["title"])
        self.learn(task)
        self.living.append(task_id)

    async def _write_own(self, kind: str, method: str, suffix: str = "", body: object = None) -> Task | None:
        """Write to one of the writer's tasks, and return the task."""
        if not self.living:
            return None
        task_id = random.choice(self.living)
        headers = {"if_match": f'"{self.versions[task_id][0]}"'} if random.random() < 0.3 else {}
        response = await self.connection.send(method, f"{self.path}/{task_id}{suffix}", body, **headers)
        if response is None:
            del self.known[task_id]
            self.begin_generation()
            return None
        if response.status == 412 and headers:  # changed by update_many, which returns no versions
            return None
        assert response.status == 200, response
        task = self.acknowledge(kind, response, is_deleted=kind == "delete")
        self.learn(task)
        return task

    async def update(self) -> None:
        title = f"task {uuid4()}"
        task = await self._write_own("update", "PATCH", body={"title": title})
        assert task is None or task["title"] == title

    async def replace(self) -> None:
        await self._write_own("replace", "PUT", body=self.body())

    async def toggle(self) -> None:
        before = dict(self.known)
        task = await self._write_own("toggle", "PATCH", "/complete")
        if task and (old := before[task["id"]]):
            assert task["completed"] is not old["completed"]

    async def delete(self) -> None:
        if task := await self._write_own("delete", "DELETE"):
            self.living.remove(task["id"])
            self.deleted.append(task["id"])
            self.known[task["id"]] = None

    async def restore(self) -> None:
        if not self.deleted:
            return
        task_id = random.choice(self.deleted)
        response = await self.connection.send_until_known("POST", f"{self.path}/{task_id}/restore")
        assert response.status == 200, response
        self.deleted.remove(task_id)
        self.learn(self.acknowledge("restore", response))
        if self.tag in response.json()["tags"]:
            self.living.append(task_id)

    async def update_many(self) -> None:
        await self._write_many("PATCH", {"order": random.randrange(1_000_000)})

    async def delete_many(self) -> None:
        if random.random() < 0.3:
            await self._write_many("DELETE")

    async def _write_many(self, method: str, body: Task | None = None) -> None:
        """Change or delete all living tasks of this generation."""
        path = f"{self.path}?tag={self.tag.replace(' ', '%20')}"
        response = await self.connection.send(method, path, body)
        if response is None:
            for task_id in self.living:
                del self.known[task_id]
            self.begin_generation()
            return
        assert response.status == 200, response
        assert [*response.json().values()] == [len(self.living)]
        self.counts[f"{method} many"] += 1
        if body is None:
            self.known |= dict.fromkeys(self.living)
            self.deleted += self.living
            self.living = []
        else:
            for task_id in self.living:
                self.known[task_id] = (self.known[task_id] or {}) | body

    async def write_shared(self) -> None:
        """Write to the tasks that all writers share, which may have any state."""
        path = f"{self.path}/{shared_id(self.user, random.randrange(SHARED))}"
        match random.randrange(8):
            case 0:
                response = await self.connection.send("PATCH", f"{self.path}?tag=shared", {"order": self.number})
            case 1:
                response = await self.connection.send("DELETE", f"{self.path}?tag=shared&completed=true")
            case 2:
                response = await self.connection.send("DELETE", path)
            case 3 | 4:
                response = await self.connection.send("POST", f"{path}/restore")
            case 5:
                response = await self.connection.send("PATCH", path, {"title": f"by {self.number}"})
            case _:
                response = await self.connection.send("PATCH", f"{path}/complete")
        if response and response.status == 200 and "etag" in response.headers:
            self.acknowledge("shared", response)
        assert response is None or response.status in (200, 404), response

    def lost_writes(self, tasks: dict[str, Task], all_versions: dict[str, tuple[int, bool]]) -> list[str]:
        """Return the ids of the tasks that are not as the service has acknowledged."""
        lost = [
            task_id
            for task_id, known in self.known.items()
            if (known is None) != (task_id not in tasks)
            or (known is not None and known != {name: tasks[task_id][name] for name in FIELDS})
        ]
        for task_id, (version, task, is_deleted) in self.versions.items():
            newest, newest_is_deleted = all_versions.get(task_id, (0, True))
            if (
                newest < version
                or (newest == version and newest_is_deleted is not is_deleted)
                or (newest == version and not is_deleted and tasks[task_id] != task)
            ):
                lost.append(task_id)
        return lost


SHARED = 12


def shared_id(user: str, number: int) -> str:
    """Return the id of a task that all writers of the user share."""
    return str(UUID(int=UUID(user.removeprefix("user-")).int ^ number))


class Holder:
    """Sessions that hold commits of a user back: by a lock, or by a write in a transaction that commits late."""

    def __init__(self, dsn: str, user: str, counts: Counter[str]) -> None:
        self._dsn, self._user = dsn, user
        self._ended = False
        self._counts = counts
        self.created: set[str] = set()  # ids

    async def hold(self, end: asyncio.Event) -> None:
        """Hold commits back until `end` is set."""
        try:
            while not end.is_set():
                with suppress(psycopg2.Error):  # the server was killed
                    await asyncio.to_thread(self._session, end)
                await asyncio.sleep(0.05)
        finally:
            self._ended = True  # also when another task of the test has failed

    def _session(self, end: asyncio.Event) -> None:
        with closing(psycopg2.connect(self._dsn)) as connection, connection.cursor() as cursor:
            while not (end.is_set() or self._ended):
                kind = random.choice(("tasks", "counter", "create", "create", "toggle", "restore", "update many"))
                new_id = uuid4()
                cursor.execute(*self._statement(kind, new_id))
                time.sleep(random.uniform(0, MAX_HOLD))
                if random.random() < 0.1:
                    connection.rollback()
                else:
                    connection.commit()
                    self._counts[f"held back: {kind}"] += 1
                    if kind == "create":
                        self.created.add(str(new_id))
                time.sleep(random.uniform(0, MAX_HOLD))

    def _statement(self, kind: str, new_id: UUID) -> tuple[str, dict[str, Any]]:
        """Return a statement that locks, or one of the service that writes, and its parameters."""
        user, url = self._user, f"http://tasks/api/{self._user}/tasks/"
        task_id = UUID(shared_id(user, random.randrange(SHARED)))
        match kind:
            case "tasks":
                sql = "SELECT FROM tasks WHERE user_id = %(user_id)s ORDER BY random() LIMIT 2 FOR UPDATE"
                return sql, {"user_id": user}
            case "counter":
                return "SELECT FROM task_users WHERE user_id = %(user_id)s FOR UPDATE", {"user_id": user}
            case "create":
                fields = TaskInput(title="committed late").model_dump(mode="json")
                query: Any = queries.create_task(user, new_id, tasks_url=url, fields=fields, fingerprint=None)
            case "toggle":
                query = queries.toggle_task(user, task_id, tasks_url=url)
            case "restore":
                query = queries.restore_task(user, task_id, tasks_url=url)
            case _:
                query = queries.update_tasks(user, fields={"order": -1}, filters={"tag": ["shared"]})
        return query.statement.sql, query.values


WRITES = {
    "create", "create with key", "create with id", "update", "replace", "toggle", "delete", "restore", "PATCH many",
    "DELETE many", "shared",
}  # fmt: skip
HELD_BACK = {f"held back: {kind}" for kind in ("tasks", "counter", "create", "toggle", "restore", "update many")}


@dataclass
class Load:
    """Two users, whose tasks are written and followed at the same time."""

    services: Cluster
    dsn: str  # of the database itself, for the sessions that hold commits back
    users: list[str] = field(default_factory=lambda: [f"user-{uuid4()}" for _ in range(2)])
    counts: Counter[str] = field(default_factory=Counter)
    connections: list[Connection] = field(default_factory=list)

    async def run(self, faults: Callable[[], Awaitable[None]]) -> Counter[str]:
        """Write during the faults. Return how many tasks differ at the end, for each kind of client."""
        try:
            return await self._run(faults)
        finally:
            for connection in self.connections:
                connection.close()

    def connect(self) -> Connection:
        self.connections.append(Connection(self.services))
        return self.connections[-1]

    async def _run(self, faults: Callable[[], Awaitable[None]]) -> Counter[str]:
        followers = {user: Follower(self.connect(), user) for user in self.users}
        sleepers = {user: Follower(self.connect(), user) for user in self.users}
        holders = {user: Holder(self.dsn, user, self.counts) for user in self.users}
        writers = {
            user: [Writer(self.connect(), user, number, self.counts) for number in range(WRITERS)]
            for user in self.users
        }
        connection = self.connect()
        for user in self.users:
            for number in range(SHARED):
                body = {"title": "shared", "tags": ["shared"]}
                path = f"/api/{user}/tasks/{shared_id(user, number)}"
                assert (await connection.send_until_known("PUT", path, body, if_none_match="*")).status == 201
            await sleepers[user].catch_up()

        end_of_writing, end_of_following = asyncio.Event(), asyncio.Event()
        async with asyncio.TaskGroup() as following:
            for follower in followers.values():
                following.create_task(follower.follow(end_of_following))
            async with asyncio.TaskGroup() as writing:
                for user in self.users:
                    writing.create_task(holders[user].hold(end_of_writing))
                    for writer in writers[user]:
                        writing.create_task(writer.write(end_of_writing))
                await faults()
                await until(lambda: self.counts.keys() >= WRITES | HELD_BACK)  # on a slow machine
                end_of_writing.set()
            end_of_following.set()
        await asyncio.to_thread(self._wait_for_late_writes)
        for user in self.users:  # the newest version is that of many tasks, which a client reads in several pages
            for number in range(SHARED):
                path = f"/api/{user}/tasks/{shared_id(user, number)}/restore"
                assert (await connection.send_until_known("POST", path)).status == 200
            response = await connection.send_until_known("PATCH", f"/api/{user}/tasks?tag=shared", {"order": 1})
            assert response.json() == {"updated": SHARED}

        differing: Counter[str] = Counter()
        for user in self.users:
            tasks, versions = await list_all(connection, user), self._versions(user)
            clients = {"follower": followers[user], "sleeper": sleepers[user], "new": Follower(self.connect(), user)}
            for kind, client in clients.items():
                await client.catch_up()
                keys = tasks.keys() | client.tasks.keys()
                differing[kind] += sum(tasks.get(key) != client.tasks.get(key) for key in keys)
            lost = [task_id for writer in writers[user] for task_id in writer.lost_writes(tasks, versions)]
            differing["lost writes"] += len(lost) + len(holders[user].created - tasks.keys())
            self.counts["tasks"] += len(versions)
        return differing

    def _wait_for_late_writes(self) -> None:
        """Wait until no statement of a killed process is running."""
        wait_until(lambda: not self._fetch("SELECT 1 FROM pg_stat_activity WHERE state = 'active' AND pid <> %s"))

    def _fetch(self, sql: str, *values: object) -> list[tuple[Any, ...]]:
        with closing(psycopg2.connect(self.dsn)) as connection, connection.cursor() as cursor:
            cursor.execute(sql, values or [connection.info.backend_pid])
            return cursor.fetchall()

    def _versions(self, user: str) -> dict[str, tuple[int, bool]]:
        """Return the version of each task, and whether it is deleted."""
        rows = self._fetch("SELECT id::text, revision, deleted_at IS NOT NULL FROM tasks WHERE user_id = %s", user)
        return {task_id: (version, is_deleted) for task_id, version, is_deleted in rows}


@pytest.mark.parametrize("run", range(RUNS))
def test_copies_are_exact_after_crashes_and_late_commits(postgres: Postgres, run: int) -> None:  # noqa: ARG001
    with cluster(DATABASE_URL=postgres.dsn(), DATABASE_TIMEOUT=str(TIMEOUT)) as services:

        async def faults() -> None:
            await asyncio.sleep(SECONDS_BETWEEN)
            await asyncio.to_thread(services.restart, 0)
            await asyncio.sleep(SECONDS_BETWEEN)
            await asyncio.to_thread(postgres.kill)
            await asyncio.to_thread(postgres.start)
            await asyncio.sleep(SECONDS_BETWEEN)
            await asyncio.to_thread(services.restart, 1)

        load = Load(services, postgres.dsn())
        differing = asyncio.run(asyncio.wait_for(load.run(faults), 180))
    print(dict(differing), dict(load.counts))
    assert not differing.total()


def test_copies_are_exact_through_a_pooler_in_transaction_mode() -> None:
    with Postgres(tls=True) as postgres, PgBouncer(postgres, pool_size=8) as pooler:
        with cluster(DATABASE_URL=pooler.dsn(), DATABASE_TIMEOUT=str(TIMEOUT)) as services:

            async def faults() -> None:
                await asyncio.sleep(SECONDS_BETWEEN)
                await asyncio.to_thread(pooler.stop)
                await asyncio.to_thread(pooler.start)
                await asyncio.sleep(SECONDS_BETWEEN)

            load = Load(services, postgres.dsn())
            differing = asyncio.run(asyncio.wait_for(load.run(faults), 180))
        print(dict(differing), dict(load.counts))
        assert not differing.total()


# ---- Deadlocks ------------------------------------------------------------------------------

CONNECTIONS = 64
SECONDS = 3  # of each mix
GUARDED = {"update", "replace", "toggle", "delete"}
MIX = {"create", "create with key", "create with id", "restore", "update many", "delete many"} | GUARDED
MIX |= {f"guarded {kind}" for kind in GUARDED}


async def write_anything(url: str, user: str, end: asyncio.Event, statuses: Counter[tuple[str, int]]) -> None:
    """Send all kinds of writes to the tasks of one user until `end` is set, and count the statuses."""
    client, tasks = Client(url), f"/api/{user}/tasks"
    body = {"title": "any", "tags": ["shared"]}
    while not end.is_set():
        task = f"{tasks}/{shared_id(user, random.randrange(SHARED))}"
        if_match: dict[str, str] = {}
        if random.random() < 0.5:
            response = await client.send("GET", task)
            if_match["if_match"] = response.headers.get("etag", '"1"')
        kind, method, path, content, headers = random.choice(
            [
                ("create", "POST", tasks, body, {}),
                ("create with key", "POST", tasks, body, {"idempotency_key": str(random.randrange(20))}),
                ("create with id", "PUT", task, body, {"if_none_match": "*"}),
                ("update", "PATCH", task, {"title": "other"}, if_match),
                ("replace", "PUT", task, body, if_match),
                ("toggle", "PATCH", f"{task}/complete", None, if_match),
                ("delete", "DELETE", task, None, if_match),
                ("restore", "POST", f"{task}/restore", None, {}),
                ("restore", "POST", f"{task}/restore", None, {}),
                ("update many", "PATCH", f"{tasks}?tag=shared", {"order": 1}, {}),
                ("delete many", "DELETE", f"{tasks}?tag=shared&completed=true", None, {}),
            ]
        )
        if if_match and headers is if_match:
            kind = f"guarded {kind}"
        response = await client.send(method, path, content, **headers)
        statuses[kind, response.status] += 1
    client.close()


async def erase(url: str, user: str, end: asyncio.Event, statuses: Counter[tuple[str, int]]) -> None:
    """Erase the user again and again until `end` is set."""
    client = Client(url)
    while not end.is_set():
        response = await client.send("DELETE", f"/api/{user}?confirm={user}")
        statuses["erase", response.status] += 1
        await asyncio.sleep(random.uniform(0, 0.1))
    client.close()


@pytest.mark.parametrize("erasers", [0, 2])
def test_no_mix_of_writes_of_one_user_deadlocks(postgres: Postgres, user: str, erasers: int) -> None:
    statuses: Counter[tuple[str, int]] = Counter()
    # A user has a quarter of the pool: of each process 16 connections.
    with cluster(DATABASE_URL=postgres.dsn(), DATABASE_POOL_SIZE=str(CONNECTIONS), DATABASE_TIMEOUT="60") as services:
        urls = [process.url for process in services.processes]

        async def scenario() -> None:
            connection, end = Connection(services), asyncio.Event()
            follower = Follower(connection, user)
            async with asyncio.TaskGroup() as clients:
                clients.create_task(follower.follow(end))
                for number in range(CONNECTIONS):
                    write = erase if number < erasers else write_anything
                    clients.create_task(write(urls[number % 2], user, end, statuses))
                await asyncio.sleep(SECONDS)
                await until(lambda: {kind for kind, _ in statuses} >= MIX)  # on a slow machine
                end.set()
            await follower.catch_up()
            assert follower.tasks == await list_all(connection, user)
            connection.close()

        asyncio.run(asyncio.wait_for(scenario(), 180))
        assert "deadlock detected" not in postgres.log()
    print(sorted(statuses.items()))
    assert {status for _, status in statuses} <= {200, 201, 404, 410, 412}


def test_removing_old_tasks_at_startup_waits_for_no_write(postgres: Postgres, user: str) -> None:
    """A write removes its user's old tasks too, perhaps in another order."""
    create_tables(postgres.dsn())
    ids = [str(uuid4()), str(uuid4())]
    for task_id in ids:
        postgres.run_as_admin(
            "INSERT INTO tasks (user_id, id, title, deleted_at) VALUES (%s, %s, 'old', now() - interval '40 days')",
            *(user, task_id),
            database="tasks",
        )
    remove = "DELETE FROM tasks WHERE user_id = %s AND id = %s"
    with ThreadPoolExecutor(1) as threads, locked(postgres, remove, user, ids[1]) as write:
        start = threads.submit(create_tables, postgres.dsn())
        with suppress(TimeoutError):
            start.result(1)
        write.cursor().execute(remove, [user, ids[0]])  # raises DeadlockDetected when each waits for the other
        write.commit()
        start.result(10)
    assert postgres.run_as_admin("SELECT FROM tasks WHERE user_id = %s", user, database="tasks") == []
    assert "deadlock detected" not in postgres.log()
