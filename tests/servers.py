"""Servers that tests start and stop, on the loopback interface."""

import asyncio
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil
import psycopg2
from psycopg2.extensions import parse_dsn

HERE = Path(__file__).resolve().parent.parent
LIMITS = ["--http", "protocol:LimitedHttp"]
ON_A_FREE_PORT = [sys.executable, "-m", "uvicorn", "main:app", *LIMITS, "--port", "0"]


@dataclass
class Service:
    """A uvicorn process that runs the service."""

    process: subprocess.Popen[str]
    url: str = ""
    log: list[str] = field(default_factory=list)

    def stop(self) -> int:
        """Send SIGTERM, and return the exit status."""
        self.process.terminate()
        return self.process.wait(30)


@contextmanager
def service(
    *options: str, folder: Path = HERE, command: Sequence[str] = ON_A_FREE_PORT, **environment: str
) -> Iterator[Service]:
    """Start `uvicorn main:app` in `folder` on a free port, and wait until it accepts requests."""
    process = subprocess.Popen(
        [*command, *options],
        cwd=folder,
        env=os.environ | environment,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )
    started = Service(process)
    running = threading.Event()

    def read() -> None:
        assert process.stderr is not None
        for line in process.stderr:
            started.log.append(line.rstrip())
            if found := re.search(r"Uvicorn running on (http://\S+)", line):
                started.url = found[1]
                running.set()
        running.set()

    reader = threading.Thread(target=read)
    reader.start()
    try:
        running.wait(60)
        assert started.url, "\n".join(started.log)
        yield started
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
        process.wait()
        reader.join(10)
        assert process.stderr is not None
        process.stderr.close()


def wait_for(log: list[str], text: str, times: int = 1) -> None:
    """Wait until `times` lines of the log contain the text, for at most a minute."""
    for _ in range(600):
        if sum(text in line for line in log) >= times:
            return
        time.sleep(0.1)
    raise AssertionError("\n".join(log))


def postgres_of(folder: Path) -> list[int]:
    """Return the process ids of the embedded PostgreSQL servers with data in this folder."""
    return [
        process.pid
        for process in psutil.process_iter(["name", "cmdline"])
        if process.info["name"] == "postgres" and str(folder / ".postgres") in (process.info["cmdline"] or [])
    ]


class Relay:
    """A TCP proxy in front of PostgreSQL, which can be slow or drop all data.

    Data is delayed by `delay` seconds in each direction; set it before the first connection. While
    `silent` is true, data is dropped.
    """

    def __init__(self, dsn: str, *, delay: float = 0) -> None:
        target = parse_dsn(dsn)
        self._target = target
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: list[asyncio.StreamWriter] = []
        self._drops = 0
        self.delay = delay
        self.silent = False
        self.accepted = 0

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port: int = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for writer in self._writers:
            writer.close()

    def dsn(self, host: str = "127.0.0.1") -> str:
        """Return the DSN of the PostgreSQL through this proxy."""
        names = ("user", "password", "dbname", "sslmode", "sslrootcert", "channel_binding")
        known = {"sslmode": "disable"} | {name: self._target[name] for name in names if name in self._target}
        return psycopg2.extensions.make_dsn(**known, host=host, port=self.port)

    def drop(self) -> None:
        """Drop all data on the connections that are open, as a router does that has forgotten them.

        The other side does not learn that they are closed either. New connections work.
        """
        self._drops += 1

    def cut(self) -> None:
        """Abort the connections that are open; data in transit is lost. New connections work."""
        self.drop()
        loop = self._server.get_loop()
        loop.call_soon_threadsafe(self._abort, self._writers.copy())

    @staticmethod
    def _abort(writers: list[asyncio.StreamWriter]) -> None:
        for writer in writers:
            writer.transport.abort()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        self._writers.append(writer)
        host, port = self._target["host"], int(self._target.get("port", 5432))
        try:
            if host.startswith("/"):
                upstream = await asyncio.open_unix_connection(f"{host}/.s.PGSQL.{port}")
            else:
                upstream = await asyncio.open_connection(host, port)
        except OSError:  # the server is down
            writer.close()
            return
        self._writers.append(upstream[1])
        for source, sink in ((reader, upstream[1]), (upstream[0], writer)):
            task = asyncio.ensure_future(self._forward(source, sink))
            self._tasks.add(task)

    async def _forward(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        loop, drops = asyncio.get_running_loop(), self._drops

        def deliver(data: bytes) -> None:
            if drops == self._drops and not self.silent:
                sink.write(data)
            if drops == self._drops and not data:
                sink.close()

        try:
            while data := await source.read(65536):
                loop.call_later(self.delay, deliver, data)
        finally:
            loop.call_later(self.delay, deliver, b"")


@contextmanager
def relaying(dsn: str, *, delay: float = 0) -> Iterator[Relay]:
    """A relay with its own event loop and thread, so that the test cannot slow it down."""
    relay = Relay(dsn, delay=delay)
    ready = threading.Event()
    loop = asyncio.new_event_loop()
    done = asyncio.Event()

    async def run() -> None:
        async with relay:
            ready.set()
            await done.wait()

    thread = threading.Thread(target=loop.run_until_complete, args=(run(),))
    thread.start()
    try:
        assert ready.wait(10)
        yield relay
    finally:
        loop.call_soon_threadsafe(done.set)
        thread.join(10)
        loop.close()


async def load(url: str, requests: list[tuple[str, str, bytes]], *, connections: int) -> list[int]:
    """Send the requests (method, path, body) over `connections` connections at once; return the statuses."""
    remaining = iter(requests)
    host, port = url.removeprefix("http://").split(":")

    async def client() -> list[int]:
        reader, writer = await asyncio.open_connection(host, int(port))
        statuses = []
        for method, path, body in remaining:
            head = f"{method} {path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
            writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
            head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
            if length := re.search(r"content-length: (\d+)", head):
                await reader.readexactly(int(length[1]))
            statuses.append(int(head.split()[1]))
        writer.close()
        return statuses

    return sum(await asyncio.gather(*(client() for _ in range(connections))), [])  # noqa: RUF017
