"""The code examples of README.md and docs/front-ends.md are run against the service."""

import json
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

from tests.clients.helpers import CLIENTS, CreateTask, Tasks, blocks
from tests.servers import HERE, Service

README = (HERE / "README.md").read_text()
FRONT_ENDS = (HERE / "docs/front-ends.md").read_text()

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


# ---- docs/front-ends.md ---------------------------------------------------------------------


# Prints the Authorization header of a request.
SEND = """
await api.GET('/health', {
  fetch: async (request: Request) => {
    console.log(request.headers.get('Authorization'))
    return Response.json({ status: 'ok' })
  },
})
"""


def test_the_generated_client_works_as_documented(adapt: Adapt, tmp_path: Path, tasks: Tasks) -> None:
    (command,) = [block for block in blocks(FRONT_ENDS, "sh") if "npx openapi-typescript" in block]
    program, token = blocks(FRONT_ENDS, "ts")
    (tmp_path / "node_modules").symlink_to(CLIENTS / "node_modules")
    (tmp_path / "package.json").write_text('{"type": "module"}')
    options = json.loads((CLIENTS / "typescript/tsconfig.json").read_text())
    (tmp_path / "tsconfig.json").write_text(json.dumps(options | {"files": ["program.ts"]}))
    rest = "const title: string | undefined = data?.title\nconsole.log(title, error)\n"
    (tmp_path / "program.ts").write_text(adapt(program) + rest + "const getToken = async () => 'abc'\n" + token + SEND)
    for line in (adapt(command), "npx tsc --project .", "node program.js"):
        completed = subprocess.run(
            ["bash", "-euc", line], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
        )
        assert completed.returncode == 0, completed.stdout + completed.stderr
    assert completed.stdout == "Buy milk undefined\nBearer abc\n"
    assert [task["title"] for task in tasks()] == ["Buy milk"]


# The parts of react-admin and ra-data-json-server that the example uses.
REST = """
const fetchUtils = {
  fetchJson: async url => {
    const response = await fetch(url)
    return { headers: response.headers, json: await response.json() }
  },
}
const jsonServerProvider = (url, httpClient) => ({
  getMany: async (resource, { ids }) =>
    ({ data: (await httpClient(`${url}/${resource}?${ids.map(id => `id=${id}`).join('&')}`)).json }),
})
"""
LISTS = """
const titles = ({ data }) => data.map(task => task.title)
const list = (page, order, filter) =>
  dataProvider.getList('tasks', { pagination: { page, perPage: 2 }, sort: { field: 'title', order }, filter })
const [first, second] = [await list(1, 'ASC', {}), await list(2, 'ASC', {})]
const both = await dataProvider.getMany('tasks', { ids: [second.data[0].id, first.data[0].id] })
console.log(JSON.stringify([
  [titles(first), first.total, first.pageInfo],
  [titles(second), second.total, second.pageInfo],
  titles(await list(1, 'DESC', { completed: false, q: 'milk' })),
  titles(both),
  await list(3, 'DESC', {}).catch(error => error.message),
]))
"""


def test_the_react_admin_example_lists_page_by_page(adapt: Adapt, create_task: CreateTask, tmp_path: Path) -> None:
    (example,) = [block for block in blocks(FRONT_ENDS, "js") if "getList" in block]
    example = re.sub("^import .*\n", "", adapt(example), flags=re.MULTILINE)
    for title in ("Buy eggs", "Buy milk", "Drink milk"):
        create_task(title)
    assert json.loads(run_node("\n".join((REST, example, LISTS)), tmp_path)) == [
        [["Buy eggs", "Buy milk"], 3, {"hasNextPage": True, "hasPreviousPage": False}],
        [["Drink milk"], 3, {"hasNextPage": False, "hasPreviousPage": True}],
        ["Drink milk", "Buy milk"],
        ["Drink milk", "Buy eggs"],
        "Open the pages one after the other.",
    ]
