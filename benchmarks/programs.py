"""The service and its peers: how each is started, watched and ended."""

import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import psutil

from tests.faults.postgres import free_port

ROOT = Path(__file__).resolve().parent.parent
BINARIES = Path(sys.executable).parent
CONNECTIONS = 20  # to the database, of each worker
NOBODY = "/api/nobody/tasks/00000000-0000-4000-8000-000000000000"


@dataclass(frozen=True)
class Program:
    """One of those that are compared. `command` takes a port and a number of workers."""

    name: str
    title: str
    command: Callable[[int, int], list[str]]


def _uvicorn(app: str, *options: str) -> Callable[[int, int], list[str]]:
    # Without a line for each request, which none of the others writes either.
    quiet = ["--no-access-log", "--log-level", "warning"]
    return lambda port, workers: [
        *(str(BINARIES / "uvicorn"), app, "--port", str(port), *options, *quiet),
        *(["--workers", str(workers)] if workers > 1 else []),
    ]


def _gunicorn(app: str) -> Callable[[int, int], list[str]]:
    return lambda port, workers: [
        *(str(BINARIES / "gunicorn"), app, "--bind", f"127.0.0.1:{port}", "--workers", str(workers)),
        *("--threads", str(CONNECTIONS), "--log-level", "warning"),
    ]


def _node(script: str) -> Callable[[int, int], list[str]]:
    return lambda _port, _workers: ["node", str(ROOT / "benchmarks/peers" / script)]  # they read the environment


SERVICE = Program("service", "this service", _uvicorn("main:app", "--http", "protocol:LimitedHttp"))
TEXTBOOK = Program("textbook", "FastAPI + SQLModel session", _uvicorn("benchmarks.peers.textbook:app"))
ASYNCPG = Program(
    "asyncpg", "FastAPI + SQLAlchemy asyncio + asyncpg", _uvicorn("benchmarks.peers.asyncio_sqlalchemy:app")
)
DJANGO = Program("django", "Django REST framework", _gunicorn("benchmarks.peers.django_rest:application"))
EXPRESS = Program("express", "Express + pg", _node("express.js"))
FASTIFY = Program("fastify", "Fastify + pg", _node("fastify.js"))
CEILING = Program("ceiling", "FastAPI answering a constant", _uvicorn("benchmarks.peers.ceiling:app"))

PEERS = (TEXTBOOK, ASYNCPG, DJANGO, EXPRESS, FASTIFY)
ALL = {program.name: program for program in (SERVICE, *PEERS, CEILING)}


class Running:
    """A program that takes requests, in a process group of its own."""

    def __init__(self, program: Program, dsn: str, workers: int, log: IO[bytes]) -> None:
        self.program = program
        self._dsn, self._workers, self._log = dsn, workers, log
        self.start()

    def start(self) -> None:
        """Start it and wait for its first answer; `took` says how many seconds that was."""
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        environment = {
            "DATABASE_URL": self._dsn,
            "DATABASE_POOL_SIZE": str(CONNECTIONS),
            "PORT": str(self.port),
            "WORKERS": str(self._workers),
            "NODE_ENV": "production",
            "LOG_LEVEL": "error",
        }
        begin = time.perf_counter()
        self._process = subprocess.Popen(
            self.program.command(self.port, self._workers),
            cwd=ROOT, env=os.environ | environment, stdout=self._log, stderr=self._log, start_new_session=True,
        )  # fmt: skip
        while not self.answers():
            if self._process.poll() is not None or time.perf_counter() > begin + 60:
                raise RuntimeError(f"{self.program.title} does not start; see {self._log.name}")
            time.sleep(0.005)
        self.took = time.perf_counter() - begin

    def answers(self) -> bool:
        """Whether it answers a read, be it that there is no such task."""
        try:
            with urllib.request.urlopen(self.url + NOBODY, timeout=5) as answer:  # noqa: S310
                return bool(answer.status == 200)
        except urllib.error.HTTPError as error:
            return error.code == 404
        except OSError:
            return False

    def processes(self) -> list[psutil.Process]:
        """Its process and all that this one has started."""
        with suppress(psutil.Error):
            parent = psutil.Process(self._process.pid)
            return [parent, *parent.children(recursive=True)]
        return []

    def megabytes(self) -> float:
        """The resident memory of its largest process, which is one of its workers."""
        largest = 0
        for process in self.processes():
            with suppress(psutil.Error):
                largest = max(largest, process.memory_info().rss)
        return largest / 1e6

    def cpu_seconds(self) -> float:
        """The time that its processes have computed so far."""
        total = 0.0
        for process in self.processes():
            with suppress(psutil.Error):
                times = process.cpu_times()
                total += times.user + times.system
        return total

    def stop(self) -> None:
        """End it, and at once if it does not end in order."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(5)
        self._process.wait(30)

    def restart(self) -> None:
        """Start it anew, when a load has left it in a state that the next should not find."""
        self.stop()
        self.start()


@contextmanager
def running(programs: list[Program], dsn: str, workers: int, logs: Path) -> Iterator[list[Running]]:
    """Start the programs on one database. All stay there, idle, while one of them is measured."""
    with ExitStack() as stack:
        started = []
        for program in programs:
            log = stack.enter_context((logs / f"{program.name}.log").open("ab"))
            one = Running(program, dsn, workers, log)
            stack.callback(one.stop)
            started.append(one)
        yield started
