"""The pool: what it promises to the rest of the service."""

import asyncio
import os
import socket
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg2
import pytest
from psycopg2.extensions import connection, make_dsn, parse_dsn

from database import Database, DatabaseUnavailable, engine
from queries import READY, Statement
from tests.servers import Relay

SLEEP = Statement[int, str]("SELECT pg_backend_pid(), pg_sleep(%(seconds)s)::text")
FAIL = Statement[int]("SELECT 1 / %(zero)s")
ECHO = Statement[str]("SELECT %(text)s")


behind_a_relay = pytest.mark.skipif(os.name == "nt", reason="the relay leads to a Unix socket")


class NoReaderLoop(asyncio.SelectorEventLoop):
    """An event loop that cannot wait for a socket of somebody else, as is usual on Windows."""

    def add_reader(self, *_: Any) -> None:
        raise NotImplementedError

    def add_writer(self, *_: Any) -> None:
        raise NotImplementedError


@pytest.fixture(params=[asyncio.SelectorEventLoop, NoReaderLoop, "uvloop"], ids=["asyncio", "no add_reader", "uvloop"])
def run(request: pytest.FixtureRequest) -> Callable[[Coroutine[Any, Any, Any]], Any]:
    """Runs a coroutine to its end, on each kind of event loop."""
    factory = pytest.importorskip("uvloop").new_event_loop if request.param == "uvloop" else request.param

    def run(coroutine: Coroutine[Any, Any, Any]) -> Any:
        with asyncio.Runner(loop_factory=factory) as runner:
            return runner.run(asyncio.wait_for(coroutine, 60))

    return run


@pytest.fixture
def own_url(empty_database: str) -> str:
    """The URL of a database that no other test uses, so that its sessions are this test's alone.

    Ask about them elsewhere: a pooler would lend one of them for it.
    """
    return empty_database


@pytest.fixture
def links(monkeypatch: pytest.MonkeyPatch) -> list[connection]:
    """Every connection that the pool opens, in that order, closed or not.

    What the server says of its sessions would be about those of a pooler, where there is one.
    """
    found: list[connection] = []
    connect = psycopg2.connect

    def noted(*arguments: Any, **named: Any) -> connection:
        link: connection = connect(*arguments, **named)
        if named.get("async_"):
            found.append(link)
        return link

    monkeypatch.setattr(psycopg2, "connect", noted)
    return found


@asynccontextmanager
async def opened(dsn: str, *, size: int = 3, within: float = 20) -> AsyncIterator[Database]:
    database = Database(dsn, size=size, timeout=within)
    try:
        yield database
    finally:
        await database.close()


def named(url: str) -> tuple[str, str]:
    """The URL with a new application name in it, and that name."""
    name = f"test-{uuid4()}"
    return f"{url}{'&' if '?' in url else '?'}application_name={name}", name


def ask(url: str, sql: str, *values: object) -> Any:
    """The one value that `sql` answers with, asked beside the pool."""
    with closing(psycopg2.connect(url)) as connection:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute(sql, values)
            row = cursor.fetchone()
            return row and row[0]


COUNT = "SELECT count(*) FROM pg_stat_activity WHERE application_name = %s"
END_ALL = "SELECT bool_and(pg_terminate_backend(pid, 10000)) FROM pg_stat_activity WHERE application_name = %s"


def cut(link: connection) -> None:
    """Let an idle connection look as if the other end had closed it."""
    end = socket.socket(fileno=link.fileno())
    end.shutdown(socket.SHUT_RDWR)
    end.detach()  # it stays libpq's to close


async def until(condition: Callable[[], bool]) -> None:
    """Wait until the condition holds, for at most ten seconds."""
    for _ in range(500):
        if condition():
            return
        await asyncio.sleep(0.02)
    raise AssertionError("it never held")


def test_no_more_connections_are_open_than_the_size(run: Any, database_url: str, links: list[connection]) -> None:
    async def scenario() -> None:
        async with opened(database_url, size=3) as database:
            await asyncio.gather(*(database.fetch(SLEEP.bind(seconds=0.02)) for _ in range(30)))
            assert len(links) == 3

    run(scenario())


def test_one_at_a_time_is_one_connection(run: Any, database_url: str, links: list[connection]) -> None:
    async def scenario() -> None:
        async with opened(database_url) as database:
            for _ in range(20):
                await database.fetch(READY.bind())
            assert len(links) == 1

    run(scenario())


def test_waiting_in_line_and_the_query_together_end_in_time(run: Any, database_url: str) -> None:
    async def scenario() -> None:
        async with opened(database_url, size=1, within=0.5) as database:
            start = time.monotonic()
            results = await asyncio.gather(
                *(database.fetch(SLEEP.bind(seconds=30)) for _ in range(3)), return_exceptions=True
            )
            assert time.monotonic() - start < 10
            assert [type(result) for result in results] == [DatabaseUnavailable] * 3
            assert await database.fetch(READY.bind()) == [(1,)], "its place was not given back"

    run(scenario())


def test_a_query_that_is_given_up_ends_on_the_server_too(run: Any, own_url: str, database_url: str) -> None:
    url, name = named(own_url)

    async def scenario() -> None:
        async with opened(url, size=2, within=0.5) as database:
            for _ in range(6):
                with pytest.raises(DatabaseUnavailable, match=r"within 0\.5 seconds"):
                    await database.fetch(SLEEP.bind(seconds=30))
            await until(lambda: ask(database_url, COUNT, name) <= 2)

    run(scenario())


def test_time_in_line_counts(run: Any, database_url: str) -> None:
    async def scenario() -> None:
        async with opened(database_url, size=1, within=1) as database:
            first = asyncio.ensure_future(database.fetch(SLEEP.bind(seconds=0.7)))
            await asyncio.sleep(0.1)
            with pytest.raises(DatabaseUnavailable):  # 0.6 in line leave it too little
                await database.fetch(SLEEP.bind(seconds=0.7))
            assert await first

    run(scenario())


def test_a_connection_whose_statement_the_server_ended_is_kept(
    run: Any, database_url: str, links: list[connection]
) -> None:
    async def scenario() -> None:
        async with opened(database_url, size=1, within=0.5) as database:
            for _ in range(3):
                with pytest.raises(DatabaseUnavailable, match=r"0\.\d s in the database"):
                    await database.fetch(SLEEP.bind(seconds=30))
                assert await database.fetch(READY.bind()) == [(1,)]
            assert [link.closed for link in links] == [0]

    run(scenario())


@pytest.mark.parametrize("spoil", ["failed", "cancelled"])
def test_a_connection_that_was_spoiled_is_never_used_again(
    run: Any, database_url: str, links: list[connection], spoil: str
) -> None:
    async def scenario() -> None:
        async with opened(database_url, size=1) as database:
            await database.fetch(READY.bind())
            if spoil == "failed":
                with pytest.raises(psycopg2.errors.DivisionByZero):
                    await database.fetch(FAIL.bind(zero=0))
            else:
                asked = asyncio.ensure_future(database.fetch(SLEEP.bind(seconds=30)))
                await asyncio.sleep(0.2)
                asked.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await asked
            await database.fetch(READY.bind())
            assert [link.closed for link in links] == [1, 0]

    run(scenario())


def test_a_cancelled_query_is_closed_at_once_and_watched_no_more(own_url: str, database_url: str) -> None:
    url, name = named(own_url)

    async def scenario() -> None:
        watched = asyncio.get_running_loop()._selector.get_map()  # type: ignore[attr-defined]
        before = set(watched)
        async with opened(url) as database:
            asked = asyncio.ensure_future(database.fetch(SLEEP.bind(seconds=0.5)))
            await asyncio.sleep(0.2)
            asked.cancel()
            with pytest.raises(asyncio.CancelledError) as kept:  # its stack would keep the connection alive
                await asked
            assert set(watched) == before
            await until(lambda: ask(database_url, COUNT, name) == 0)
            assert kept

    with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
        runner.run(scenario())


def test_a_cancelled_wait_in_line_gives_its_place_to_the_next(run: Any, database_url: str) -> None:
    async def scenario() -> None:
        async with opened(database_url, size=1) as database:
            first = asyncio.ensure_future(database.fetch(SLEEP.bind(seconds=0.3)))
            second, third = (asyncio.ensure_future(database.fetch(READY.bind())) for _ in range(2))
            await asyncio.sleep(0.05)
            second.cancel()
            assert await third == [(1,)]
            assert first.done()

    run(scenario())


def test_connections_the_server_closed_while_idle_are_noticed_before_use(
    run: Any, own_url: str, database_url: str, links: list[connection]
) -> None:
    url, name = named(own_url)

    async def scenario() -> None:
        async with opened(url, size=5) as database:
            before = await asyncio.gather(*(database.fetch(SLEEP.bind(seconds=0.2)) for _ in range(5)))
            assert len(links) == 5
            assert ask(database_url, END_ALL, name) is True
            after = await asyncio.gather(*(database.fetch(SLEEP.bind(seconds=0.2)) for _ in range(5)))
            assert {rows[0][0] for rows in before}.isdisjoint(rows[0][0] for rows in after)

    run(scenario())


def test_a_connection_the_server_closed_while_idle_is_let_go_unasked(run: Any, database_url: str) -> None:
    async def scenario() -> None:
        async with opened(database_url, size=3) as database:
            await asyncio.gather(*(database.fetch(SLEEP.bind(seconds=0.2)) for _ in range(3)))
            for link in database._idle:
                cut(link)
            if not isinstance(asyncio.get_running_loop(), NoReaderLoop):  # which watches nothing while idle
                await until(lambda: not database._idle)

    run(scenario())


def test_a_connection_that_dies_during_a_query_is_unavailable_and_replaced(
    run: Any, own_url: str, database_url: str
) -> None:
    url, name = named(own_url)

    async def scenario() -> None:
        async with opened(url) as database:
            await database.fetch(READY.bind())
            asked = asyncio.ensure_future(database.fetch(SLEEP.bind(seconds=30)))
            await asyncio.sleep(0.2)
            assert ask(database_url, END_ALL, name) is True
            with pytest.raises(DatabaseUnavailable):
                await asked
            assert await database.fetch(READY.bind()) == [(1,)]

    run(scenario())


def test_a_dead_idle_connection_does_not_cost_the_good_ones(
    run: Any, database_url: str, links: list[connection]
) -> None:
    async def scenario() -> None:
        async with opened(database_url) as database:
            await asyncio.gather(*(database.fetch(SLEEP.bind(seconds=0.2)) for _ in range(3)))
            good, *others = database._idle
            for link in others:
                cut(link)
            assert await database.fetch(READY.bind()) == [(1,)]
            assert database._idle == [good]
            assert len(links) == 3

    run(scenario())


def test_the_connection_that_was_used_last_is_used_next(run: Any, database_url: str) -> None:
    async def scenario() -> None:
        async with opened(database_url) as database:
            await asyncio.gather(*(database.fetch(SLEEP.bind(seconds=0.2)) for _ in range(3)))
            idle = list(database._idle)
            for _ in range(3):
                await database.fetch(READY.bind())
                assert database._idle == idle

    run(scenario())


def test_a_statement_that_was_sent_is_never_sent_again(run: Any, own_url: str, database_url: str) -> None:
    url, name = named(own_url)
    count = Statement[int, str]("SELECT nextval('sent'), pg_sleep(0.6)::text")

    async def scenario() -> None:
        async with opened(url) as database:
            await database.fetch(READY.bind())
            asked = asyncio.ensure_future(database.fetch(count.bind()))
            await asyncio.sleep(0.2)
            assert ask(database_url, END_ALL, name) is True
            with pytest.raises(DatabaseUnavailable):
                await asked
            assert ask(own_url, "SELECT nextval('sent')") == 2

    ask(own_url, "CREATE SEQUENCE sent; SELECT 1")
    run(scenario())


def test_a_statement_that_could_not_be_sent_is_sent_once_on_a_new_connection(
    run: Any, database_url: str, links: list[connection]
) -> None:
    async def scenario() -> None:
        async with opened(database_url) as database:
            await database.fetch(READY.bind())
            database._idle[0].close()
            assert await database.fetch(READY.bind()) == [(1,)]
            assert len(links) == 2

    run(scenario())


def test_a_statement_and_an_answer_larger_than_any_buffer_pass(run: Any, database_url: str) -> None:
    async def scenario() -> None:
        async with opened(database_url) as database:
            texts = [letter * 5_000_000 for letter in "abc"]
            answers = await asyncio.gather(*(database.fetch(ECHO.bind(text=text)) for text in texts))
            assert [rows[0][0].decode() for rows in answers] == texts

    run(scenario())


def test_text_arrives_as_it_was_sent(run: Any, database_url: str) -> None:
    async def scenario() -> None:
        async with opened(database_url) as database:
            for text in ("ünï🥛", "'; DROP TABLE tasks; --", "%s %(x)s %%", "\\ \\' E'\\n'", "\x01\x1f\x7f"):
                assert await database.fetch(ECHO.bind(text=text)) == [(text.encode(),)]

    run(scenario())


def test_closing_waits_for_the_queries_in_flight_and_refuses_later_ones(run: Any, database_url: str) -> None:
    async def scenario() -> None:
        database = Database(database_url, size=2, timeout=20)
        asked = [asyncio.ensure_future(database.fetch(SLEEP.bind(seconds=0.3))) for _ in range(2)]
        await asyncio.sleep(0.1)
        await database.close()
        assert all(one.done() and one.exception() is None for one in asked)
        with pytest.raises(DatabaseUnavailable):
            await asyncio.wait_for(database.fetch(READY.bind()), 5)

    run(scenario())


def test_closing_closes_every_connection(run: Any, database_url: str) -> None:
    async def scenario() -> None:
        database = Database(database_url, size=3, timeout=20)
        await asyncio.gather(*(database.fetch(SLEEP.bind(seconds=0.2)) for _ in range(3)))
        links = list(database._idle)
        await database.close()
        assert [link.closed for link in links] == [1, 1, 1]

    run(scenario())


def test_a_database_that_is_not_there_is_unavailable(run: Any) -> None:
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))  # taken, but nobody listens
        port = reserved.getsockname()[1]

        async def scenario() -> None:
            async with opened(f"postgresql://a:secret@127.0.0.1:{port}/b") as database:
                for _ in range(10):  # more often than there are places
                    with pytest.raises(DatabaseUnavailable, match="refused") as raised:
                        await database.fetch(READY.bind())
                    assert "secret" not in str(raised.value)

        run(scenario())


def test_a_host_that_has_no_address_is_unavailable(run: Any) -> None:
    async def scenario() -> None:
        async with opened("postgresql://a@database.invalid/b") as database:  # RFC 2606: never a real name
            with pytest.raises(DatabaseUnavailable):
                await database.fetch(READY.bind())

    run(scenario())


@behind_a_relay
@pytest.mark.parametrize("place", ["address", "environment"])
def test_a_slow_host_look_up_stops_nothing_else(database_url: str, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    real = socket.getaddrinfo

    def getaddrinfo(host: Any, *more: Any, **named: Any) -> Any:
        if host != "database.invalid":
            return real(host, *more, **named)
        time.sleep(1)
        return real("127.0.0.1", *more, **named)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)

    def address(relay: Relay) -> str:
        dsn = relay.dsn("database.invalid")
        if place == "address":
            return dsn
        monkeypatch.setenv("PGHOST", "database.invalid")
        return make_dsn(**{name: value for name, value in parse_dsn(dsn).items() if name != "host"})

    async def scenario() -> None:
        async with Relay(database_url) as relay, opened(address(relay)) as database:
            asked = asyncio.ensure_future(database.fetch(READY.bind()))
            longest, last = 0.0, time.monotonic()
            while not asked.done():
                await asyncio.sleep(0.01)
                now = time.monotonic()
                longest, last = max(longest, now - last), now
            assert await asked == [(1,)]
            assert longest < 0.8, "the event loop stood still while the name was looked up"

    asyncio.run(scenario())


@behind_a_relay
def test_a_server_that_falls_silent_is_unavailable_in_time(run: Any, database_url: str) -> None:
    async def scenario() -> None:
        async with Relay(database_url) as relay, opened(relay.dsn(), size=2, within=0.5) as database:
            await database.fetch(READY.bind())
            relay.silent = True
            for _ in range(5):  # the first on the idle connection, then while connecting
                with pytest.raises(DatabaseUnavailable, match=r"within 0\.5 seconds"):
                    await database.fetch(READY.bind())
            relay.silent = False
            assert await database.fetch(READY.bind()) == [(1,)]

    run(scenario())


@behind_a_relay
def test_of_several_hosts_the_first_that_answers_is_used(run: Any, database_url: str) -> None:
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        dead = reserved.getsockname()[1]

        async def scenario() -> None:
            async with Relay(database_url) as relay:
                dsn = relay.dsn().replace("host=127.0.0.1", "host=127.0.0.1,localhost")
                dsn = dsn.replace(f"port={relay.port}", f"port={dead},{relay.port}")
                async with opened(dsn) as database:
                    assert await database.fetch(READY.bind()) == [(1,)]

        run(scenario())


@behind_a_relay
def test_an_unknown_host_does_not_hide_a_good_one(run: Any, database_url: str) -> None:
    async def scenario() -> None:
        async with Relay(database_url) as relay:
            dsn = relay.dsn().replace("host=127.0.0.1", "host=database.invalid,127.0.0.1")
            async with opened(dsn) as database:
                assert await database.fetch(READY.bind()) == [(1,)]

    run(scenario())


@behind_a_relay
def test_every_address_of_a_host_is_tried(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real = socket.getaddrinfo

    def getaddrinfo(host: Any, *more: Any, **named: Any) -> Any:
        if host != "database.invalid":
            return real(host, *more, **named)
        return real("127.0.0.2", *more, **named) + real("127.0.0.1", *more, **named)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)

    async def scenario() -> None:
        async with Relay(database_url) as relay, opened(relay.dsn("database.invalid")) as database:
            assert await database.fetch(READY.bind()) == [(1,)]  # the relay listens on the second

    asyncio.run(scenario())


@behind_a_relay
def test_an_address_that_is_given_is_used_without_a_look_up(run: Any, database_url: str) -> None:
    async def scenario() -> None:
        async with Relay(database_url) as relay:
            dsn = f"{relay.dsn('database.invalid')} hostaddr=127.0.0.1"
            async with opened(dsn) as database:
                assert await database.fetch(READY.bind()) == [(1,)]

    run(scenario())


@behind_a_relay
def test_host_and_port_of_the_environment_are_used_as_libpq_does(
    run: Any, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        async with Relay(database_url) as relay:
            monkeypatch.setenv("PGPORT", str(relay.port))
            monkeypatch.setenv("PGHOST", "localhost")
            target = {name: value for name, value in parse_dsn(relay.dsn()).items() if name not in ("host", "port")}
            for more in ({}, {"host": "127.0.0.1"}):
                async with opened(make_dsn(**target, **more)) as database:
                    assert await database.fetch(READY.bind()) == [(1,)]
            assert relay.accepted == 2

    run(scenario())


@behind_a_relay
@pytest.mark.parametrize("place", ["address", "environment"])
def test_a_service_of_libpq_wins_over_host_and_port_everywhere(
    run: Any, database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    async def scenario() -> None:
        async with Relay(database_url) as relay:
            lines = [f"{name}={value}" for name, value in parse_dsn(relay.dsn()).items()]
            (tmp_path / "services").write_text("\n".join(["[tasks]", *lines, ""]))
            monkeypatch.setenv("PGSERVICEFILE", str(tmp_path / "services"))
            monkeypatch.setenv("PGHOST", "database.invalid")
            monkeypatch.setenv("PGPORT", "1")
            if place == "environment":
                monkeypatch.setenv("PGSERVICE", "tasks")
            url = "postgresql:///" if place == "environment" else "postgresql:///?service=tasks"
            await asyncio.to_thread(ask_at_the_start, url)
            async with opened(url) as database:
                assert await database.fetch(READY.bind()) == [(1,)]
            assert relay.accepted == 2

    run(scenario())


@behind_a_relay
def test_the_address_of_the_environment_is_used_for_the_host_everywhere(
    run: Any, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        async with Relay(database_url) as relay:
            monkeypatch.setenv("PGHOSTADDR", "127.0.0.1")
            dsn = relay.dsn("database.invalid")
            await asyncio.to_thread(ask_at_the_start, dsn)
            async with opened(dsn) as database:
                assert await database.fetch(READY.bind()) == [(1,)]
            assert relay.accepted == 2

    run(scenario())


def ask_at_the_start(dsn: str) -> None:
    """Ask the database as the migrations do."""
    with engine(dsn).connect() as link:
        link.exec_driver_sql("SELECT 1")
