"""openapi.json as other people's tools see it: two linters, and a generated TypeScript client."""

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


def run(*command: str, folder: Path = CLIENTS) -> str:
    """Run one of the npm packages, and return what it says."""
    done = subprocess.run(
        [str(CLIENTS / "node_modules/.bin" / command[0]), *command[1:]],
        cwd=folder,
        env=os.environ | QUIET,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_redocly_finds_nothing_but_the_named_exceptions() -> None:
    said = run("redocly", "lint", "../../openapi.json", "--config", "redocly.yaml")
    assert "Your API description is valid" in said
    assert "warning" not in said.replace("Deprecation warning", "")
    named = (CLIENTS / ".redocly.lint-ignore.yaml").read_text().count("- '#/")
    assert f"{named} problems are explicitly ignored" in said, "an exception is no longer needed"


def test_spectral_finds_nothing() -> None:
    said = run("spectral", "lint", "../../openapi.json", "--ruleset", "spectral.yaml", "--fail-severity", "hint")
    assert "No results" in said


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the TypeScript program, with the types generated and all of it compiled."""
    folder = tmp_path_factory.mktemp("client")
    shutil.copytree(CLIENTS / "typescript", folder, dirs_exist_ok=True)
    (folder / "node_modules").symlink_to(CLIENTS / "node_modules")
    (folder / "package.json").write_text('{"type": "module"}')
    types = str(folder / "openapi.d.ts")
    run("openapi-typescript", "../../openapi.json", "--default-non-nullable=false", "--output", types)
    run("tsc", "--project", ".", folder=folder)
    return folder


def test_a_generated_client_passes_against_the_service(program: Path, api: Service) -> None:
    done = subprocess.run(["node", "client.js", api.url], cwd=program, capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("PASSED\n", "")


def test_the_program_uses_every_operation() -> None:
    source = (CLIENTS / "typescript/client.ts").read_text()
    for path, operations in json.loads((HERE / "openapi.json").read_text())["paths"].items():
        for method in operations:
            assert f"api.{method.upper()}('{path}'" in source


def test_there_is_no_any_in_sight(program: Path) -> None:
    done = subprocess.run(["node", "any.mjs"], cwd=program, capture_output=True, text=True, check=False)
    assert done.stdout == ""
    assert int(done.stderr.split()[0]) > 300
    types = re.sub(r"/\*.*?\*/", "", (program / "openapi.d.ts").read_text(), flags=re.DOTALL)
    assert not re.search(r"\bany\b", types)
    headers = "[name: string]: unknown;"  # other headers than the declared ones
    assert not re.search(r"\bunknown\b", types.replace(headers, ""))
