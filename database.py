"""The one clever room: PostgreSQL without a thread per query, and the tables at start-up.

`Database` is a small pool over psycopg2's asynchronous mode
(https://www.psycopg.org/docs/advanced.html#asynchronous-support). The life of one query:

1. Take a place. There are as many as connections may be open; who comes later waits in line.
2. Take the idle connection that was used last, or open one. An idle connection has nothing to
   say: one whose socket is readable has been closed by the server, and is dropped unasked.
3. Send the statement, wait for the socket, read the rows. The connection is in autocommit, where
   one message is one transaction: there is nothing to begin and nothing to commit. In front of the
   statement, in the same message, goes the time that is left for it, so that the server ends it
   (a closed socket alone ends nothing that waits for a lock). `SET LOCAL` is over with the message
   and so is safe through a pooler that shares connections, where a session's own setting is not.
4. Put the connection back. If anything went wrong it is closed instead, because nobody knows what
   the server still does with it or which answer is under way.

All of it together ends within `timeout` seconds, or `GRACE` later if the server falls silent.

Two things must never happen here. The event loop must not watch a number that by now is somebody
else's socket: libpq closes its socket as it likes, and while it connects it changes it. So until a
connection is open its socket is watched for one wait at a time; from then on it is watched until
`_Link.end`, where the loop forgets it before anything else can open a socket. (To begin and to end
a watch for each query took a quarter of the time of a query.) And psycopg2's `connect(async_=True)`
looks up the host name while it holds Python's global lock, so that even in a thread it would stop
every other request; therefore libpq is given addresses that the event loop has looked up.
"""

import asyncio
import logging
import os
import random
import select
import socket
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import chain, repeat
from pathlib import Path
from typing import Any, TypeVarTuple

import psycopg2
import psycopg2.extras
from psycopg2.errors import QueryCanceled, ReadOnlySqlTransaction
from psycopg2.extensions import POLL_OK, POLL_READ, POLL_WRITE, connection, cursor, parse_dsn
from sqlalchemy import Engine, NullPool, create_engine, text
from sqlalchemy.exc import OperationalError

from queries import Statement

Columns = TypeVarTuple("Columns")

psycopg2.extras.register_uuid()  # type: ignore[no-untyped-call]

GRACE = 0.5  # seconds: the server is to end a statement first, and so to say that it did nothing

# At start-up, in seconds. A serverless database may have to wake up.
START_TIMEOUT = 30
CONNECT_TIMEOUT = 10
PAUSES = (0.5, 1, 2, 4)  # between attempts; the last one again and again

MIGRATIONS = Path(__file__).resolve().parent / "migrations"

logger = logging.getLogger("tasks")


class DatabaseUnavailable(Exception):
    """The database cannot be reached, or did not answer in time. Trying again later may help."""


# What psycopg2 raises when it is the database that cannot, and not the statement that is wrong:
# a lost connection, a full disk, a server that takes no writes for now.
UNAVAILABLE = (psycopg2.OperationalError, psycopg2.InterfaceError, ReadOnlySqlTransaction, socket.gaierror)


class Database:
    """A pool of connections. It belongs to the event loop that it is first used on."""

    def __init__(self, dsn: str, *, size: int, timeout: float) -> None:
        """Keep at most `size` connections to `dsn` (in any form that libpq takes). Opens none yet.

        A query gets `timeout` seconds, waiting in line and connecting included.
        """
        # Kerberos would ask its own server while it holds Python's global lock.
        self._target: dict[str, Any] = {"client_encoding": "UTF8", "gssencmode": "disable"} | parse_dsn(dsn)
        self._size = size
        self._timeout = timeout
        self._places = asyncio.Semaphore(size)
        self._idle: list[_Link] = []
        self._closed = False
        self._threads = ThreadPoolExecutor(size, "database")  # starts no thread before it must

    async def fetch(self, statement: Statement[*Columns], **values: object) -> list[tuple[*Columns]]:
        """Run `statement` with `values` in one round trip, and return its rows.

        Raises DatabaseUnavailable when the connection is lost, no answer comes in time, or the
        database takes no writes; a statement whose connection was lost may have been carried out
        or not. Any other psycopg2.Error is a mistake of this service.
        """
        if self._closed:
            raise DatabaseUnavailable("the service is going down")
        deadline = asyncio.get_running_loop().time() + self._timeout
        try:
            async with asyncio.timeout(self._timeout + GRACE), self._places:
                return await self._run(statement.sql, statement.constants | values, deadline)
        except (TimeoutError, QueryCanceled) as error:
            if isinstance(error, TimeoutError):
                # Not a word, not even that the statement's time is over: the way there is broken. It
                # is for the idle connections too, and each would cost another request its time.
                self._end_idle()
            raise DatabaseUnavailable(f"no answer within {self._timeout:g} seconds") from None
        except UNAVAILABLE as error:
            raise DatabaseUnavailable(_in_one_line(error)) from error

    async def close(self) -> None:
        """Wait for the queries in flight and in line, then close every connection.

        From now on `fetch` raises DatabaseUnavailable at once.
        """
        if self._closed:
            return
        self._closed = True
        for _ in range(self._size):
            await self._places.acquire()
        self._end_idle()
        self._threads.shutdown(wait=False)

    def _end_idle(self) -> None:
        while self._idle:
            self._idle.pop().end()

    async def _run(self, sql: str, values: dict[str, Any], deadline: float) -> list[tuple[Any, ...]]:
        link = self._idle_link() or await self._connect()
        try:
            try:
                answer = _send(link, sql, values, deadline)
            except (psycopg2.OperationalError, psycopg2.InterfaceError):
                # It never left, so it is safe to send it again. Most failures to send come to light
                # only when the answer is read, and then nobody knows whether it has left.
                link.end()
                link = await self._connect()
                answer = _send(link, sql, values, deadline)
            await self._finish(link)
            rows = answer.fetchall()
        except BaseException:
            link.end()
            raise
        self._idle.append(link)
        return rows

    def _idle_link(self) -> "_Link | None":
        while self._idle:
            link = self._idle.pop()
            if link.closed or not _is_readable(link.fileno()):  # a closed one has no socket to ask; sending tells
                return link
            link.end()
        return None

    async def _connect(self) -> "_Link":
        target = self._target | await _addresses(self._target)
        link: _Link = psycopg2.connect(**target, async_=True, connection_factory=_Link)
        try:
            await self._finish(link)
            link.watch(self._idle)
        except BaseException:
            link.end()
            raise
        return link

    async def _finish(self, link: "_Link") -> None:
        """Wait until what `link` was asked for, a connection or an answer, is there."""
        while (state := link.poll()) != POLL_OK:
            if link.watched is not None and state == POLL_READ:
                await link.readable()
            else:
                await self._socket(link.fileno(), write=state == POLL_WRITE)

    async def _socket(self, fd: int, *, write: bool) -> None:
        """Wait until the socket can be written to, or else read from."""
        loop = asyncio.get_running_loop()
        watch, unwatch = (loop.add_writer, loop.remove_writer) if write else (loop.add_reader, loop.remove_reader)
        ready: asyncio.Future[None] = loop.create_future()
        try:
            watch(fd, _wake, ready)
        except NotImplementedError:  # the event loop that is usual on Windows
            readable, writable = ([], [fd]) if write else ([fd], [])
            # In short turns: a thread cannot be cancelled, and the next query may need it. Windows
            # tells of a connection that was refused in the third list.
            while not any(await loop.run_in_executor(self._threads, select.select, readable, writable, writable, 0.1)):
                pass
            return
        try:
            await ready
        finally:
            unwatch(fd)


class _Link(connection):
    """A connection of the pool. Once it is open, the event loop watches its socket until its end."""

    watched: int | None = None  # the socket
    _waiter: asyncio.Future[None] | None = None

    def watch(self, idle: list["_Link"]) -> None:
        """Watch the socket from now on. What there is to read without a query in flight ends the link."""

        def on_readable() -> None:
            if self._waiter is not None and not self._waiter.done():
                self._waiter.set_result(None)
            elif self in idle and _is_readable(fd):  # or it was, until a moment ago
                idle.remove(self)
                self.end()

        fd: int = self.fileno()
        with suppress(NotImplementedError):
            asyncio.get_running_loop().add_reader(fd, on_readable)
            self.watched = fd

    async def readable(self) -> None:
        self._waiter = asyncio.get_running_loop().create_future()
        await self._waiter

    def end(self) -> None:
        """Close it. The loop must forget the socket at once: its number soon belongs to another."""
        if self.watched is not None:
            asyncio.get_running_loop().remove_reader(self.watched)
            self.watched = None
        self.close()


def _wake(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)


def _send(link: connection, sql: str, values: dict[str, Any], deadline: float) -> cursor:
    left = max(1, int(1000 * (deadline - asyncio.get_running_loop().time())))  # 0 would be for ever
    answer = link.cursor()
    answer.execute(f"SET LOCAL statement_timeout = {left}; {sql}", values)
    return answer


def _in_one_line(error: object) -> str:
    return " ".join(str(error).split())


def _is_readable(fd: int) -> bool:
    """Whether there is something to read, the end included. Asks the kernel, does not wait."""
    if sys.platform == "win32":
        return bool(select.select([fd], [], [], 0)[0])
    poll = select.poll()  # select() takes no socket above 1,023
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(0))


async def _addresses(target: dict[str, Any]) -> dict[str, str]:
    """Look up the hosts of `target`: what to add so that libpq need not do it.

    A host with two addresses becomes two hosts with one each, which libpq tries in turn; in any
    order, so that one which is silent does not stand before the others every time. The name stays
    beside its address, for TLS and the password file. Raises socket.gaierror when no host has an
    address.
    """
    hosts = target.get("host") or os.environ.get("PGHOST", "")
    if not hosts or "hostaddr" in target:
        return {}
    ports = (target.get("port") or os.environ.get("PGPORT", "")).split(",")
    found: list[tuple[str, str, str]] = []
    unknown = None
    for number, host in enumerate(hosts.split(",")):
        port = ports[number % len(ports)]
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
    names, addresses, ports_found = (",".join(column) for column in zip(*found, strict=True))
    return {"host": names, "hostaddr": addresses, "port": ports_found}


# ---- The tables -----------------------------------------------------------------------------


def engine(dsn: str) -> Engine:
    """SQLAlchemy's way to `dsn`, for migrations alone. libpq reads the URL, as it does elsewhere."""
    target = {"connect_timeout": CONNECT_TIMEOUT} | parse_dsn(dsn)
    return create_engine("postgresql+psycopg2://", creator=lambda: psycopg2.connect(**target), poolclass=NullPool)


def create_tables(dsn: str) -> None:
    """Bring the database to the newest schema, in one transaction (see migrations/env.py).

    Processes that start at once wait for one another. A database that cannot be reached is asked
    again for START_TIMEOUT seconds. Raises SystemExit with one sentence when that was not enough,
    or when the schema is newer than this code.
    """
    deadline = time.monotonic() + START_TIMEOUT
    for pause in chain(PAUSES, repeat(PAUSES[-1])):
        try:
            _migrate(dsn)
            return
        except OperationalError as error:
            cause = _in_one_line(error.orig)
            if time.monotonic() + pause > deadline:
                raise SystemExit(f"The database was not ready within {START_TIMEOUT} seconds: {cause}") from None
            logger.warning("Database unavailable, trying again in %g s: %s", pause, cause)
            time.sleep(pause)


def _migrate(dsn: str) -> None:
    known = {path.stem.partition("_")[0] for path in (MIGRATIONS / "versions").glob("[0-9]*.py")}
    version = None
    with engine(dsn).connect() as link:
        if link.scalar(text("SELECT to_regclass('alembic_version')")):  # else to ask it is an error in the server's log
            version = link.scalar(text("SELECT version_num FROM alembic_version"))
    if version == max(known):
        return  # without Alembic, which takes 8 MB and a quarter of the time of a start
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
