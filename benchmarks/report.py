"""The page of results, in Markdown, from what the benchmark has found so far."""

import json
import statistics
from collections.abc import Callable, Iterable
from typing import Any

from benchmarks import overload, programs
from benchmarks.programs import CONSTANT, FASTIFY, LOADS, PEERS, RAW, SERVICE, Program

Results = dict[str, Any]
Runs = list[dict[str, Any]]


def as_json(results: Results) -> str:
    """One line for each run, so that a change can be read."""
    parts = []
    for part, found in results.items():
        runs = ",\n".join(f"  {json.dumps(run)}" for run in found.get("runs", []))
        head = json.dumps({name: value for name, value in found.items() if name != "runs"})
        parts.append(f' "{part}": {head[:-1]}, "runs": [\n{runs}\n ]}}' if runs else f' "{part}": {head}')
    return "{\n" + ",\n".join(parts) + "\n}\n"


def chosen(results: Results, part: str, **labels: Any) -> Runs:
    """Return the runs of a part that have these labels."""
    runs = results.get(part, {}).get("runs", [])
    return [run for run in runs if all(run.get(name) == value for name, value in labels.items())]


def per_second(run: dict[str, Any]) -> float:
    return float(run["rate"])


def per_cpu_second(run: dict[str, Any]) -> float:
    return float(run["requests"] / run["cpu_seconds"])


def p95(run: dict[str, Any]) -> float:
    return float(run["milliseconds"].get("p95", 0))  # none when nobody was served


def ratios(ours: Runs, theirs: Runs, of: Callable[[dict[str, Any]], float] = per_second) -> list[float]:
    """Return the ratio of each turn."""
    by_turn = {run["turn"]: of(run) for run in theirs}
    return [of(run) / by_turn[run["turn"]] for run in ours if by_turn.get(run["turn"])]


def core(results: Results, load: str, peer: Program, of: Callable[[dict[str, Any]], float] = per_second) -> list[float]:
    """Return the ratios of the service to a peer."""
    ours, theirs = (chosen(results, "core", load=load, program=one.name) for one in (SERVICE, peer))
    return ratios(ours, theirs, of)


def crowd(results: Results, load: str) -> list[float]:
    """Return the ratios of 1,000 connections to 64."""
    many, few = (chosen(results, "connections", load=load, connections=number) for number in (1000, 64))
    return ratios(many, few)


def instant(results: Results, peer: Program) -> list[float]:
    """Return the ratios of p95 when all send at the same instant."""
    ours, theirs = (chosen(results, "instant", program=one.name) for one in (SERVICE, peer))
    return ratios(ours, theirs, p95)


# ---- How it is written ----------------------------------------------------------------------


def number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def spread(values: list[float], unit: str = "") -> str:
    """Write the median, the least and the most."""
    if not values:
        return "-"
    return f"**{number(statistics.median(values))}**{unit} ({number(min(values))} to {number(max(values))})"


def errors(runs: Runs) -> str:
    wrong = sum(run["errors"] for run in runs)
    return f"{wrong:,} of {wrong + sum(run['requests'] for run in runs):,}" if wrong else "none"


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    names = list(head)
    return "\n".join(f"| {' | '.join(line)} |" for line in [names, ["---"] * len(names), *rows])


# ---- Sections -------------------------------------------------------------------------------


def to_reach(results: Results) -> str:
    """What was to be reached, and whether it was."""
    rows: list[tuple[str, str, str, str]] = []

    def row(what: str, aim: float, values: list[float], *, most: bool = False, unit: str = "") -> None:
        if values:
            middle = statistics.median(values)
            reached = middle <= aim if most else middle >= aim
            bound = f"{'at most' if most else 'at least'} {aim:g}{unit}"
            rows.append((what, bound, spread(values, unit), "yes" if reached else "no"))

    def no_error(what: str, runs: Runs) -> None:
        if runs:
            wrong = errors(runs)
            rows.append((what, "no error", wrong, "yes" if wrong == "none" else "no"))

    def least(found: dict[str, list[float]]) -> tuple[str, list[float]]:
        """Return the load with the smallest median, and its ratios."""
        return min(found.items(), key=lambda pair: statistics.median(pair[1]))

    aims = (
        (programs.TEXTBOOK, 7),
        (programs.EXPRESS, 1.25),
        (FASTIFY, 1),
        (programs.BLACKSHEEP, 1),
        (programs.LITESTAR, 1),
        (CONSTANT, 0.5),
    )
    for peer, aim in aims:
        if found := {load: of_load for load in LOADS if (of_load := core(results, load, peer))}:
            load, values = least(found)
            row(f"{peer.title}: {LOADS[load]}" + (", the least of all loads" if len(found) > 1 else ""), aim, values)
    row("requests per second of own CPU, Fastify: read one", 0.9, core(results, "read", FASTIFY, per_cpu_second))
    if found := {load: of_load for load in LOADS if (of_load := crowd(results, load))}:
        load, values = least(found)
        row(f"1,000 connections against 64, two workers: {LOADS[load]}, the least of all loads", 0.9, values)
    no_error("1,000 connections", chosen(results, "connections", connections=1000))
    row("1,000 users at the same instant, p95 against Fastify's", 0.5, instant(results, FASTIFY), most=True)
    row("1,000 users at the same instant, p95 against raw ASGI's", 2, instant(results, RAW), most=True)
    no_error("1,000 users at the same instant", chosen(results, "instant", program=SERVICE.name))
    for python in sorted({run["python"] for run in chosen(results, "memory")}):
        largest = max(run["megabytes"] for run in chosen(results, "memory", python=python))
        row(f"memory of a worker, 1,000 connections, {python}", 100, [largest], most=True, unit=" MB")
    for run in chosen(results, "distance", program=SERVICE.name):
        name, milliseconds = max(run["endpoints"].items(), key=lambda pair: float(pair[1]))
        trips = milliseconds / run["round_trip"]
        row(f"20 ms away, round trips of `{name}`, the most of all endpoints", 1.3, [trips], most=True)
    starts = [run["seconds"] for run in chosen(results, "start")]
    row("start to first response", 1.5, starts, most=True, unit=" s")
    return "## What was to be reached\n\n" + table(("", "aim", "found", "reached"), rows)


def core_tables(results: Results) -> str:
    def compared(of: Callable[[dict[str, Any]], float]) -> str:
        rows = [(title, *(spread(core(results, load, peer, of)) for peer in PEERS)) for load, title in LOADS.items()]
        return table(("", *(peer.title for peer in PEERS)), rows)

    def figure(program: Program, load: str) -> str:
        rates = [run["rate"] for run in chosen(results, "core", program=program.name, load=load)]
        return number(statistics.median(rates)) if rates else "-"

    figures = [(one.title, *(figure(one, load) for load in LOADS)) for one in (SERVICE, *PEERS, CONSTANT)]
    return "\n\n".join(
        [
            "## 64 connections, one worker, 1,000,000 tasks\n\nHow many times as many requests a second the service"
            " answers: the median of the turns, and the least and the most.",
            compared(per_second),
            f"Read one against a constant: {spread(core(results, 'read', CONSTANT))}",
            "The same for requests per second of the program's own CPU, without PostgreSQL and the load. What else"
            " the machine does changes this less:",
            compared(per_cpu_second),
            "Requests a second (medians; the figures belong to this machine and this hour):",
            table(("", *LOADS.values()), figures),
            f"Errors: {errors(chosen(results, 'core'))}.",
        ]
    )


def connections_table(results: Results) -> str:
    rows = [(title, spread(crowd(results, load))) for load, title in LOADS.items()]
    return "## 1,000 connections against 64, two workers\n\n" + table(("", "this service"), rows)


def users_tables(results: Results) -> str:
    titles = {
        "users": "Each at a moment of their own, the mix",
        "instant": "All at the same instant (`hey -c 1000 -q 1`), list 20; medians of the turns",
    }
    parts = ["## 1,000 users, one request a second each\n\nTwo workers."]
    for part, title in titles.items():
        rows = []
        for name in dict.fromkeys(run["program"] for run in chosen(results, part)):
            runs = chosen(results, part, program=name)
            middle = (statistics.median(run["milliseconds"].get(p, 0) for run in runs) for p in ("p50", "p95", "p99"))
            rows.append((programs.ALL[name].title, *(f"{value:,.0f} ms" for value in middle), errors(runs)))
        if rows:
            parts += [f"{title}:", table(("", "p50", "p95", "p99", "errors"), rows)]
    return "\n\n".join(parts)


def distance_table(results: Results) -> str:
    runs = chosen(results, "distance")
    rows = []
    for name in runs[0]["endpoints"]:
        trips = (run["endpoints"][name] / run["round_trip"] if name in run["endpoints"] else None for run in runs)
        rows.append((f"`{name}`", *(f"{number:.2f}" if number else "-" for number in trips)))
    head = "## 20 ms away\n\nThe median of each endpoint, in round trips to the database."
    return head + "\n\n" + table(("", *(programs.ALL[run["program"]].title for run in runs)), rows)


def overload_table(results: Results) -> str:
    [run] = chosen(results, "overload")
    rows = [(title, aim, first, run[name]) for name, (title, aim, first) in overload.ROWS.items()]
    head = "## Twice the load that the database can take, and one user who takes all of it"
    return head + "\n\n" + table(("", "aim", f"version 1.0.0 ({overload.MEASURED})", "found"), rows)


SECTIONS = {
    "core": core_tables,
    "connections": connections_table,
    "users": users_tables,
    "instant": users_tables,
    "distance": distance_table,
    "overload": overload_table,
}


def page(results: Results) -> str:
    """Everything that has been found, as a page."""
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
    return "\n\n".join([head, to_reach(results), *(section(results) for section in sections)]) + "\n"
