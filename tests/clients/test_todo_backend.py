"""What Todo-Backend (todobackend.com) agrees on, asked by a page of another origin in a real browser."""

from collections.abc import Callable
from typing import Any
from urllib.parse import quote

import pytest
from playwright.sync_api import BrowserContext

from tests.servers import Service

Ask = Callable[..., Any]
FETCH = """async ([method, url, body]) => {
    const headers = body ? {'Content-Type': 'application/json'} : {}
    const answer = await fetch(url, {method, headers, body: body && JSON.stringify(body)})
    if (!answer.ok) throw new Error(`${method} ${url}: ${answer.status}`)
    return await answer.json()
}"""


@pytest.fixture
def root(api: Service, person: str) -> str:
    """Where the to-dos are."""
    return f"{api.url}/api/{quote(person)}/tasks"


@pytest.fixture
def ask(context: BrowserContext, origin: str) -> Ask:
    """Fetches in the page, and returns the JSON that comes. Anything but a success fails."""
    page = context.new_page()
    page.goto(origin)

    def ask(method: str, url: str, **body: object) -> Any:
        return page.evaluate(FETCH, [method, url, body or None])

    return ask


@pytest.fixture
def todo(ask: Ask, root: str) -> Any:
    """A to-do that is there already."""
    return ask("POST", root, title="walk the dog", order=10)


def test_a_page_of_another_origin_may_get_the_root(ask: Ask, root: str) -> None:
    assert isinstance(ask("GET", root), list)


def test_a_post_answers_with_what_was_posted(ask: Ask, root: str) -> None:
    assert ask("POST", root, title="walk the dog")["title"] == "walk the dog"


@pytest.mark.usefixtures("todo")
def test_the_root_can_be_deleted(ask: Ask, root: str) -> None:
    assert ask("DELETE", root) == {"deleted": 1}


@pytest.mark.usefixtures("todo")
def test_after_the_root_is_deleted_it_is_an_empty_list(ask: Ask, root: str) -> None:
    ask("DELETE", root)
    assert ask("GET", root) == []


def test_what_was_posted_is_in_the_list(ask: Ask, root: str, todo: Any) -> None:
    assert ask("GET", root) == [todo]


def test_a_new_todo_is_not_completed(todo: Any) -> None:
    assert todo["completed"] is False


def test_a_new_todo_has_a_url_of_its_own(todo: Any, root: str) -> None:
    assert todo["url"].startswith(f"{root.split('/api')[0]}/api/")
    assert todo["url"].endswith(f"/tasks/{todo['id']}")


def test_the_url_of_a_new_todo_answers_with_it(ask: Ask, todo: Any) -> None:
    assert ask("GET", todo["url"]) == todo


def test_the_urls_in_the_list_lead_to_each_todo(ask: Ask, root: str, todo: Any) -> None:
    other = ask("POST", root, title="feed the cat")
    found = [ask("GET", one["url"])["title"] for one in ask("GET", root)]
    assert sorted(found) == sorted([todo["title"], other["title"]])


def test_a_title_is_changed_with_patch(ask: Ask, todo: Any) -> None:
    assert ask("PATCH", todo["url"], title="bathe the dog")["title"] == "bathe the dog"


def test_a_todo_is_completed_with_patch(ask: Ask, todo: Any) -> None:
    assert ask("PATCH", todo["url"], completed=True)["completed"] is True


def test_what_was_changed_is_there_when_asked_again(ask: Ask, root: str, todo: Any) -> None:
    ask("PATCH", todo["url"], title="bathe the dog", completed=True)
    for seen in (ask("GET", todo["url"]), ask("GET", root)[0]):
        assert (seen["title"], seen["completed"]) == ("bathe the dog", True)


def test_a_todo_is_deleted_at_its_url(ask: Ask, root: str, todo: Any) -> None:
    other = ask("POST", root, title="feed the cat")
    ask("DELETE", todo["url"])
    assert ask("GET", root) == [other]


def test_a_todo_can_be_made_with_an_order(ask: Ask, root: str) -> None:
    assert ask("POST", root, title="feed the cat", order=523)["order"] == 523


def test_the_order_is_changed_with_patch(ask: Ask, todo: Any) -> None:
    assert ask("PATCH", todo["url"], order=95)["order"] == 95


def test_a_changed_order_is_there_when_asked_again(ask: Ask, root: str, todo: Any) -> None:
    ask("PATCH", todo["url"], order=95)
    assert ask("GET", todo["url"])["order"] == 95
    assert ask("GET", root)[0]["order"] == 95
