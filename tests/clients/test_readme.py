"""The code examples of README.md are run against the service."""

import os
import re
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote
from uuid import uuid4

import httpx2
import pytest
from playwright.sync_api import BrowserContext

from tests.clients.helpers import CLIENTS, Tasks, sign_up
from tests.helpers import eventually
from tests.servers import HERE, Service, service

BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
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

NEXTJS = """
import { readFileSync, writeFileSync } from 'node:fs'
import { createServer } from 'node:http'
import { text } from 'node:stream/consumers'

const server = createServer()
server.listen(0, '127.0.0.1', async () => {
  const origin = `http://127.0.0.1:${server.address().port}`
  writeFileSync('auth.mjs', readFileSync('auth.ts', 'utf8').replace('http://localhost:3000', origin))
  const route = await import('./route.mjs')
  server.on('request', async (request, reply) => {
    if (!request.url.startsWith('/api/auth/')) return reply.end()
    const { method, headers } = request
    const body = method === 'POST' ? await text(request) : undefined
    const response = await route[method](new Request(origin + request.url, { method, headers, body }))
    reply.writeHead(response.status, [...response.headers].flat())
    reply.end(await response.text())
  })
  console.log(`READY ${origin}`)
})
"""
SIGN_UP = """async person => {
  const headers = {'Content-Type': 'application/json'}
  const response = await fetch('/api/auth/sign-up/email', {method: 'POST', headers, body: JSON.stringify(person)})
  if (!response.ok) throw new Error(await response.text())
}"""

Adapt = Callable[[str], str]


def blocks(page: str, language: str) -> list[str]:
    """Return the code blocks in a language, in order."""
    return [text for kind, text in BLOCK.findall(page) if kind == language]


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


# ---- Better Auth ----------------------------------------------------------------------------


@pytest.fixture
def nextjs(tmp_path: Path) -> Iterator[str]:
    """The origin of a server that routes requests to the README's two files as Next.js does."""
    lib, route, _ = blocks(README, "ts")
    (tmp_path / "node_modules").symlink_to(CLIENTS / "node_modules")
    (tmp_path / "auth.ts").write_text(lib)
    (tmp_path / "route.mjs").write_text(route.replace("@/lib/auth", "./auth.mjs"))
    (tmp_path / "server.mjs").write_text(NEXTJS)
    environment = {"NODE_ENV": "test", "BETTER_AUTH_SECRET": uuid4().hex, "BETTER_AUTH_TELEMETRY": "0"}
    with first_line(["node", "server.mjs"], tmp_path, **environment) as line:
        assert line.startswith("READY "), line
        yield line.split()[1]


def test_the_better_auth_example_gives_a_signed_in_user_access(
    nextjs: str, database_url: str, context: BrowserContext
) -> None:
    lib, _, page_code = blocks(README, "ts")
    (env_file,) = [block for block in blocks(README, "sh") if block.startswith("# .env.local")]
    documented_origin = re.findall("http://localhost:[0-9]+", lib)[0]
    settings = dict(line.split("=", 1) for line in env_file.replace(documented_origin, nextjs).splitlines()[1:])
    first_user, token = sign_up(nextjs)
    with service(DATABASE_URL=database_url, CORS_ORIGINS=nextjs, **settings) as api:
        # The first 200 shows that the service has fetched the signing keys.
        eventually(200, lambda: httpx2.get(f"{api.url}/api/{first_user}", headers=token))
        page = context.new_page()
        page.goto(nextjs)
        page.evaluate(SIGN_UP, {"name": "Ann", "email": f"{uuid4()}@example.com", "password": "correct horse 1"})
        page_code = page_code.replace("http://127.0.0.1:8000", api.url)
        assert api.url in page_code
        variable = re.findall(r"const (\w+) = await fetch", page_code)[-1]  # holds the response of the service
        code = f"{page_code}; return [user.id, {variable}.status, await {variable}.json()]"
        user_id, status, tasks = page.evaluate(f"async () => {{ {code} }}")
        assert (status, tasks) == (200, [])
        assert httpx2.get(f"{api.url}/api/{user_id}/tasks").status_code == 401
