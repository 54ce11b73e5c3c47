"""The image has what the service needs, and no more: the Dockerfile as far as that shows without Docker."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

import httpx2
import pytest

from tests.servers import HERE, service

DOCKERFILE = (HERE / "Dockerfile").read_text().replace("\\\n", "")
IGNORE = [line for line in (HERE / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]


def ignored(file: Path) -> bool:
    """Whether Docker leaves out this file, named from the top. The last line that fits decides."""
    result = False
    for line in IGNORE:
        pattern = line.removeprefix("!")
        if pattern.startswith("**/"):
            fits = any(fnmatch(part, pattern[3:]) for part in file.parts)
        else:
            fits = fnmatch(file.parts[0], pattern)
        if fits:
            result = not line.startswith("!")
    return result


def copied() -> Iterator[Path]:
    """The files that the last stage takes from here."""
    last = DOCKERFILE.rpartition("\nFROM ")[2]
    for sources in re.findall(r"^COPY (?!--from)(.*) \S+$", last, re.MULTILINE):
        for source in sources.split():
            found = [path for path in HERE.glob(source) if not ignored(path.relative_to(HERE))]
            assert found, f"{source} is not there, or left out"
            for path in found:
                inside = path.rglob("*") if path.is_dir() else [path]
                yield from (file for file in inside if file.is_file() and not ignored(file.relative_to(HERE)))


def command(instruction: str) -> list[str]:
    found: list[str] = json.loads(re.findall(rf"^{instruction} .*?(\[.*\])$", DOCKERFILE, re.MULTILINE)[0])
    return found


@pytest.fixture
def image(new_folder: Path) -> Path:
    """A folder with what the image has of this one."""
    for file in copied():
        copy = new_folder / file.relative_to(HERE)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, copy)
    return new_folder


def test_its_files_are_enough_to_serve_and_its_check_tells_whether_they_do(image: Path, empty_database: str) -> None:
    with service(folder=image, DATABASE_URL=empty_database) as started:
        created = httpx2.post(f"{started.url}/api/ann/tasks", json={"title": "kept"})
        assert httpx2.get(created.headers["location"]).json() == created.json()
        program, *rest = command("HEALTHCHECK")
        assert program == "python"
        port = started.url.rpartition(":")[2]
        check = [sys.executable, *(part.replace("8000", port) for part in rest)]
        astray = {"http_proxy": "http://127.0.0.1:9"}
        assert subprocess.run(check, env=astray, check=False).returncode == 0
    assert subprocess.run(check, env=astray, check=False, capture_output=True).returncode == 1


def test_without_a_database_url_it_says_what_is_missing(image: Path) -> None:
    start = subprocess.run(
        [sys.executable, "-m", "uvicorn", "main:app", "--port", "0"],
        cwd=image, env={"DATABASE_URL": ""}, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert start.returncode != 0
    assert "DATABASE_URL must be set: the PostgreSQL for development is not installed here." in start.stderr
    assert "Traceback" not in start.stderr


def test_it_has_nothing_for_development_and_nothing_secret() -> None:
    names = {str(file.relative_to(HERE)) for file in copied()}
    assert {"main.py", "routes/tasks.py", "migrations/env.py", ".env"} <= names
    for name in (".env.local", ".postgres/PG_VERSION", "embedded.py", "tests/conftest.py", "routes/__pycache__/x.pyc"):
        assert ignored(Path(name))
        assert name not in names


def test_its_command_is_the_one_of_the_readme() -> None:
    (documented,) = re.findall(r"^uvicorn main:app .*$", (HERE / "README.md").read_text(), re.MULTILINE)
    assert command("CMD") == re.sub(r" --workers \d+", "", documented).split()
