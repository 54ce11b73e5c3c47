"""The loads, and one short run of one of them against one program."""

import json
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.data import Data
from benchmarks.programs import ROOT, Running

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Load:
    """What is sent. With `writes` it leaves something to clean up."""

    name: str
    title: str
    writes: bool = False


READ = Load("read", "read one")
LIST_20 = Load("list20", "list 20")
LIST_100 = Load("list100", "list 100")
CREATE = Load("create", "create", writes=True)
TOGGLE = Load("toggle", "toggle", writes=True)
MIX = Load("mix", "mix", writes=True)
ALL = (READ, LIST_20, LIST_100, CREATE, TOGGLE, MIX)


@contextmanager
def watched(program: Running) -> Iterator[list[float]]:
    """Look at the memory of `program` four times a second; what is yielded holds the largest."""
    largest, done = [program.megabytes()], threading.Event()

    def watch() -> None:
        while not done.wait(0.25):
            largest[0] = max(largest[0], program.megabytes())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield largest
    finally:
        done.set()
        watcher.join()


def wrk(program: Running, load: Load, data: Data, *, connections: int, seconds: int) -> dict[str, Any]:
    """Send `load` as fast as it is answered. Latencies are in milliseconds, of whole seconds only."""
    command = [
        *("wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "10s", "-s", str(HERE / "loads.lua")),
        *(program.url, "--", load.name, str(data.sample), str(data.users)),
    ]
    before = program.cpu_seconds()
    with watched(program) as megabytes:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=seconds + 60)
    if answer.returncode:  # nobody takes the connections any more
        return {"rate": 0.0, "requests": 0, "errors": {"socket": connections}, "megabytes": megabytes[0]}
    found = json.loads(answer.stdout.strip().splitlines()[-1])
    errors = {name: found[name] for name in ("status", "socket", "timeout") if found[name]}
    if not found["requests"] and not errors:
        errors = {"unanswered": connections}
    return {
        "rate": found["requests"] / (found["microseconds"] / 1e6),
        "requests": found["requests"],
        "cpu_seconds": program.cpu_seconds() - before,
        "milliseconds": {name: found[name] / 1000 for name in ("p50", "p95", "p99")},
        "errors": errors,
        "megabytes": megabytes[0],
    }


def thousand_users(program: Running, data: Data, *, seconds: int) -> dict[str, Any]:
    """1,000 users send one request of the mix a second each, each at a moment of their own."""
    command = [sys.executable, "-m", "benchmarks.users", program.url, str(data.sample), str(data.users), str(seconds)]
    with watched(program) as megabytes:
        answer = subprocess.run(command, check=True, capture_output=True, text=True, timeout=seconds + 120, cwd=ROOT)
    found: dict[str, Any] = json.loads(answer.stdout)
    return found | {"megabytes": megabytes[0]}


def hey(program: Running, data: Data, *, seconds: int) -> dict[str, Any]:
    """1,000 users read one task each second, all of them at the same moment."""
    user, task = data.sample.read_text().split()[:2]
    url = f"{program.url}/api/{user}/tasks/{task}"
    command = ["hey", "-c", "1000", "-q", "1", "-z", f"{seconds}s", url]
    with watched(program) as megabytes:
        answer = subprocess.run(command, check=True, capture_output=True, text=True, timeout=seconds + 120)
    codes = [(int(code), int(number)) for code, number in re.findall(r"\[(\d{3})\]\s+(\d+) responses", answer.stdout)]
    good = sum(number for code, number in codes if code < 300)
    bad = sum(number for code, number in codes if code >= 300)
    _, _, failed = answer.stdout.partition("Error distribution:")
    broken = sum(int(number) for number in re.findall(r"^\s+\[(\d+)\]", failed, re.MULTILINE))
    found = re.findall(r"(\d+)%+ in ([\d.]+) secs", answer.stdout)
    return {
        "requests": good,
        "milliseconds": {f"p{percent}": float(seconds) * 1000 for percent, seconds in found},
        "errors": {name: number for name, number in (("status", bad), ("socket", broken)) if number},
        "megabytes": megabytes[0],
    }
