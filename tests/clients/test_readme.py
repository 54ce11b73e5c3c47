"""The code examples of README.md are run against the service."""

import os
import re
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

import httpx2
import pytest
from playwright.sync_api import BrowserContext

from tests.clients.helpers import Tasks, blocks
from tests.servers import HERE, Service

README = (HERE / "README.md").read_text()

# Changes the newest task right after the page has read the list, as another client could.
CONFLICT = """
const originalFetch = fetch
globalThis.fetch = async (url, options) => {
  const response = await originalFetch(url, options)
  const headers = {'Content-Type': 'application/json'}
  if (!options) {
    const [newest] = await response.clone().json()
    await originalFetch(newest.url, {method: 'PATCH', headers, body: '{"order": 1}'})
  }
  return response
}
"""

Adapt = Callable[[str], str]


@pytest.fixture
def adapt(api: Service, person: str) -> Adapt:
    """Return a function that replaces the URL and the user in a code example by those of this test."""

    def adapt(code: str) -> str:
        assert "http://127.0.0.1:8000" in code
        code = code.replace("http://127.0.0.1:8000", api.url)
        code = re.sub("/api/(alice|bob)", f"/api/{quote(person)}", code)
        return code.replace("'alice'", f"'{person}'")

    return adapt


@pytest.fixture
def program(adapt: Adapt) -> str:
    """The JavaScript examples of the README as one program, because the second uses variables of the first."""
    examples = blocks(README, "js")
    assert len(examples) == 2
    return adapt("\n".join(examples))


def run_node(program: str, folder: Path) -> str:
    """Run a JavaScript module with Node, and return its output."""
    file = folder / "program.mjs"
    file.write_text(program)
    completed = subprocess.run(["node", file], cwd=folder, capture_output=True, text=True, timeout=60, check=False)
    assert (completed.returncode, completed.stderr) == (0, "")
    return completed.stdout


def test_the_javascript_example_creates_completes_and_changes_a_task(
    program: str, tmp_path: Path, tasks: Tasks
) -> None:
    output = run_node(f"globalThis.alert = text => {{ throw new Error(text) }}\n{program}", tmp_path)
    [task] = tasks()
    assert (task["title"], task["tags"], task["completed"]) == ("Buy oat milk", ["home"], True)
    assert f"id: '{task['id']}'" in output
    assert "completed: true" in output


def test_the_javascript_example_reports_a_conflict(program: str, tmp_path: Path, tasks: Tasks) -> None:
    output = run_node(f"globalThis.alert = text => console.log(text)\n{CONFLICT}\n{program}", tmp_path)
    assert output.endswith("\nThis task has been changed elsewhere.\n")
    assert [(task["title"], task["order"]) for task in tasks()] == [("Buy milk", 1)]


def test_the_javascript_example_works_in_a_browser_on_another_origin(
    program: str, context: BrowserContext, origin: str, tasks: Tasks
) -> None:
    page = context.new_page()
    page.goto(origin)
    messages: list[str] = []
    page.on("dialog", lambda dialog: (messages.append(dialog.message), dialog.dismiss()))
    page.evaluate(f"async () => {{ {program} }}")
    assert [task["title"] for task in tasks()] == ["Buy oat milk"]
    assert messages == []
    page.evaluate(f"async () => {{ {CONFLICT} {program} }}")
    assert messages == ["This task has been changed elsewhere."]


@contextmanager
def first_line(command: list[str], folder: Path, **environment: str) -> Iterator[str]:
    """Run a program during the block; yield the first line of its output."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("BETTER_AUTH")}
    process = subprocess.Popen(
        command,
        cwd=folder,
        env=inherited | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None
    with process, process.stdout:
        try:
            yield process.stdout.readline()
        finally:
            process.terminate()


def test_the_documented_command_serves_the_examples() -> None:
    ((command, path),) = re.findall(
        r"^(python3 -m http\.server 3000 .*?) +# then http://localhost:3000(\S*)$", README, re.M
    )
    with first_line(command.replace(" 3000 ", " 0 ").split(), HERE, PYTHONUNBUFFERED="1") as line:
        found = re.search(r"port (\d+)", line)
        assert found, line
        page = httpx2.get(f"http://127.0.0.1:{found[1]}{path}")
        assert page.text == (HERE / "examples/todo.html").read_text()
