"""The requirements files list exactly the needed packages, with pinned versions."""

import ast
import re
import sys
from collections.abc import Iterator
from importlib.metadata import packages_distributions, requires, version

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.servers import HERE

# Required by uvicorn at run time, but not imported by the service.
NOT_IMPORTED = {"httptools", "uvloop"}
NOT_INSTALLED = {"colorama"}  # on Windows only; it has no dependencies
FILES = ("requirements.txt", "requirements-dev.txt", "constraints.txt")
ENVIRONMENTS = [
    {"python_version": python, "python_full_version": f"{python}.0", "sys_platform": sys_platform, "os_name": os_name,
     "platform_system": platform_system, "platform_python_implementation": "CPython"}
    for python in ("3.11", "3.12", "3.13", "3.14")
    for sys_platform, os_name, platform_system in (
        ("linux", "posix", "Linux"), ("darwin", "posix", "Darwin"), ("win32", "nt", "Windows"),
    )
]  # fmt: skip


def parse(text: str) -> dict[str, Requirement]:
    """Parse the text of a requirements file; the keys are normalized names."""
    lines = (line.partition("#")[0].strip() for line in text.splitlines())
    requirements = [Requirement(line) for line in lines if line and not line.startswith("-")]
    return {canonicalize_name(requirement.name): requirement for requirement in requirements}


LISTED = {name: parse((HERE / name).read_text()) for name in FILES}
# The lock of the image has what requirements.txt lists down to this line, see the Makefile.
IMAGE_END = re.findall(r"sed '/\^(.*)/,\$\$d' requirements.txt", (HERE / "Makefile").read_text())[0]
SERVICE = parse((HERE / "requirements.txt").read_text().partition(f"\n{IMAGE_END}")[0])
ALL = LISTED["requirements.txt"] | LISTED["requirements-dev.txt"]


def imported() -> set[str]:
    """Return the packages that the service imports, without embedded.py."""
    modules: set[str] = set()
    files = {*HERE.glob("*.py"), *HERE.glob("routes/*.py"), *HERE.glob("migrations/**/*.py")}
    for file in files - {HERE / "embedded.py"}:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                modules |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                modules.add(node.module.partition(".")[0])
    own = {path.stem for path in HERE.iterdir() if path.suffix == ".py" or path.is_dir()}
    packages = dict(packages_distributions())
    # `opentelemetry` is in several packages. The service imports only what is in its API.
    packages["opentelemetry"] = ["opentelemetry-api"]
    return {canonicalize_name(packages[name][0]) for name in modules - own - sys.stdlib_module_names}


def dependencies(requirements: dict[str, Requirement], environment: dict[str, str]) -> Iterator[str]:
    """Yield the requirements and all of their dependencies for an environment of PEP 508 markers."""
    todo = [(name, extra) for name, listed in requirements.items() for extra in ("", *listed.extras)]
    seen = set(todo)
    while todo:
        name, extra = todo.pop()
        yield name
        for dependency in map(Requirement, [] if name in NOT_INSTALLED else requires(name) or []):
            if dependency.marker is None or dependency.marker.evaluate(environment | {"extra": extra}):
                new = {(canonicalize_name(dependency.name), extra) for extra in ("", *dependency.extras)} - seen
                seen |= new
                todo += new


def test_the_imported_packages_are_exactly_those_listed() -> None:
    assert imported() | NOT_IMPORTED == set(SERVICE)
    assert not imported() & NOT_IMPORTED


@pytest.mark.parametrize("name", FILES)
def test_every_version_is_pinned_and_installed(name: str) -> None:
    for package, listed in LISTED[name].items():
        assert re.fullmatch(r"==[\d.]+(b\d+)?", str(listed.specifier)), package  # OpenTelemetry has no other
        assert package in NOT_INSTALLED or version(package) in listed.specifier, package


def test_the_constraints_are_exactly_the_indirect_dependencies() -> None:
    names = {name for environment in ENVIRONMENTS for name in dependencies(ALL, environment)} - {"pip", "setuptools"}
    assert names - set(ALL) == set(LISTED["constraints.txt"])


def test_production_needs_no_development_package() -> None:
    names = {name for environment in ENVIRONMENTS for name in dependencies(SERVICE, environment)}
    assert not names & (set(ALL) - set(SERVICE))


def test_the_lock_has_exactly_the_pinned_packages_of_the_image() -> None:
    [python] = set(re.findall(r"^FROM python:([\d.]+)", (HERE / "Dockerfile").read_text(), re.MULTILINE))
    assert f"--python-version {python} " in (HERE / "Makefile").read_text()
    [linux] = [one for one in ENVIRONMENTS if (one["python_version"], one["sys_platform"]) == (python, "linux")]
    pinned = LISTED["constraints.txt"] | SERVICE
    lock = (HERE / "requirements.lock").read_text().replace("\\", "")
    locked = {name: str(listed.specifier) for name, listed in parse(lock).items()}
    for machine in ("x86_64", "aarch64"):
        needed = set(dependencies(SERVICE, linux | {"platform_machine": machine}))
        assert locked == {name: str(pinned[name].specifier) for name in needed}
    hashes = re.findall(r"^\S+==\S+ ((?:\s+--hash=sha256:[0-9a-f]{64})+)$", lock, re.MULTILINE)
    assert len(hashes) == len(locked)
