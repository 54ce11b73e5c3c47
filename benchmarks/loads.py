"""Single runs of a load against a program. Latencies are in milliseconds, memory is in MB."""

import json
import re
import statistics
import subprocess
from pathlib import Path
from typing import Any

import uvloop

from benchmarks.clients import thousand_users
from benchmarks.data import Data
from benchmarks.programs import Running

SCRIPT = str(Path(__file__).with_name("loads.lua"))


def wrk(program: Running, load: str, data: Data, *, connections: int, seconds: int) -> dict[str, Any]:
    """Send `load` with wrk as fast as the program responds."""
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "10s", "-s", SCRIPT]
    before = program.cpu_seconds()
    with program.memory_watched() as megabytes:
        output = subprocess.run(
            [*command, program.url, "--", load, str(data.sample), str(data.users)],
            check=True, capture_output=True, text=True, timeout=seconds + 60,
        ).stdout  # fmt: skip
    found = json.loads(output.strip().splitlines()[-1])
    return {
        "rate": found["requests"] / (found["microseconds"] / 1e6),
        "requests": found["requests"],
        "errors": found["errors"] if found["requests"] else connections,
        "cpu_seconds": program.cpu_seconds() - before,
        "megabytes": megabytes[0],
    }


def spread_users(program: Running, data: Data, *, seconds: int) -> dict[str, Any]:
    """Let 1,000 users send one request of the mix a second, at different times within the second."""
    outcomes = uvloop.run(thousand_users(program.url, data.sample_tasks(), data.users, seconds))
    served = [outcome.seconds * 1000 for outcome in outcomes if outcome.status in (200, 201)]
    cuts = statistics.quantiles(served, n=100) if len(served) > 1 else [0.0] * 99
    return {
        "requests": len(served),
        "errors": len(outcomes) - len(served),
        "milliseconds": {"p50": cuts[49], "p95": cuts[94], "p99": cuts[98]},
    }


def simultaneous_users(program: Running, *, seconds: int) -> dict[str, Any]:
    """Let 1,000 users list 20 tasks at the same instant of each second."""
    command = ["hey", "-c", "1000", "-q", "1", "-z", f"{seconds}s", f"{program.url}/api/user-0/tasks?limit=20"]
    output = subprocess.run(command, check=True, capture_output=True, text=True, timeout=seconds + 120).stdout
    codes = [(int(code), int(number)) for code, number in re.findall(r"\[(\d{3})\]\s+(\d+) responses", output)]
    _, _, error_lines = output.partition("Error distribution:")
    connection_errors = sum(int(number) for number in re.findall(r"^\s+\[(\d+)\]", error_lines, re.MULTILINE))
    percentiles = re.findall(r"(\d+)%+ in ([\d.]+) secs", output)
    return {
        "requests": sum(number for code, number in codes if code == 200),
        "errors": sum(number for code, number in codes if code != 200) + connection_errors,
        "milliseconds": {f"p{percent}": float(seconds) * 1000 for percent, seconds in percentiles},
    }
