"""The examples of deployment agree with the image, the README and the service, and systemd accepts the units."""

import re
import shlex
import shutil
import subprocess
import tomllib
from configparser import RawConfigParser
from pathlib import Path
from typing import Any

import pytest
import yaml
from fastapi.testclient import TestClient
from psycopg2.extensions import parse_dsn
from uvicorn.main import main as uvicorn

from database import STARTUP_TIMEOUT
from main import VERSION
from tests.servers import HERE

IMAGE = dict(re.findall(r"^ +([A-Z_]+)=(\S+)", (HERE / "Dockerfile").read_text(), re.MULTILINE))
COMPOSE = yaml.safe_load((HERE / "compose.yaml").read_text())["services"]
DEPLOYMENT, SERVICE = yaml.safe_load_all((HERE / "deploy/kubernetes.yaml").read_text())
POD = DEPLOYMENT["spec"]["template"]["spec"]
[CONTAINER] = POD["containers"]
FLY = tomllib.loads((HERE / "deploy/fly.toml").read_text())
[RENDER] = yaml.safe_load((HERE / "deploy/render.yaml").read_text())["services"]
WORKFLOW = yaml.safe_load((HERE / ".github/workflows/ci.yml").read_text())


def unit() -> dict[str, str]:
    """Return the settings of the unit's section Service."""
    parser = RawConfigParser(strict=False)
    parser.optionxform = str  # type: ignore[assignment, method-assign]
    parser.read(HERE / "deploy/tasks@.service")
    return dict(parser["Service"])


def options(command: str) -> dict[str, Any]:
    """Return uvicorn's options in a command."""
    return uvicorn.make_context("uvicorn", shlex.split(command)[1:]).params


def test_each_platform_waits_longer_than_the_service_takes_to_stop() -> None:
    graceful = int(IMAGE["UVICORN_TIMEOUT_GRACEFUL_SHUTDOWN"])
    assert options(unit()["ExecStart"])["timeout_graceful_shutdown"] == graceful
    pre_stop = CONTAINER["lifecycle"]["preStop"]["sleep"]["seconds"]
    waits = {
        "compose": int(COMPOSE["tasks"]["stop_grace_period"].removesuffix("s")),
        "kubernetes": POD["terminationGracePeriodSeconds"] - pre_stop,
        "fly": FLY["kill_timeout"],
        "render": RENDER["maxShutdownDelaySeconds"],
        "systemd": int(unit()["TimeoutStopSec"]),
    }
    assert {name for name, seconds in waits.items() if seconds < graceful + 5} == set()
    assert FLY["kill_signal"] == "SIGTERM"


def test_each_platform_sends_requests_to_the_port_of_the_image() -> None:
    [http] = CONTAINER["ports"]
    [port] = SERVICE["spec"]["ports"]
    assert SERVICE["spec"]["selector"] == DEPLOYMENT["spec"]["template"]["metadata"]["labels"]
    assert DEPLOYMENT["spec"]["selector"]["matchLabels"] == SERVICE["spec"]["selector"]
    assert http["name"] == port["targetPort"]
    assert {http["containerPort"], FLY["http_service"]["internal_port"]} == {int(IMAGE["PORT"])}
    assert COMPOSE["tasks"]["ports"] == [f"127.0.0.1:{IMAGE['PORT']}:{IMAGE['PORT']}"]


def test_regular_checks_do_not_query_the_database(client: TestClient) -> None:
    [fly] = FLY["http_service"]["checks"]
    kubernetes = [CONTAINER[f"{kind}Probe"]["httpGet"] for kind in ("readiness", "liveness")]
    assert {fly["path"], RENDER["healthCheckPath"], *(get["path"] for get in kubernetes)} == {"/health"}
    for path in ("/health", CONTAINER["startupProbe"]["httpGet"]["path"]):
        assert client.get(path).status_code == 200


def test_a_start_may_take_as_long_as_the_database_may() -> None:
    probe = CONTAINER["startupProbe"]
    assert probe["periodSeconds"] * probe["failureThreshold"] > STARTUP_TIMEOUT
    [check] = FLY["http_service"]["checks"]
    assert int(check["grace_period"].removesuffix("s")) > STARTUP_TIMEOUT


def test_kubernetes_runs_the_image_of_this_version() -> None:
    assert CONTAINER["image"].endswith(f"/tasks:{VERSION}")


def test_compose_connects_the_service_to_its_database() -> None:
    dsn = parse_dsn(COMPOSE["tasks"]["environment"]["DATABASE_URL"])
    database = COMPOSE[dsn["host"]]
    assert database["environment"] == {"POSTGRES_USER": dsn["user"], "POSTGRES_PASSWORD": dsn["password"]}
    assert dsn["dbname"] == dsn["user"]  # PostgreSQL's image names the database after the user
    assert database["healthcheck"]["test"][1] == "pg_isready"
    assert COMPOSE["tasks"]["depends_on"] == {dsn["host"]: {"condition": "service_healthy"}}


def test_the_unit_has_the_command_of_the_readme() -> None:
    (documented,) = re.findall(r"^uvicorn main:app .*$", (HERE / "README.md").read_text(), re.MULTILINE)
    # 3 is the number of the first socket that systemd passes on (sd_listen_fds(3)).
    assert options(unit()["ExecStart"]) == options(documented) | {"host": "127.0.0.1", "fd": 3}


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_systemd_accepts_the_units(tmp_path: Path) -> None:
    program = tmp_path / "uvicorn"
    program.touch(0o755)
    installed = shlex.split(unit()["ExecStart"])[0]
    shutil.copy(HERE / "deploy/tasks.socket", tmp_path)
    copy = tmp_path / "tasks@1.service"
    copy.write_text((HERE / "deploy/tasks@.service").read_text().replace(installed, str(program)))
    verify = subprocess.run(
        ["systemd-analyze", "verify", copy, tmp_path / "tasks.socket"], capture_output=True, text=True, check=False
    )
    assert (verify.returncode, verify.stderr) == (0, "")
    security = ["systemd-analyze", "security", "--offline=yes", "--threshold=20", copy]  # 100 is no protection
    assert subprocess.run(security, capture_output=True, check=False).returncode == 0


def test_ci_runs_its_script_on_the_oldest_supported_python() -> None:
    checks = WORKFLOW["jobs"]["checks"]
    assert checks["steps"][-1] == {"run": ".ci/run"}
    oldest = checks["strategy"]["matrix"]["python"][0]
    linter = tomllib.loads((HERE / "pyproject.toml").read_text())["tool"]["ruff"]
    assert linter["target-version"] == f"py{oldest.replace('.', '')}"
    assert f"Python {oldest} or newer" in (HERE / "README.md").read_text()
