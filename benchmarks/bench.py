"""Compare the service with its peers: `python -m benchmarks.bench`, as `make bench` runs it.

A comparison is made of turns: in each, everything that is compared is measured once for a few
seconds, and the order moves on by one from turn to turn. A ratio is taken within a turn, so that it
is between two runs of the same minute.
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
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

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
    """What all parts need: the data, a folder for logs, how long to measure and how often."""

    server: Postgres
    data: Data
    folder: Path
    seconds: int
    turns: int

    def by_turns(self, compared: Sequence[T], *, writes: bool = False) -> Iterator[tuple[int, T]]:
        """Yield each turn with each of those that are compared, and tidy up after the turn if they write."""
        for turn in range(self.turns):
            first = turn % len(compared)
            for one in [*compared[first:], *compared[:first]]:
                yield turn, one
            if writes:
                self.data.restore()
        self.data.settle()

    def warm(self, started: Sequence[Running]) -> None:
        """Let each program open its connections, compile and cache what it will."""
        for one in started:
            for load in one.program.loads:
                loads.wrk(one, load, self.data, connections=FEW, seconds=1)
        self.data.settle()

    def core(self) -> Runs:
        """Every program under every load that it takes."""
        with running([SERVICE, *programs.PEERS, programs.CONSTANT], self.data.dsn, 1, self.folder) as started:
            validate(started, self.data)
            self.warm(started)
            for load in LOADS:
                taking = [one for one in started if load in one.program.loads]
                for turn, one in self.by_turns(taking, writes=load in programs.WRITES):
                    run = loads.wrk(one, load, self.data, connections=FEW, seconds=self.seconds)
                    yield {"program": one.program.name, "load": load, "turn": turn} | run

    def connections(self) -> Runs:
        """1,000 connections against 64, with two workers."""
        with running([SERVICE], self.data.dsn, 2, self.folder) as [service]:
            self.warm([service])
            for load in LOADS:
                for turn, number in self.by_turns([FEW, MANY], writes=load in programs.WRITES):
                    # To open 1,000 connections takes a good part of a second, in which little is answered.
                    seconds = self.seconds if number == FEW else self.seconds + 2
                    run = loads.wrk(service, load, self.data, connections=number, seconds=seconds)
                    yield {"load": load, "turn": turn, "connections": number} | run

    def users(self) -> Runs:
        """1,000 users who send one request a second, each at a moment of their own."""
        with running([SERVICE, programs.TEXTBOOK, FASTIFY], self.data.dsn, 2, self.folder) as started:
            self.warm(started)
            for one in started:
                run = loads.each_at_their_moment(one, self.data, seconds=10 * self.seconds)
                yield {"program": one.program.name} | run
                self.data.restore()

    def instant(self) -> Runs:
        """1,000 users who all send at the same instant of each second."""
        with running([SERVICE, FASTIFY], self.data.dsn, 2, self.folder) as started:
            validate(started, self.data)
            with urllib.request.urlopen(f"{started[0].url}/api/user-0/tasks?limit=20") as response:  # noqa: S310
                (self.folder / "constant.json").write_bytes(response.read())
            with running([programs.RAW], self.data.dsn, 2, self.folder) as raw:
                self.warm(started)
                for turn, one in self.by_turns([*started, *raw]):
                    run = loads.all_at_once(one, seconds=2 * self.seconds)
                    yield {"program": one.program.name, "turn": turn} | run

    def memory(self) -> Runs:
        """What one worker holds with 1,000 connections, with each Python that is there."""
        for python in (sys.executable, str(NEWER_PYTHON)):
            if not Path(python).exists():
                say(f"{python} is missing: memory is measured without it")
                continue
            name = subprocess.run([python, "--version"], check=True, capture_output=True, text=True).stdout.strip()
            command = programs.uvicorn("main:app", *programs.OPTIONS, python=python)
            service = Program("service", f"this service, {name}", command)
            with running([service], self.data.dsn, 1, self.folder) as [one]:
                for load in LOADS:
                    run = loads.wrk(one, load, self.data, connections=MANY, seconds=self.seconds + 2)
                    yield {"python": name, "load": load} | run
                self.data.restore()

    def distance(self) -> Runs:
        """Every endpoint with the database 20 ms away."""
        yield from distance.measure(self.data, self.folder, times=10 * self.seconds)

    def start(self) -> Runs:
        """From the command to the first response, on a database that has its tables."""
        for turn in range(self.turns):
            with running([SERVICE], self.data.dsn, 1, self.folder) as [one]:
                yield {"turn": turn, "seconds": one.took}

    def overload(self) -> Runs:
        """More than the database can take, and one user who takes all of it."""
        yield overload.measure(self.server, self.folder)


PARTS = ("core", "connections", "users", "instant", "memory", "distance", "start", "overload")


def about() -> dict[str, str]:
    """Say on what and with which versions."""

    def said(*command: str) -> str:
        answer = subprocess.run(command, capture_output=True, text=True)
        found = re.search(r"\d+(\.\d+)+", answer.stdout + answer.stderr)
        return found[0] if found else "unknown"

    cpu = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    packages = ("fastapi", "uvicorn", "sqlmodel", "psycopg2-binary", "asyncpg", "blacksheep", "litestar")
    versions = {
        "PostgreSQL": said(str(BINARIES / "postgres"), "--version"),
        "Python": platform.python_version(),
        "Node": said("node", "--version"),
        "wrk": said("wrk", "--version"),
    }
    versions |= {name: version(name) for name in packages}
    versions |= json.loads((HERE / "peers/package.json").read_text())["dependencies"]
    memory = psutil.virtual_memory().total / 2**30
    return {
        "machine": f"{os.cpu_count()} cores ({cpu[1] if cpu else platform.processor()}), {memory:.0f} GiB of memory,"
        f" {platform.system()} {platform.release()}",
        "versions": ", ".join(f"{name} {number}" for name, number in versions.items()),
    }


def say(what: str) -> None:
    print(f"{datetime.now(UTC):%H:%M:%S} {what}", file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare the service with what people would pick instead.")
    parser.add_argument("--parts", default=",".join(PARTS), help=f"some of {','.join(PARTS)}; all by default")
    parser.add_argument("--seconds", type=int, default=3, help="of one run of wrk; the others are a multiple of it")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--out", type=Path, default=HERE, help="the folder for the results")
    options = parser.parse_args()
    parts = options.parts.split(",")
    if unknown := set(parts) - set(PARTS):
        parser.error(f"no such part: {', '.join(sorted(unknown))}")

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what it has started ends with it
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # 1,000 connections need more than is usual
    options.out.mkdir(exist_ok=True)
    file = options.out / "results.json"
    results = json.loads(file.read_text()) if file.exists() else {}  # parts that are not measured stay as they are
    begin = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="tasks-bench-") as folder, postgres() as server:
        data = Data(0, "", Path())
        if parts != ["overload"]:  # which has its own
            say("filling the table")
            data = seed(server, "large", Path(folder), tasks=1_000_000, users=10_000)
        bench = Bench(server, data, Path(folder), options.seconds, options.turns)
        for part in parts:
            say(part)
            runs = list(getattr(bench, part)())
            measured = {"date": f"{datetime.now(UTC):%Y-%m-%d}", "seconds": options.seconds, "turns": options.turns}
            results |= {"about": about(), part: measured | {"runs": runs}}
            file.write_text(report.as_json(results))
            (options.out / "results.md").write_text(report.page(results))
            if "core" in results:
                (options.out / "headline.svg").write_text(chart.headline(results))
    print(report.page(results))
    say(f"took {(time.monotonic() - begin) / 60:.0f} minutes")


if __name__ == "__main__":
    main()
