"""Fixtures of the tests with real clients: a started service, a website on another origin, a browser."""

from collections.abc import Callable, Iterator
from typing import Any
from uuid import uuid4

import httpx2
import pytest
from playwright.sync_api import Browser, BrowserContext, sync_playwright

from tests.clients.helpers import CreateTask, service_for, website
from tests.servers import Service


@pytest.fixture(scope="session")
def origin() -> Iterator[str]:
    """An origin of the examples that the service allows."""
    with website() as origin:
        yield origin


@pytest.fixture(scope="session")
def other_origin() -> Iterator[str]:
    """An origin of the examples that the service does not allow."""
    with website() as origin:
        yield origin


@pytest.fixture(scope="session")
def api(database_url: str, origin: str) -> Iterator[Service]:
    """A service that allows the pages of `origin`."""
    with service_for(origin, database_url) as started:
        yield started


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Debian's Chromium in headless mode."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium")
        yield browser
        browser.close()


@pytest.fixture
def context(browser: Browser) -> Iterator[BrowserContext]:
    """A browser context in the time zone of Berlin. The test fails when a script in it raises an error."""
    context = browser.new_context(locale="en-GB", timezone_id="Europe/Berlin", viewport={"width": 1000, "height": 800})
    context.set_default_timeout(10_000)
    errors: list[str] = []
    context.on("weberror", lambda error: errors.append(str(error.error)))
    yield context
    context.close()
    assert errors == []


@pytest.fixture
def person() -> str:
    """A user id that no other test uses, with characters that must be percent-encoded in a URL."""
    return f"ann+{uuid4()}@example.com"


@pytest.fixture
def tasks_url(api: Service, person: str) -> str:
    return f"{api.url}/api/{person}/tasks"


@pytest.fixture
def create_task(tasks_url: str) -> CreateTask:
    """Return a function that creates a task of the person through the API."""

    def create_task(title: str, **fields: object) -> dict[str, Any]:
        response = httpx2.post(tasks_url, json={"title": title} | fields)
        assert response.status_code == 201, response.text
        task: dict[str, Any] = response.json()
        return task

    return create_task


@pytest.fixture
def tasks(tasks_url: str) -> Callable[[], list[dict[str, Any]]]:
    """Return a function that lists the tasks of the person, newest first."""

    def tasks() -> list[dict[str, Any]]:
        items: list[dict[str, Any]] = httpx2.get(tasks_url).json()
        return items

    return tasks
