"""README.md and the pages beside it say what is there, all of it, and nothing else."""

import json
import os
import re
import shlex
import shutil
import signal
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
from settings import Settings, load_settings
from tests import SETTINGS
from tests.servers import HERE, postgres_of, service

README = (HERE / "README.md").read_text()
CONTRIBUTING = (HERE / "docs/contributing.md").read_text()
MAKEFILE = (HERE / "Makefile").read_text()
PAGES = [HERE / "README.md", HERE / "CHANGELOG.md", *sorted(HERE.glob("docs/*.md")), HERE / "benchmarks/README.md"]

BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
needs_make = pytest.mark.skipif(shutil.which("make") is None, reason="there is no make")


def section(title: str) -> str:
    """The part of README under this heading."""
    _, found, text = README.partition(f"\n## {title}\n")
    assert found, f"README has no section {title!r}"
    return text.partition("\n## ")[0]


def cells(text: str) -> list[list[str]]:
    """The cells of the first table in the text, with its head."""
    lines = re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)[0].splitlines()
    del lines[1]
    return [[cell.strip() for cell in line.removeprefix("|").removesuffix("|").split(" | ")] for line in lines]


def table(text: str) -> list[list[str]]:
    """The cells of the first table in the text, without its head."""
    return cells(text)[1:]


def code(text: str) -> list[str]:
    """What is set as code in the text: the blocks, and the words between backticks."""
    return [block for _, block in BLOCK.findall(text)] + re.findall(r"`([^`]+)`", BLOCK.sub("", text))


def words(cell: str) -> list[str]:
    """The words of a cell that are set as code."""
    return re.findall(r"`([^`]+)`", cell)


# ---- The contract ---------------------------------------------------------------------------


def test_every_endpoint_is_there_with_its_answers_and_no_other() -> None:
    said = {
        words(place)[0]: set(re.findall(r"\b[23]\d\d\b", answers)) for place, _, answers in table(section("Endpoints"))
    }
    assert said == {
        f"{method.upper()} {path}": {status for status in operation["responses"] if status < "400"}
        for path, operations in app.openapi()["paths"].items()
        for method, operation in operations.items()
    }


def test_the_pages_of_the_documentation_are_where_it_says(client: TestClient) -> None:
    (sentence,) = re.findall(r"^`GET /` redirects to .*$", section("Endpoints"), re.MULTILINE)
    root, docs, *others = words(sentence)
    assert (root, len(others)) == ("GET /", 2)
    assert client.get("/", follow_redirects=False).headers["location"] == docs
    assert [client.get(path).status_code for path in (docs, *others)] == [200, 200, 200]


def test_every_field_of_a_task_is_there_in_the_order_of_the_answer() -> None:
    rows = table(section("Endpoints").partition("\nA task:\n")[2])
    assert [name for names, *_ in rows for name in words(names)] == list(schemas.Task.model_fields)


def on_create(name: str) -> str:
    """How README says what a field is when it is not sent."""
    if name == "user_id":
        return "from the path"
    field = schemas.TaskInput.model_fields.get(name)
    if field is None:
        return "server"
    return "required" if field.is_required() else json.dumps(field.default).strip('"')


def test_every_field_has_its_type_default_and_limits() -> None:
    properties = app.openapi()["components"]["schemas"]["Task"]["properties"]
    for names, kind, default, rules in table(section("Endpoints").partition("\nA task:\n")[2]):
        for name in words(names):
            kinds = properties[name].get("anyOf", [properties[name]])
            assert (" or null" in kind) is ({"type": "null"} in kinds), name
            assert default.strip("`") == on_create(name), name
            limits = " ".join(one.get("description", "") for one in kinds).lower().strip(" .")
            assert limits in rules or "characters" not in limits, name


def test_every_example_of_the_listing_selects(client: TestClient, url: str) -> None:
    examples = [words(query)[0] for query, _ in table(section("Listing"))]
    assert len(examples) > 5
    assert [example for example in examples if client.get(url + example).status_code != 200] == []


def test_every_parameter_of_the_list_is_there_with_its_values() -> None:
    rows = [(words(query)[0], meaning) for query, meaning in table(section("Listing"))]
    named = {name for row in rows for text in (row[0], *words(row[1])) for name in re.findall(r"(\w+)=", text)}
    assert named == set(schemas.ListQuery.model_fields) - {"cursor"}  # which is in the Link alone
    meaning = {re.findall(r"\?(\w+)", query)[0]: text for query, text in rows}
    *sorts, _, default = words(meaning["sort"])
    assert sorts == [name for name in get_args(schemas.Sort) if not name.startswith("-")]
    fields = schemas.ListQuery.model_fields
    assert default == fields["sort"].default
    assert f"1 to {fields['limit'].default:,}, which is the default" in meaning["limit"]
    ((first, second),) = re.findall(r"only `(\w+)` and `(\w+)`\s+may be repeated", section("Listing"))
    assert {first, second} == {"priority", "tag"}


def test_the_example_of_the_summary_is_one() -> None:
    (text,) = re.findall(r"The user's numbers are\s+`(\{.*?\})`", section("Endpoints"), re.DOTALL)
    summary: dict[str, Any] = json.loads(text)
    schemas.Summary.model_validate(summary, strict=True)
    assert list(summary) == list(schemas.Summary.model_fields)
    assert list(summary["priorities"]) == list(schemas.PriorityCounts.model_fields)
    assert summary["total"] == summary["completed"] + summary["pending"] == sum(summary["priorities"].values())


def test_every_error_is_there_in_the_words_of_the_contract() -> None:
    said = {int(status): re.split("[;,]", meaning)[0].lower() for status, meaning in table(section("Errors"))}
    declared = {status: text.lower() for status, (_, text) in errors.RESPONSES.items() if status >= 400}
    assert sorted(said) == sorted(declared | {405: "", 431: ""})  # which no operation answers
    assert {status: text for status, text in declared.items() if said[status] not in text} == {}


# ---- The settings ---------------------------------------------------------------------------


def hold_to_defaults(said: dict[str, str | None]) -> None:
    """Every setting is there, none that does not exist, and each has its default."""
    assert sorted(said) == sorted(SETTINGS)
    taken = Settings.model_validate({name.lower(): value for name, value in said.items()})
    assert taken.model_dump() == Settings.model_construct().model_dump()


def test_every_setting_is_there_with_its_default_and_no_other() -> None:
    rows = {words(name)[0]: default.strip("`") for name, default, _ in table(section("Settings"))}
    hold_to_defaults({name: "" if default == "empty" else default for name, default in rows.items()})


def test_the_committed_env_file_has_every_setting_with_its_default_and_no_other() -> None:
    hold_to_defaults(dotenv_values(HERE / ".env"))


def test_every_variable_that_a_page_names_is_a_setting() -> None:
    for page in PAGES:
        named = set(re.findall(r"\b(?:DATABASE|CORS|AUTH|LOG)_[A-Z_]+", page.read_text()))
        assert named <= set(SETTINGS), page.name


def test_each_env_local_that_it_shows_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in SETTINGS:
        monkeypatch.delenv(name)
    (better_auth,) = [block for _, block in BLOCK.findall(README) if block.startswith("# .env.local")]
    (neon,) = re.findall(r"`(DATABASE_URL=.*)`", section("Neon"))
    (tmp_path / ".env.local").write_text(f"{better_auth}\n{neon}\n")
    taken = load_settings((HERE / ".env", tmp_path / ".env.local"))
    assert taken.requires_tokens
    assert f"DATABASE_URL={taken.database_url.get_secret_value()}" == neon
    assert better_auth.count("\n") == 4


# ---- The other pages, and the commands ------------------------------------------------------


def anchors(page: Path) -> set[str]:
    """What a link into a page can name."""
    headings = re.findall(r"^#+ (.*)$", BLOCK.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(HERE)))
def test_every_link_leads_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", BLOCK.sub("", page.read_text())):
        address, _, anchor = link.partition("#")
        target = (page.parent / address).resolve() if address else page
        if not re.match(r"[a-z]+:", link):
            assert target.exists(), link
            assert not anchor or anchor in anchors(target), link


def test_every_page_can_be_reached_from_the_readme() -> None:
    linked = {HERE / link for link in re.findall(r"\]\(([^)#\s]+)", README)}
    assert [page.name for page in PAGES[1:] if page not in linked] == []


def test_every_target_of_make_that_a_page_names_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", MAKEFILE, re.MULTILINE))
    for page in PAGES:
        named = {name for text in code(page.read_text()) for name in re.findall(r"\bmake ([a-z-]+)", text)}
        assert named <= targets, page.name


def test_every_target_of_make_is_explained() -> None:
    targets = re.findall(r"^([a-z-]+):.*##", MAKEFILE, re.MULTILINE)
    assert len(targets) > 5
    assert [name for name in targets if f"make {name}" not in code(CONTRIBUTING)] == []


@needs_make
def test_the_commands_without_make_are_those_of_make() -> None:
    text = section("Start it").partition("\nThe same without make")[2]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    dry = subprocess.run(
        ["make", "--dry-run", "--always-make", "--no-print-directory", "run", "PYTHON=python3"],
        cwd=HERE,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    made = [line for line in dry.stdout.splitlines() if not line.startswith("touch ")]
    quiet = {"--quiet", "--disable-pip-version-check"}
    assert BLOCK.findall(text)[0][1].splitlines() == [
        shlex.join(part for part in shlex.split(line) if part not in quiet) for line in made
    ]


def test_the_command_for_production_is_the_one_that_is_explained() -> None:
    command = BLOCK.findall(section("Production"))[0][1]
    assert "uvicorn main:app" in command
    assert command in code((HERE / "docs/operations.md").read_text())


def test_the_service_is_where_it_says() -> None:
    default = {parameter.name: parameter.default for parameter in uvicorn.params}
    assert f"The service is on http://{default['host']}:{default['port']}, its documentation" in README


@needs_make
@pytest.mark.parametrize("signals_all", [True, False], ids=["Ctrl-C", "SIGTERM"])
def test_make_run_serves_with_a_database_of_its_own_until_it_is_ended(checkout: Path, signals_all: bool) -> None:
    assert "make run\n" in [block for _, block in BLOCK.findall(section("Start it"))]
    up_to_date = subprocess.run(["make", "--question", ".venv/run"], cwd=HERE, capture_output=True, check=False)
    if up_to_date.returncode:
        pytest.skip("it would install what is missing; `make .venv/run` does")
    (checkout / ".venv").symlink_to(HERE / ".venv")
    free_port = {"UVICORN_PORT": "0"}
    with service(command=["make", "run"], folder=checkout, **free_port) as started:
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


def test_the_figures_are_those_of_the_results() -> None:
    results = (HERE / "benchmarks/results.md").read_text().partition("\n## 64 connections")[2]
    programs, *measured = cells(results)
    shown = cells(section("How fast it is"))
    assert shown[0] == programs
    assert [name for name, *_ in shown[1:]] == [name for name, *_ in measured]
    for (name, *figures), (_, *medians) in zip(shown[1:], measured, strict=True):
        for figure, exact in zip(figures, medians, strict=True):
            if exact == "-":
                assert figure == "-", name
            else:
                digits = len(figure.partition(".")[2])
                assert abs(float(figure) - float(exact.split("**")[1])) <= 0.5001 * 10**-digits, name
