"""The pool: connections, timeouts, lost connections, and the addresses that it connects to."""

import asyncio
import os
import socket
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import psycopg2
import pytest
from psycopg2.extensions import connection, make_dsn, parse_dsn

from database import Database, DatabaseUnavailable, migration_engine
from queries import READY, Statement
from tests.helpers import fetch_value, open_pool, until, until_sleeping, with_application_name
from tests.servers import Relay

SLEEP = Statement[int, str]("SELECT pg_backend_pid(), pg_sleep(%(seconds)s)::text")
FAIL = Statement[int]("SELECT 1 / %(zero)s")
ECHO = Statement[str]("SELECT %(text)s")

COUNT_SESSIONS = "SELECT count(*) FROM pg_stat_activity WHERE application_name = %s"
END_SESSIONS = "SELECT bool_and(pg_terminate_backend(pid, 10000)) FROM pg_stat_activity WHERE application_name = %s"

needs_relay = pytest.mark.skipif(os.name == "nt", reason="the relay connects to a Unix socket")


class NoReaderLoop(asyncio.SelectorEventLoop):
    """An event loop that cannot watch a socket, like the default one on Windows."""

    def add_reader(self, *_: Any) -> None:
        raise NotImplementedError

    def add_writer(self, *_: Any) -> None:
        raise NotImplementedError


@pytest.fixture(params=[asyncio.SelectorEventLoop, NoReaderLoop, "uvloop"], ids=["asyncio", "no add_reader", "uvloop"])
def run(request: pytest.FixtureRequest) -> Callable[[Coroutine[Any, Any, Any]], Any]:
    """A function that runs a coroutine on each kind of event loop."""
    factory = pytest.importorskip("uvloop").new_event_loop if request.param == "uvloop" else request.param

    def run(coroutine: Coroutine[Any, Any, Any]) -> Any:
        with asyncio.Runner(loop_factory=factory) as runner:
            return runner.run(asyncio.wait_for(coroutine, 60))

    return run


@pytest.fixture
def own_url(empty_database: str) -> str:
    """The URL of a database that no other test uses, so that all of its sessions are of this test.

    Query pg_stat_activity through another database: a pooler would use one of these sessions for it.
    """
    return empty_database


@pytest.fixture
def connections(monkeypatch: pytest.MonkeyPatch) -> list[connection]:
    """All connections that the pool has opened, oldest first, including the closed ones.

    Behind a pooler the sessions of the server are those of the pooler, so they are not counted instead.
    """
    opened: list[connection] = []
    connect = psycopg2.connect

    def recording_connect(*arguments: Any, **options: Any) -> connection:
        new: connection = connect(*arguments, **options)
        if options.get("async_"):
            opened.append(new)
        return new

    monkeypatch.setattr(psycopg2, "connect", recording_connect)
    return opened


def close_remote_end(connection: connection) -> None:
    """Make an idle connection look as if the server had closed it."""
    end = socket.socket(fileno=connection.fileno())
    end.shutdown(socket.SHUT_RDWR)
    end.detach()  # libpq closes the socket


def test_no_more_connections_are_open_than_the_size(run: Any, database_url: str, connections: list[connection]) -> None:
    async def scenario() -> None:
        async with open_pool(database_url, size=3) as database:
            await asyncio.gather(*(database.fetch(SLEEP.bind(seconds=0.02)) for _ in range(30)))
            assert len(connections) == 3

    run(scenario())


def test_sequential_queries_use_one_connection(run: Any, database_url: str, connections: list[connection]) -> None:
    async def scenario() -> None:
        async with open_pool(database_url) as database:
            for _ in range(20):
                await database.fetch(READY.bind())
            assert len(connections) == 1

    run(scenario())


def test_queue_and_query_together_end_within_the_timeout(run: Any, database_url: str) -> None:
    async def scenario() -> None:
        async with open_pool(database_url, size=1, timeout=2) as database:
            start = time.monotonic()
            results = await asyncio.gather(
                *(database.fetch(SLEEP.bind(seconds=30)) for _ in range(3)), return_exceptions=True
            )
            assert time.monotonic() - start < 10
            assert [type(result) for result in results] == [DatabaseUnavailable] * 3
            assert await database.fetch(READY.bind()) == [(1,)], "the slot was not released"

    run(scenario())


def test_a_query_that_timed_out_ends_on_the_server(run: Any, own_url: str, database_url: str) -> None:
    url, name = with_application_name(own_url)

    async def scenario() -> None:
        async with open_pool(url, size=2, timeout=0.5) as database:
            for _ in range(6):
                with pytest.raises(DatabaseUnavailable, match=r"within 0\.5 seconds"):
                    await database.fetch(SLEEP.bind(seconds=30))
            await until(lambda: fetch_value(database_url, COUNT_SESSIONS, name) <= 2)

    run(scenario())


def test_a_connection_is_kept_after_statement_timeout(
    run: Any, database_url: str, connections: list[connection]
) -> None:
    async def scenario() -> None:
        async with open_pool(database_url, size=1, timeout=1.2) as database:
            for _ in range(3):
                with pytest.raises(DatabaseUnavailable, match=r"1\.\d s in the database"):
                    await database.fetch(SLEEP.bind(seconds=30))
                assert await database.fetch(READY.bind()) == [(1,)]
            assert [connection.closed for connection in connections] == [0]

    run(scenario())


@pytest.mark.parametrize("cause", ["error", "cancellation"])
def test_a_connection_is_replaced_after_an_error_or_a_cancellation(
    run: Any, database_url: str, connections: list[connection], cause: str
) -> None:
    async def scenario() -> None:
        async with open_pool(database_url, size=1) as database:
            await database.fetch(READY.bind())
            if cause == "error":
                with pytest.raises(psycopg2.errors.DivisionByZero):
                    await database.fetch(FAIL.bind(zero=0))
            else:
                query = asyncio.ensure_future(database.fetch(SLEEP.bind(seconds=30)))
                await until(connections[0].isexecuting)
                query.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await query
            await database.fetch(READY.bind())
            assert [connection.closed for connection in connections] == [1, 0]

    run(scenario())


def test_the_connection_of_a_cancelled_query_is_closed_and_unwatched(own_url: str, database_url: str) -> None:
    url, name = with_application_name(own_url)

    async def scenario() -> None:
        watched = asyncio.get_running_loop()._selector.get_map()  # type: ignore[attr-defined]
        before = set(watched)
        async with open_pool(url) as database:
            query = asyncio.ensure_future(database.fetch(SLEEP.bind(seconds=2)))
            await until_sleeping(database_url, name, 1)
            query.cancel()
            with pytest.raises(asyncio.CancelledError) as kept:  # its traceback refers to the connection
                await query
            assert set(watched) == before
            await until(lambda: fetch_value(database_url, COUNT_SESSIONS, name) == 0)
            assert kept

    with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
        runner.run(scenario())


def test_a_cancelled_waiter_is_skipped_in_the_queue(run: Any, database_url: str) -> None:
    async def scenario() -> None:
        async with open_pool(database_url, size=1) as database:
            first = asyncio.ensure_future(database.fetch(SLEEP.bind(seconds=0.3)))
            second, third = (asyncio.ensure_future(database.fetch(READY.bind())) for _ in range(2))
            await asyncio.sleep(0)
            second.cancel()
            assert await third == [(1,)]
            assert first.done()

    run(scenario())


def test_idle_connections_the_server_closed_are_not_used(
    run: Any, own_url: str, database_url: str, connections: list[connection]
) -> None:
    url, name = with_application_name(own_url)

    async def scenario() -> None:
        async with open_pool(url, size=5) as database:
            before = await asyncio.gather(*(database.fetch(SLEEP.bind(seconds=0.2)) for _ in range(5)))
            assert len(connections) == 5
            assert fetch_value(database_url, END_SESSIONS, name) is True
            after = await asyncio.gather(*(database.fetch(SLEEP.bind(seconds=0.2)) for _ in range(5)))
            assert {rows[0][0] for rows in before}.isdisjoint(rows[0][0] for rows in after)

    run(scenario())


def test_an_idle_connection_the_server_closed_is_closed_at_once(
    run: Any, database_url: str, connections: list[connection]
) -> None:
    async def scenario() -> None:
        async with open_pool(database_url, size=3) as database:
            await asyncio.gather(*(database.fetch(SLEEP.bind(seconds=0.2)) for _ in range(3)))
            for connection in connections:
                close_remote_end(connection)
            if not isinstance(asyncio.get_running_loop(), NoReaderLoop):  # which watches no idle connections
                await until(lambda: all(connection.closed for connection in connections))

    run(scenario())


def test_a_connection_lost_during_a_query_is_unavailable_and_replaced(
    run: Any, own_url: str, database_url: str
) -> None:
    url, name = with_application_name(own_url)

    async def scenario() -> None:
        async with open_pool(url) as database:
            await database.fetch(READY.bind())
            query = asyncio.ensure_future(database.fetch(SLEEP.bind(seconds=30)))
            await until_sleeping(database_url, name, 1)
            assert fetch_value(database_url, END_SESSIONS, name) is True
            with pytest.raises(DatabaseUnavailable):
                await query
            assert await database.fetch(READY.bind()) == [(1,)]

    run(scenario())


def test_closed_idle_connections_do_not_affect_the_open_one(
    run: Any, database_url: str, connections: list[connection]
) -> None:
    async def scenario() -> None:
        async with open_pool(database_url) as database:
            await asyncio.gather(*(database.fetch(SLEEP.bind(seconds=0.2)) for _ in range(3)))
            for connection in connections[1:]:
                close_remote_end(connection)
            await asyncio.gather(*(database.fetch(SLEEP.bind(seconds=0.2)) for _ in range(3)))
            assert [connection.closed for connection in connections] == [0, 1, 1, 0, 0]

    run(scenario())


def test_the_most_recently_used_connection_is_used_next(
    run: Any, database_url: str, connections: list[connection]
) -> None:
    async def scenario() -> None:
        async with open_pool(database_url) as database:
            await asyncio.gather(*(database.fetch(SLEEP.bind(seconds=0.2)) for _ in range(3)))
            used = []
            for _ in range(3):
                query = asyncio.ensure_future(database.fetch(SLEEP.bind(seconds=0.3)))
                await asyncio.sleep(0)  # the query is sent
                used += [connection for connection in connections if connection.isexecuting()]
                await query
            assert used == [used[0]] * 3

    run(scenario())


def test_a_statement_on_a_lost_connection_is_not_sent_again(run: Any, own_url: str, database_url: str) -> None:
    url, name = with_application_name(own_url)
    count = Statement[int, str]("SELECT nextval('sent'), pg_sleep(5)::text")

    async def scenario() -> None:
        async with open_pool(url) as database:
            await database.fetch(READY.bind())
            query = asyncio.ensure_future(database.fetch(count.bind()))
            await until_sleeping(database_url, name, 1)
            assert fetch_value(database_url, END_SESSIONS, name) is True
            with pytest.raises(DatabaseUnavailable):
                await query
            assert fetch_value(own_url, "SELECT nextval('sent')") == 2

    fetch_value(own_url, "CREATE SEQUENCE sent")
    run(scenario())


def test_a_new_connection_replaces_one_that_is_closed(
    run: Any, database_url: str, connections: list[connection]
) -> None:
    async def scenario() -> None:
        async with open_pool(database_url) as database:
            await database.fetch(READY.bind())
            connections[0].close()
            assert await database.fetch(READY.bind()) == [(1,)]
            assert len(connections) == 2

    run(scenario())


def test_statements_and_results_may_exceed_the_socket_buffers(run: Any, database_url: str) -> None:
    async def scenario() -> None:
        async with open_pool(database_url) as database:
            texts = [letter * 5_000_000 for letter in "abc"]
            results = await asyncio.gather(*(database.fetch(ECHO.bind(text=text)) for text in texts))
            assert [rows[0][0].decode() for rows in results] == texts

    run(scenario())


def test_text_is_returned_unchanged(run: Any, database_url: str) -> None:
    async def scenario() -> None:
        async with open_pool(database_url) as database:
            for text in ("ünï🥛", "'; DROP TABLE tasks; --", "%s %(x)s %%", "\\ \\' E'\\n'", "\x01\x1f\x7f"):
                assert await database.fetch(ECHO.bind(text=text)) == [(text.encode(),)]

    run(scenario())


def test_closing_waits_for_running_queries_and_rejects_new_ones(run: Any, database_url: str) -> None:
    async def scenario() -> None:
        url, name = with_application_name(database_url)
        database = Database(url, size=2, timeout=20)
        running = [asyncio.ensure_future(database.fetch(SLEEP.bind(seconds=2))) for _ in range(2)]
        await until_sleeping(database_url, name, 2)
        await database.close()
        assert all(query.done() and query.exception() is None for query in running)
        with pytest.raises(DatabaseUnavailable):
            await asyncio.wait_for(database.fetch(READY.bind()), 5)

    run(scenario())


def test_closing_closes_all_connections(run: Any, database_url: str, connections: list[connection]) -> None:
    async def scenario() -> None:
        database = Database(database_url, size=3, timeout=20)
        await asyncio.gather(*(database.fetch(SLEEP.bind(seconds=0.2)) for _ in range(3)))
        await database.close()
        assert [connection.closed for connection in connections] == [1, 1, 1]

    run(scenario())


def test_a_refused_connection_is_unavailable(run: Any) -> None:
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))  # reserved, but nothing listens on it
        port = reserved.getsockname()[1]

        async def scenario() -> None:
            async with open_pool(f"postgresql://a:secret@127.0.0.1:{port}/b") as database:
                for _ in range(10):  # more often than there are slots
                    with pytest.raises(DatabaseUnavailable, match="refused") as raised:
                        await database.fetch(READY.bind())
                    assert "secret" not in str(raised.value)

        run(scenario())


def test_a_host_that_cannot_be_resolved_is_unavailable(run: Any) -> None:
    async def scenario() -> None:
        async with open_pool("postgresql://a@database.invalid/b") as database:  # never exists (RFC 2606, section 2)
            with pytest.raises(DatabaseUnavailable):
                await database.fetch(READY.bind())

    run(scenario())


@needs_relay
@pytest.mark.parametrize("source", ["DSN", "environment"])
def test_slow_name_resolution_does_not_block_the_event_loop(
    database_url: str, monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    real = socket.getaddrinfo

    def getaddrinfo(host: Any, *arguments: Any, **options: Any) -> Any:
        if host != "database.invalid":
            return real(host, *arguments, **options)
        time.sleep(3)
        return real("127.0.0.1", *arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)

    def dsn_of(relay: Relay) -> str:
        dsn = relay.dsn("database.invalid")
        if source == "DSN":
            return dsn
        monkeypatch.setenv("PGHOST", "database.invalid")
        return make_dsn(**{name: value for name, value in parse_dsn(dsn).items() if name != "host"})

    async def scenario() -> None:
        async with Relay(database_url) as relay, open_pool(dsn_of(relay)) as database:
            query = asyncio.ensure_future(database.fetch(READY.bind()))
            longest, last = 0.0, time.monotonic()
            while not query.done():
                await asyncio.sleep(0.01)
                now = time.monotonic()
                longest, last = max(longest, now - last), now
            assert await query == [(1,)]
            assert longest < 2, "the event loop was blocked while the name was resolved"

    asyncio.run(scenario())


@needs_relay
def test_a_server_that_stops_responding_is_unavailable_within_the_timeout(run: Any, database_url: str) -> None:
    async def scenario() -> None:
        async with Relay(database_url) as relay, open_pool(relay.dsn(), size=1, timeout=1.2) as database:
            await database.fetch(READY.bind())
            relay.silent = True
            for _ in range(3):  # the first on the idle connection, then while connecting
                with pytest.raises(DatabaseUnavailable, match=r"within 1\.2 seconds"):
                    await database.fetch(READY.bind())
            relay.silent = False
            assert await database.fetch(READY.bind()) == [(1,)]

    run(scenario())


@needs_relay
def test_the_first_of_several_hosts_that_responds_is_used(run: Any, database_url: str) -> None:
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        closed_port = reserved.getsockname()[1]

        async def scenario() -> None:
            async with Relay(database_url) as relay:
                dsn = relay.dsn().replace("host=127.0.0.1", "host=127.0.0.1,localhost")
                dsn = dsn.replace(f"port={relay.port}", f"port={closed_port},{relay.port}")
                async with open_pool(dsn) as database:
                    assert await database.fetch(READY.bind()) == [(1,)]

        run(scenario())


@needs_relay
def test_an_unknown_host_does_not_affect_the_others(run: Any, database_url: str) -> None:
    async def scenario() -> None:
        async with Relay(database_url) as relay:
            dsn = relay.dsn().replace("host=127.0.0.1", "host=database.invalid,127.0.0.1")
            async with open_pool(dsn) as database:
                assert await database.fetch(READY.bind()) == [(1,)]

    run(scenario())


@needs_relay
def test_every_address_of_a_host_is_tried(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real = socket.getaddrinfo

    def getaddrinfo(host: Any, *arguments: Any, **options: Any) -> Any:
        if host != "database.invalid":
            return real(host, *arguments, **options)
        return real("127.0.0.2", *arguments, **options) + real("127.0.0.1", *arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)

    async def scenario() -> None:
        async with Relay(database_url) as relay, open_pool(relay.dsn("database.invalid")) as database:
            assert await database.fetch(READY.bind()) == [(1,)]  # the relay listens on the second one

    asyncio.run(scenario())


@needs_relay
def test_a_hostaddr_in_the_dsn_is_not_resolved(run: Any, database_url: str) -> None:
    async def scenario() -> None:
        async with Relay(database_url) as relay:
            dsn = f"{relay.dsn('database.invalid')} hostaddr=127.0.0.1"
            async with open_pool(dsn) as database:
                assert await database.fetch(READY.bind()) == [(1,)]

    run(scenario())


@needs_relay
def test_pghost_and_pgport_are_used_as_in_libpq(run: Any, database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        async with Relay(database_url) as relay:
            monkeypatch.setenv("PGPORT", str(relay.port))
            monkeypatch.setenv("PGHOST", "localhost")
            other = {name: value for name, value in parse_dsn(relay.dsn()).items() if name not in ("host", "port")}
            for host in ({}, {"host": "127.0.0.1"}):
                async with open_pool(make_dsn(**other, **host)) as database:
                    assert await database.fetch(READY.bind()) == [(1,)]
            assert relay.accepted == 2

    run(scenario())


@needs_relay
@pytest.mark.parametrize("source", ["DSN", "environment"])
def test_a_libpq_service_overrides_pghost_and_pgport(
    run: Any, database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    async def scenario() -> None:
        async with Relay(database_url) as relay:
            lines = [f"{name}={value}" for name, value in parse_dsn(relay.dsn()).items()]
            (tmp_path / "services").write_text("\n".join(["[tasks]", *lines, ""]))
            monkeypatch.setenv("PGSERVICEFILE", str(tmp_path / "services"))
            monkeypatch.setenv("PGHOST", "database.invalid")
            monkeypatch.setenv("PGPORT", "1")
            if source == "environment":
                monkeypatch.setenv("PGSERVICE", "tasks")
            url = "postgresql:///" if source == "environment" else "postgresql:///?service=tasks"
            await asyncio.to_thread(connect_for_migrations, url)
            async with open_pool(url) as database:
                assert await database.fetch(READY.bind()) == [(1,)]
            assert relay.accepted == 2

    run(scenario())


@needs_relay
def test_pghostaddr_is_used_instead_of_resolving_the_host(
    run: Any, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        async with Relay(database_url) as relay:
            monkeypatch.setenv("PGHOSTADDR", "127.0.0.1")
            dsn = relay.dsn("database.invalid")
            await asyncio.to_thread(connect_for_migrations, dsn)
            async with open_pool(dsn) as database:
                assert await database.fetch(READY.bind()) == [(1,)]
            assert relay.accepted == 2

    run(scenario())


def connect_for_migrations(dsn: str) -> None:
    """Connect as the migrations do."""
    with migration_engine(dsn).connect() as connection:
        connection.exec_driver_sql("SELECT 1")
