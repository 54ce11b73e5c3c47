"""The specification of Todo-Backend (todobackend.com), tested from a page of another origin in a real browser."""

from collections.abc import Callable
from typing import Any
from urllib.parse import quote

import pytest
from playwright.sync_api import BrowserContext

from tests.servers import Service

Send = Callable[..., Any]
FETCH = """async ([method, url, body]) => {
    const headers = body ? {'Content-Type': 'application/json'} : {}
    const response = await fetch(url, {method, headers, body: body && JSON.stringify(body)})
    if (!response.ok) throw new Error(`${method} ${url}: ${response.status}`)
    return await response.json()
}"""


@pytest.fixture
def root(api: Service, person: str) -> str:
    """The URL of the list."""
    return f"{api.url}/api/{quote(person)}/tasks"


@pytest.fixture
def send(context: BrowserContext, origin: str) -> Send:
    """Return a function that sends a request from the page and returns the JSON; it fails unless the status is 2xx."""
    page = context.new_page()
    page.goto(origin)

    def send(method: str, url: str, **body: object) -> Any:
        return page.evaluate(FETCH, [method, url, body or None])

    return send


@pytest.fixture
def todo(send: Send, root: str) -> Any:
    """An existing to-do."""
    return send("POST", root, title="walk the dog", order=10)


def test_a_page_of_another_origin_can_get_the_root(send: Send, root: str) -> None:
    assert isinstance(send("GET", root), list)


def test_a_post_returns_the_posted_title(send: Send, root: str) -> None:
    assert send("POST", root, title="walk the dog")["title"] == "walk the dog"


@pytest.mark.usefixtures("todo")
def test_the_root_can_be_deleted(send: Send, root: str) -> None:
    assert send("DELETE", root) == {"deleted": 1}


@pytest.mark.usefixtures("todo")
def test_the_root_is_an_empty_list_after_a_delete(send: Send, root: str) -> None:
    send("DELETE", root)
    assert send("GET", root) == []


def test_a_posted_todo_is_in_the_list(send: Send, root: str, todo: Any) -> None:
    assert send("GET", root) == [todo]


def test_a_new_todo_is_not_completed(todo: Any) -> None:
    assert todo["completed"] is False


def test_a_new_todo_has_a_url_of_its_own(todo: Any, root: str) -> None:
    assert todo["url"].startswith(f"{root.split('/api')[0]}/api/")
    assert todo["url"].endswith(f"/tasks/{todo['id']}")


def test_the_url_of_a_new_todo_returns_it(send: Send, todo: Any) -> None:
    assert send("GET", todo["url"]) == todo


def test_each_url_in_the_list_returns_its_todo(send: Send, root: str, todo: Any) -> None:
    other = send("POST", root, title="feed the cat")
    titles = [send("GET", item["url"])["title"] for item in send("GET", root)]
    assert sorted(titles) == sorted([todo["title"], other["title"]])


def test_patch_changes_a_title(send: Send, todo: Any) -> None:
    assert send("PATCH", todo["url"], title="bathe the dog")["title"] == "bathe the dog"


def test_patch_completes_a_todo(send: Send, todo: Any) -> None:
    assert send("PATCH", todo["url"], completed=True)["completed"] is True


def test_a_change_is_persistent(send: Send, root: str, todo: Any) -> None:
    send("PATCH", todo["url"], title="bathe the dog", completed=True)
    for current in (send("GET", todo["url"]), send("GET", root)[0]):
        assert (current["title"], current["completed"]) == ("bathe the dog", True)


def test_delete_removes_only_one_todo(send: Send, root: str, todo: Any) -> None:
    other = send("POST", root, title="feed the cat")
    send("DELETE", todo["url"])
    assert send("GET", root) == [other]


def test_a_todo_can_be_created_with_an_order(send: Send, root: str) -> None:
    assert send("POST", root, title="feed the cat", order=523)["order"] == 523


def test_patch_changes_the_order(send: Send, todo: Any) -> None:
    assert send("PATCH", todo["url"], order=95)["order"] == 95


def test_a_changed_order_is_persistent(send: Send, root: str, todo: Any) -> None:
    send("PATCH", todo["url"], order=95)
    assert send("GET", todo["url"])["order"] == 95
    assert send("GET", root)[0]["order"] == 95
