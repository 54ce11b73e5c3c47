"""A pool of PostgreSQL connections for asyncio, and the migrations at start-up.

`Database` uses psycopg2's asynchronous mode
(https://www.psycopg.org/docs/advanced.html#asynchronous-support), so no thread waits for a query.

The terms of this module:

- Query: a statement with the values of its parameters (see `queries`). All that is sent for one query is
  one message.
- Slot: the permission to run one query. There are as many slots as connections that may be open, so a
  request with a slot can always take an idle connection or open a new one.
- Waiter: a request that waits in a queue for a slot.
- Limit: each user may hold a quarter of the slots, but at least one.

A query passes through four steps:

1. Acquire a slot. `Slots` decides the order in which requests acquire them.
2. Take the most recently used idle connection, or open a new one.
3. Send the message, wait for the socket and read the rows. The connection is in autocommit mode, so the
   message is one transaction. It consists of `SET statement_timeout`, if it has changed; `PREPARE`, if the
   statement is not prepared on this connection yet; and the statement itself, or `EXECUTE`. Behind a pooler
   in transaction mode it consists of `SET LOCAL statement_timeout` and the statement.
4. Return the connection to the pool and release the slot. After an error or a cancellation the
   connection is closed, because the server may still be busy with the statement. The one exception is
   a statement that the server itself has canceled.

The timeout of a query includes the time in the queue and the time to connect. PostgreSQL cancels the
statement after the rest of it, rounded up to `TIMEOUT_STEP`, because closing the connection does not stop a
statement that waits for a lock. If PostgreSQL does not respond, the pool gives up `GRACE_PERIOD` seconds
after the timeout.
"""

import asyncio
import logging
import os
import random
import select
import socket
import sys
import time
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import closing, suppress
from dataclasses import dataclass
from datetime import datetime
from itertools import chain, cycle, repeat
from math import ceil
from pathlib import Path
from typing import Any

import psycopg2
import psycopg2.extras
import sqlalchemy.exc
from psycopg2.errors import (
    DatatypeMismatch,
    DuplicatePreparedStatement,
    FeatureNotSupported,
    InternalError_,
    InvalidSqlStatementName,
    QueryCanceled,
    ReadOnlySqlTransaction,
)
from psycopg2.extensions import BYTES, POLL_OK, POLL_READ, POLL_WRITE, connection, parse_dsn
from sqlalchemy import Engine, NullPool, create_engine
from starlette.requests import ClientDisconnect

from queries import KEPT_DAYS, Columns, Query

psycopg2.extras.register_uuid()  # type: ignore[no-untyped-call]

# Seconds that the pool waits longer than PostgreSQL's own timeout, so that PostgreSQL normally cancels the
# statement first. Then nothing has changed, and the connection can be used again.
GRACE_PERIOD = 0.5
TIMEOUT_STEP = 0.1  # seconds; statement_timeout is rounded up to a multiple, so that it rarely has to be set anew
MAX_PREPARED = 100  # prepared statements per connection; each takes about 50 KB on the server
DISCONNECT_CHECK_DELAY = 0.1  # seconds in the queue after which the pool checks whether the client has disconnected
TIMEOUT_CHECK_INTERVAL = 0.05  # seconds between two checks for waiters and queries whose time is over
MIN_SEND_BUFFER = 4096  # bytes that fit into the empty send buffer of any socket
TEXT_OID = 25  # PostgreSQL's identifier of the type text
# The errors after which a statement is prepared again.
STALE_STATEMENT_ERRORS = (
    InvalidSqlStatementName,  # by EXECUTE: the session has lost the statement, as after DISCARD ALL
    DuplicatePreparedStatement,  # by PREPARE: the session has a statement of this name that the pool did not know
    FeatureNotSupported,  # by EXECUTE: a migration has changed the type of a column in the result
    DatatypeMismatch,  # by EXECUTE: a migration has changed the type of a column that a parameter is stored in
    InternalError_,  # by EXECUTE: a migration has dropped the type of a parameter and created it again
)

# At start-up, in seconds. A serverless database may have to resume first.
STARTUP_TIMEOUT = 30
CONNECT_TIMEOUT = 10
RETRY_DELAYS = (0.5, 1, 2, 4)  # the last one is repeated

ENCODING = {"client_encoding": "UTF8"}  # overrides the DSN, the environment and the role

MIGRATIONS = Path(__file__).resolve().parent / "migrations"
VERSION_TABLE = "tasks_alembic_version"  # not `alembic_version`, which another application may use in this database

logger = logging.getLogger("tasks")


class DatabaseUnavailable(Exception):
    """The database cannot be reached, or did not respond in time. A retry may succeed."""


# ---- The pool -------------------------------------------------------------------------------


class Database:
    """A pool of connections. It belongs to the event loop that first uses it."""

    def __init__(self, dsn: str, *, size: int, timeout: float, can_prepare: bool = False) -> None:
        """Configure the pool without opening a connection.

        `dsn` is a connection string in any form that libpq accepts. At most `size` connections are
        open at once. A query may take `timeout` seconds, including the time in the queue and the time
        to connect. Set `can_prepare` if there is no pooler in transaction mode in front of PostgreSQL.
        Such a pooler may run each transaction in another session, so neither a prepared statement nor a
        setting of the session is kept.
        """
        parameters: dict[str, Any] = {"service": os.environ.get("PGSERVICE")} | parse_dsn(dsn)
        # libpq reads these variables too, but would then resolve the host itself (see _resolve_hosts). An
        # entry in libpq's connection service file (pg_service.conf) overrides them.
        if not parameters["service"]:
            names = ("host", "hostaddr", "port")
            parameters = {name: os.environ.get(f"PG{name.upper()}") for name in names} | parameters
        # GSSAPI would contact a Kerberos server while libpq holds Python's global interpreter lock.
        self._connection_parameters = {"gssencmode": "disable", "application_name": "tasks"} | parameters | ENCODING
        self._timeout = timeout
        self._can_prepare = can_prepare
        self._slots = Slots(size, timeout)
        self._idle_connections: list[_Connection] = []
        self._busy_connections: set[_Connection] = set()
        self._timeout_check: asyncio.TimerHandle | None = None
        self._drained: asyncio.Event | None = None  # exists once the pool is closing, and is set when no query is left

    async def fetch(
        self, query: Query[*Columns], disconnected: Callable[[], Awaitable[bool]] | None = None
    ) -> list[tuple[*Columns]]:
        """Run a query in one round trip and return its rows. Text is returned as bytes in UTF-8.

        `disconnected` returns whether the client has disconnected. It is called after a long wait in
        the queue, so that no slot is spent on a response that cannot be delivered.

        Raises DatabaseUnavailable when there is no slot or no response in time, when the connection is
        lost, or when the database is read-only. When the connection is lost, or the server does not
        respond at all, the statement may or may not have been executed. Raises ClientDisconnect when the
        client has disconnected. Any other psycopg2.Error is a bug in this service.
        """
        if self._drained:
            raise DatabaseUnavailable("shutting down")
        if not self._timeout_check:
            self._timeout_check = asyncio.get_running_loop().call_later(TIMEOUT_CHECK_INTERVAL, self._check_timeouts)
        user = query.values.get("user_id")
        requested_at = time.monotonic()
        waiter = None if self._slots.try_acquire(user) else await self._slots.acquire(user)
        acquired_at = time.monotonic() if waiter else requested_at
        try:
            if acquired_at - requested_at > DISCONNECT_CHECK_DELAY and disconnected and await disconnected():
                raise ClientDisconnect
            return await self._run(query, requested_at + self._timeout)
        except (TimeoutError, QueryCanceled) as error:
            if isinstance(error, TimeoutError):
                # PostgreSQL did not even report its own timeout, so the network path is broken. The idle
                # connections use the same path, so each request that took one would time out too.
                self._close_idle_connections()
            queued = (
                f"{acquired_at - requested_at:.1f} s in the queue behind {waiter.position} others, " if waiter else ""
            )
            times = f"{queued}{time.monotonic() - acquired_at:.1f} s in the database"
            raise DatabaseUnavailable(f"no response within {self._timeout:g} seconds: {times}") from None
        except (psycopg2.OperationalError, psycopg2.InterfaceError, ReadOnlySqlTransaction, socket.gaierror) as error:
            # The statement is valid. The connection is lost, the disk is full, or the database is read-only.
            raise DatabaseUnavailable(_one_line(error)) from error
        finally:
            self._slots.release(user)
            if self._drained and self._slots.all_free:
                self._drained.set()

    async def close(self) -> None:
        """Wait for the queries that run or are in the queue, then close all connections.

        `fetch` raises DatabaseUnavailable from now on.
        """
        if self._drained:
            return
        self._drained = asyncio.Event()
        if not self._slots.all_free:
            await self._drained.wait()
        self._close_idle_connections()

    async def _run(self, query: Query[*Columns], deadline: float) -> list[tuple[Any, ...]]:
        """Run a query on a connection, then return the connection to the pool or close it (step 4 above)."""
        connection = await self._checkout(deadline)
        self._busy_connections.add(connection)
        try:
            rows = await connection.run(query, deadline, can_prepare=self._can_prepare)
        except QueryCanceled:
            if not connection.closed:
                self._idle_connections.append(connection)
            raise
        except BaseException:
            connection.dispose()
            raise
        finally:
            self._busy_connections.discard(connection)
        self._idle_connections.append(connection)
        return rows

    async def _checkout(self, deadline: float) -> "_Connection":
        """Return the most recently used idle connection, or a new one."""
        while self._idle_connections:
            connection = self._idle_connections.pop()
            # The server sends nothing on an idle connection, except when it closes it.
            if not connection.closed and not _is_ready(connection.fileno()):
                return connection
            connection.dispose()
        async with asyncio.timeout(deadline + GRACE_PERIOD - time.monotonic()):
            parameters = await _resolve_hosts(self._connection_parameters)
            new: _Connection = psycopg2.connect(**parameters, async_=True, connection_factory=_Connection)
            try:
                await new.open()
                new.watch(self._idle_connections)
            except BaseException:
                new.dispose()
                raise
        return new

    def _check_timeouts(self) -> None:
        """End the waiters and the queries whose time is over.

        One timer for the whole pool costs less than one timer per query.
        """
        self._slots.reject_expired()
        now = time.monotonic()
        for busy in self._busy_connections:
            if now > busy.deadline + GRACE_PERIOD:
                busy.wake(TimeoutError())
        self._timeout_check = (
            None
            if self._slots.all_free
            else asyncio.get_running_loop().call_later(TIMEOUT_CHECK_INTERVAL, self._check_timeouts)
        )

    def _close_idle_connections(self) -> None:
        while self._idle_connections:
            self._idle_connections.pop().dispose()


# ---- Slots and queues -----------------------------------------------------------------------


class Slots:
    """The slots of a pool, and the queues for them.

    A request of a user needs a reservation before it may acquire a slot or wait in `_queue`, and keeps it
    until it releases the slot or leaves the queue. The limit of a user is a limit of reservations, so one
    user can fill neither the slots nor `_queue`.

    There are three kinds of queues:

    - `_health_queue` holds requests without a user (the readiness check). It is served first.
    - `_queue` holds requests of users that have a reservation.
    - `_user_queues` has one queue per user who has no reservation left. When a reservation of that user is
      given up, the next waiter gets it and moves to `_queue`.
    """

    def __init__(self, size: int, timeout: float) -> None:
        self._size = self._free = size
        self._user_limit = max(1, size // 4)
        self._timeout = timeout
        self._health_queue, self._queue = _Queue(timeout), _Queue(timeout)
        self._user_queues: dict[str, _Queue] = {}
        self._reservations: dict[str, int] = {}  # by user: the slots, and the waiters in `_queue`

    def try_acquire(self, user: str | None) -> bool:
        """Acquire a slot without waiting. Return False if none is free or the user has reached the limit."""
        if not self._free or not self._reserve(user):
            return False
        self._free -= 1
        return True

    async def acquire(self, user: str | None) -> "_Waiter":
        """Wait for a slot and return the waiter. Raises DatabaseUnavailable when there is none in time."""
        waiter = _Waiter()
        if user is None:
            self._health_queue.append(waiter)
        elif self._reserve(user):
            waiter.has_reservation = True
            self._queue.append(waiter)
        else:
            self._user_queues.setdefault(user, _Queue(self._timeout)).append(waiter)
        try:
            await waiter.future
        except BaseException:
            if waiter.future.done() and not waiter.future.cancelled() and waiter.future.exception() is None:
                self.release(user)  # the slot was granted just before the request was cancelled
            elif waiter.has_reservation:
                self._unreserve(user)
                self._grant()
            raise
        return waiter

    def release(self, user: str | None) -> None:
        """Release a slot, and grant it to the next waiter."""
        self._free += 1
        self._unreserve(user)
        self._grant()

    def reject_expired(self) -> None:
        """Reject all waiters that have waited too long. Call this at regular intervals."""
        for queue in (self._health_queue, self._queue, *self._user_queues.values()):
            queue.reject_expired()

    @property
    def all_free(self) -> bool:
        """Whether all slots are free, and therefore the queues are empty."""
        return self._free == self._size

    @property
    def waiting(self) -> int:
        """The number of requests that wait for a slot."""
        queues = (self._health_queue, self._queue, *self._user_queues.values())
        return sum(queue.waiting for queue in queues)

    def _reserve(self, user: str | None) -> bool:
        """Make a reservation for the user. Return False if the user has reached the limit."""
        if user is None:
            return True
        count = self._reservations.get(user, 0)
        if count >= self._user_limit:
            return False
        self._reservations[user] = count + 1
        return True

    def _unreserve(self, user: str | None) -> None:
        """Give up one reservation of the user, or pass it to the next waiter in the user's own queue."""
        if user is None:
            return
        if user_queue := self._user_queues.get(user):
            if waiter := user_queue.pop():
                waiter.has_reservation = True
                self._queue.append(waiter)
                return
            del self._user_queues[user]
        if self._reservations[user] == 1:
            del self._reservations[user]
        else:
            self._reservations[user] -= 1

    def _grant(self) -> None:
        """Give the free slots to the next waiters."""
        while self._free and (waiter := self._health_queue.pop() or self._queue.pop()):
            self._free -= 1
            waiter.future.set_result(None)


class _Queue:
    """Waiters for a slot: FIFO normally, LIFO while overloaded ("adaptive LIFO").

    A waiter may wait for half the timeout of a query. The queue becomes overloaded when its oldest waiter
    has waited for 80 % of that, and stays so until it is empty. In FIFO order an overloaded queue would
    serve only requests whose clients are about to give up; in LIFO order it serves the newest ones
    (Ben Maurer, "Fail at Scale", ACM Queue, 2015).

    While overloaded, the queue also sheds load (see `_shed_load`).
    """

    def __init__(self, timeout: float) -> None:
        self._max_wait = timeout / 2  # seconds
        self._waiters: deque[_Waiter] = deque()
        self._overloaded_at: float | None = None  # by time.monotonic(); None when not overloaded
        self._served = 0  # waiters since `_overloaded_at`

    def append(self, waiter: "_Waiter") -> None:
        """Add a waiter."""
        waiter.position = len(self._waiters)
        self._waiters.append(waiter)

    def pop(self) -> "_Waiter | None":
        """Remove and return the waiter to serve next, or None if there is none."""
        while self._waiters and self._waiters[0].future.done():  # rejected or cancelled
            self._waiters.popleft()
        if not self._waiters:
            self._overloaded_at = None
            return None
        now = time.monotonic()
        if self._overloaded_at is None and now - self._waiters[0].queued_at > 0.8 * self._max_wait:
            self._overloaded_at, self._served = now, 0
        if self._overloaded_at is not None:
            self._shed_load(now - self._overloaded_at)
        while self._waiters:
            waiter = self._waiters.popleft() if self._overloaded_at is None else self._waiters.pop()
            if not waiter.future.done():
                self._served += 1
                return waiter
        return None

    def reject_expired(self) -> None:
        """Reject the waiters that have waited for half the timeout."""
        expired_before = time.monotonic() - self._max_wait
        for waiter in self._waiters:
            if waiter.queued_at < expired_before:
                waiter.reject()

    @property
    def waiting(self) -> int:
        """The number of waiters that have neither been rejected nor cancelled."""
        return sum(not waiter.future.done() for waiter in self._waiters)

    def _shed_load(self, overloaded_for: float) -> None:
        """Reject the oldest waiters that cannot be served in time at the present rate."""
        if overloaded_for > 0.2 * self._max_wait:  # before that, the rate cannot be measured
            servable = max(1, int(self._served / overloaded_for * self._max_wait))
            while len(self._waiters) > servable:
                self._waiters.popleft().reject()


class _Waiter:
    """A request that waits in a queue for a slot."""

    __slots__ = ("future", "has_reservation", "position", "queued_at")

    def __init__(self) -> None:
        self.queued_at = time.monotonic()
        self.future: asyncio.Future[None] = asyncio.get_running_loop().create_future()  # done when granted or rejected
        self.position = 0  # the number of waiters before it when it was added
        self.has_reservation = False

    def reject(self) -> None:
        """Make its `acquire` raise DatabaseUnavailable."""
        if not self.future.done():
            seconds = time.monotonic() - self.queued_at
            self.future.set_exception(
                DatabaseUnavailable(f"no slot after {seconds:.1f} seconds in the queue, behind {self.position} others")
            )


# ---- A connection ---------------------------------------------------------------------------


class _Connection(connection):
    """A connection of the pool.

    The event loop must not watch a file descriptor that libpq has closed, because the operating system
    may reuse its number for another socket.

    While connecting, libpq may replace the socket at any time, so `open` registers it with the event loop
    anew for each wait. After that, `watch` registers it once, until `dispose`: to register it for each query
    took a quarter of a query's time.
    """

    _watched_fd: int | None = None  # None before watch(), and on event loops that cannot watch a socket
    _socket_ready: asyncio.Future[None] | None = None  # what the running query waits for
    _statement_timeout: int | None = None  # milliseconds; the current setting of the session, None if unknown
    _prepared: set[str]  # names of the statements that are prepared
    _loop: asyncio.AbstractEventLoop
    deadline: float  # of the running query, by time.monotonic()

    async def open(self) -> None:
        """Wait until the connection is established."""
        self._prepared = set()
        self._loop = asyncio.get_running_loop()
        while (state := self.poll()) != POLL_OK:
            await _wait_until_ready(self.fileno(), write=state == POLL_WRITE)
        self.string_types[TEXT_OID] = BYTES  # text goes into the response unchanged, so it is not decoded

    def watch(self, idle_connections: list["_Connection"]) -> None:
        """Register the socket of the open connection with the event loop.

        If the socket becomes readable while the connection is in `idle_connections`, the server has closed
        it. It is then removed from the list and closed.
        """

        def on_readable() -> None:
            if self._socket_ready is not None:
                self.wake()
            elif self in idle_connections and _is_ready(fd):  # the event may be older than the last result
                idle_connections.remove(self)
                self.dispose()

        fd: int = self.fileno()
        with suppress(NotImplementedError):
            self._loop.add_reader(fd, on_readable)
            self._watched_fd = fd

    async def run(self, query: Query[*Columns], deadline: float, *, can_prepare: bool) -> list[tuple[Any, ...]]:
        """Send a query as one message and return its rows.

        `deadline` is by time.monotonic(). Raises TimeoutError when the server does not respond, and
        psycopg2.Error when the server reports an error or the connection is lost.
        """
        statement, prepares = query.statement, False
        text = statement.sql
        if can_prepare and statement.prepare:
            if statement.name in self._prepared:
                text = statement.execute
            elif len(self._prepared) < MAX_PREPARED:
                text, prepares = f"{statement.prepare}; {statement.execute}", True
        try:
            rows = await self._send(text, query.values, deadline, can_prepare)
        except STALE_STATEMENT_ERRORS:
            if text is statement.sql:
                raise
            # The message is one transaction, so after an error no row has changed and a second attempt is safe.
            self._prepared.clear()
            text, prepares = f"DEALLOCATE ALL; {statement.prepare}; {statement.execute}", True
            rows = await self._send(text, query.values, deadline, can_prepare)
        except QueryCanceled:
            if prepares:  # it is unknown whether the statement is prepared
                self.dispose()
            raise
        if prepares:
            self._prepared.add(statement.name)
        return rows

    async def _send(
        self, text: str, values: dict[str, Any], deadline: float, can_prepare: bool
    ) -> list[tuple[Any, ...]]:
        """Send a message that sets the statement timeout and has this text, and return its rows."""
        self.deadline, seconds = deadline, deadline - time.monotonic()
        # At least one step, because 0 means no timeout.
        timeout = max(1, ceil(seconds / TIMEOUT_STEP)) * int(1000 * TIMEOUT_STEP)
        if not can_prepare:
            text = f"SET LOCAL statement_timeout = {timeout}; {text}"
        elif timeout != self._statement_timeout:
            text = f"SET statement_timeout = {timeout}; {text}"
            self._statement_timeout = None  # an error would roll the SET back
        cursor = self.cursor()
        cursor.execute(text, values)
        # A message that fits into the empty send buffer has been sent, so a first poll() is not needed.
        sent = self._watched_fd is not None and len(cursor.query or b"") <= MIN_SEND_BUFFER
        state = POLL_READ if sent else self.poll()
        if state != POLL_OK:
            await self._wait_for_result(state)
        rows: list[tuple[Any, ...]] = cursor.fetchall()
        self._statement_timeout = timeout
        return rows

    async def _wait_for_result(self, state: int) -> None:
        """Poll until the result has arrived. Raises TimeoutError when the server does not respond."""
        if self._watched_fd is None:
            async with asyncio.timeout(self.deadline + GRACE_PERIOD - time.monotonic()):
                while state != POLL_OK:
                    await _wait_until_ready(self.fileno(), write=state == POLL_WRITE)
                    state = self.poll()
            return
        try:
            while state != POLL_OK:
                self._socket_ready = self._loop.create_future()
                if state == POLL_WRITE:
                    self._loop.add_writer(self._watched_fd, self.wake)
                await self._socket_ready
                if state == POLL_WRITE:
                    self._loop.remove_writer(self._watched_fd)
                state = self.poll()
        finally:
            self._socket_ready = None

    def wake(self, error: Exception | None = None) -> None:
        """Resume the query that waits for the socket, or raise `error` in it."""
        if self._socket_ready is None or self._socket_ready.done():
            return
        if error:
            self._socket_ready.set_exception(error)
        else:
            self._socket_ready.set_result(None)

    def dispose(self) -> None:
        """Stop watching the socket, and close the connection."""
        if self._watched_fd is not None:
            self._loop.remove_reader(self._watched_fd)
            self._loop.remove_writer(self._watched_fd)
            self._watched_fd = None
        self.close()


async def _wait_until_ready(fd: int, *, write: bool) -> None:
    """Wait until the socket is readable, or writable if `write` is set."""
    loop = asyncio.get_running_loop()
    watch, unwatch = (loop.add_writer, loop.remove_writer) if write else (loop.add_reader, loop.remove_reader)
    ready = asyncio.Event()
    try:
        watch(fd, ready.set)
    except NotImplementedError:  # the default event loop on Windows
        while not _is_ready(fd, write=write):  # noqa: ASYNC110  # there is no event to wait for
            await asyncio.sleep(0.005)
        return
    try:
        await ready.wait()
    finally:
        unwatch(fd)


def _is_ready(fd: int, *, write: bool = False) -> bool:
    """Return whether the socket is readable, or writable if `write` is set. Do not wait.

    A socket that the other side has closed is readable.
    """
    if sys.platform == "win32":  # where a failed connection is reported in the third list
        return any(select.select([] if write else [fd], [fd] if write else [], [fd], 0))
    poll = select.poll()  # select() cannot handle a file descriptor above 1,023
    poll.register(fd, select.POLLOUT if write else select.POLLIN)
    return bool(poll.poll(0))


async def _resolve_hosts(parameters: dict[str, Any]) -> dict[str, Any]:
    """Return the connection parameters with the IP address of each host as `hostaddr`.

    libpq would resolve the names while it holds Python's global interpreter lock, and so block all
    other requests.

    A host with two addresses becomes two hosts with one address each, which libpq tries in order. The
    order is random, so that an unreachable address is not always tried first. Host names are kept, for
    TLS and the password file.

    Raises socket.gaierror when no host can be resolved.
    """
    # Only libpq reads the connection service file.
    if parameters["service"] or not parameters["host"] or parameters["hostaddr"]:
        return parameters
    resolved: list[tuple[str, str, str]] = []
    failure = None
    hosts, ports = parameters["host"].split(","), cycle((parameters["port"] or "").split(","))
    for host, port in zip(hosts, ports, strict=False):
        if host.startswith(("/", "@")) or not host:  # a Unix socket
            resolved.append((host, "", port))
            continue
        try:
            infos = await asyncio.get_running_loop().getaddrinfo(host, None, type=socket.SOCK_STREAM)
        except socket.gaierror as error:
            failure = error
        else:
            random.shuffle(infos)
            resolved += [(host, str(address[0]), port) for *_, address in infos]
    if failure and not resolved:
        raise failure
    host, hostaddr, port = (",".join(column) for column in zip(*resolved, strict=True))
    return parameters | {"host": host, "hostaddr": hostaddr, "port": port}


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


# ---- Migrations -----------------------------------------------------------------------------


@dataclass(frozen=True)
class DatabaseInfo:
    """What the service needs to know of a database.

    `can_prepare` is whether statements can be prepared, because there is no pooler in front of PostgreSQL.
    `upgraded_at` is the time at which the tasks of version 1.0.0 were migrated, or None when there were none.
    """

    can_prepare: bool
    upgraded_at: datetime | None


def create_tables(dsn: str) -> DatabaseInfo:
    """Migrate the database to the newest schema in one transaction (see migrations/env.py).

    Then remove the tasks that were deleted more than 30 days ago. Several processes may call this at once; each
    waits for the others. If the database cannot be reached, retry for STARTUP_TIMEOUT seconds. Raises SystemExit
    with a message when that was not enough, when the database is not in UTF8, or when its schema is newer than
    this version of the service.
    """
    deadline, delays = time.monotonic() + STARTUP_TIMEOUT, chain(RETRY_DELAYS, repeat(RETRY_DELAYS[-1]))
    while True:
        try:
            return _migrate(dsn)
        except (psycopg2.OperationalError, sqlalchemy.exc.OperationalError) as error:
            cause, delay = _one_line(error), next(delays)
            if time.monotonic() + delay > deadline:
                raise SystemExit(f"The database was not ready within {STARTUP_TIMEOUT} seconds: {cause}") from None
            logger.warning("Database unavailable, trying again in %g s: %s", delay, cause)
            time.sleep(delay)


def _migrate(dsn: str) -> DatabaseInfo:
    """Do what `create_tables` does, in one attempt. Raises OperationalError when the database cannot be reached."""
    known = {path.stem.partition("_")[0] for path in (MIGRATIONS / "versions").glob("[0-9]*.py")}
    with closing(_connect(dsn)) as connection, connection.cursor() as cursor:
        # Reading the version table where it does not exist would log an error on the server.
        cursor.execute(f"SELECT current_setting('server_encoding'), to_regclass('{VERSION_TABLE}')")
        ((encoding, table),) = cursor.fetchall()
        if encoding != "UTF8":
            raise SystemExit(
                f"The database has encoding {encoding}, but tasks need UTF8: create a database with ENCODING 'UTF8'."
            )
        version_query = f"SELECT version_num FROM {VERSION_TABLE}" if table else "NULL"  # noqa: S608  # a constant
        cursor.execute(f"SELECT lower('Ä') = 'ä', pg_backend_pid(), ({version_query})")
        ((lowers_all_letters, pid, version),) = cursor.fetchall()
        # A pooler reports a process id of its own when a client connects.
        can_prepare: bool = pid == connection.info.backend_pid
        if version == max(known):  # Alembic is not imported: it takes 8 MB and a quarter of the start-up time
            cursor.execute(f"SELECT upgraded_at FROM {VERSION_TABLE}")  # noqa: S608  # a constant
            ((upgraded_at,),) = cursor.fetchall()
            if not lowers_all_letters:
                logger.warning(
                    "lower('Ä') is not 'ä' in the database: q and sort=title ignore case for English letters only"
                )
            connection.commit()
            _purge(connection)
            return DatabaseInfo(can_prepare, upgraded_at)
    if version is not None and version not in known:
        raise SystemExit(
            f"The database has schema {version}, and this version of the service knows none later than {max(known)}:"
            " start a newer version of the service."
        )

    from alembic import command
    from alembic.config import Config

    config = Config(attributes={"dsn": dsn})
    config.set_main_option("script_location", str(MIGRATIONS))
    command.upgrade(config, max(known))
    return _migrate(dsn)


def _purge(connection: connection) -> None:
    """Remove the deleted tasks of users who have not come back. Of others, each deletion removes the old ones."""
    try:
        with connection, connection.cursor() as cursor:
            cursor.execute(f"SET LOCAL statement_timeout = '{STARTUP_TIMEOUT}s'")
            # SKIP LOCKED: a write that removes the same tasks in another order would deadlock.
            cursor.execute(
                "DELETE FROM tasks USING (SELECT user_id, id FROM tasks WHERE deleted_at < now() - make_interval("
                "days => %s) FOR UPDATE SKIP LOCKED) AS old WHERE tasks.user_id = old.user_id AND tasks.id = old.id",
                [KEPT_DAYS + 1],
            )
    except psycopg2.Error as error:  # a read-only database, say: the next start tries again
        logger.warning("Tasks that were deleted long ago could not be removed: %s", _one_line(error))


def migration_engine(dsn: str) -> Engine:
    """Return a SQLAlchemy engine for migrations. libpq parses `dsn`, as it does for the pool."""
    return create_engine("postgresql+psycopg2://", creator=lambda: _connect(dsn), poolclass=NullPool)


def _connect(dsn: str) -> connection:
    new: connection = psycopg2.connect(**{"connect_timeout": CONNECT_TIMEOUT} | parse_dsn(dsn) | ENCODING)
    return new
