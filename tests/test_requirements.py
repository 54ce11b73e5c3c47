"""The requirements say what is needed, no more, and fix every version."""

import ast
import re
import sys
from collections.abc import Iterator
from importlib.metadata import packages_distributions, requires, version

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.servers import HERE

# Used without being imported: the server and what makes it faster,
AT_RUN_TIME = {"httptools", "uvloop"}
NOT_HERE = {"colorama"}  # installed on Windows alone; brings nothing along
FILES = ("requirements.txt", "requirements-dev.txt", "constraints.txt")
SYSTEMS = [
    {"python_version": python, "python_full_version": f"{python}.0", "sys_platform": sys_platform, "os_name": os_name,
     "platform_system": platform_system, "platform_python_implementation": "CPython"}
    for python in ("3.11", "3.12", "3.13", "3.14")
    for sys_platform, os_name, platform_system in (
        ("linux", "posix", "Linux"), ("darwin", "posix", "Darwin"), ("win32", "nt", "Windows"),
    )
]  # fmt: skip


def read(text: str) -> dict[str, Requirement]:
    lines = (line.partition("#")[0].strip() for line in text.splitlines())
    found = [Requirement(line) for line in lines if line and not line.startswith("-")]
    return {canonicalize_name(requirement.name): requirement for requirement in found}


LISTED = {name: read((HERE / name).read_text()) for name in FILES}
# What the image has: as in the Dockerfile, down to this line.
END = re.findall(r"sed '/\^(.*)/,\$d' requirements.txt", (HERE / "Dockerfile").read_text())[0]
SERVICE = read((HERE / "requirements.txt").read_text().partition(f"\n{END}")[0])
ALL = LISTED["requirements.txt"] | LISTED["requirements-dev.txt"]


def imported() -> set[str]:
    """The packages that the service imports, embedded.py aside."""
    modules: set[str] = set()
    files = {*HERE.glob("*.py"), *HERE.glob("routes/*.py"), *HERE.glob("migrations/**/*.py")}
    for file in files - {HERE / "embedded.py"}:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                modules |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                modules.add(node.module.partition(".")[0])
    ours = {path.stem for path in HERE.iterdir() if path.suffix == ".py" or path.is_dir()}
    packages = packages_distributions()
    return {canonicalize_name(packages[name][0]) for name in modules - ours - sys.stdlib_module_names}


def brought_along(requirements: dict[str, Requirement], system: dict[str, str]) -> Iterator[str]:
    """What pip installs for these on such a system, themselves included."""
    todo = [(name, extra) for name, listed in requirements.items() for extra in ("", *listed.extras)]
    seen = set(todo)
    while todo:
        name, extra = todo.pop()
        yield name
        for needed in map(Requirement, [] if name in NOT_HERE else requires(name) or []):
            if needed.marker is None or needed.marker.evaluate(system | {"extra": extra}):
                new = {(canonicalize_name(needed.name), extra) for extra in ("", *needed.extras)} - seen
                seen |= new
                todo += new


def test_what_the_service_imports_is_listed_and_the_other_way_round() -> None:
    assert imported() | AT_RUN_TIME == set(SERVICE)
    assert not imported() & AT_RUN_TIME


@pytest.mark.parametrize("name", FILES)
def test_every_version_is_fixed_and_is_the_one_tested(name: str) -> None:
    for package, listed in LISTED[name].items():
        assert re.fullmatch(r"==[\d.]+", str(listed.specifier)), package
        assert package in NOT_HERE or version(package) in listed.specifier, package


def test_whatever_pip_brings_along_is_fixed_and_nothing_else() -> None:
    brought = {name for system in SYSTEMS for name in brought_along(ALL, system)} - {"pip", "setuptools"}
    assert brought - set(ALL) == set(LISTED["constraints.txt"])


def test_production_needs_nothing_of_the_tests() -> None:
    brought = {name for system in SYSTEMS for name in brought_along(SERVICE, system)}
    assert not brought & (set(ALL) - set(SERVICE))


@pytest.mark.parametrize("name", FILES[:2])
def test_each_has_its_reason(name: str) -> None:
    for line in (HERE / name).read_text().splitlines():
        assert not line or line.startswith(("#", "-")) or re.search(r"\S +# \w", line), line
