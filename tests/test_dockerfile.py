"""The files, the health check and the command of the Docker image, tested without Docker."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

import httpx2
import psutil
import pytest
from uvicorn.main import main as uvicorn

from tests.servers import HERE, service, wait_for

DOCKERFILE = (HERE / "Dockerfile").read_text().replace("\\\n", "")
IGNORE = [line for line in (HERE / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]


def ignored(file: Path) -> bool:
    """Return whether .dockerignore excludes a file, given by its relative path. The last matching line decides."""
    result = False
    for line in IGNORE:
        pattern = line.removeprefix("!")
        if pattern.startswith("**/"):
            matches = any(fnmatch(part, pattern[3:]) for part in file.parts)
        else:
            matches = fnmatch(file.parts[0], pattern)
        if matches:
            result = not line.startswith("!")
    return result


def copied() -> Iterator[Path]:
    """Yield the files of the repository that the last stage copies."""
    last_stage = DOCKERFILE.rpartition("\nFROM ")[2]
    for sources in re.findall(r"^COPY (?!--from)(.*) \S+$", last_stage, re.MULTILINE):
        for source in sources.split():
            paths = [path for path in HERE.glob(source) if not ignored(path.relative_to(HERE))]
            assert paths, f"{source} is missing or excluded"
            for path in paths:
                files = path.rglob("*") if path.is_dir() else [path]
                yield from (file for file in files if file.is_file() and not ignored(file.relative_to(HERE)))


def command(instruction: str) -> list[str]:
    """Return the command of an instruction in JSON form."""
    arguments: list[str] = json.loads(re.findall(rf"^{instruction} .*?(\[.*\])$", DOCKERFILE, re.MULTILINE)[0])
    return arguments


def variables() -> dict[str, str]:
    """Return the environment variables that the last stage sets."""
    (values,) = re.findall(r"^ENV (.*)$", DOCKERFILE, re.MULTILINE)
    return dict(value.split("=", 1) for value in shlex.split(values))


@pytest.fixture
def image(new_folder: Path) -> Path:
    """A folder with the files of the image."""
    for file in copied():
        copy = new_folder / file.relative_to(HERE)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, copy)
    return new_folder


def test_the_image_serves_on_the_port_of_the_platform(image: Path, empty_database: str) -> None:
    path = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    loopback = {"UVICORN_HOST": "127.0.0.1", "PORT": "0", "DATABASE_URL": empty_database}
    with service(command=command("CMD"), folder=image, **variables() | path | loopback) as started:
        created = httpx2.post(f"{started.url}/api/ann/tasks", json={"title": "any"})
        assert httpx2.get(created.headers["location"]).json() == created.json()
        below_the_shell = psutil.Process(started.process.pid).children()
        for process in below_the_shell:  # no signal would reach them
            process.kill()
        assert below_the_shell == []
        proxied = path | {"PORT": started.url.rpartition(":")[2], "http_proxy": "http://127.0.0.1:9"}
        assert subprocess.run(command("HEALTHCHECK"), env=proxied, check=False).returncode == 0
        started.stop()
        wait_for(started.log, "Application shutdown complete")
    assert subprocess.run(command("HEALTHCHECK"), env=proxied, check=False, capture_output=True).returncode == 1


def test_a_missing_database_url_is_reported(image: Path) -> None:
    start = subprocess.run(
        [sys.executable, "-m", "uvicorn", "main:app", "--port", "0"],
        cwd=image, env={"DATABASE_URL": ""}, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert start.returncode != 0
    assert "DATABASE_URL must be set: the PostgreSQL for development is not installed here." in start.stderr
    assert "Traceback" not in start.stderr


def test_the_image_has_no_development_files_and_no_secrets() -> None:
    names = {str(file.relative_to(HERE)) for file in copied()}
    assert {"main.py", "routes/tasks.py", "migrations/env.py", ".env"} <= names
    for name in (".env.local", ".postgres/PG_VERSION", "embedded.py", "tests/conftest.py", "routes/__pycache__/x.pyc"):
        assert ignored(Path(name))
        assert name not in names


def test_the_command_has_the_options_of_the_readme(monkeypatch: pytest.MonkeyPatch) -> None:
    def options(arguments: list[str]) -> dict[str, object]:
        return uvicorn.make_context("uvicorn", arguments).params

    (documented,) = re.findall(r"^uvicorn (main:app .*)$", (HERE / "README.md").read_text(), re.MULTILINE)
    expected = options(shlex.split(documented)) | {"workers": None}  # one process for each container
    for name, value in variables().items():
        monkeypatch.setenv(name, value)
    shell, option, line = command("CMD")
    assert [shell, option] == ["sh", "-c"]
    assert options(shlex.split(os.path.expandvars(line).removeprefix("exec uvicorn "))) == expected
