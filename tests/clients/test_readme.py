"""The code in README.md and docs/front-ends.md runs against the service as it is shown."""

import json
import os
import re
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote
from uuid import uuid4

import httpx2
import pytest
from playwright.sync_api import BrowserContext

from tests.clients.helpers import CLIENTS, sign_up
from tests.helpers import eventually
from tests.servers import HERE, Service, service

BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
README = (HERE / "README.md").read_text()
FRONT_ENDS = (HERE / "docs/front-ends.md").read_text()

# Somebody else changes the task after the page has read it and before the page saves it.
FASTER = """
const fetched = fetch
globalThis.fetch = async (url, options) => {
  const response = await fetched(url, options)
  const one = !options && !url.endsWith('/tasks')
  if (one) await fetched(url, {method: 'PATCH', headers: {'Content-Type': 'application/json'}, body: '{"order": 1}'})
  return response
}
"""

NEXTJS = """
import { readFileSync, writeFileSync } from 'node:fs'
import { createServer } from 'node:http'
import { text } from 'node:stream/consumers'

const server = createServer()
server.listen(0, '127.0.0.1', async () => {
  const origin = `http://127.0.0.1:${server.address().port}`
  writeFileSync('auth.mjs', readFileSync('auth.ts', 'utf8').replace('http://localhost:3000', origin))
  const route = await import('./route.mjs')
  server.on('request', async (request, response) => {
    if (!request.url.startsWith('/api/auth/')) return response.end()
    const { method, headers } = request
    const body = method === 'POST' ? await text(request) : undefined
    const result = await route[method](new Request(origin + request.url, { method, headers, body }))
    response.writeHead(result.status, [...result.headers].flat())
    response.end(await result.text())
  })
  console.log(`READY ${origin}`)
})
"""
SIGN_UP = """async person => {
  const headers = {'Content-Type': 'application/json'}
  const response = await fetch('/api/auth/sign-up/email', {method: 'POST', headers, body: JSON.stringify(person)})
  if (!response.ok) throw new Error(await response.text())
}"""

Tasks = Callable[[], list[dict[str, Any]]]
Here = Callable[[str], str]


def blocks(page: str, language: str) -> list[str]:
    """Return the blocks of code in that language, in order."""
    return [text for kind, text in BLOCK.findall(page) if kind == language]


@pytest.fixture
def here(api: Service, person: str) -> Here:
    """Return a function that puts the address of the started service, and the person for alice, into code."""

    def here(code: str) -> str:
        assert "http://127.0.0.1:8000" in code
        code = code.replace("http://127.0.0.1:8000", api.url)
        return code.replace("/api/alice", f"/api/{quote(person)}").replace("'alice'", f"'{person}'")

    return here


@pytest.fixture
def program(here: Here) -> str:
    """Return the JavaScript of README as one program, as the second block uses variables of the first."""
    shown = blocks(README, "js")
    assert len(shown) == 2
    return here("\n".join(shown))


def node(program: str, folder: Path) -> str:
    """Run a module, and return what it prints."""
    file = folder / "program.mjs"
    file.write_text(program)
    done = subprocess.run(["node", file], cwd=folder, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_the_page_creates_completes_and_renames_a_task(program: str, tmp_path: Path, tasks: Tasks) -> None:
    output = node(f"globalThis.alert = text => {{ throw new Error(text) }}\n{program}", tmp_path)
    [task] = tasks()
    assert (task["title"], task["tags"], task["completed"]) == ("Buy oat milk", ["home"], True)
    assert f"id: '{task['id']}'" in output
    assert "completed: true" in output


def test_the_page_reports_a_change_by_somebody_else(program: str, tmp_path: Path, tasks: Tasks) -> None:
    output = node(f"globalThis.alert = text => console.log(text)\n{FASTER}\n{program}", tmp_path)
    assert output.endswith("\nThis task has been changed elsewhere.\n")
    assert [(task["title"], task["order"]) for task in tasks()] == [("Buy milk", 1)]


def test_the_page_works_in_a_browser_on_another_origin(
    program: str, context: BrowserContext, origin: str, tasks: Tasks
) -> None:
    page = context.new_page()
    page.goto(origin)
    messages: list[str] = []
    page.on("dialog", lambda dialog: (messages.append(dialog.message), dialog.dismiss()))
    page.evaluate(f"async () => {{ {program} }}")
    assert [task["title"] for task in tasks()] == ["Buy oat milk"]
    assert messages == []
    page.evaluate(f"async () => {{ {FASTER} {program} }}")
    assert messages == ["This task has been changed elsewhere."]


@contextmanager
def first_line(command: list[str], folder: Path, **environment: str) -> Iterator[str]:
    """Run a program until the caller is done; yield the first line that it prints."""
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


def test_the_shown_command_serves_the_examples() -> None:
    ((command, path),) = re.findall(
        r"^(python3 -m http\.server 3000 .*?) +# then http://localhost:3000(\S*)$", README, re.M
    )
    with first_line(command.replace(" 3000 ", " 0 ").split(), HERE, PYTHONUNBUFFERED="1") as line:
        found = re.search(r"port (\d+)", line)
        assert found, line
        page = httpx2.get(f"http://127.0.0.1:{found[1]}{path}")
        assert page.text == (HERE / "examples/todo.html").read_text()


# ---- Better Auth ----------------------------------------------------------------------------


@pytest.fixture
def nextjs(tmp_path: Path) -> Iterator[str]:
    """Start a server that uses the two files of README as Next.js does, and yield its origin."""
    lib, route, _ = blocks(README, "ts")
    (tmp_path / "node_modules").symlink_to(CLIENTS / "node_modules")
    (tmp_path / "auth.ts").write_text(lib)
    (tmp_path / "route.mjs").write_text(route.replace("@/lib/auth", "./auth.mjs"))
    (tmp_path / "server.mjs").write_text(NEXTJS)
    environment = {"NODE_ENV": "test", "BETTER_AUTH_SECRET": uuid4().hex, "BETTER_AUTH_TELEMETRY": "0"}
    with first_line(["node", "server.mjs"], tmp_path, **environment) as line:
        assert line.startswith("READY "), line
        yield line.split()[1]


def test_a_user_of_better_auth_can_read_their_tasks(nextjs: str, database_url: str, context: BrowserContext) -> None:
    lib, _, shown = blocks(README, "ts")
    (env,) = [block for block in blocks(README, "sh") if block.startswith("# .env.local")]
    shown_origin = re.findall("http://localhost:[0-9]+", lib)[0]
    settings = dict(line.split("=", 1) for line in env.replace(shown_origin, nextjs).splitlines()[1:])
    somebody, token = sign_up(nextjs)
    with service(DATABASE_URL=database_url, CORS_ORIGINS=nextjs, **settings) as api:
        eventually(200, lambda: httpx2.get(f"{api.url}/api/{somebody}", headers=token))  # until the keys are fetched
        page = context.new_page()
        page.goto(nextjs)
        page.evaluate(SIGN_UP, {"name": "Ann", "email": f"{uuid4()}@example.com", "password": "correct horse 1"})
        shown = shown.replace("http://127.0.0.1:8000", api.url)
        assert api.url in shown
        found = page.evaluate(f"async () => {{ {shown}; return [user.id, response.status, await response.json()] }}")
        assert found[1:] == [200, []]
        assert httpx2.get(f"{api.url}/api/{found[0]}/tasks").status_code == 401


# ---- docs/front-ends.md ---------------------------------------------------------------------


def test_the_typescript_client_is_generated_and_used_as_shown(here: Here, tmp_path: Path, tasks: Tasks) -> None:
    (command,) = [block for block in blocks(FRONT_ENDS, "sh") if "openapi-typescript" in block]
    (program,) = blocks(FRONT_ENDS, "ts")
    (tmp_path / "node_modules").symlink_to(CLIENTS / "node_modules")
    (tmp_path / "package.json").write_text('{"type": "module"}')
    options = json.loads((CLIENTS / "typescript/tsconfig.json").read_text())
    (tmp_path / "tsconfig.json").write_text(json.dumps(options | {"files": ["program.ts"]}))
    imports = "import createClient from 'openapi-fetch'\nimport type { paths } from './tasks.d.ts'\n"
    left_out = "const title: string | undefined = data?.title\nconsole.log(title, error)\n"
    (tmp_path / "program.ts").write_text(imports + here(program) + left_out)
    for line in (here(command), "npx tsc --project .", "node program.js"):
        done = subprocess.run(
            ["bash", "-euc", line], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout == "Buy milk undefined\n"
    assert [task["title"] for task in tasks()] == ["Buy milk"]


# What the block uses of ra-data-json-server: one record by its id.
REST = """
const jsonServerProvider = url => ({
  getOne: async (resource, { id }) => ({ data: await (await fetch(`${url}/${resource}/${id}`)).json() }),
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


def test_react_admin_lists_tasks_page_by_page(
    api: Service, person: str, make: Callable[..., object], tmp_path: Path
) -> None:
    (shown,) = blocks(FRONT_ENDS, "js")
    for title in ("Buy eggs", "Buy milk", "Drink milk"):
        make(title)
    url = f"const url = '{api.url}/api/{quote(person)}'"
    assert json.loads(node("\n".join((url, REST, shown, LISTS)), tmp_path)) == [
        [["Buy eggs", "Buy milk"], 3, {"hasNextPage": True, "hasPreviousPage": False}],
        [["Drink milk"], 3, {"hasNextPage": False, "hasPreviousPage": True}],
        ["Drink milk", "Buy milk"],
        ["Drink milk", "Buy eggs"],
        "Open the pages one after the other.",
    ]
