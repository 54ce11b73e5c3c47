"""The app in examples/next, built as its README says and used in a browser."""

import os
import re
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import randrange
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import httpx2
import pytest
from playwright.sync_api import BrowserContext, Locator, Page, Request, Route, expect

from tests.clients.helpers import CLIENTS, blocks, sign_up
from tests.helpers import eventually, fetch_value
from tests.servers import HERE, service

EXAMPLE = HERE / "examples/next"
NOT_COPIED = shutil.ignore_patterns("node_modules", ".next", ".env.local", "next-env.d.ts", "*.tsbuildinfo")
TIMEOUT = 30_000
PASSWORD = "correct horse 1"  # noqa: S105  # of users that only the tests have


@dataclass
class App:
    folder: Path
    url: str
    service_url: str


def environment() -> dict[str, str]:
    """Return the environment without the variables that would win over the app's .env.local."""
    inherited = {name: value for name, value in os.environ.items() if name not in ("DATABASE_URL", "NODE_ENV")}
    return inherited | {"NEXT_TELEMETRY_DISABLED": "1"}


def run(command: str, folder: Path) -> None:
    """Run a shell command in the folder."""
    completed = subprocess.run(
        ["bash", "-euc", command],
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert completed.returncode == 0, completed.stdout + completed.stderr


@contextmanager
def next_start(folder: Path, port: int) -> Iterator[None]:
    """Run `next start` on the loopback interface during the block."""
    command = ["node", "node_modules/next/dist/bin/next", "start", "--hostname", "127.0.0.1", "--port", str(port)]
    with (folder / "log").open("w+") as log:
        process = subprocess.Popen(command, cwd=folder, env=environment(), stdout=log, stderr=log)
        try:
            with httpx2.Client(transport=httpx2.HTTPTransport(retries=9)) as client:
                eventually(200, lambda: client.get(f"http://127.0.0.1:{port}"))
            yield
        finally:
            process.kill()  # SIGTERM would wait for the idle connections of the browser
            process.wait()


@pytest.fixture(scope="module")
def database(database_url: str) -> Iterator[str]:
    """The URL of a database that the service and Better Auth share, as the README suggests."""
    name = f"next_{uuid4().hex}"
    fetch_value(database_url, f"CREATE DATABASE {name}")
    yield urlsplit(database_url)._replace(path=f"/{name}").geturl()
    fetch_value(database_url, f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture(scope="module")
def app(new_folder: Path, database: str) -> Iterator[App]:
    """The built app, and a service that accepts its tokens and that no web page of another origin may call."""
    folder = new_folder / "examples/next"
    shutil.copytree(EXAMPLE, folder, ignore=NOT_COPIED)
    shutil.copy(HERE / "openapi.json", new_folder)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    install, env_file, migrate, service_env = blocks((EXAMPLE / "README.md").read_text(), "sh")
    settings = dict(re.findall(r"^(AUTH_\w+)=(.*)$", service_env.replace("http://localhost:3000", url), re.M))
    assert len(settings) == 3
    with service(DATABASE_URL=database, CORS_ORIGINS=",", **settings) as api:
        env_file = env_file.replace("http://localhost:3000", url).replace("http://127.0.0.1:8000", api.url)
        env_file = re.sub("^DATABASE_URL=.*", f"DATABASE_URL={database}", env_file, flags=re.M)
        for command in (install, env_file, migrate, "npm run build"):
            run(command, folder)
        with next_start(folder, port):
            user, token = sign_up(url)
            # The first 200 shows that the service has fetched the signing keys. It has tried since before the build,
            # and after so long it tries again only every 30 seconds.
            eventually(200, lambda: httpx2.get(f"{api.url}/api/{user}", headers=token), seconds=60)
            yield App(folder, url, api.url)


@dataclass
class Person:
    """A user who is signed in on the page, and who also uses the service from elsewhere."""

    page: Page
    email: str
    elsewhere: httpx2.Client

    def tasks(self) -> list[dict[str, Any]]:
        """Return the tasks that the service has."""
        tasks: list[dict[str, Any]] = self.elsewhere.get("tasks").json()
        return tasks

    def create(self, title: str) -> dict[str, Any]:
        """Create a task elsewhere."""
        response = self.elsewhere.post("tasks", json={"title": title})
        assert response.status_code == 201, response.text
        task: dict[str, Any] = response.json()
        return task


def fill_in(page: Page, email: str, button: str) -> None:
    """Fill in the sign-in form, and press the button."""
    page.get_by_label("Email").fill(email)
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_role("button", name=button).click()
    expect(page.get_by_role("button", name="Sign out")).to_be_visible(timeout=TIMEOUT)


@pytest.fixture
def ann(app: App, context: BrowserContext) -> Iterator[Person]:
    """A new user on the page."""
    expect.set_options(timeout=TIMEOUT)
    context.set_default_timeout(TIMEOUT)
    # Better Auth limits the sign-ups from one IP address.
    address = f"10.{randrange(256)}.{randrange(256)}.{randrange(256)}"  # noqa: S311  # not a secret
    context.set_extra_http_headers({"X-Forwarded-For": address})
    page = context.new_page()
    page.goto(app.url)
    email = f"{uuid4()}@example.com"
    fill_in(page, email, "Create account")
    expect(page.get_by_text("There are no tasks yet.")).to_be_visible()
    user = context.request.get(f"{app.url}/api/auth/get-session").json()["user"]["id"]
    token = context.request.get(f"{app.url}/api/auth/token").json()["token"]
    headers = {"Authorization": f"Bearer {token}"}
    with httpx2.Client(base_url=f"{app.service_url}/api/{user}/", headers=headers) as elsewhere:
        yield Person(page, email, elsewhere)


def rows(page: Page) -> Locator:
    return page.get_by_role("list", name="Tasks").get_by_role("listitem")


def alert(page: Page) -> Locator:
    return page.get_by_role("main").get_by_role("alert")


def add(page: Page, title: str) -> None:
    page.get_by_label("New task").fill(title)
    page.get_by_role("button", name="Add").click()


def edit(page: Page, title: str, new_title: str) -> None:
    """Open the form of the task and fill it in, without saving."""
    page.get_by_role("button", name=f"Edit {title}").click()
    page.get_by_label("Title").fill(new_title)


def is_list_request(request: Request) -> bool:
    return re.search(r"/tasks\?", request.url) is not None


# ---- The files ------------------------------------------------------------------------------


def test_strict_typescript_finds_no_errors(app: App) -> None:
    run("npx tsc --noEmit", app.folder)
    assert '"strict": true' in (EXAMPLE / "tsconfig.json").read_text()


def test_the_committed_types_are_generated_from_openapi_json(app: App) -> None:
    run("npm run types", app.folder)
    assert (app.folder / "lib/openapi.d.ts").read_text() == (EXAMPLE / "lib/openapi.d.ts").read_text()


def test_better_auth_has_its_tables_in_its_own_schema(app: App, database: str) -> None:  # noqa: ARG001  # app makes them
    sql = "SELECT string_agg(tablename, ' ' ORDER BY tablename) FROM pg_tables WHERE schemaname = %s"
    assert fetch_value(database, sql, "auth") == "account jwks session user verification"
    assert fetch_value(database, f"{sql} AND tablename NOT LIKE %s", "public", "task%") is None


def test_the_main_readme_has_the_code_of_the_example() -> None:
    files = {
        path: text
        for language in ("mjs", "ts")
        for text in blocks((HERE / "README.md").read_text(), language)
        for path in re.findall(r"^// (\S+\.(?:mjs|ts))$", text.splitlines()[0])
    }
    assert sorted(files) == ["app/api/auth/[...all]/route.ts", "lib/auth.mjs", "migrate.mjs", "next.config.ts"]
    assert files == {path: (EXAMPLE / path).read_text() for path in files}


def test_the_settings_of_both_readmes_are_the_same() -> None:
    documented = [
        {re.sub("(?<=DATABASE_URL=).*", "", block) for block in blocks((folder / "README.md").read_text(), "sh")}
        for folder in (EXAMPLE, HERE)
    ]
    assert sum("AUTH_" in block for block in documented[0] & documented[1]) == 2


# ---- Signing in -----------------------------------------------------------------------------


def test_another_user_sees_none_of_the_tasks(ann: Person, app: App) -> None:
    add(ann.page, "Buy milk")
    expect(rows(ann.page)).to_have_count(1)
    ann.page.get_by_role("button", name="Sign out").click()
    fill_in(ann.page, f"{uuid4()}@example.com", "Create account")
    expect(ann.page.get_by_text("There are no tasks yet.")).to_be_visible()
    token = ann.page.request.get(f"{app.url}/api/auth/token").json()["token"]
    tasks_url = f"{app.url}{ann.elsewhere.base_url.path}tasks"
    assert httpx2.get(tasks_url, headers={"Authorization": f"Bearer {token}"}).status_code == 404
    assert httpx2.get(tasks_url).status_code == 401
    ann.page.get_by_role("button", name="Sign out").click()
    fill_in(ann.page, ann.email, "Sign in")
    expect(rows(ann.page)).to_have_count(1)


def test_the_page_code_of_the_main_readme_lists_the_tasks(app: App, ann: Person) -> None:
    ann.page.get_by_role("button", name="Sign out").click()
    expect(ann.page.get_by_label("Email")).to_be_visible()
    code = blocks((HERE / "README.md").read_text(), "ts")[-1]
    assert "ann@example.com" in code
    code = code.replace("ann@example.com", f"{uuid4()}@example.com")
    result = f"async () => {{ {code}; return [response.status, await response.clone().json()] }}"
    assert ann.page.evaluate(result) == [200, []]
    ann.page.goto(app.url)
    expect(ann.page.get_by_text("There are no tasks yet.")).to_be_visible()


def test_a_wrong_password_is_reported(ann: Person) -> None:
    page = ann.page
    page.get_by_role("button", name="Sign out").click()
    page.get_by_label("Email").fill(ann.email)
    page.get_by_label("Password").fill("wrong horse 1")
    page.get_by_role("button", name="Sign in").click()
    expect(alert(page)).to_have_text("Invalid email or password")


def test_a_network_failure_is_reported_when_signing_in_or_out(ann: Person) -> None:
    page = ann.page
    page.route("**/api/auth/sign-*", lambda route: route.abort())
    page.get_by_role("button", name="Sign out").click()
    expect(alert(page)).to_have_text("Signing out failed.")
    page.unroute("**/api/auth/sign-*")
    page.get_by_role("button", name="Sign out").click()
    page.route("**/api/auth/sign-in/*", lambda route: route.abort())
    page.get_by_label("Email").fill(ann.email)
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_role("button", name="Sign in").click()
    expect(alert(page)).to_have_text("The server cannot be reached.")
    page.unroute("**/api/auth/sign-in/*")
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_role("button", name="Sign out")).to_be_visible()


def test_a_rejected_token_is_replaced_unnoticed(ann: Person) -> None:
    ann.create("Buy milk")

    def forge(route: Route) -> None:
        token = route.fetch().json()["token"]
        route.fulfill(json={"token": token[:-8] + "AAAAAAAA"})

    ann.page.route("**/api/auth/token", forge, times=1)
    statuses: list[int] = []
    ann.page.on("response", lambda response: is_list_request(response.request) and statuses.append(response.status))
    ann.page.reload()
    expect(rows(ann.page)).to_have_text(["Buy milkEditDelete"])
    assert statuses == [401, 200]
    expect(alert(ann.page)).to_have_text("")


def test_a_token_is_replaced_before_it_expires(ann: Person) -> None:
    page = ann.page
    page.clock.install()
    page.reload()
    expect(page.get_by_text("There are no tasks yet.")).to_be_visible()
    requests: list[str] = []
    page.on("response", lambda response: requests.append(f"{response.status} {urlsplit(response.url).path}"))
    page.clock.fast_forward("14:45")
    add(page, "Buy milk")
    expect(rows(page)).to_have_count(1)
    assert requests[0] == "200 /api/auth/token"
    assert not [request for request in requests if request.startswith("401")]


def test_an_ended_session_leads_to_the_sign_in_form(ann: Person, context: BrowserContext) -> None:
    ann.page.clock.install()
    ann.page.reload()
    expect(ann.page.get_by_text("There are no tasks yet.")).to_be_visible()
    context.clear_cookies()
    ann.page.clock.fast_forward("16:00")
    add(ann.page, "Buy milk")
    expect(ann.page.get_by_role("button", name="Create account")).to_be_visible()


def sign_in_another_user(ann: Person, app: App, context: BrowserContext) -> str:
    """Sign Ann out in another tab and a new user in, and return the email address of the new user."""
    tab = context.new_page()
    tab.goto(app.url)
    tab.get_by_role("button", name="Sign out").click()
    email = f"{uuid4()}@example.com"
    fill_in(tab, email, "Create account")
    expect(ann.page.get_by_text(ann.email)).to_be_visible()
    return email


def test_a_focused_page_shows_the_user_of_the_session(ann: Person, app: App, context: BrowserContext) -> None:
    email = sign_in_another_user(ann, app, context)
    ann.page.evaluate("window.dispatchEvent(new Event('visibilitychange'))")
    expect(ann.page.get_by_text(email)).to_be_visible()


def test_a_token_of_another_user_is_not_used(ann: Person, app: App, context: BrowserContext) -> None:
    ann.page.clock.install()
    ann.page.reload()
    expect(ann.page.get_by_text("There are no tasks yet.")).to_be_visible()
    email = sign_in_another_user(ann, app, context)
    statuses: list[int] = []
    ann.page.on("response", lambda response: response.request.method == "PUT" and statuses.append(response.status))
    ann.page.clock.fast_forward("16:00")
    add(ann.page, "Buy milk")
    expect(ann.page.get_by_text(email)).to_be_visible()
    assert statuses == []


# ---- Tasks ----------------------------------------------------------------------------------


def test_a_repeated_create_after_a_lost_response_makes_one_task(ann: Person) -> None:
    statuses: list[int] = []

    def lose(route: Route) -> None:
        statuses.append(route.fetch().status)
        route.abort()

    ann.page.route("**/api/*/tasks/*", lose, times=1)
    with ann.page.expect_response(lambda response: response.request.method == "PUT") as second:
        add(ann.page, "Buy milk")
    assert statuses == [201]
    assert (second.value.status, second.value.headers["idempotent-replayed"]) == (201, "true")
    expect(rows(ann.page)).to_have_count(1)
    expect(ann.page.get_by_label("New task")).to_have_value("")
    assert [task["title"] for task in ann.tasks()] == ["Buy milk"]


def test_a_create_is_repeated_when_the_response_is_cut_off(ann: Person) -> None:
    cut_the_next_body = """() => {
        const realFetch = window.fetch
        window.fetch = async (...request) => {
            window.fetch = realFetch
            const response = await realFetch(...request)
            const body = new ReadableStream({ pull: controller => controller.error(new TypeError('network error')) })
            return new Response(body, response)
        }
    }"""
    ann.page.evaluate(cut_the_next_body)
    add(ann.page, "Buy milk")
    expect(ann.page.get_by_label("New task")).to_have_value("")
    expect(rows(ann.page)).to_have_count(1)
    assert len(ann.tasks()) == 1


def lose(route: Route) -> None:
    """Let a request reach the service, and lose its response."""
    route.fetch()
    route.abort()


def test_a_second_click_after_lost_responses_makes_one_task(ann: Person) -> None:
    ann.page.route("**/api/*/tasks/*", lose)
    ann.page.route(re.compile(r"/tasks\?"), lambda route: route.fulfill(json=[]))  # the list is as it was before
    add(ann.page, "Buy milk")
    expect(alert(ann.page)).to_have_text("The service cannot be reached.")
    ann.page.unroute("**/api/*/tasks/*")
    ann.page.get_by_role("button", name="Add").click()
    expect(ann.page.get_by_label("New task")).to_have_value("")
    expect(rows(ann.page)).to_have_count(1)
    assert len(ann.tasks()) == 1


def test_a_title_can_be_added_again_after_lost_responses(ann: Person) -> None:
    ann.page.route("**/api/*/tasks/*", lose)
    add(ann.page, "Buy milk")
    expect(rows(ann.page)).to_have_count(1)
    expect(ann.page.get_by_label("New task")).to_have_value("")
    ann.page.unroute("**/api/*/tasks/*")
    add(ann.page, "Buy milk")
    expect(rows(ann.page)).to_have_count(2)
    assert len(ann.tasks()) == 2


def test_a_change_is_shown_before_there_is_a_response(ann: Person) -> None:
    page = ann.page
    add(page, "Buy milk")
    held: list[Route] = []
    page.route("**/api/*/tasks/*", lambda route: held.append(route))
    edit(page, "Buy milk", "Buy oat milk")
    page.keyboard.press("Enter")
    expect(page.get_by_role("button", name="Edit Buy oat milk")).to_be_focused()
    assert ann.tasks()[0]["title"] == "Buy milk"
    with page.expect_response(lambda response: response.request.method == "PATCH"):
        held.pop().continue_()
    expect(rows(page).first).to_have_attribute("aria-busy", "false")
    page.get_by_role("checkbox", name="Buy oat milk").click()
    expect(page.get_by_role("checkbox", name="Buy oat milk")).to_be_checked()
    assert ann.tasks()[0]["completed"] is False
    with page.expect_response(lambda response: response.request.method == "PATCH"):
        held.pop().continue_()
    expect(rows(page).first).to_have_attribute("aria-busy", "false")
    page.get_by_role("button", name="Delete Buy oat milk").click()
    expect(rows(page)).to_have_count(0)
    [task] = ann.tasks()
    assert (task["title"], task["completed"]) == ("Buy oat milk", True)
    with page.expect_response(lambda response: response.request.method == "DELETE"):
        held.pop().continue_()
    expect(page.get_by_text("There are no tasks yet.")).to_be_visible()
    assert ann.tasks() == []


def test_a_change_that_fails_is_reverted_and_reported(ann: Person) -> None:
    add(ann.page, "Buy milk")
    ann.page.route("**/api/*/tasks/*", lambda route: route.abort())
    ann.page.get_by_role("checkbox", name="Buy milk").click()
    expect(alert(ann.page)).to_have_text("The service cannot be reached.")
    expect(ann.page.get_by_role("checkbox", name="Buy milk")).not_to_be_checked()
    ann.page.get_by_role("button", name="Delete Buy milk").click()
    expect(alert(ann.page)).to_have_text("The service cannot be reached.")
    expect(rows(ann.page)).to_have_count(1)


def test_an_edit_does_not_overwrite_one_made_elsewhere(ann: Person) -> None:
    add(ann.page, "Buy milk")
    edit(ann.page, "Buy milk", "Buy rice milk")
    [task] = ann.tasks()
    assert ann.elsewhere.patch(task["url"], json={"title": "Buy oat milk"}).status_code == 200
    ann.page.get_by_role("button", name="Save").click()
    expect(alert(ann.page)).to_have_text("This task was changed elsewhere. Your change was not saved.")
    expect(ann.page.get_by_label("Title, now “Buy oat milk”")).to_have_value("Buy rice milk")
    assert [task["title"] for task in ann.tasks()] == ["Buy oat milk"]
    ann.page.get_by_role("button", name="Cancel").click()
    expect(rows(ann.page)).to_have_text(["Buy oat milkEditDelete"])
    ann.page.get_by_role("checkbox", name="Buy oat milk").click()
    expect(alert(ann.page)).to_have_text("")
    expect(ann.page.get_by_role("checkbox", name="Buy oat milk")).to_be_checked()


def test_a_change_does_not_stop_the_reload_after_a_conflict(ann: Person) -> None:
    page = ann.page
    task, _ = ann.create("Buy milk"), ann.create("Buy bread")
    page.reload()
    expect(rows(page)).to_have_count(2)
    assert ann.elsewhere.patch(task["url"], json={"title": "Buy oat milk"}).status_code == 200
    with page.expect_request(is_list_request):
        page.route(re.compile(r"/tasks\?"), lambda _: None, times=1)  # there is no response
        page.get_by_role("checkbox", name="Buy milk").click()
    page.get_by_role("checkbox", name="Buy bread").click()
    expect(page.get_by_role("checkbox", name="Buy oat milk")).to_be_visible()
    expect(page.get_by_role("checkbox", name="Buy bread")).to_be_checked()


def test_an_edit_that_fails_keeps_the_typed_title(ann: Person) -> None:
    add(ann.page, "Buy milk")
    ann.page.route("**/api/*/tasks/*", lambda route: route.abort(), times=1)
    edit(ann.page, "Buy milk", "Buy oat milk")
    ann.page.get_by_role("button", name="Save").click()
    expect(alert(ann.page)).to_have_text("The service cannot be reached.")
    expect(ann.page.get_by_label("Title")).to_have_value("Buy oat milk")
    ann.page.get_by_role("button", name="Save").click()
    expect(rows(ann.page)).to_have_text(["Buy oat milkEditDelete"])
    expect(rows(ann.page)).to_have_attribute("aria-busy", "false")
    assert [task["title"] for task in ann.tasks()] == ["Buy oat milk"]


def test_a_problem_is_shown_as_a_sentence(ann: Person) -> None:
    add(ann.page, " ")
    expect(alert(ann.page)).to_have_text("body.title: String should have at least 1 character.")
    expect(ann.page.get_by_label("New task")).to_have_value(" ")
    assert ann.tasks() == []


def test_scrolling_shows_each_task_once(ann: Person, app: App) -> None:
    titles = [ann.create(f"Task {number}")["title"] for number in range(120)][::-1]
    requests: list[str] = []
    ann.page.on("request", lambda request: is_list_request(request) and requests.append(request.url))
    ann.page.reload()
    expect(rows(ann.page)).to_have_count(50)
    for pages, count in ((1, 100), (2, 120)):
        assert len(requests) == pages  # a page is loaded only when it is needed
        rows(ann.page).last.scroll_into_view_if_needed()
        ann.page.mouse.wheel(0, 1000)
        expect(rows(ann.page)).to_have_count(count)
    assert rows(ann.page).locator("span").all_inner_texts() == titles
    assert all(url.startswith(f"{app.url}/api/") for url in requests)
    expect(ann.page.get_by_role("button", name="Show more")).to_have_count(0)


def test_urls_of_the_service_are_right_behind_a_tls_proxy(ann: Person, app: App) -> None:
    for number in range(2):
        ann.create(f"Task {number}")
    tasks_url = f"{app.url}{ann.elsewhere.base_url.path}tasks"
    headers = {"Host": "tasks.example", "X-Forwarded-Proto": "https"}
    response = httpx2.get(f"{tasks_url}?limit=1", headers=headers | dict(ann.elsewhere.headers) | headers)
    public = tasks_url.replace(app.url, "https://tasks.example")
    assert response.json()[0]["url"].startswith(f"{public}/")
    assert response.links["next"]["url"].startswith(f"{public}?")


def test_axe_finds_no_accessibility_problem_on_a_phone(ann: Person) -> None:
    page = ann.page
    page.set_viewport_size({"width": 360, "height": 640})
    add(page, "Buy milk " + "x" * 150)
    expect(rows(page)).to_have_count(1)
    page.add_script_tag(path=CLIENTS / "node_modules/axe-core/axe.min.js")
    for action in ("Edit", "Sign out"):
        assert page.evaluate("async () => (await axe.run()).violations.map(found => found.help)") == []
        assert page.evaluate("document.documentElement.scrollWidth") == 360
        page.get_by_role("button", name=action).click()
    expect(page.get_by_role("button", name="Create account")).to_be_visible()
    assert page.evaluate("async () => (await axe.run()).violations.map(found => found.help)") == []
