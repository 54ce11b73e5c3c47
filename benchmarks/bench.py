"""Compare the service with its peers: `python -m benchmarks.bench`, which `make bench` runs.

Every comparison consists of several turns. In each turn all candidates are measured once for a few
seconds, and from turn to turn the order is rotated by one. Ratios are computed within a turn, so
that both runs were made in the same minute.
"""

import argparse
import json
import os
import platform
import re
import resource
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar
from unittest.mock import patch

import psutil

from benchmarks import chart, distance, loads, overload, programs, report
from benchmarks.data import Data, postgres, seed
from benchmarks.programs import FASTIFY, LOADS, SERVICE, Program, Running, running
from benchmarks.validate import validate
from tests.faults.postgres import BINARIES, Postgres

HERE = Path(__file__).resolve().parent
FEW, MANY = 64, 1000  # connections
NEWER_PYTHON = HERE / ".venv/3.13/bin/python"

Runs = Iterator[dict[str, Any]]
T = TypeVar("T")


@dataclass(frozen=True)
class Bench:
    """The parts of the benchmark, with the data, a folder for logs, the seconds of a run and the number of turns."""

    server: Postgres
    data: Data
    folder: Path
    seconds: int
    turns: int

    def in_turns(self, candidates: Sequence[T], *, writes: bool = False) -> Iterator[tuple[int, T]]:
        """Yield every turn with every candidate in rotated order; restore the data after a turn with writes."""
        for turn in range(self.turns):
            first = turn % len(candidates)
            for candidate in [*candidates[first:], *candidates[:first]]:
                yield turn, candidate
            if writes:
                self.data.restore()
        self.data.settle()

    def warm(self, started: Sequence[Running]) -> None:
        """Send each program every load for a second, so that connections, compiled code and caches exist."""
        for running_program in started:
            for load in running_program.program.loads:
                loads.wrk(running_program, load, self.data, connections=FEW, seconds=1)
        self.data.settle()

    def core(self) -> Runs:
        """Measure every program under every load that it supports."""
        with running([SERVICE, *programs.PEERS, programs.CONSTANT], self.data.dsn, 1, self.folder) as started:
            validate(started, self.data)
            self.warm(started)
            for load in LOADS:
                candidates = [candidate for candidate in started if load in candidate.program.loads]
                for turn, candidate in self.in_turns(candidates, writes=load in programs.WRITES):
                    run = loads.wrk(candidate, load, self.data, connections=FEW, seconds=self.seconds)
                    yield {"program": candidate.program.name, "load": load, "turn": turn} | run

    def connections(self) -> Runs:
        """Measure 1,000 connections against 64, with two workers."""
        with running([SERVICE], self.data.dsn, 2, self.folder) as [service]:
            self.warm([service])
            for load in LOADS:
                for turn, number in self.in_turns([FEW, MANY], writes=load in programs.WRITES):
                    # Opening 1,000 connections takes much of a second, in which there are few responses.
                    seconds = self.seconds if number == FEW else self.seconds + 2
                    run = loads.wrk(service, load, self.data, connections=number, seconds=seconds)
                    yield {"load": load, "turn": turn, "connections": number} | run

    def users(self) -> Runs:
        """Measure 1,000 users who each send one request a second, at different times."""
        with running([SERVICE, programs.TEXTBOOK, FASTIFY], self.data.dsn, 2, self.folder) as started:
            self.warm(started)
            for candidate in started:
                run = loads.spread_users(candidate, self.data, seconds=10 * self.seconds)
                yield {"program": candidate.program.name} | run
                self.data.restore()

    def instant(self) -> Runs:
        """Measure 1,000 users who all send at the same instant of each second."""
        with running([SERVICE, FASTIFY], self.data.dsn, 2, self.folder) as started:
            validate(started, self.data)
            with urllib.request.urlopen(f"{started[0].url}/api/user-0/tasks?limit=20") as response:  # noqa: S310
                (self.folder / "constant.json").write_bytes(response.read())
            with running([programs.RAW], self.data.dsn, 2, self.folder) as raw:
                self.warm(started)
                for turn, candidate in self.in_turns([*started, *raw]):
                    run = loads.simultaneous_users(candidate, seconds=2 * self.seconds)
                    yield {"program": candidate.program.name, "turn": turn} | run

    def memory(self) -> Runs:
        """Measure the memory of one worker with 1,000 connections, with every installed Python version."""
        for python in (sys.executable, str(NEWER_PYTHON)):
            if not Path(python).exists():
                log(f"{python} is missing: memory is measured without it")
                continue
            name = subprocess.run([python, "--version"], check=True, capture_output=True, text=True).stdout.strip()
            command = programs.uvicorn("main:app", *programs.OPTIONS, python=python)
            service = Program("service", f"this service, {name}", command)
            with running([service], self.data.dsn, 1, self.folder) as [started]:
                for load in LOADS:
                    run = loads.wrk(started, load, self.data, connections=MANY, seconds=self.seconds + 2)
                    yield {"python": name, "load": load} | run
                self.data.restore()

    def telemetry(self) -> Runs:
        """Measure the service with OpenTelemetry against the service without. Its collector is RAW."""
        (self.folder / "constant.json").write_bytes(b"{}")
        dsn = self.data.dsn
        with ExitStack() as stack:
            [service, collector] = stack.enter_context(running([SERVICE, programs.RAW], dsn, 1, self.folder))
            stack.enter_context(patch.dict(os.environ, OTEL_EXPORTER_OTLP_ENDPOINT=collector.url))
            started = [service, *stack.enter_context(running([programs.TRACED], dsn, 1, self.folder))]
            sampler = {"OTEL_TRACES_SAMPLER": "parentbased_traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0.01"}
            stack.enter_context(patch.dict(os.environ, sampler))
            started += stack.enter_context(running([programs.SAMPLED], dsn, 1, self.folder))
            self.warm(started)
            for load in LOADS:
                for turn, candidate in self.in_turns(started, writes=load in programs.WRITES):
                    run = loads.wrk(candidate, load, self.data, connections=FEW, seconds=self.seconds)
                    yield {"program": candidate.program.name, "load": load, "turn": turn} | run

    def distance(self) -> Runs:
        """Measure every endpoint with 20 ms of network latency to the database."""
        yield from distance.measure(self.data, self.folder, times=10 * self.seconds)

    def start(self) -> Runs:
        """Measure the start-up until the first response, on a database with the current schema."""
        for turn in range(self.turns):
            with running([SERVICE], self.data.dsn, 1, self.folder) as [started]:
                yield {"turn": turn, "seconds": started.startup_seconds}

    def overload(self) -> Runs:
        """Measure twice the load that the database can handle, and one user who blocks."""
        yield overload.measure(self.server, self.folder)


PARTS = ("core", "connections", "users", "instant", "memory", "telemetry", "distance", "start", "overload")


def about() -> dict[str, str]:
    """Return a description of the machine and the versions of all programs."""

    def version_of(*command: str) -> str:
        completed = subprocess.run(command, capture_output=True, text=True)
        found = re.search(r"\d+(\.\d+)+", completed.stdout + completed.stderr)
        return found[0] if found else "unknown"

    cpu = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    packages = ("fastapi", "uvicorn", "sqlmodel", "psycopg2-binary", "asyncpg", "blacksheep", "litestar")
    versions = {
        "PostgreSQL": version_of(str(BINARIES / "postgres"), "--version"),
        "Python": platform.python_version(),
        "Node": version_of("node", "--version"),
        "wrk": version_of("wrk", "--version"),
    }
    versions |= {name: version(name) for name in packages}
    versions |= json.loads((HERE / "peers/package.json").read_text())["dependencies"]
    memory = psutil.virtual_memory().total / 2**30
    return {
        "machine": f"{os.cpu_count()} cores ({cpu[1] if cpu else platform.processor()}), {memory:.0f} GiB of memory,"
        f" {platform.system()} {platform.release()}",
        "versions": ", ".join(f"{name} {number}" for name, number in versions.items()),
    }


def log(message: str) -> None:
    print(f"{datetime.now(UTC):%H:%M:%S} {message}", file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare the service with its peers.")
    parser.add_argument(
        "--parts", default=",".join(PARTS), help=f"a comma-separated list; the default is {','.join(PARTS)}"
    )
    parser.add_argument(
        "--seconds", type=int, default=3, help="the duration of one run of wrk; other loads take a multiple of it"
    )
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument(
        "--tasks", type=int, default=1_000_000, help="each user has 100; fewer for a trial: the headings name 1,000,000"
    )
    parser.add_argument("--out", type=Path, default=HERE, help="the folder of the results")
    options = parser.parse_args()
    parts = options.parts.split(",")
    if unknown := set(parts) - set(PARTS):
        parser.error(f"unknown parts: {', '.join(sorted(unknown))}")

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the started programs are stopped
    _, limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))  # 1,000 connections exceed the usual soft limit
    options.out.mkdir(exist_ok=True)
    file = options.out / "results.json"
    results = json.loads(file.read_text()) if file.exists() else {}  # other parts keep their results
    begin = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="tasks-bench-") as folder, postgres() as server:
        data = Data(0, "", Path())
        if parts != ["overload"]:  # which creates its own data
            log("filling the table")
            data = seed(server, "large", Path(folder), tasks=options.tasks, users=options.tasks // 100)
        bench = Bench(server, data, Path(folder), options.seconds, options.turns)
        for part in parts:
            log(part)
            runs = list(getattr(bench, part)())
            measured = {"date": f"{datetime.now(UTC):%Y-%m-%d}", "seconds": options.seconds, "turns": options.turns}
            results |= {"about": about(), part: measured | {"runs": runs}}
            file.write_text(report.as_json(results))
            (options.out / "results.md").write_text(report.page(results))
            if "core" in results:
                (options.out / "headline.svg").write_text(chart.headline(results))
    print(report.page(results))
    log(f"took {(time.monotonic() - begin) / 60:.0f} minutes")


if __name__ == "__main__":
    main()
