"""The page of results, in Markdown, from what the benchmark has found so far."""

import statistics
from collections.abc import Callable, Iterable
from typing import Any

from benchmarks import loads
from benchmarks.programs import ALL, CEILING, DJANGO, EXPRESS, FASTIFY, PEERS, SERVICE, TEXTBOOK, Program

Runs = list[dict[str, Any]]
AIMED = (loads.READ, loads.LIST_20, loads.CREATE, loads.TOGGLE, loads.MIX)
LARGE, SMALL = 1_000_000, 10_000


class Ratio:
    """The ratio of two settings, taken in each turn: its median, least and most."""

    def __init__(self, ours: Runs, theirs: Runs) -> None:
        rates = {run["turn"]: run["rate"] for run in theirs}
        self.turns = [run["rate"] / rates[run["turn"]] for run in ours if rates.get(run["turn"])]

    @property
    def median(self) -> float:
        return float(statistics.median(self.turns))

    def __bool__(self) -> bool:
        return bool(self.turns)

    def __str__(self) -> str:
        if not self.turns:
            return "-"
        return f"**{number(self.median)}** ({number(min(self.turns))} to {number(max(self.turns))})"


def number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def chosen(results: dict[str, Any], **labels: Any) -> Runs:
    """The runs that have these labels; a Load or Program stands for its name."""
    wanted = {name: getattr(value, "name", value) for name, value in labels.items()}
    return [run for run in results["runs"] if all(run.get(name) == value for name, value in wanted.items())]


def table(head: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    names = list(head)
    lines = [names, ["---"] * len(names), *([str(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def rate(runs: Runs) -> str:
    return number(statistics.median(run["rate"] for run in runs)) if runs else "-"


def errors(runs: Runs) -> int:
    return sum(sum(run.get("errors", {}).values()) for run in runs)


def failed(runs: Runs) -> str:
    """The errors, and in how many requests."""
    wrong = errors(runs)
    return f"{wrong:,} in {sum(run['requests'] for run in runs) + wrong:,}" if wrong else "none"


# ---- Comparisons ----------------------------------------------------------------------------


def core(results: dict[str, Any], load: loads.Load, peer: Program, per: str = "") -> Ratio:
    """The service against a peer, in requests per second, or per what runs have under that name."""
    ours, theirs = (chosen(results, part="core", load=load, program=program) for program in (SERVICE, peer))
    if per:
        ours, theirs = (
            [run | {"rate": run["requests"] / run[per]} for run in runs if run.get(per)] for runs in (ours, theirs)
        )
    return Ratio(ours, theirs)


def crowd(results: dict[str, Any], load: loads.Load, program: Program) -> Ratio:
    """1,000 connections against 64, with two workers."""
    runs = [
        chosen(results, part="connections/2", load=load, program=program, connections=connections)
        for connections in (1000, 64)
    ]
    return Ratio(*runs)


def growth(results: dict[str, Any], load: loads.Load, program: Program) -> Ratio:
    large, small = (chosen(results, part="size", load=load, program=program, tasks=tasks) for tasks in (LARGE, SMALL))
    return Ratio(large, small)


def least(ratio: Callable[[loads.Load], Ratio], among: Iterable[loads.Load]) -> tuple[float, str] | None:
    """The smallest of the medians, and in words."""
    found = [(ratio(load), load.title) for load in among]
    if not all(one for one, _ in found):
        return None
    worst, title = min(found, key=lambda pair: pair[0].median)
    return worst.median, f"{worst} in {title}"


# ---- Sections -------------------------------------------------------------------------------


def aims(results: dict[str, Any]) -> str:
    """What was to be reached, and what was."""
    rows: list[tuple[str, str, str, str]] = []

    def row(what: str, aim: str, found: tuple[float, str] | None, reached: Callable[[float], bool]) -> None:
        if found:
            rows.append((what, aim, found[1], "yes" if reached(found[0]) else "no"))

    for peer, aim in ((TEXTBOOK, 5.0), (EXPRESS, 1.1), (DJANGO, 2.0), (FASTIFY, 0.6)):
        found = least(lambda load, peer=peer: core(results, load, peer), AIMED)  # type: ignore[misc]
        row(f"against {peer.title}, least of five loads", f"{aim:g}", found, lambda value, aim=aim: value >= aim)  # type: ignore[misc]
    if ratio := core(results, loads.READ, CEILING):
        row("read against the constant", "0.45", (ratio.median, str(ratio)), lambda value: value >= 0.45)
    row(
        "1,000 connections against 64, two workers, least of six loads",
        "0.9",
        least(lambda load: crowd(results, load, SERVICE), loads.ALL),
        lambda value: value >= 0.9,
    )
    if runs := [run for run in chosen(results, program=SERVICE, connections=1000) if "/" in run["part"]]:
        row("errors at 1,000 connections", "none", (errors(runs), failed(runs)), lambda value: value == 0)
    if runs := chosen(results, part="users", program=SERVICE):
        p95 = runs[0]["milliseconds"]["p95"]
        row("1,000 users, p95", "under 200 ms", (p95, f"**{p95:.0f} ms**"), lambda value: value < 200)
        row("1,000 users, errors", "none", (errors(runs), failed(runs)), lambda value: value == 0)
    row(
        "1,000,000 tasks against 10,000, least of six loads",
        "0.85",
        least(lambda load: growth(results, load, SERVICE), loads.ALL),
        lambda value: value >= 0.85,
    )
    for run in chosen(results, part="distance", program=SERVICE):
        endpoint, worst = max(run["endpoints"].items(), key=lambda pair: float(pair[1]))
        trips = worst / run["round_trip"]
        row(
            "20 ms away, most of all endpoints",
            "1.3 round trips",
            (trips, f"**{trips:.2f}** for {endpoint}"),
            under(1.3),
        )
    if biggest := [run["megabytes"] for run in chosen(results, program=SERVICE) if "megabytes" in run]:
        row("memory of a worker", "under 100 MB", (max(biggest), f"**{max(biggest):.0f} MB**"), under(100))
    if runs := chosen(results, part="start", program=SERVICE):
        middle = statistics.median(run["seconds"] for run in runs)
        row("start to first answer", "under 1.5 s", (middle, f"**{middle:.2f} s**"), under(1.5))
    return "## What was to be reached\n\n" + table(("", "aim", "found", "reached"), rows) if rows else ""


def under(most: float) -> Callable[[float], bool]:
    return lambda value: value <= most


def core_tables(results: dict[str, Any]) -> str:
    rows = [
        (load.title, *(core(results, load, peer) for peer in PEERS))
        for load in loads.ALL
        if chosen(results, part="core", load=load)
    ]
    if not rows:
        return ""
    frugal = [
        (load.title, *(core(results, load, peer, per="cpu_seconds") for peer in PEERS))
        for load in loads.ALL
        if chosen(results, part="core", load=load)
    ]
    figures = [
        (program.title, *(rate(chosen(results, part="core", load=load, program=program)) for load in loads.ALL))
        for program in ALL.values()
    ]
    return "\n\n".join(
        [
            "## 64 connections, one worker, 1,000,000 tasks\n\nHow many times as many requests a second the service"
            " answers: the median of the turns, and the least and the most.",
            table(("", *(peer.title for peer in PEERS)), rows),
            f"Read one against a constant: {core(results, loads.READ, CEILING)}",
            "The same for requests per second of computing by the program itself, without PostgreSQL and the load."
            " What else the machine does changes this less:",
            table(("", *(peer.title for peer in PEERS)), frugal),
            "Requests a second (medians; the figures belong to this machine and this hour):",
            table(("", *(load.title for load in loads.ALL)), figures),
        ]
    )


def connection_tables(results: dict[str, Any]) -> str:
    programs = [program for program in ALL.values() if chosen(results, part="connections/2", program=program)]
    if not programs:
        return ""
    parts = ["## 1,000 connections\n\nAgainst 64, with two workers:"]
    rows: list[tuple[object, ...]] = [
        (load.title, *(crowd(results, load, program) for program in programs)) for load in loads.ALL
    ]
    parts.append(table(("", *(program.title for program in programs)), rows))
    for workers, connections in ((2, 64), (2, 1000), (1, 1000)):
        labels = {"part": f"connections/{workers}", "connections": connections}
        here = [program for program in programs if chosen(results, program=program, **labels)]
        parts.append(f"The service against its peers, {workers_of(workers)}, {connections:,} connections:")
        parts.append(against(results, here[1:], labels))
        wrong = [(program.title, failed(chosen(results, program=program, **labels))) for program in here]
        parts.append("Errors: " + "; ".join(f"{title}: {text}" for title, text in wrong) + ".")
    return "\n\n".join(parts)


def against(results: dict[str, Any], peers: list[Program], labels: dict[str, Any]) -> str:
    """What the service answers under these labels, and how many times as much as the peers."""
    rows: list[tuple[object, ...]] = []
    for load in loads.ALL:
        ours = chosen(results, load=load, program=SERVICE, **labels)
        theirs = [chosen(results, load=load, program=peer, **labels) for peer in peers]
        rows.append((load.title, rate(ours), *(Ratio(ours, runs) for runs in theirs)))
    return table(("", "requests a second", *(peer.title for peer in peers)), rows)


def workers_of(count: int) -> str:
    return "one worker" if count == 1 else "two workers"


def size_tables(results: dict[str, Any]) -> str:
    programs = [program for program in ALL.values() if chosen(results, part="size", program=program)]
    if not programs:
        return ""
    rows: list[tuple[object, ...]] = [
        (load.title, *(growth(results, load, program) for program in programs)) for load in loads.ALL
    ]
    parts = [
        "## 1,000,000 tasks against 10,000\n\n64 connections, one worker. 100 tasks for each user in both.",
        table(("", *(program.title for program in programs)), rows),
    ]
    labels = {"part": "size", "tasks": SMALL}
    parts += ["The service against its peers on 10,000 tasks:", against(results, programs[1:], labels)]
    settings = [(1, 1000), (2, 64), (2, 1000)]
    if chosen(results, part="small/2"):
        rows = [
            (
                load.title,
                rate(chosen(results, part="size", load=load, program=SERVICE, tasks=SMALL)),
                *(rate(chosen(results, part=f"small/{w}", load=load, connections=c)) for w, c in settings),
            )
            for load in loads.ALL
        ]
        head = ("", "one worker, 64", *(f"{workers_of(w)}, {c:,}" for w, c in settings))
        parts += ["Requests a second of the service on 10,000 tasks, by workers and connections:", table(head, rows)]
        parts.append(f"Errors: {failed([run for w in (1, 2) for run in chosen(results, part=f'small/{w}')])}.")
    return "\n\n".join(parts)


def users_tables(results: dict[str, Any]) -> str:
    titles = {
        "users": "Each at a moment of their own, the mix",
        "users at once": "All at the same moment (`hey -c 1000 -q 1`), read one",
        "users far away": "Each at a moment of their own, the mix, with the database 20 ms away",
    }
    parts = []
    for part, title in titles.items():
        rows = [
            (
                ALL[run["program"]].title,
                *(f"{run['milliseconds'].get(name, 0):,.0f} ms" for name in ("p50", "p95", "p99")),
                f"{run['requests']:,}",
                failed([run]),
            )
            for run in chosen(results, part=part)
        ]
        if rows:
            parts += [f"{title}:", table(("", "p50", "p95", "p99", "answers", "errors"), rows)]
    return "\n\n".join(["## 1,000 users, one request a second each\n\nTwo workers.", *parts]) if parts else ""


def distance_table(results: dict[str, Any]) -> str:
    runs = {run["program"]: run for run in chosen(results, part="distance")}
    if not runs:
        return ""
    rows = []
    for endpoint in runs["service"]["endpoints"]:
        cells = []
        for run in runs.values():
            taken = run["endpoints"].get(endpoint)
            cells.append(f"{taken / run['round_trip']:.2f} ({taken:.1f} ms)" if taken else "-")
        rows.append((f"`{endpoint}`", *cells))
    trips = ", ".join(f"{run['round_trip']:.1f} ms" for run in runs.values())
    return "\n\n".join(
        [
            "## 20 ms away\n\nThe median of each endpoint in round trips to the database; a round trip (`SELECT 1`)"
            f" takes {trips}.",
            table(("", *(ALL[name].title for name in runs)), rows),
        ]
    )


def memory_table(results: dict[str, Any]) -> str:
    rows = []
    for program in ALL.values():
        runs = [run for run in chosen(results, program=program) if run.get("megabytes")]
        if runs:
            most = max(runs, key=lambda run: float(run["megabytes"]))
            core_most = max((run["megabytes"] for run in runs if run["part"] == "core"), default=0)
            where = f"{most['part'].partition('/')[0]}, {most.get('load', 'read')}"
            rows.append(
                (program.title, f"{core_most:.0f} MB" if core_most else "-", f"{most['megabytes']:.0f} MB ({where})")
            )
    head = ("", "64 connections, one worker", "in all of the above")
    return "## Memory\n\nThe most that a worker held.\n\n" + table(head, rows) if rows else ""


def start_table(results: dict[str, Any]) -> str:
    rows = []
    for program in ALL.values():
        if seconds := [run["seconds"] for run in chosen(results, part="start", program=program)]:
            spread = f"{min(seconds):.2f} to {max(seconds):.2f}"
            rows.append((program.title, f"**{statistics.median(seconds):.2f} s** ({spread})"))
    return "## Start\n\nFrom the command to the first answer.\n\n" + table(("", "one worker"), rows) if rows else ""


def page(results: dict[str, Any]) -> str:
    """Everything that has been found, as a page."""
    about = results["about"]
    machine = ", ".join(f"{name} {value}" for name, value in about["machine"].items())
    versions = ", ".join(f"{name} {value}" for name, value in about["versions"].items())
    sections = (
        aims,
        core_tables,
        connection_tables,
        size_tables,
        users_tables,
        distance_table,
        memory_table,
        start_table,
    )
    head = (
        f"# Results of {about['date']}\n\nMade by `make bench`; [README.md](README.md) says how to read them."
        f" {about['turns']} turns of {about['seconds']} s at 64 connections and one worker, of"
        f" {about['matrix_seconds']} s elsewhere, {about['crowd_seconds']} s with 1,000 connections;"
        f" 1,000 users for {about['users_seconds']} s.\n\n"
        f"Machine: {machine}. It runs the program, PostgreSQL and the load.\n\nVersions: {versions}."
    )
    return "\n\n".join([head, *filter(None, (section(results) for section in sections))]) + "\n"
