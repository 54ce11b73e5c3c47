"""README.md and the other pages state what the service does, completely, and nothing else."""

import ast
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Any, get_args

import httpx2
import psutil
import pytest
from dotenv import dotenv_values
from fastapi.testclient import TestClient
from uvicorn.main import main as uvicorn

import errors
import schemas
from main import app
from middleware import ProblemCORSMiddleware
from settings import Settings, load_settings
from tests import SETTINGS
from tests.servers import HERE, postgres_of, service

README = (HERE / "README.md").read_text()
CONTRIBUTING = (HERE / "docs/contributing.md").read_text()
MAKEFILE = (HERE / "Makefile").read_text()
PAGES = [
    HERE / "README.md",
    HERE / "CHANGELOG.md",
    HERE / "SECURITY.md",
    *sorted(HERE.glob("docs/*.md")),
    *sorted(HERE.glob("examples/*/README.md")),
    HERE / "deploy/README.md",
    HERE / "benchmarks/README.md",
]

LISTING = "Filtering, sorting and pagination"

BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
needs_make = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
needs_curl = pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")


def section(title: str) -> str:
    """Return the part of README under this heading."""
    _, found, text = README.partition(f"\n## {title}\n")
    assert found, f"README has no section {title!r}"
    return text.partition("\n## ")[0]


def cells(text: str) -> list[list[str]]:
    """Return the cells of the first table in the text, with its head."""
    lines = re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)[0].splitlines()
    del lines[1]
    return [[cell.strip() for cell in line.removeprefix("|").removesuffix("|").split(" | ")] for line in lines]


def table(text: str) -> list[list[str]]:
    """Return the cells of the first table in the text, without its head."""
    return cells(text)[1:]


def code(text: str) -> list[str]:
    """Return the code in the text: the blocks, and the words between backticks."""
    return [block for _, block in BLOCK.findall(text)] + re.findall(r"`([^`]+)`", BLOCK.sub("", text))


def words(cell: str) -> list[str]:
    """Return the words of a cell that are between backticks."""
    return re.findall(r"`([^`]+)`", cell)


# ---- The contract ---------------------------------------------------------------------------


def test_the_endpoints_and_their_statuses_are_those_of_openapi() -> None:
    stated = {
        words(endpoint)[0]: set(re.findall(r"\b[23]\d\d\b", responses))
        for endpoint, _, responses in table(section("Endpoints"))
    }
    assert stated == {
        f"{method.upper()} {path}": {status for status in operation["responses"] if status < "400"}
        for path, operations in app.openapi()["paths"].items()
        for method, operation in operations.items()
    }


def test_the_pages_of_the_api_documentation_exist(client: TestClient) -> None:
    (sentence,) = re.findall(r"^`GET /` redirects to .*$", section("Endpoints"), re.MULTILINE)
    root, docs, *others = words(sentence)
    assert (root, len(others)) == ("GET /", 2)
    assert client.get("/", follow_redirects=False).headers["location"] == docs
    assert [client.get(path).status_code for path in (docs, *others)] == [200, 200, 200]


def test_the_fields_of_a_task_are_in_response_order() -> None:
    rows = table(section("Endpoints").partition("\n### Task fields\n")[2])
    assert [name for names, *_ in rows for name in words(names)] == list(schemas.Task.model_fields)


def on_create(name: str) -> str:
    """Return what README states for a field that is not sent."""
    if name == "user_id":
        return "from the path"
    if name not in schemas.WRITABLE_FIELDS:
        return "set by the service"
    field = schemas.TaskInput.model_fields[name]
    return "required" if field.is_required() else json.dumps(field.default).strip('"')


def test_each_field_has_its_type_default_and_limits() -> None:
    properties = app.openapi()["components"]["schemas"]["Task"]["properties"]
    for names, kind, default, rules in table(section("Endpoints").partition("\n### Task fields\n")[2]):
        for name in words(names):
            kinds = properties[name].get("anyOf", [properties[name]])
            assert (" or null" in kind) is ({"type": "null"} in kinds), name
            assert default.strip("`") == on_create(name), name
            limits = " ".join(one.get("description", "") for one in kinds).lower().strip(" .")
            assert limits in rules or "characters" not in limits, name


def test_each_example_of_a_list_parameter_is_valid(client: TestClient, url: str) -> None:
    examples = [words(query)[0] for query, _ in table(section(LISTING))]
    assert len(examples) > 5
    assert [example for example in examples if client.get(url + example).status_code != 200] == []


def test_the_list_parameters_and_their_values_are_complete() -> None:
    rows = [(words(query)[0], meaning) for query, meaning in table(section(LISTING))]
    named = {name for row in rows for text in (row[0], *words(row[1])) for name in re.findall(r"(\w+)=", text)}
    assert named == set(schemas.ListQuery.model_fields) - {"cursor"}  # which is in the Link alone
    meaning = {re.findall(r"\?(\w+)", query)[0]: text for query, text in rows}
    *sorts, _, default = words(meaning["sort"])
    assert sorts == [name for name in get_args(schemas.Sort) if not name.startswith("-")]
    fields = schemas.ListQuery.model_fields
    assert default == fields["sort"].default
    assert f"1 to {fields['limit'].default:,}, which is the default" in meaning["limit"]
    ((first, second, third),) = re.findall(r"Only `(\w+)`, `(\w+)` and `(\w+)`\s+may be repeated", section(LISTING))
    assert {first, second, third} == {"priority", "tag", "id"}


def test_the_example_of_the_summary_is_valid() -> None:
    (text,) = [block for language, block in BLOCK.findall(section("Endpoints")) if language == "json"]
    summary: dict[str, Any] = json.loads(text)
    schemas.Summary.model_validate(summary, strict=True)
    assert list(summary) == list(schemas.Summary.model_fields)
    assert list(summary["priorities"]) == list(schemas.PriorityCounts.model_fields)
    assert summary["total"] == summary["completed"] + summary["pending"] == sum(summary["priorities"].values())


def test_the_errors_have_the_descriptions_of_openapi() -> None:
    stated = {int(status): re.split("[;,]", meaning)[0].lower() for status, meaning in table(section("Errors"))}
    declared = {status: text.lower() for status, (_, text) in errors.RESPONSES.items() if status >= 400}
    assert sorted(stated) == sorted(declared | {400: "", 405: "", 431: ""})  # which no operation declares
    assert {status: text for status, text in declared.items() if stated[status] not in text} == {}


# ---- Requests and responses -------------------------------------------------------------------

CURSOR = re.compile(r"(?<=cursor=)[\w-]+")


class Exchanges:
    """Sends the requests of a page, as they are shown, and compares the responses with those that are shown.

    Ids, times, ETags and cursors differ from run to run. `actual` maps each shown one to the one of this run,
    and later requests and responses are translated by it.
    """

    def __init__(self, url: str, user: str) -> None:
        self.actual = {"http://127.0.0.1:8000": url, "alice": user}

    def translate(self, shown: str) -> str:
        """Return the text with the ids, times, ETags and cursors of this run."""
        for one, other in self.actual.items():
            shown = shown.replace(one, other)
        return shown

    def send(self, command: str) -> tuple[str, dict[str, str], str]:
        """Run curl as shown. Return the status of the last response, its headers, and its body."""
        script = self.translate(command).replace("curl ", "curl -sS ")
        done = subprocess.run(["bash", "-euc", script], capture_output=True, text=True, check=True)
        *_, last = re.split(r"HTTP/1\.1 (?=\d{3} )", done.stdout)
        head, _, body = last.partition("\n\n") if " -i " in command else ("", "", last)
        status, *lines = head.splitlines() or [""]
        return status[:3], dict(line.split(": ", 1) for line in lines), body

    def compare(self, shown: Any, actual: Any, name: str = "") -> None:
        """Raise AssertionError unless a value of a response's body is the one that is shown."""
        if isinstance(shown, dict):
            assert list(shown) == list(actual)
            for key, value in shown.items():
                self.compare(value, actual[key], key)
        elif isinstance(shown, list):
            assert len(shown) == len(actual)
            for one, other in zip(shown, actual, strict=True):
                self.compare(one, other)
        elif name == "version":
            assert self.actual.setdefault(str(shown), str(actual)) == str(actual)
        elif name == "cursor":
            self.actual[shown] = actual
        elif name == "id" or (name.endswith("_at") and shown is not None):
            assert re.sub(r"[0-9a-f]", "0", shown) == re.sub(r"[0-9a-f]", "0", actual), name
            assert self.actual.setdefault(shown, actual) == actual, name
        else:
            assert actual == (self.translate(shown) if isinstance(shown, str) else shown), name

    def compare_headers(self, shown: dict[str, str], actual: dict[str, str]) -> None:
        """Raise AssertionError unless a response has the headers that are shown, with their values."""
        for name, value in shown.items():
            if name == "etag":
                assert self.actual.setdefault(value, actual[name]) == actual[name]
            for cursor, other in zip(CURSOR.findall(value), CURSOR.findall(actual[name]), strict=True):
                self.actual[cursor] = other
            assert actual[name] == self.translate(value), name

    def check(self, command: str, kind: str, shown: str) -> None:
        """Raise AssertionError unless the command gets the response that is shown, if one is."""
        status, headers, body = self.send(command)
        head, _, text = shown.partition("\n\n") if kind == "http" else ("", "", shown)
        if not shown:
            assert status in ("", "201"), body
        if text:
            self.compare(json.loads(text), json.loads(body))
        if head:
            first, *lines = head.splitlines()
            assert first.split()[:2] == ["HTTP/1.1", status]
            self.compare_headers(dict(line.split(": ", 1) for line in lines), headers)
            assert bool(text) is bool(body)


def exchanges(text: str) -> list[tuple[str, str, str]]:
    """Return each command of curl in the text, and the kind and text of the response below it, if one is shown."""
    return re.findall(r"^```sh\n(curl .*?)^```$(?:\n\n```(http|json)\n(.*?)^```$)?", text, re.MULTILINE | re.DOTALL)


@needs_curl
def test_each_shown_request_gets_the_shown_response(database_url: str, user: str) -> None:
    found = exchanges(README)
    assert len([shown for *_, shown in found if shown]) == 13
    with (
        service(DATABASE_URL=database_url) as open_service,
        service(DATABASE_URL=database_url, AUTH_SECRET="x" * 32) as closed_service,
    ):
        run, unauthenticated = Exchanges(open_service.url, user), Exchanges(closed_service.url, user)
        for command, kind, shown in found:
            (unauthenticated if "HTTP/1.1 401" in shown else run).check(command, kind, shown)


# ---- The settings ---------------------------------------------------------------------------


def assert_defaults(stated: dict[str, str | None]) -> None:
    """Raise AssertionError unless these are all settings, each with its default."""
    assert sorted(stated) == sorted(SETTINGS)
    loaded = Settings.model_validate({name.lower(): value for name, value in stated.items()})
    assert loaded.model_dump() == Settings.model_construct().model_dump()


def test_the_configuration_has_all_settings_with_their_defaults() -> None:
    rows = {words(name)[0]: default.strip("`") for name, default, _ in table(section("Configuration"))}
    assert_defaults({name: "" if default == "empty" else default for name, default in rows.items()})


def test_the_committed_env_file_has_all_settings_with_their_defaults() -> None:
    assert_defaults(dotenv_values(HERE / ".env"))


def test_each_variable_that_a_page_names_is_a_setting() -> None:
    for page in PAGES:
        named = set(re.findall(r"\b(?:DATABASE|CORS|AUTH|LOG)_[A-Z_]+", page.read_text()))
        assert named <= set(SETTINGS), page.name


def test_the_shown_env_local_files_are_valid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in SETTINGS:
        monkeypatch.delenv(name)
    (better_auth,) = re.findall(r"^cat >> \.env\.local <<END\n(AUTH_.*?)^END$", README, re.MULTILINE | re.DOTALL)
    (neon,) = re.findall(r"`(DATABASE_URL=.*)`", section("Deployment"))
    (tmp_path / ".env.local").write_text(f"{better_auth}\n{neon}\n")
    loaded = load_settings((HERE / ".env", tmp_path / ".env.local"))
    assert loaded.requires_tokens
    assert f"DATABASE_URL={loaded.database_url.get_secret_value()}" == neon
    assert better_auth.count("\n") == 3


def test_the_headers_that_cors_allows_are_complete() -> None:
    [cors] = [one.kwargs for one in app.user_middleware if one.cls is ProblemCORSMiddleware]
    text = section("Configuration").partition("\n### CORS\n")[2]
    for name, start in (
        ("allow_headers", "- Allowed request headers:"),
        ("expose_headers", "- Exposed response headers:"),
    ):
        assert words(text.partition(start)[2].partition("\n- ")[0]) == cors[name]


# ---- The other pages, and the commands ------------------------------------------------------


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page, as GitHub makes them from its headings."""
    headings = re.findall(r"^#+ (.*)$", BLOCK.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(HERE)))
def test_each_link_has_a_target(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", BLOCK.sub("", page.read_text())):
        address, _, anchor = link.partition("#")
        target = (page.parent / address).resolve() if address else page
        if not re.match(r"[a-z]+:", link):
            assert target.exists(), link
            assert not anchor or anchor in anchors(target), link


def test_the_readme_links_to_every_page() -> None:
    linked = {HERE / link for link in re.findall(r"\]\(([^)#\s]+)", README)}
    assert [page.name for page in PAGES[1:] if page not in linked] == []


def test_each_make_target_that_a_page_names_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", MAKEFILE, re.MULTILINE))
    for page in PAGES:
        named = {name for text in code(page.read_text()) for name in re.findall(r"\bmake ([a-z-]+)", text)}
        assert named <= targets, page.name


def test_each_make_target_is_explained_in_contributing() -> None:
    targets = re.findall(r"^([a-z-]+):.*##", MAKEFILE, re.MULTILINE)
    assert len(targets) > 5
    assert [name for name in targets if f"make {name}" not in code(CONTRIBUTING)] == []


@needs_make
def test_the_commands_without_make_are_those_of_make() -> None:
    text = section("Quick start").partition("Without make, these commands start the service:\n")[2]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    dry = subprocess.run(
        ["make", "--dry-run", "--always-make", "--no-print-directory", "run", "PYTHON=python3"],
        cwd=HERE,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    made = [
        line
        for line in dry.stdout.splitlines()
        if line.startswith(("python3 -m venv", ".venv/bin/pip", ".venv/bin/uv"))
    ]
    quiet = {"--quiet", "--disable-pip-version-check"}
    assert BLOCK.findall(text)[0][1].splitlines() == [
        shlex.join(part for part in shlex.split(line) if part not in quiet) for line in made
    ]


def test_the_production_command_is_the_one_in_operations() -> None:
    command = BLOCK.findall(section("Deployment"))[0][1]
    assert "uvicorn main:app" in command
    assert command in code((HERE / "docs/operations.md").read_text())


def test_the_service_has_the_address_that_is_stated() -> None:
    default = {parameter.name: parameter.default for parameter in uvicorn.params}
    assert f"The service is on http://{default['host']}:{default['port']}, its documentation" in README


@needs_make
@pytest.mark.parametrize("signals_all", [True, False], ids=["Ctrl-C", "SIGTERM"])
def test_make_run_serves_with_its_own_database_until_a_signal(checkout: Path, signals_all: bool) -> None:
    assert "make run\n" in [block for _, block in BLOCK.findall(section("Quick start"))]
    up_to_date = subprocess.run(["make", "--question", ".venv/run"], cwd=HERE, capture_output=True, check=False)
    if up_to_date.returncode:
        pytest.skip("it would install packages; `make .venv/run` does")
    (checkout / ".venv").symlink_to(HERE / ".venv")
    with service(command=["make", "run", "PORT=0"], folder=checkout) as started:
        below = psutil.Process(started.process.pid).children(recursive=True)
        try:
            assert httpx2.get(f"{started.url}/health").json() == {"status": "ok"}
            created = httpx2.post(f"{started.url}/api/alice/tasks", json={"title": "Buy milk"})
            assert created.status_code == 201
            assert httpx2.get(f"{started.url}/api/alice/tasks").json() == [created.json()]
            assert (checkout / ".postgres").is_dir()
            if signals_all:  # as a terminal does
                for process in below:
                    process.send_signal(signal.SIGINT)
            started.process.send_signal(signal.SIGINT if signals_all else signal.SIGTERM)
            started.process.wait(30)
            assert psutil.wait_procs(below, 30)[1] == []
        finally:
            for process in below:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
    assert postgres_of(checkout) == []
    assert not [line for line in started.log if "Traceback" in line]


@needs_make
def test_make_run_reports_a_port_that_is_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = subprocess.run(
            ["make", "--no-print-directory", "--old-file", ".venv/run", "run", f"PORT={port}"],
            cwd=HERE, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.splitlines()[0] == f"Port {port} is taken or not allowed. Choose another one: make run PORT=8001"


def test_the_tour_begins_with_names_that_exist() -> None:
    steps = re.findall(r"^\d\. `([\w/.]+)`:(.*?)(?=^\d\. |\n\n)", section("Code tour"), re.M | re.DOTALL)
    assert [file for file, _ in steps] == ["main.py", "routes/tasks.py", "schemas.py", "queries.py", "models.py"]
    for file, text in steps:
        defined = {
            node.name
            for node in ast.parse((HERE / file).read_text()).body
            if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        }
        named = {name.removesuffix("()") for name in words(text)}
        assert named, file
        assert named <= defined, file


def test_the_performance_figures_are_those_of_the_results() -> None:
    results = (HERE / "benchmarks/results.md").read_text().partition("\n## 64 connections")[2]
    programs, *measured = cells(results)
    shown = cells(section("Performance"))
    assert shown[0] == programs
    assert [name for name, *_ in shown[1:]] == [name for name, *_ in measured]
    for (name, *figures), (_, *medians) in zip(shown[1:], measured, strict=True):
        for figure, exact in zip(figures, medians, strict=True):
            if exact == "-":
                assert figure == "-", name
            else:
                digits = len(figure.partition(".")[2])
                assert abs(float(figure) - float(exact.split("**")[1])) <= 0.5001 * 10**-digits, name
