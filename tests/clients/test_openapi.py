"""openapi.json in two linters and in a generated TypeScript client."""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.clients.helpers import CLIENTS
from tests.servers import HERE, Service

QUIET = {"REDOCLY_TELEMETRY": "off", "REDOCLY_SUPPRESS_UPDATE_NOTICE": "true", "NO_COLOR": "1"}


def run_package(*command: str, folder: Path = CLIENTS) -> str:
    """Run a program of an npm package, and return its output."""
    completed = subprocess.run(
        [str(CLIENTS / "node_modules/.bin" / command[0]), *command[1:]],
        cwd=folder,
        env=os.environ | QUIET,
        capture_output=True,
        text=True,
        check=False,
    )
    assert completed.returncode == 0, completed.stdout + completed.stderr
    return completed.stdout + completed.stderr


def test_redocly_finds_only_the_listed_exceptions() -> None:
    output = run_package("redocly", "lint", "../../openapi.json", "--config", "redocly.yaml")
    assert "Your API description is valid" in output
    assert "warning" not in output.replace("Deprecation warning", "")
    exceptions = (CLIENTS / ".redocly.lint-ignore.yaml").read_text().count("- '#/")
    assert f"{exceptions} problems are explicitly ignored" in output, "an exception is not needed any more"


def test_spectral_finds_nothing() -> None:
    options = ("--ruleset", "spectral.yaml", "--fail-severity", "hint")
    output = run_package("spectral", "lint", "../../openapi.json", *options)
    assert "No results" in output


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the TypeScript program, compiled with the generated types."""
    folder = tmp_path_factory.mktemp("client")
    shutil.copytree(CLIENTS / "typescript", folder, dirs_exist_ok=True)
    (folder / "node_modules").symlink_to(CLIENTS / "node_modules")
    (folder / "package.json").write_text('{"type": "module"}')
    types = str(folder / "openapi.d.ts")
    run_package("openapi-typescript", "../../openapi.json", "--default-non-nullable=false", "--output", types)
    run_package("tsc", "--project", ".", folder=folder)
    return folder


def test_a_generated_client_passes_against_the_service(program: Path, api: Service) -> None:
    completed = subprocess.run(["node", "client.js", api.url], cwd=program, capture_output=True, text=True, check=False)
    assert (completed.stdout, completed.stderr) == ("PASSED\n", "")


def test_the_program_uses_every_operation() -> None:
    source = (CLIENTS / "typescript/client.ts").read_text()
    for path, operations in json.loads((HERE / "openapi.json").read_text())["paths"].items():
        for method in operations:
            assert f"api.{method.upper()}('{path}'" in source


def test_the_generated_types_contain_no_any(program: Path) -> None:
    completed = subprocess.run(["node", "any.mjs"], cwd=program, capture_output=True, text=True, check=False)
    assert completed.stdout == ""
    assert int(completed.stderr.split()[0]) > 300
    types = re.sub(r"/\*.*?\*/", "", (program / "openapi.d.ts").read_text(), flags=re.DOTALL)
    assert not re.search(r"\bany\b", types)
    # Undeclared headers, the client's `extra`, and read-only fields in a request body, which are ignored.
    types = re.sub(r"\[(name|key): string\]: unknown;|readonly \w+\?: unknown;", "", types)
    assert not re.search(r"\bunknown\b", types)
