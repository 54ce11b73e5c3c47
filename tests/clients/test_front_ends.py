"""The modules in docs/front-ends.md are compiled, and the programs in front-ends/ use them with the service."""

import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import jwt
import pytest

from tests.clients.helpers import CLIENTS
from tests.servers import HERE, Service, service

PAGE = (HERE / "docs/front-ends.md").read_text()
MODULES = dict(re.findall(r"^```ts\n// (\S+\.ts)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL))
SECRET = "x" * 32

RunCheck = Callable[..., None]


def run(command: str, folder: Path, **environment: str) -> str:
    """Run a command with the packages' programs on the PATH, and return its output."""
    path = f"{CLIENTS / 'node_modules/.bin'}:{os.environ['PATH']}"
    completed = subprocess.run(
        ["bash", "-euc", command],
        cwd=folder,
        env=os.environ | environment | {"PATH": path},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert completed.returncode == 0, completed.stdout + completed.stderr
    return completed.stdout


def project(folder: Path) -> None:
    """Make a folder for a TypeScript program with the generated types, as the page says."""
    (folder / "node_modules").symlink_to(CLIENTS / "node_modules")
    options = json.loads((CLIENTS / "typescript/tsconfig.json").read_text())["compilerOptions"]
    options |= {"lib": ["es2023", "dom", "dom.iterable"], "skipLibCheck": True}
    del options["outDir"]
    (folder / "tsconfig.json").write_text(json.dumps({"compilerOptions": options}))
    ((line),) = re.findall(r"^npx (openapi-typescript .*)$", PAGE, re.MULTILINE)
    run(line.replace("http://127.0.0.1:8000/openapi.json", str(HERE / "openapi.json")), folder)


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the modules of the page, compiled, and the programs that check them."""
    folder = tmp_path_factory.mktemp("modules")
    project(folder)
    (folder / "lib").mkdir()
    for name, text in MODULES.items():
        (folder / name).write_text(text)
    run("tsc --project .", folder)
    return shutil.copytree(CLIENTS / "front-ends", folder, dirs_exist_ok=True)


@pytest.fixture
def run_check(compiled: Path, api: Service, person: str, tmp_path: Path) -> RunCheck:
    """Return a function that runs a program of front-ends/ with a service for a person without tasks."""

    def run_check(name: str, url: str = api.url, **environment: str) -> None:
        folder = shutil.copytree(compiled, tmp_path, symlinks=True, dirs_exist_ok=True)
        for module in folder.glob("*.js"):
            text = module.read_text().replace("http://127.0.0.1:8000", url)
            module.write_text(text.replace("/api/alice", f"/api/{person}"))
        output = run(f"node {name}.mjs", folder, SERVICE=url, USER_ID=person, **environment)
        assert output == "PASSED\n"

    return run_check


def test_every_module_of_the_page_is_checked() -> None:
    names = {name.removesuffix(".ts").removeprefix("lib/") for name in MODULES}
    programs = {file.stem for file in (CLIENTS / "front-ends").glob("*.mjs")}
    assert names - programs == {"api", "range", "send"}  # which other programs use
    assert len(re.findall("^```ts$", PAGE, re.MULTILINE)) == len(MODULES) + 1


def test_the_stated_versions_are_those_of_the_tests() -> None:
    tested = json.loads((CLIENTS / "package.json").read_text())["dependencies"]
    installed = dict(re.findall(r"([\w-]+)@(\d[\d.]+)", PAGE))
    assert installed == {name: tested[name] for name in ("openapi-fetch", "openapi-typescript", "typescript")}
    stated = re.findall(r"`((?:ra-data|@refinedev)[\w/-]+)` (\d+\.\d+)", PAGE)
    assert len(stated) == 4
    for name, version in stated:
        assert tested[name].startswith(f"{version}."), name


def test_the_generated_client_works(api: Service, person: str, tmp_path: Path) -> None:
    project(tmp_path)
    (tmp_path / "package.json").write_text('{"type": "module"}')
    (program,) = [text for text in re.findall(r"^```ts\n(.*?)^```$", PAGE, re.M | re.S) if not text.startswith("// ")]
    program = program.replace("http://127.0.0.1:8000", api.url).replace("'alice'", f"'{person}'")
    rest = "const title: string | undefined = data?.title\nconsole.log(title, error)\n"
    (tmp_path / "program.ts").write_text(program + rest)
    assert run("tsc --project . && node program.js", tmp_path) == "Buy milk undefined\n"


def test_without_the_flag_a_create_needs_fields_with_defaults(tmp_path: Path) -> None:
    project(tmp_path)
    program = "import type { components } from './types.d.ts'\n"
    program += "const body: components['schemas']['TaskInput'] = { title: 'Buy milk' }\n"
    (tmp_path / "program.ts").write_text(program)
    run(f"openapi-typescript {HERE / 'openapi.json'} -o types.d.ts", tmp_path)
    output = run("! tsc --project . --noEmit", tmp_path)
    assert re.findall(r"missing the following properties.*: (.*)", output)[0].startswith("completed, priority, tags")


@pytest.mark.parametrize("name", ["errors", "retries", "paging", "order", "subtasks", "react-admin", "refine"])
def test_a_module_works_as_stated(name: str, run_check: RunCheck) -> None:
    run_check(name)


@pytest.mark.parametrize("zone", ["Europe/Berlin", "America/St_Johns", "Pacific/Kiritimati", "America/Santiago"])
@pytest.mark.parametrize("name", ["dates", "repeat"])
def test_dates_are_right_in_every_time_zone(name: str, zone: str, run_check: RunCheck) -> None:
    run_check(name, TZ=zone)


def test_a_refused_token_is_replaced_once(run_check: RunCheck, database_url: str, person: str) -> None:
    expired, valid = (
        jwt.encode({"sub": person, "exp": time.time() + seconds}, SECRET, "HS256") for seconds in (-3600, 3600)
    )
    with service(DATABASE_URL=database_url, AUTH_SECRET=SECRET) as started:
        run_check("token", started.url, EXPIRED=expired, VALID=valid, SERVICE_HAS_TOKENS="1")


def test_a_server_acts_for_a_user_and_erases_the_user(compiled: Path, database_url: str, tmp_path: Path) -> None:
    folder = shutil.copytree(compiled, tmp_path, symlinks=True, dirs_exist_ok=True)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("BETTER_AUTH")}
    environment |= {"NODE_ENV": "test", "BETTER_AUTH_SECRET": SECRET, "BETTER_AUTH_TELEMETRY": "0"}
    process = subprocess.Popen(
        ["node", "auth.mjs"],
        cwd=folder,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    with process:
        try:
            issuer = process.stdout.readline().strip()
            settings = {"AUTH_JWKS_URL": f"{issuer}/api/auth/jwks", "AUTH_ISSUER": issuer, "AUTH_AUDIENCE": issuer}
            with service(DATABASE_URL=database_url, **settings) as started:
                output, errors = process.communicate(f"{started.url}\n", timeout=120)
            assert output == "PASSED\n", errors
        finally:
            process.kill()
