"""The modules are rooms in the order of README's tour, and each imports only from those above it."""

import ast
import re
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

from tests.servers import HERE

TOUR = (HERE / "README.md").read_text().partition("\n## A tour of the code\n")[2]
ROOMS = re.findall(r"^\*\*`([\w/.]+)`\*\*", TOUR, re.MULTILINE)
MODULES = {
    ".".join(file.relative_to(HERE).with_suffix("").parts).removesuffix(".__init__"): file
    for file in (*HERE.glob("*.py"), *HERE.glob("routes/**/*.py"))
}
BESIDE = {"tests", "benchmarks", "migrations"}


def room(module: str) -> str:
    """The name in the tour of the room that a module belongs to."""
    first = module.partition(".")[0]
    return f"{first}/" if MODULES[first].name == "__init__.py" else f"{first}.py"


def imported(module: str, file: Path) -> Iterator[str]:
    """The full names that a module imports, at its top or inside its functions."""
    package = module.split(".") if file.name == "__init__.py" else module.split(".")[:-1]
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            beginning = package[: len(package) - node.level + 1] if node.level else []
            source = ".".join([*beginning, *([node.module] if node.module else [])])
            yield from (f"{source}.{name.name}".removeprefix(".") for name in node.names)


def needed(module: str, file: Path) -> set[str]:
    """The modules of the service that a module imports, or imports something from."""
    found = set()
    for name in imported(module, file):
        parts = name.split(".")
        known = [".".join(parts[:end]) for end in range(len(parts), 0, -1) if ".".join(parts[:end]) in MODULES]
        found |= set(known[:1])
    return found - {module}


def test_the_tour_leads_through_every_room_and_no_other() -> None:
    assert sorted(ROOMS) == sorted({room(module) for module in MODULES} | {"tests/"})
    assert ROOMS[-1] == "tests/"


def test_each_module_imports_only_from_those_above_it() -> None:
    uses = {(room(module), room(other)) for module, file in MODULES.items() for other in needed(module, file)}
    assert len(uses) > 15
    assert [(one, other) for one, other in uses if ROOMS.index(other) > ROOMS.index(one)] == []


def test_no_module_imports_itself_in_a_circle() -> None:
    TopologicalSorter({module: needed(module, file) for module, file in MODULES.items()}).prepare()


def test_an_endpoint_needs_no_other_endpoint() -> None:
    for module, file in MODULES.items():
        if module.startswith("routes."):
            assert {other for other in needed(module, file) if other.startswith("routes.")} == set(), module


def test_the_service_needs_nothing_that_stands_beside_it() -> None:
    for module, file in MODULES.items():
        assert {name.partition(".")[0] for name in imported(module, file)} & BESIDE == set(), module


def test_the_service_stays_small() -> None:
    """Statements count, not lines: no docstring, comment or clear lay-out is too much."""
    nodes = [node for file in MODULES.values() for node in ast.walk(ast.parse(file.read_text()))]
    statements = [node for node in nodes if isinstance(node, ast.stmt) and not is_docstring(node)]
    assert len(statements) < 1_950


def is_docstring(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
