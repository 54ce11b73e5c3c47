"""Compare the service with its peers: `python -m benchmarks.bench`, as `make bench` runs it.

Every comparison is made of turns: in each, every program that is compared is measured once for a
few seconds, and the order moves on by one from turn to turn. A ratio is taken within a turn, so
that it is between two runs of the same minute. What has been measured is written down after each
comparison; `--resume` goes on from there.
"""

import argparse
import dataclasses
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
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil

from benchmarks import chart, distance, loads, report
from benchmarks.data import Data, postgres, seed
from benchmarks.loads import Load
from benchmarks.programs import ALL, EXPRESS, FASTIFY, SERVICE, TEXTBOOK, Running, running
from benchmarks.validate import validate
from tests.faults.postgres import Postgres

HERE = Path(__file__).resolve().parent
FEW, MANY = 64, 1000  # connections
MAIN = [SERVICE, TEXTBOOK, EXPRESS, FASTIFY]  # those that are compared with more connections and workers too
WARM = (loads.READ, loads.LIST_20, loads.CREATE, loads.TOGGLE)
PARTS = ("core", "connections", "size", "users", "distance", "start")


@dataclasses.dataclass(frozen=True)
class Setting:
    """What is measured in one place of a turn."""

    program: Running
    data: Data
    connections: int
    workers: int

    def labels(self) -> dict[str, Any]:
        return {
            "program": self.program.program.name,
            "workers": self.workers,
            "connections": self.connections,
            "tasks": self.data.tasks,
        }


class Bench:
    """One run: the databases, how long to measure, and what has been found."""

    def __init__(self, options: argparse.Namespace, server: Postgres, folder: Path) -> None:
        self.options, self.server, self.folder = options, server, folder
        self.file: Path = options.out / "results.json"
        self.results: dict[str, Any] = {"about": about(options), "done": [], "runs": []}
        if options.resume and self.file.exists():
            self.results = json.loads(self.file.read_text())
        say("filling the tables")
        self.small = seed(server, "small", folder, tasks=10_000, users=100)
        self.large = seed(server, "large", folder, tasks=1_000_000, users=10_000)

    # ---- What all parts share ---------------------------------------------------------------

    def once(self, name: str, measure: Callable[[], list[dict[str, Any]]]) -> None:
        """Measure and write down, unless it is there already."""
        if name in self.results["done"]:
            return
        say(name)
        self.results["runs"] += measure()
        self.results["done"].append(name)
        self.write()

    def write(self) -> None:
        self.options.out.mkdir(exist_ok=True)
        self.file.write_text(json.dumps(self.results, indent=1) + "\n")
        (self.options.out / "results.md").write_text(report.page(self.results))
        (self.options.out / "headline.svg").write_text(chart.headline(self.results))

    def compare(self, part: str, load: Load, settings: Sequence[Setting], seconds: int) -> None:
        """Measure all settings by turns under one load."""

        def measure() -> list[dict[str, Any]]:
            found = []
            for turn in range(self.options.turns):
                first = turn % len(settings)
                for setting in [*settings[first:], *settings[:first]]:
                    # To open 1,000 connections takes a good part of a second, in which little is answered.
                    long = seconds if setting.connections == FEW else self.options.crowd_seconds
                    run = loads.wrk(setting.program, load, setting.data, connections=setting.connections, seconds=long)
                    found.append({"part": part, "load": load.name, "turn": turn, **setting.labels(), **run})
                    if run["errors"]:
                        setting.program.restart()
                        warm([setting.program], setting.data, [load])
                if load.writes:
                    self.restore(settings)
            for data in {setting.data for setting in settings}:
                data.settle()
            return found

        name = f"{part}/{load.name}"
        self.once(name, measure)

    def restore(self, settings: Sequence[Setting]) -> None:
        for data in {setting.data for setting in settings}:
            data.restore()

    # ---- The parts --------------------------------------------------------------------------

    def core(self) -> None:
        """Every program under every load; the constant only where it is a task that is read."""
        with running(list(ALL.values()), self.large.dsn, 1, self.folder) as started:
            say("comparing the answers")
            validate(started, self.large)
            warm(started, self.large)
            for load in loads.ALL:
                measured = [one for one in started if load is loads.READ or one.program.name != "ceiling"]
                settings = [Setting(one, self.large, FEW, 1) for one in measured]
                self.compare("core", load, settings, self.options.seconds)

    def connections(self) -> None:
        """64 and 1,000 connections to two workers, and 1,000 to one."""
        for workers, numbers, programs in ((2, (FEW, MANY), MAIN), (1, (MANY,), [SERVICE, TEXTBOOK, FASTIFY])):
            with running(programs, self.large.dsn, workers, self.folder) as started:
                warm(started, self.large)
                for load in loads.ALL:
                    settings = [Setting(one, self.large, number, workers) for one in started for number in numbers]
                    self.compare(f"connections/{workers}", load, settings, self.options.matrix_seconds)

    def size(self) -> None:
        """1,000,000 tasks against 10,000; then the rest of the small table for the service alone."""
        some = [SERVICE, TEXTBOOK, FASTIFY]
        with (
            running(some, self.large.dsn, 1, self.folder) as on_large,
            running(some, self.small.dsn, 1, self.folder) as on_small,
        ):
            warm(on_large, self.large)
            warm(on_small, self.small)
            for load in loads.ALL:
                pairs = zip(on_large, on_small, strict=True)
                settings = [
                    Setting(one, data, FEW, 1) for pair in pairs for one, data in zip(pair, self.both(), strict=True)
                ]
                self.compare("size", load, settings, self.options.matrix_seconds)
        for workers, numbers in ((1, (MANY,)), (2, (FEW, MANY))):
            with running([SERVICE], self.small.dsn, workers, self.folder) as [service]:
                warm([service], self.small)
                for load in loads.ALL:
                    settings = [Setting(service, self.small, number, workers) for number in numbers]
                    self.compare(f"small/{workers}", load, settings, self.options.matrix_seconds)

    def both(self) -> tuple[Data, Data]:
        return self.large, self.small

    def users(self) -> None:
        """1,000 users who send once a second: each at a moment of their own, then all at once (hey)."""
        seconds = self.options.users_seconds
        with running(MAIN, self.large.dsn, 2, self.folder) as started:
            warm(started, self.large)
            self.thousand("users", started, self.large)
            for one in started:

                def measure(one: Running = one) -> list[dict[str, Any]]:
                    run = loads.hey(one, self.large, seconds=max(5, seconds // 3))
                    return [{"part": "users at once", **Setting(one, self.large, MANY, 2).labels(), **run}]

                self.once(f"users at once/{one.program.name}", measure)

    def thousand(self, part: str, started: list[Running], data: Data) -> None:
        for one in started:

            def measure(one: Running = one) -> list[dict[str, Any]]:
                run = loads.thousand_users(one, data, seconds=self.options.users_seconds)
                self.large.restore()
                return [{"part": part, "load": "mix", **Setting(one, data, MANY, 2).labels(), **run}]

            self.once(f"{part}/{one.program.name}", measure)

    def distance(self) -> None:
        """The service and the textbook, 20 ms from their database."""
        times, two = self.options.distance_times, [SERVICE, TEXTBOOK]
        with distance.network(self.server.port) as port:
            far = dataclasses.replace(self.large, dsn=self.large.dsn.replace(f":{self.server.port}/", f":{port}/"))

            def measure() -> list[dict[str, Any]]:
                found = []
                with running(two, far.dsn, 1, self.folder) as started:
                    for one in started:
                        trip = distance.round_trip(far.dsn, times)
                        taken = distance.endpoints(one, far, times)
                        labels = {"part": "distance", "program": one.program.name, "workers": 1}
                        found.append(labels | {"round_trip": trip, "endpoints": taken, "megabytes": one.megabytes()})
                self.large.restore()
                return found

            self.once("distance", measure)
            with running(two, far.dsn, 2, self.folder) as started:
                self.thousand("users far away", started, far)

    def start(self) -> None:
        """From the command to the first answer, on a database that has its tables."""

        def measure() -> list[dict[str, Any]]:
            found = []
            programs = list(ALL.values())
            for turn in range(self.options.turns):
                for program in programs[turn % len(programs) :] + programs[: turn % len(programs)]:
                    with running([program], self.large.dsn, 1, self.folder) as [one]:
                        found.append({"part": "start", "program": program.name, "turn": turn, "seconds": one.took})
            return found

        self.once("start", measure)


def warm(started: list[Running], data: Data, among: Sequence[Load] = WARM) -> None:
    """Let each have opened its connections, compiled and cached what it will."""
    for one in started:
        for load in among:
            if load is loads.READ or one.program.name != "ceiling":
                loads.wrk(one, load, data, connections=FEW, seconds=1)
    data.restore()


def say(what: str) -> None:
    print(f"{datetime.now(UTC):%H:%M:%S} {what}", file=sys.stderr, flush=True)


def about(options: argparse.Namespace) -> dict[str, Any]:
    """When, on what and with which versions."""

    def said(*command: str, pattern: str = r"\d+(\.\d+)*") -> str:
        answer = subprocess.run(command, capture_output=True, text=True)
        found = re.search(pattern, answer.stdout + answer.stderr)
        return found[0] if found else "unknown"

    cpu = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    node = json.loads((HERE / "peers/package.json").read_text())["dependencies"]
    python = ("fastapi", "uvicorn", "sqlmodel", "sqlalchemy", "psycopg2-binary", "asyncpg", "django")
    return {
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "machine": {
            "CPU": cpu[1] if cpu else platform.processor(),
            "cores": os.cpu_count(),
            "memory in GB": round(psutil.virtual_memory().total / 1e9),
            "kernel": f"{platform.system()} {platform.release()}",
        },
        "versions": {
            "PostgreSQL": said(str(postgres_binary()), "--version"),
            "Python": platform.python_version(),
            "Node": said("node", "--version"),
            "wrk": said("wrk", "--version"),
        }
        | {name: version(name) for name in (*python, "djangorestframework", "psycopg", "gunicorn")}
        | node,
        "seconds": options.seconds,
        "matrix_seconds": options.matrix_seconds,
        "crowd_seconds": options.crowd_seconds,
        "users_seconds": options.users_seconds,
        "turns": options.turns,
    }


def postgres_binary() -> Path:
    from tests.faults.postgres import BINARIES

    return BINARIES / "postgres"


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare the service with what people would pick instead.")
    parser.add_argument("--parts", default=",".join(PARTS), help=f"some of {','.join(PARTS)}; all by default")
    parser.add_argument("--seconds", type=int, default=3, help="of one run of part core")
    parser.add_argument("--matrix-seconds", type=int, default=2, help="of one run of parts connections and size")
    parser.add_argument("--crowd-seconds", type=int, default=4, help="of one run with 1,000 connections")
    parser.add_argument("--users-seconds", type=int, default=60, help="for which 1,000 users send")
    parser.add_argument("--distance-times", type=int, default=30, help="requests to each endpoint 20 ms away")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--out", type=Path, default=HERE, help="the folder for the results")
    parser.add_argument("--resume", action="store_true", help="keep what is in results.json, measure what is missing")
    options = parser.parse_args()
    parts = options.parts.split(",")
    if unknown := set(parts) - set(PARTS):
        parser.error(f"no such part: {', '.join(sorted(unknown))}")

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what it has started ends with it
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # 1,000 connections need more than is usual
    begin = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="tasks-bench-") as folder, postgres() as server:
        bench = Bench(options, server, Path(folder))
        for part in PARTS:
            if part in parts:
                getattr(bench, part)()
        bench.write()
        print(report.page(bench.results))
    say(f"took {(time.monotonic() - begin) / 60:.0f} minutes")


if __name__ == "__main__":
    main()
