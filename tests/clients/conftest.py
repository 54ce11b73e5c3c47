"""What the tests with real clients share: a started service, a page of another origin, a browser."""

import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any
from uuid import uuid4

import httpx2
import pytest
from playwright.sync_api import Browser, BrowserContext, sync_playwright

from tests.servers import HERE, Service, service

Make = Callable[..., dict[str, Any]]


@contextmanager
def website() -> Iterator[str]:
    """Serve the examples as the README says, and return the origin."""
    command = [sys.executable, "-u", "-m", "http.server", "0", "--bind", "127.0.0.1", "-d", str(HERE / "examples")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout is not None
    with process, process.stdout:
        found = re.search(r"port (\d+)", process.stdout.readline())
        assert found
        yield f"http://127.0.0.1:{found[1]}"
        process.terminate()


def service_for(origin: str, database_url: str, *options: str) -> AbstractContextManager[Service]:
    """A service that allows pages of `origin`, and trusts the path."""
    return service(*options, DATABASE_URL=database_url, CORS_ORIGINS=origin)


@pytest.fixture(scope="session")
def origin() -> Iterator[str]:
    """Where the pages come from, which the service allows."""
    with website() as origin:
        yield origin


@pytest.fixture(scope="session")
def stranger() -> Iterator[str]:
    """Where the same pages come from too, which the service does not allow."""
    with website() as origin:
        yield origin


@pytest.fixture(scope="session")
def api(database_url: str, origin: str) -> Iterator[Service]:
    with service_for(origin, database_url) as started:
        yield started


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Debian's Chromium, without a window."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium")
        yield browser
        browser.close()


@pytest.fixture
def context(browser: Browser) -> Iterator[BrowserContext]:
    """The browser of one person, in Berlin, where no script may fail."""
    context = browser.new_context(locale="en-GB", timezone_id="Europe/Berlin", viewport={"width": 1000, "height": 800})
    context.set_default_timeout(10_000)
    broken: list[str] = []
    context.on("weberror", lambda error: broken.append(str(error.error)))
    yield context
    context.close()
    assert broken == []


@pytest.fixture
def person() -> str:
    """Somebody whom no other test knows, with a name that has to be encoded in a URL."""
    return f"ann+{uuid4()}@example.com"


@pytest.fixture
def tasks_url(api: Service, person: str) -> str:
    return f"{api.url}/api/{person}/tasks"


@pytest.fixture
def make(tasks_url: str) -> Make:
    """Creates a task of the person without a browser, and returns it."""

    def make(title: str, **fields: object) -> dict[str, Any]:
        answer = httpx2.post(tasks_url, json={"title": title} | fields)
        assert answer.status_code == 201, answer.text
        task: dict[str, Any] = answer.json()
        return task

    return make


@pytest.fixture
def tasks(tasks_url: str) -> Callable[[], list[dict[str, Any]]]:
    """Reads what the service has of the person, newest first."""

    def tasks() -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = httpx2.get(tasks_url).json()
        return found

    return tasks
