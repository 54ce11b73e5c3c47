"""Format the results as JSON and as the Markdown page results.md."""

import json
import statistics
from collections.abc import Callable, Iterable
from typing import Any

from benchmarks import overload, programs
from benchmarks.programs import CONSTANT, FASTIFY, LOADS, PEERS, RAW, SERVICE, Program

Results = dict[str, Any]
Runs = list[dict[str, Any]]


def as_json(results: Results) -> str:
    """Return JSON with one line per run, so that diffs are readable."""
    parts = []
    for part, found in results.items():
        runs = ",\n".join(f"  {json.dumps(run)}" for run in found.get("runs", []))
        head = json.dumps({name: value for name, value in found.items() if name != "runs"})
        parts.append(f' "{part}": {head[:-1]}, "runs": [\n{runs}\n ]}}' if runs else f' "{part}": {head}')
    return "{\n" + ",\n".join(parts) + "\n}\n"


def select_runs(results: Results, part: str, **labels: Any) -> Runs:
    """Return the runs of a part with these values."""
    runs = results.get(part, {}).get("runs", [])
    return [run for run in runs if all(run.get(name) == value for name, value in labels.items())]


def per_second(run: dict[str, Any]) -> float:
    return float(run["rate"])


def per_cpu_second(run: dict[str, Any]) -> float:
    return float(run["requests"] / run["cpu_seconds"])


def p95(run: dict[str, Any]) -> float:
    return float(run["milliseconds"].get("p95", 0))  # missing when no request succeeded


def ratios(own: Runs, other: Runs, measure: Callable[[dict[str, Any]], float] = per_second) -> list[float]:
    """Return the ratio of two programs in each turn."""
    by_turn = {run["turn"]: measure(run) for run in other}
    return [measure(run) / by_turn[run["turn"]] for run in own if by_turn.get(run["turn"])]


def core(
    results: Results, load: str, peer: Program, measure: Callable[[dict[str, Any]], float] = per_second
) -> list[float]:
    """Return the ratios of the service to a peer."""
    own, other = (select_runs(results, "core", load=load, program=program.name) for program in (SERVICE, peer))
    return ratios(own, other, measure)


def many_connections(results: Results, load: str) -> list[float]:
    """Return the ratios of 1,000 connections to 64."""
    many, few = (select_runs(results, "connections", load=load, connections=number) for number in (1000, 64))
    return ratios(many, few)


def instant(results: Results, peer: Program) -> list[float]:
    """Return the ratios of p95 when all send at the same instant."""
    own, other = (select_runs(results, "instant", program=program.name) for program in (SERVICE, peer))
    return ratios(own, other, p95)


# ---- Formatting -----------------------------------------------------------------------------


def number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def spread(values: list[float], unit: str = "") -> str:
    """Return the median, the minimum and the maximum as a text."""
    if not values:
        return "-"
    return f"**{number(statistics.median(values))}**{unit} ({number(min(values))} to {number(max(values))})"


def errors(runs: Runs) -> str:
    failed = sum(run["errors"] for run in runs)
    return f"{failed:,} of {failed + sum(run['requests'] for run in runs):,}" if failed else "none"


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    names = list(head)
    return "\n".join(f"| {' | '.join(line)} |" for line in [names, ["---"] * len(names), *rows])


# ---- Sections -------------------------------------------------------------------------------


def targets(results: Results) -> str:
    """Return the table of targets, and whether they were reached."""
    rows: list[tuple[str, str, str, str]] = []

    def row(title: str, target: float, values: list[float], *, at_most: bool = False, unit: str = "") -> None:
        if values:
            middle = statistics.median(values)
            reached = middle <= target if at_most else middle >= target
            bound = f"{'at most' if at_most else 'at least'} {target:g}{unit}"
            rows.append((title, bound, spread(values, unit), "yes" if reached else "no"))

    def no_error(title: str, runs: Runs) -> None:
        if runs:
            failed = errors(runs)
            rows.append((title, "no error", failed, "yes" if failed == "none" else "no"))

    def least(found: dict[str, list[float]]) -> tuple[str, list[float]]:
        """Return the load with the smallest median, and its ratios."""
        return min(found.items(), key=lambda pair: statistics.median(pair[1]))

    peer_targets = (
        (programs.TEXTBOOK, 7),
        (programs.EXPRESS, 1.25),
        (FASTIFY, 1),
        (programs.BLACKSHEEP, 1),
        (programs.LITESTAR, 1),
        (CONSTANT, 0.5),
    )
    for peer, target in peer_targets:
        if found := {load: of_load for load in LOADS if (of_load := core(results, load, peer))}:
            load, values = least(found)
            row(f"{peer.title}: {LOADS[load]}" + (", the least of all loads" if len(found) > 1 else ""), target, values)
    row("requests per second of own CPU, Fastify: read one", 0.9, core(results, "read", FASTIFY, per_cpu_second))
    if found := {load: of_load for load in LOADS if (of_load := many_connections(results, load))}:
        load, values = least(found)
        row(f"1,000 connections against 64, two workers: {LOADS[load]}, the least of all loads", 0.9, values)
    no_error("1,000 connections", select_runs(results, "connections", connections=1000))
    row("1,000 users at the same instant, p95 against Fastify's", 0.5, instant(results, FASTIFY), at_most=True)
    row("1,000 users at the same instant, p95 against raw ASGI's", 2, instant(results, RAW), at_most=True)
    no_error("1,000 users at the same instant", select_runs(results, "instant", program=SERVICE.name))
    for python in sorted({run["python"] for run in select_runs(results, "memory")}):
        largest = max(run["megabytes"] for run in select_runs(results, "memory", python=python))
        row(f"memory of a worker, 1,000 connections, {python}", 100, [largest], at_most=True, unit=" MB")
    for run in select_runs(results, "distance", program=SERVICE.name):
        name, milliseconds = max(run["endpoints"].items(), key=lambda pair: float(pair[1]))
        trips = milliseconds / run["round_trip"]
        row(f"20 ms away, round trips of `{name}`, the most of all endpoints", 1.3, [trips], at_most=True)
    starts = [run["seconds"] for run in select_runs(results, "start")]
    row("start to first response", 1.5, starts, at_most=True, unit=" s")
    return "## Targets\n\n" + table(("", "target", "measured", "reached"), rows)


def core_tables(results: Results) -> str:
    def ratio_table(measure: Callable[[dict[str, Any]], float]) -> str:
        rows = [
            (title, *(spread(core(results, load, peer, measure)) for peer in PEERS)) for load, title in LOADS.items()
        ]
        return table(("", *(peer.title for peer in PEERS)), rows)

    def median_rate(program: Program, load: str) -> str:
        rates = [run["rate"] for run in select_runs(results, "core", program=program.name, load=load)]
        return number(statistics.median(rates)) if rates else "-"

    programs_shown = (SERVICE, *PEERS, CONSTANT)
    rates = [(program.title, *(median_rate(program, load) for load in LOADS)) for program in programs_shown]
    return "\n\n".join(
        [
            "## 64 connections, one worker, 1,000,000 tasks\n\nHow many times as many requests a second the service"
            " handles: the median of the turns, and the least and the most.",
            ratio_table(per_second),
            f"Read one against a constant: {spread(core(results, 'read', CONSTANT))}",
            "The same for requests per second of the program's own CPU, without PostgreSQL and the load. What else"
            " the machine does changes this less:",
            ratio_table(per_cpu_second),
            "Requests a second (medians; the figures belong to this machine and this hour):",
            table(("", *LOADS.values()), rates),
            f"Errors: {errors(select_runs(results, 'core'))}.",
        ]
    )


def connections_table(results: Results) -> str:
    rows = [(title, spread(many_connections(results, load))) for load, title in LOADS.items()]
    return "## 1,000 connections against 64, two workers\n\n" + table(("", "this service"), rows)


def users_tables(results: Results) -> str:
    titles = {
        "users": "Each at a moment of their own, the mix",
        "instant": "All at the same instant (`hey -c 1000 -q 1`), list 20; medians of the turns",
    }
    parts = ["## 1,000 users, one request a second each\n\nTwo workers."]
    for part, title in titles.items():
        rows = []
        for name in dict.fromkeys(run["program"] for run in select_runs(results, part)):
            runs = select_runs(results, part, program=name)
            middle = (statistics.median(run["milliseconds"].get(p, 0) for run in runs) for p in ("p50", "p95", "p99"))
            rows.append((programs.ALL[name].title, *(f"{value:,.0f} ms" for value in middle), errors(runs)))
        if rows:
            parts += [f"{title}:", table(("", "p50", "p95", "p99", "errors"), rows)]
    return "\n\n".join(parts)


def telemetry_table(results: Results) -> str:
    def runs_of(program: Program, load: str) -> Runs:
        return select_runs(results, "telemetry", load=load, program=program.name)

    candidates = (programs.TRACED, programs.SAMPLED)
    rows = [
        (title, *(spread(ratios(runs_of(candidate, load), runs_of(SERVICE, load))) for candidate in candidates))
        for load, title in LOADS.items()
    ]
    head = "## With OpenTelemetry, against without\n\nRequests a second. Metrics are sent in both cases."
    return head + "\n\n" + table(("", *(candidate.title for candidate in candidates)), rows)


def distance_table(results: Results) -> str:
    runs = select_runs(results, "distance")
    rows = []
    for name in runs[0]["endpoints"]:
        trips = (run["endpoints"][name] / run["round_trip"] if name in run["endpoints"] else None for run in runs)
        rows.append((f"`{name}`", *(f"{number:.2f}" if number else "-" for number in trips)))
    head = "## 20 ms away\n\nThe median of each endpoint, in round trips to the database."
    return head + "\n\n" + table(("", *(programs.ALL[run["program"]].title for run in runs)), rows)


def overload_table(results: Results) -> str:
    [run] = select_runs(results, "overload")
    rows = [(title, target, version_1, run[name]) for name, (title, target, version_1) in overload.ROWS.items()]
    head = "## Twice the load that the database can take, and one user who uses all of it"
    return head + "\n\n" + table(("", "target", f"version 1.0.0 ({overload.MEASURED})", "measured"), rows)


SECTIONS = {
    "core": core_tables,
    "connections": connections_table,
    "users": users_tables,
    "instant": users_tables,
    "telemetry": telemetry_table,
    "distance": distance_table,
    "overload": overload_table,
}


def page(results: Results) -> str:
    """Return the page results.md."""
    about = results["about"]
    parts = [
        f"{part} on {found['date']} ({found['turns']} turns, {found['seconds']} s)"
        for part, found in results.items()
        if part != "about"
    ]
    head = (
        "# Results\n\nMade by `make bench`; [README.md](README.md) says how to read them.\n\n"
        f"Machine: {about['machine']}. It runs the program, PostgreSQL and the load.\n\n"
        f"Versions: {about['versions']}.\n\nMeasured: {'; '.join(parts)}."
    )
    sections = dict.fromkeys(section for part, section in SECTIONS.items() if part in results)
    return "\n\n".join([head, targets(results), *(section(results) for section in sections)]) + "\n"
