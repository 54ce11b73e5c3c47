"""The one clever room: PostgreSQL without a thread per query, and the tables at start-up.

`Database` is a small pool over psycopg2's asynchronous mode
(https://www.psycopg.org/docs/advanced.html#asynchronous-support). The life of one query:

1. Take a place. There are as many as connections may be open; who comes later waits in line.
2. Take the idle connection that was used last, or open one.
3. Send the statement, wait for the socket, read the rows. The connection is in autocommit, where
   one message is one transaction: there is nothing to begin and nothing to commit. In front of the
   statement, in the same message, goes the time that is left for it, so that the server ends it
   (a closed socket alone ends nothing that waits for a lock). `SET LOCAL` is over with the message
   and so is safe through a pooler that shares connections, where a session's own setting is not.
4. Put the connection back. If anything went wrong it is closed instead, because nobody knows what
   the server still does with it or which answer is under way.

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
from contextlib import closing, suppress
from itertools import chain, cycle, repeat
from pathlib import Path
from typing import Any

import psycopg2
import psycopg2.extras
import sqlalchemy.exc
from psycopg2.errors import QueryCanceled, ReadOnlySqlTransaction
from psycopg2.extensions import POLL_OK, POLL_READ, POLL_WRITE, connection, parse_dsn
from sqlalchemy import Engine, NullPool, create_engine

from queries import Columns, Statement

psycopg2.extras.register_uuid()  # type: ignore[no-untyped-call]

GRACE = 0.5  # seconds: the server is to end a statement first, and so to say that it did nothing

# At start-up, in seconds. A serverless database may have to wake up.
START_TIMEOUT = 30
CONNECT_TIMEOUT = 10
PAUSES = (0.5, 1, 2, 4)  # between attempts; the last one again and again

ENCODING = {"client_encoding": "UTF8"}  # whatever the address, the environment or the role asks for

MIGRATIONS = Path(__file__).resolve().parent / "migrations"
VERSION_TABLE = "tasks_alembic_version"  # other applications have an `alembic_version`, perhaps in this database

logger = logging.getLogger("tasks")


class DatabaseUnavailable(Exception):
    """The database cannot be reached, or did not answer in time. Trying again later may help."""


class Database:
    """A pool of connections. It belongs to the event loop that it is first used on."""

    def __init__(self, dsn: str, *, size: int, timeout: float) -> None:
        """Keep at most `size` connections to `dsn` (in any form that libpq takes). Opens none yet.

        A query gets `timeout` seconds, waiting in line and connecting included.
        """
        target: dict[str, Any] = {"service": os.environ.get("PGSERVICE")} | parse_dsn(dsn)
        if not target["service"]:  # which wins over these
            names = ("host", "hostaddr", "port")  # libpq would take them as well, and then look a host up itself
            target = {name: os.environ.get(f"PG{name.upper()}") for name in names} | target
        # Kerberos would ask its own server while it holds Python's global lock.
        self._target = {"gssencmode": "disable"} | target | ENCODING
        self._size = size
        self._timeout = timeout
        self._places = asyncio.Semaphore(size)
        self._idle: list[_Link] = []
        self._closed = False

    async def fetch(self, statement: Statement[*Columns], **values: object) -> list[tuple[*Columns]]:
        """Run `statement` with `values` in one round trip, and return its rows.

        Raises DatabaseUnavailable when the connection is lost, no answer comes in time, or the
        database takes no writes; a statement whose connection was lost may have been carried out
        or not. Any other psycopg2.Error is a mistake of this service.
        """
        if self._closed:
            raise DatabaseUnavailable("the service is going down")
        deadline = time.monotonic() + self._timeout
        try:
            async with asyncio.timeout(self._timeout + GRACE), self._places:
                return await self._run(statement.sql, statement.constants | values, deadline)
        except (TimeoutError, QueryCanceled) as error:
            if isinstance(error, TimeoutError):
                # Not a word, not even that the statement's time is over: the way there is broken. It
                # is for the idle connections too, and each would cost another request its time.
                self._end_idle()
            raise DatabaseUnavailable(f"no answer within {self._timeout:g} seconds") from None
        except (psycopg2.OperationalError, psycopg2.InterfaceError, ReadOnlySqlTransaction, socket.gaierror) as error:
            # It is not the statement that is wrong: a lost connection, a full disk, no writes for now.
            raise DatabaseUnavailable(_in_one_line(error)) from error

    async def _run(self, sql: str, values: dict[str, Any], deadline: float) -> list[tuple[Any, ...]]:
        link = await self._idle_or_new()
        try:
            left = max(1, int(1000 * (deadline - time.monotonic())))  # 0 would be for ever
            answer = link.cursor()
            answer.execute(f"SET LOCAL statement_timeout = {left}; {sql}", values)
            await link.finish()
            rows = answer.fetchall()
        except BaseException:
            link.end()
            raise
        self._idle.append(link)
        return rows

    async def _idle_or_new(self) -> "_Link":
        """Return the idle connection that was used last, or a new one."""
        while self._idle:
            link: _Link = self._idle.pop()
            # While idle it has nothing to say: if there is something to read, the server has closed it.
            if not link.closed and not _is_ready(link.fileno()):
                return link
            link.end()
        link = psycopg2.connect(**await _with_addresses(self._target), async_=True, connection_factory=_Link)
        try:
            await link.finish()
            link.watch(self._idle)
        except BaseException:
            link.end()
            raise
        return link

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

    def _end_idle(self) -> None:
        while self._idle:
            self._idle.pop().end()


class _Link(connection):
    """A connection of the pool.

    The event loop must never watch a number that by now is somebody else's socket. libpq changes its
    socket while it connects, and closes it as it likes. So until a connection is open, its socket is
    watched for one wait at a time; from then on until `end`, where the loop forgets it before anything
    else can open a socket. (To begin and to end a watch for each query took a quarter of its time.)
    """

    _watched: int | None = None  # the socket
    _waiter: asyncio.Future[None] | None = None  # of a query, for something to read

    def watch(self, idle: list["_Link"]) -> None:
        """Watch the open connection. What there is to read while it is among the idle ends it."""

        def on_readable() -> None:
            if self._waiter is not None and not self._waiter.done():
                self._waiter.set_result(None)
            elif self in idle and _is_ready(fd):  # or it was, until a moment ago
                idle.remove(self)
                self.end()

        fd: int = self.fileno()
        with suppress(NotImplementedError):
            asyncio.get_running_loop().add_reader(fd, on_readable)
            self._watched = fd

    async def finish(self) -> None:
        """Wait until what was asked for, a connection or an answer, is there."""
        while (state := self.poll()) != POLL_OK:
            if self._watched is not None and state == POLL_READ:
                self._waiter = asyncio.get_running_loop().create_future()
                await self._waiter
            else:
                await _until_ready(self.fileno(), write=state == POLL_WRITE)

    def end(self) -> None:
        """Close it, and watch it no more."""
        if self._watched is not None:
            asyncio.get_running_loop().remove_reader(self._watched)
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
        except (psycopg2.OperationalError, sqlalchemy.exc.OperationalError) as error:
            cause = _in_one_line(error)
            if time.monotonic() + pause > deadline:
                raise SystemExit(f"The database was not ready within {START_TIMEOUT} seconds: {cause}") from None
            logger.warning("Database unavailable, trying again in %g s: %s", pause, cause)
            time.sleep(pause)


def _migrate(dsn: str) -> None:
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
        answer.execute(f"SELECT lower('Ä') = 'ä', ({own_version})")
        ((knows_case, version),) = answer.fetchall()
    if not knows_case:
        logger.warning("lower('Ä') is not 'ä' in the database: q and sort=title ignore case for English letters only")
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
