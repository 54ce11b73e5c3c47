"""The service and its peers, and how they are started, watched and stopped."""

import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import psutil

from tests.faults.processes import free_port

ROOT = Path(__file__).resolve().parent.parent
CONNECTIONS = 20  # to the database, of each worker
MISSING_TASK = "/api/nobody/tasks/00000000-0000-4000-8000-000000000000"

LOADS = {
    "read": "read one",
    "list20": "list 20",
    "list100": "list 100",
    "create": "create",
    "toggle": "toggle",
    "mix": "mix",
}
WRITES = ("create", "toggle", "mix")


@dataclass(frozen=True)
class Program:
    """A program, and the loads that it supports. `command` takes a port and a number of workers."""

    name: str
    title: str
    command: Callable[[int, int], list[str]]
    loads: tuple[str, ...] = tuple(LOADS)


def uvicorn(app: str, *options: str, python: str = sys.executable) -> Callable[[int, int], list[str]]:
    """Return the command for an ASGI app, without an access log, because no peer has one."""
    return lambda port, workers: [
        *(python, "-m", "uvicorn", app, "--port", str(port), "--no-access-log", "--log-level", "warning"),
        *options,
        *(["--workers", str(workers)] if workers > 1 else []),
    ]


def node(script: str) -> Callable[[int, int], list[str]]:
    return lambda _port, _workers: [
        "node",
        str(ROOT / "benchmarks/peers" / script),
    ]  # they read PORT and WORKERS from the environment


OPTIONS = ("--http", "protocol:LimitedHttp")  # as in the README
READS = ("read", "list20")
SERVICE = Program("service", "this service", uvicorn("main:app", *OPTIONS))
TEXTBOOK = Program("textbook", "FastAPI + SQLModel, as taught", uvicorn("benchmarks.peers.textbook:app"))
EXPRESS = Program("express", "Express + pg", node("express.js"))
FASTIFY = Program("fastify", "Fastify + pg", node("fastify.js"))
BLACKSHEEP = Program("blacksheep", "BlackSheep + asyncpg", uvicorn("benchmarks.peers.blacksheep_asyncpg:app"), READS)
LITESTAR = Program("litestar", "Litestar + asyncpg", uvicorn("benchmarks.peers.litestar_asyncpg:app"), READS)
CONSTANT = Program("constant", "FastAPI returning a constant", uvicorn("benchmarks.peers.constant:app"), ("read",))
TRACED = Program("traced", "with all traces", uvicorn("main:app", *OPTIONS))
SAMPLED = Program("sampled", "with one trace in 100", uvicorn("main:app", *OPTIONS))
RAW = Program("raw", "raw ASGI returning a constant", uvicorn("benchmarks.peers.raw_asgi:app"), ("list20",))

PEERS = (TEXTBOOK, EXPRESS, FASTIFY, BLACKSHEEP, LITESTAR)
ALL = {program.name: program for program in (SERVICE, *PEERS, CONSTANT, RAW, TRACED, SAMPLED)}


class Running:
    """A started program, in its own process group."""

    def __init__(self, program: Program, dsn: str, workers: int, folder: Path, log: IO[bytes]) -> None:
        """Start the program and wait for its first response; `startup_seconds` is the time until then."""
        self.program = program
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        environment = {
            "DATABASE_URL": dsn,
            "DATABASE_POOL_SIZE": str(CONNECTIONS),
            "PORT": str(self.port),
            "WORKERS": str(workers),
            "NODE_ENV": "production",
            "LOG_LEVEL": "error",
            "CONSTANT": str(folder / "constant.json"),  # for raw_asgi.py
        }
        begin = time.perf_counter()
        self._process = subprocess.Popen(
            program.command(self.port, workers),
            cwd=ROOT, env=os.environ | environment, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
        while not self._responds():
            if self._process.poll() is not None or time.perf_counter() > begin + 60:
                self.stop()
                raise RuntimeError(f"{program.title} does not start:\n{Path(log.name).read_text()[-2000:]}")
            time.sleep(0.005)
        self.startup_seconds = time.perf_counter() - begin

    def _responds(self) -> bool:
        """Return whether the program responds to a read of a missing task, with 404 or 200."""
        try:
            with urllib.request.urlopen(self.url + MISSING_TASK, timeout=5) as response:  # noqa: S310  # loopback
                return bool(response.status == 200)
        except urllib.error.HTTPError as error:
            return error.code == 404
        except OSError:
            return False

    def _processes(self) -> list[psutil.Process]:
        with suppress(psutil.Error):
            parent = psutil.Process(self._process.pid)
            return [parent, *parent.children(recursive=True)]
        return []

    def cpu_seconds(self) -> float:
        """Return the CPU time of its processes so far."""
        total = 0.0
        for process in self._processes():
            with suppress(psutil.Error):
                times = process.cpu_times()
                total += times.user + times.system
        return total

    @contextmanager
    def memory_watched(self) -> Iterator[list[float]]:
        """Yield a list with one item, the peak memory in MB of its largest process so far."""
        peak, done = [0.0], threading.Event()

        def watch() -> None:
            while not done.wait(0.25):
                for process in self._processes():
                    with suppress(psutil.Error):
                        peak[0] = max(peak[0], process.memory_info().rss / 1e6)

        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            yield peak
        finally:
            done.set()
            watcher.join()

    def stop(self) -> None:
        """Send SIGTERM to its process group, and SIGKILL 5 seconds later."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(5)


@contextmanager
def running(programs: Sequence[Program], dsn: str, workers: int, folder: Path) -> Iterator[list[Running]]:
    """Start the programs on one database. They are idle while another one is measured."""
    with ExitStack() as stack:
        started = []
        for program in programs:
            log = stack.enter_context((folder / f"{program.name}.log").open("ab"))
            running_program = Running(program, dsn, workers, folder, log)
            stack.callback(running_program.stop)
            started.append(running_program)
        yield started
