"""The first clever room: PostgreSQL without a thread per query, and the tables at start-up.

`Database` is a small pool over psycopg2's asynchronous mode
(https://www.psycopg.org/docs/advanced.html#asynchronous-support). The life of one query:

1. Acquire a slot. There are as many as connections may be open. `Slots` says who waits for one, in
   which order and how long.
2. Take the idle connection that was used last, or open one.
3. Send the statement, wait for the socket, read the rows: one message there, one back. The connection
   is in autocommit, where one message is one transaction. The message has up to three parts: the time
   that is left for the statement, so that the server ends it (a closed socket alone ends nothing that
   waits for a lock); `PREPARE`, when this connection has not seen the statement before; and the
   statement itself, or `EXECUTE`.
4. Put the connection back. If anything went wrong it is closed instead, because nobody knows what the
   server still does with it. Only an error that the server itself reported in time leaves it in order.

All of it together ends within `timeout` seconds, or `GRACE` later if the server falls silent.
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

from queries import Columns, Query

psycopg2.extras.register_uuid()  # type: ignore[no-untyped-call]

GRACE = 0.5  # seconds: the server is to end a statement first, and so to say that it did nothing
TIMEOUT_STEP = 0.1  # seconds: statement_timeout is a multiple, so that few texts of a message differ
MAX_PREPARED = 100  # statements prepared on one connection: each costs the server some 50 KB
DISCONNECT_CHECK_DELAY = 0.1  # seconds in line after which it is worth a look whether the client is still there
SWEEP_INTERVAL = 0.05  # seconds between two looks for what takes too long
SMALL = 4096  # bytes: less than any socket's buffer
TEXT = 25  # the OID of PostgreSQL's type text
# What PostgreSQL may say to EXECUTE when it has lost the statement, or the tables have changed since.
STALE = (InvalidSqlStatementName, DuplicatePreparedStatement, FeatureNotSupported, DatatypeMismatch, InternalError_)

# At start-up, in seconds. A serverless database may have to wake up.
STARTUP_TIMEOUT = 30
CONNECT_TIMEOUT = 10
RETRY_DELAYS = (0.5, 1, 2, 4)  # between attempts; the last one again and again

ENCODING = {"client_encoding": "UTF8"}  # whatever the address, the environment or the role asks for

MIGRATIONS = Path(__file__).resolve().parent / "migrations"
VERSION_TABLE = "tasks_alembic_version"  # other applications have an `alembic_version`, perhaps in this database

logger = logging.getLogger("tasks")


class DatabaseUnavailable(Exception):
    """The database cannot be reached, or did not respond in time. Trying again later may help."""


class _Waiter:
    """A request in line for a slot. `ahead` is how many were in its line before it."""

    __slots__ = ("ahead", "counted", "future", "since")

    def __init__(self) -> None:
        self.since = time.monotonic()
        self.future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.ahead = 0
        self.counted = False  # whether it is one of the user's share

    def refuse(self) -> None:
        """Tell it that there will be no slot in time."""
        if not self.future.done():
            seconds = time.monotonic() - self.since
            self.future.set_exception(
                DatabaseUnavailable(f"no slot after {seconds:.1f} seconds in line, behind {self.ahead} others")
            )


class _Line:
    """Requests that wait: first in, first out, as long as each is served in time.

    When its head has waited for four fifths of what it may, first in, first out would go on to serve
    whoever has nearly given up. From then on, until the line is empty, it is last in, first out: whoever
    came last still has a client that waits ("Fail at Scale", ACM Queue, 2015). And whoever cannot be
    served any more, at the pace since then, is refused at once, the oldest first.
    """

    def __init__(self, timeout: float) -> None:
        self._limit = timeout / 2  # seconds that one may wait
        self._waiters: deque[_Waiter] = deque()
        self._overloaded_at: float | None = None  # by time.monotonic()
        self._served = 0  # since then

    def join(self, waiter: _Waiter) -> None:
        """Let a waiter stand in line."""
        waiter.ahead = len(self._waiters)
        self._waiters.append(waiter)

    def next(self) -> _Waiter | None:
        """Take out whose turn it is."""
        while self._waiters and self._waiters[0].future.done():  # refused, or its request was cancelled
            self._waiters.popleft()
        if not self._waiters:
            self._overloaded_at = None
            return None
        now = time.monotonic()
        if self._overloaded_at is None and now - self._waiters[0].since > 0.8 * self._limit:
            self._overloaded_at, self._served = now, 0
        if self._overloaded_at is not None:
            self._shed(now - self._overloaded_at)
        while self._waiters:
            waiter = self._waiters.popleft() if self._overloaded_at is None else self._waiters.pop()
            if not waiter.future.done():
                self._served += 1
                return waiter
        return None

    def _shed(self, seconds: float) -> None:
        if seconds > 0.2 * self._limit:  # before that, too little is seen of the pace
            hope = max(1, int(self._served / seconds * self._limit))
            while len(self._waiters) > hope:
                self._waiters.popleft().refuse()

    def refuse_late(self) -> None:
        """Refuse whoever has waited for half the timeout."""
        latest = time.monotonic() - self._limit
        for waiter in self._waiters:
            if waiter.since < latest:
                waiter.refuse()


class Slots:
    """Hands out slots, at most a quarter of them to one user.

    Further requests of a user wait in a line of their own, and never in front of another user. A
    request without a user (health) goes before all others.
    """

    def __init__(self, size: int, timeout: float) -> None:
        self._size = self._free = size
        self._share = max(1, size // 4)
        self._timeout = timeout
        self._first, self._line = _Line(timeout), _Line(timeout)
        self._own_lines: dict[str, _Line] = {}
        self._counts: dict[str, int] = {}  # of each user: the slots, and the waiters in `_line`

    def try_acquire(self, user: str | None) -> bool:
        """Take a free slot, if there is one that the user may have."""
        if not self._free or not self._count(user):
            return False
        self._free -= 1
        return True

    async def acquire(self, user: str | None) -> _Waiter:
        """Wait for a slot. Raises DatabaseUnavailable when there is none in time."""
        waiter = _Waiter()
        if user is None:
            self._first.join(waiter)
        elif self._count(user):
            waiter.counted = True
            self._line.join(waiter)
        else:
            self._own_lines.setdefault(user, _Line(self._timeout)).join(waiter)
        try:
            await waiter.future
        except BaseException:
            if waiter.future.done() and not waiter.future.cancelled() and waiter.future.exception() is None:
                self.release(user)  # the slot and the end of the request came at once
            elif waiter.counted:
                self._uncount(user)
                self._hand_out()
            raise
        return waiter

    def release(self, user: str | None) -> None:
        """Give a slot back, and to whoever is next in line."""
        self._free += 1
        self._uncount(user)
        self._hand_out()

    def refuse_late(self) -> None:
        """Refuse whoever has waited for too long. To be called now and again."""
        for line in (self._first, self._line, *self._own_lines.values()):
            line.refuse_late()

    @property
    def idle(self) -> bool:
        """Whether nobody has a slot or waits for one."""
        return self._free == self._size

    def _count(self, user: str | None) -> bool:
        """Count one more request of the user, if their share allows it."""
        if user is None:
            return True
        count = self._counts.get(user, 0)
        if count >= self._share:
            return False
        self._counts[user] = count + 1
        return True

    def _uncount(self, user: str | None) -> None:
        """Count one request of the user less, or let the next of their own line take its place."""
        if user is None:
            return
        if own := self._own_lines.get(user):
            if waiter := own.next():
                waiter.counted = True
                self._line.join(waiter)
                return
            del self._own_lines[user]
        if self._counts[user] == 1:
            del self._counts[user]
        else:
            self._counts[user] -= 1

    def _hand_out(self) -> None:
        while self._free and (waiter := self._first.next() or self._line.next()):
            self._free -= 1
            waiter.future.set_result(None)


class Database:
    """A pool of connections. It belongs to the event loop that it is first used on."""

    def __init__(self, dsn: str, *, size: int, timeout: float, direct: bool = False) -> None:
        """Keep at most `size` connections to `dsn` (in any form that libpq takes). Opens none yet.

        A query gets `timeout` seconds, waiting in line and connecting included. `direct` says
        that each connection is one session of PostgreSQL, and no pooler lends them by the transaction.
        """
        target: dict[str, Any] = {"service": os.environ.get("PGSERVICE")} | parse_dsn(dsn)
        if not target["service"]:  # which wins over these
            names = ("host", "hostaddr", "port")  # libpq would take them as well, and then look a host up itself
            target = {name: os.environ.get(f"PG{name.upper()}") for name in names} | target
        # Kerberos would ask its own server while it holds Python's global lock.
        self._target = {"gssencmode": "disable", "application_name": "tasks"} | target | ENCODING
        self._timeout = timeout
        self._direct = direct
        self._slots = Slots(size, timeout)
        self._idle: list[_Connection] = []
        self._busy: set[_Connection] = set()
        self._sweeping: asyncio.TimerHandle | None = None
        self._drained: asyncio.Event | None = None  # once the pool is closing

    async def fetch(
        self, query: Query[*Columns], disconnected: Callable[[], Awaitable[bool]] | None = None
    ) -> list[tuple[*Columns]]:
        """Run a query in one round trip, and return its rows. Text arrives as bytes, in UTF-8.

        `disconnected` tells whether the client has gone. It is asked after some time in line, because
        a statement for nobody costs somebody else their turn.

        Raises DatabaseUnavailable when there is no slot or no response in time, the connection is
        lost, or the database takes no writes; a statement whose connection was lost may have been
        carried out or not. Raises ClientDisconnect when the client has gone. Any other
        psycopg2.Error is a mistake of this service.
        """
        if self._drained:
            raise DatabaseUnavailable("shutting down")
        if not self._sweeping:
            self._sweeping = asyncio.get_running_loop().call_later(SWEEP_INTERVAL, self._sweep)
        user = query.values.get("user_id")
        begin = time.monotonic()
        waiter = None if self._slots.try_acquire(user) else await self._slots.acquire(user)
        start = time.monotonic() if waiter else begin
        try:
            if start - begin > DISCONNECT_CHECK_DELAY and disconnected and await disconnected():
                raise ClientDisconnect
            return await self._run(query, begin + self._timeout)
        except (TimeoutError, QueryCanceled) as error:
            if isinstance(error, TimeoutError):
                # Not a word, not even that the statement's time is over: the way there is broken. It
                # is for the idle connections too, and each would cost another request its time.
                self._close_idle()
            line = f"{start - begin:.1f} s in line behind {waiter.ahead} others, " if waiter else ""
            worked = f"{line}{time.monotonic() - start:.1f} s in the database"
            raise DatabaseUnavailable(f"no response within {self._timeout:g} seconds: {worked}") from None
        except (psycopg2.OperationalError, psycopg2.InterfaceError, ReadOnlySqlTransaction, socket.gaierror) as error:
            # It is not the statement that is wrong: a lost connection, a full disk, no writes for now.
            raise DatabaseUnavailable(_in_one_line(error)) from error
        finally:
            self._slots.release(user)
            if self._drained and self._slots.idle:
                self._drained.set()

    async def _run(self, query: Query[*Columns], deadline: float) -> list[tuple[Any, ...]]:
        connection = await self._idle_or_new(deadline)
        self._busy.add(connection)
        try:
            rows = await connection.run(query, deadline, direct=self._direct)
        except QueryCanceled:
            if not connection.closed:  # the server itself has ended the statement, in time
                self._idle.append(connection)
            raise
        except BaseException:
            connection.end()
            raise
        finally:
            self._busy.discard(connection)
        self._idle.append(connection)
        return rows

    def _sweep(self) -> None:
        """End what takes too long, in line and on connections: one timer for all, as one for each would cost more."""
        self._slots.refuse_late()
        now = time.monotonic()
        for busy in self._busy:
            if now > busy.deadline + GRACE:
                busy.wake(TimeoutError())
        self._sweeping = (
            None if self._slots.idle else asyncio.get_running_loop().call_later(SWEEP_INTERVAL, self._sweep)
        )

    async def _idle_or_new(self, deadline: float) -> "_Connection":
        """Return the idle connection that was used last, or a new one."""
        while self._idle:
            connection = self._idle.pop()
            # While idle it has nothing to say: if there is something to read, the server has closed it.
            if not connection.closed and not _is_ready(connection.fileno()):
                return connection
            connection.end()
        async with asyncio.timeout(deadline + GRACE - time.monotonic()):
            target = await _with_addresses(self._target)
            new: _Connection = psycopg2.connect(**target, async_=True, connection_factory=_Connection)
            try:
                await new.open()
                new.watch(self._idle)
            except BaseException:
                new.end()
                raise
        return new

    async def close(self) -> None:
        """Wait for the queries in flight and in line, then close every connection.

        From now on `fetch` raises DatabaseUnavailable at once.
        """
        if self._drained:
            return
        self._drained = asyncio.Event()
        if not self._slots.idle:
            await self._drained.wait()
        self._close_idle()

    def _close_idle(self) -> None:
        while self._idle:
            self._idle.pop().end()


class _Connection(connection):
    """A connection of the pool.

    The event loop must never watch a number that by now is somebody else's socket. libpq changes its
    socket while it connects, and closes it as it likes. So until a connection is open, its socket is
    watched for one wait at a time; from then on until `end`, where the loop forgets it before anything
    else can open a socket. (To begin and to end a watch for each query took a quarter of its time.)
    """

    _watched: int | None = None  # the socket
    _waiter: asyncio.Future[None] | None = None  # of a query, for the socket
    _statement_timeout: int | None = None  # of this session, in milliseconds; None when it is not known
    _prepared: set[str]
    _loop: asyncio.AbstractEventLoop
    deadline: float  # of the query, by time.monotonic()

    async def open(self) -> None:
        """Wait until the connection is there."""
        self._prepared = set()
        self._loop = asyncio.get_running_loop()
        while (state := self.poll()) != POLL_OK:
            await _until_ready(self.fileno(), write=state == POLL_WRITE)
        self.string_types[TEXT] = BYTES  # what is text in a row goes to the client as it is

    def watch(self, idle: list["_Connection"]) -> None:
        """Watch the open connection. What there is to read while it is among the idle ends it."""

        def on_readable() -> None:
            if self._waiter is not None:
                self.wake()
            elif self in idle and _is_ready(fd):  # or it was, until a moment ago
                idle.remove(self)
                self.end()

        fd: int = self.fileno()
        with suppress(NotImplementedError):
            self._loop.add_reader(fd, on_readable)
            self._watched = fd

    async def run(self, query: Query[*Columns], deadline: float, *, direct: bool) -> list[tuple[Any, ...]]:
        """Send a query in one message, and return its rows. Raises TimeoutError when the server falls silent."""
        statement, first_use = query.statement, False
        text = statement.sql
        if direct and statement.prepare:
            if statement.name in self._prepared:
                text = statement.execute
            elif len(self._prepared) < MAX_PREPARED:
                text, first_use = f"{statement.prepare}; {statement.execute}", True
        try:
            rows = await self._send(text, query.values, deadline, direct)
        except STALE:
            if text is statement.sql:
                raise
            # The server has refused it before it did anything: after DISCARD ALL or a change of the tables.
            self._prepared.clear()
            text, first_use = f"DEALLOCATE ALL; {statement.prepare}; {statement.execute}", True
            rows = await self._send(text, query.values, deadline, direct)
        except QueryCanceled:
            if first_use:  # nobody knows whether it is prepared now
                self.end()
            raise
        if first_use:
            self._prepared.add(statement.name)
        return rows

    async def _send(self, text: str, values: dict[str, Any], deadline: float, direct: bool) -> list[tuple[Any, ...]]:
        self.deadline, seconds = deadline, deadline - time.monotonic()
        # Rounded up, because 0 would be for ever.
        timeout = max(1, ceil(seconds / TIMEOUT_STEP)) * int(1000 * TIMEOUT_STEP)
        if not direct:
            text = f"SET LOCAL statement_timeout = {timeout}; {text}"
        elif timeout != self._statement_timeout:
            text = f"SET statement_timeout = {timeout}; {text}"
            self._statement_timeout = None  # an error would take it back
        cursor = self.cursor()
        cursor.execute(text, values)
        # What fits into the empty buffer of a socket is sent by now: there is no need to ask.
        state = POLL_READ if self._watched is not None and len(cursor.query or b"") <= SMALL else self.poll()
        if state != POLL_OK:
            await self._finish(state)
        rows: list[tuple[Any, ...]] = cursor.fetchall()
        self._statement_timeout = timeout
        return rows

    async def _finish(self, state: int) -> None:
        """Wait for the response. Raises TimeoutError when the server falls silent."""
        if self._watched is None:
            async with asyncio.timeout(self.deadline + GRACE - time.monotonic()):
                while state != POLL_OK:
                    await _until_ready(self.fileno(), write=state == POLL_WRITE)
                    state = self.poll()
            return
        try:
            while state != POLL_OK:
                self._waiter = self._loop.create_future()
                if state == POLL_WRITE:
                    self._loop.add_writer(self._watched, self.wake)
                await self._waiter
                if state == POLL_WRITE:
                    self._loop.remove_writer(self._watched)
                state = self.poll()
        finally:
            self._waiter = None

    def wake(self, error: Exception | None = None) -> None:
        """Let a query that waits for the socket go on, or end it with an error."""
        if self._waiter is None or self._waiter.done():
            return
        if error:
            self._waiter.set_exception(error)
        else:
            self._waiter.set_result(None)

    def end(self) -> None:
        """Close it, and watch it no more."""
        if self._watched is not None:
            self._loop.remove_reader(self._watched)
            self._loop.remove_writer(self._watched)
            self._watched = None
        self.close()


async def _until_ready(fd: int, *, write: bool) -> None:
    """Wait until the socket can be written to, or else read from."""
    loop = asyncio.get_running_loop()
    watch, unwatch = (loop.add_writer, loop.remove_writer) if write else (loop.add_reader, loop.remove_reader)
    ready = asyncio.Event()
    try:
        watch(fd, ready.set)
    except NotImplementedError:  # the event loop that is usual on Windows
        while not _is_ready(fd, write=write):  # noqa: ASYNC110  # nobody would set an event
            await asyncio.sleep(0.005)
        return
    try:
        await ready.wait()
    finally:
        unwatch(fd)


def _is_ready(fd: int, *, write: bool = False) -> bool:
    """Whether the socket can be written to, or else read from, its end included. Does not wait."""
    if sys.platform == "win32":  # where the third list tells of a connection that was refused
        return any(select.select([] if write else [fd], [fd] if write else [], [fd], 0))
    poll = select.poll()  # select() takes no socket above 1,023
    poll.register(fd, select.POLLOUT if write else select.POLLIN)
    return bool(poll.poll(0))


async def _with_addresses(target: dict[str, Any]) -> dict[str, Any]:
    """Return `target` with the addresses of its hosts.

    libpq would look the names up while it holds Python's global lock, which stops every other
    request. A host with two addresses becomes two hosts with one each, which libpq tries in turn; in
    any order, so that one which is silent does not stand before the others every time. The name stays
    beside its address, for TLS and the password file. Raises socket.gaierror when no host has an
    address.
    """
    if target["service"] or not target["host"] or target["hostaddr"]:  # what a service holds, libpq alone knows
        return target
    found: list[tuple[str, str, str]] = []
    unknown = None
    for host, port in zip(target["host"].split(","), cycle((target["port"] or "").split(",")), strict=False):
        if host.startswith(("/", "@")) or not host:  # a Unix socket
            found.append((host, "", port))
            continue
        try:
            answers = await asyncio.get_running_loop().getaddrinfo(host, None, type=socket.SOCK_STREAM)
        except socket.gaierror as error:
            unknown = error
        else:
            random.shuffle(answers)
            found += [(host, str(address[0]), port) for *_, address in answers]
    if unknown and not found:
        raise unknown
    hosts, addresses, ports = (",".join(column) for column in zip(*found, strict=True))
    return target | {"host": hosts, "hostaddr": addresses, "port": ports}


def _in_one_line(error: Exception) -> str:
    return " ".join(str(error).split())


# ---- The tables -----------------------------------------------------------------------------


def engine(dsn: str) -> Engine:
    """SQLAlchemy's way to `dsn`, for migrations alone. libpq reads the URL, as it does elsewhere."""
    return create_engine("postgresql+psycopg2://", creator=lambda: _connected(dsn), poolclass=NullPool)


def _connected(dsn: str) -> connection:
    link: connection = psycopg2.connect(**{"connect_timeout": CONNECT_TIMEOUT} | parse_dsn(dsn) | ENCODING)
    return link


def create_tables(dsn: str) -> bool:
    """Bring the database to the newest schema, in one transaction (see migrations/env.py).

    Returns whether a connection is a session of PostgreSQL's own, with no pooler in between.
    Processes that start at once wait for one another. A database that cannot be reached is asked
    again for STARTUP_TIMEOUT seconds. Raises SystemExit with one sentence when that was not enough,
    or when the schema is newer than this code.
    """
    deadline, pauses = time.monotonic() + STARTUP_TIMEOUT, chain(RETRY_DELAYS, repeat(RETRY_DELAYS[-1]))
    while True:
        try:
            return _migrate(dsn)
        except (psycopg2.OperationalError, sqlalchemy.exc.OperationalError) as error:
            cause, pause = _in_one_line(error), next(pauses)
            if time.monotonic() + pause > deadline:
                raise SystemExit(f"The database was not ready within {STARTUP_TIMEOUT} seconds: {cause}") from None
            logger.warning("Database unavailable, trying again in %g s: %s", pause, cause)
            time.sleep(pause)


def _migrate(dsn: str) -> bool:
    known = {path.stem.partition("_")[0] for path in (MIGRATIONS / "versions").glob("[0-9]*.py")}
    with closing(_connected(dsn)) as link, link.cursor() as answer:
        # Asking the version table itself, where there is none, would be an error in the server's log.
        answer.execute(f"SELECT current_setting('server_encoding'), to_regclass('{VERSION_TABLE}')")
        ((encoding, table),) = answer.fetchall()
        if encoding != "UTF8":
            raise SystemExit(
                f"The database has encoding {encoding}, and a task may hold any text, which takes UTF8:"
                " create a database with ENCODING 'UTF8'."
            )
        own_version = f"SELECT version_num FROM {VERSION_TABLE}" if table else "NULL"  # noqa: S608  # a constant
        answer.execute(f"SELECT lower('Ä') = 'ä', pg_backend_pid(), ({own_version})")
        ((knows_case, pid, version),) = answer.fetchall()
        direct: bool = pid == link.info.backend_pid  # a pooler tells a number of its own
    if not knows_case:
        logger.warning("lower('Ä') is not 'ä' in the database: q and sort=title ignore case for English letters only")
    if version == max(known):
        return direct  # without Alembic, which takes 8 MB and a quarter of the time of a start
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
    return direct
