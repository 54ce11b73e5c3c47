"""The imports between the modules follow the order of the tour in README, which calls each module a room."""

import ast
import re

from tests.servers import HERE

TOUR = (HERE / "README.md").read_text().partition("\n## Code tour\n")[2]
ROOMS = re.findall(r"^\*\*`([\w/.]+)`\*\*", TOUR, re.MULTILINE)
TREES = {
    ".".join(file.relative_to(HERE).with_suffix("").parts).removesuffix(".__init__"): ast.parse(file.read_text())
    for file in (*HERE.glob("*.py"), *HERE.glob("routes/**/*.py"))
}


def room(module: str) -> str:
    """Return the name of a module's room in the tour."""
    package = module.partition(".")[0]
    return f"{package}.py" if (HERE / f"{package}.py").exists() else f"{package}/"


def dependencies(module: str) -> set[str]:
    """Return the modules of the service that a module imports or imports names from, anywhere in its file."""
    names: set[str] = set()
    for node in ast.walk(TREES[module]):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.module
            assert node.level == 0, f"{module} has a relative import"
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names & TREES.keys() - {module}


def test_the_tour_describes_every_module() -> None:
    assert sorted(ROOMS) == sorted({room(module) for module in TREES} | {"tests/"})
    assert ROOMS[-1] == "tests/"


def test_modules_import_only_from_earlier_ones_in_the_tour() -> None:
    uses = {(room(module), room(other)) for module in TREES for other in dependencies(module)}
    assert len(uses) > 15
    assert [(user, used) for user, used in uses if ROOMS.index(used) > ROOMS.index(user)] == []


def test_modules_of_routes_import_only_names_of_the_package() -> None:
    for module in TREES:
        if room(module) == "routes/":
            assert not {other for other in dependencies(module) if other.startswith("routes.")}, module


def test_the_number_of_statements_stays_under_its_limit() -> None:
    """Statements are counted instead of lines, so that docstrings and comments are free."""
    nodes = [node for tree in TREES.values() for node in ast.walk(tree)]
    assert sum(isinstance(node, ast.stmt) and not is_docstring(node) for node in nodes) < 2_400


def is_docstring(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def test_a_test_has_a_name_of_at_most_ten_words() -> None:
    files = [file for file in (HERE / "tests").rglob("test_*.py") if "node_modules" not in file.parts]
    names = [name for file in files for name in re.findall(r"^ *(?:async )?def test_(\w+)\(", file.read_text(), re.M)]
    assert len(names) > 500
    assert [name for name in names if len(name.split("_")) > 10] == []
