"""examples/todo.html in a real browser, on another origin than the service."""

import os
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import quote, urlsplit

import httpx2
import pytest
from playwright.sync_api import BrowserContext, Locator, Page, Request, Route, expect

from tests.clients.helpers import CreateTask, Tasks, service_for
from tests.servers import HERE, Service

YESTERDAY = (datetime.now(UTC) - timedelta(days=1)).isoformat()
DETAIL = "The database is unavailable. Please try again."


def page_url(origin: str, api: str, person: str) -> str:
    return f"{origin}/todo.html?api={api}&user={quote(person)}"


def open_page(context: BrowserContext, origin: str, api: str, person: str) -> Page:
    page = context.new_page()
    page.goto(page_url(origin, api, person))
    return page


@pytest.fixture
def page(context: BrowserContext, origin: str, api: Service, person: str, create_task: CreateTask) -> Page:
    """The page of a person who has one task."""
    create_task("Buy milk", description="Two litres", tags=["home"])
    page = open_page(context, origin, api.url, person)
    expect(titles(page)).to_have_text(["Buy milk"])
    return page


def titles(page: Page) -> Locator:
    return page.locator("#list .title")


def row(page: Page, title: str) -> Locator:
    return page.locator("#list > li").filter(has=page.locator(".title", has_text=re.compile(f"^{title}$")))


def message(page: Page) -> Locator:
    return page.get_by_role("status")


def count_of(page: Page, label: str) -> Locator:
    """Return the count in an entry of the sidebar."""
    return page.get_by_label("Summary").get_by_role("button", name=re.compile(f"^{label} ")).locator("span").last


def add(page: Page, title: str) -> None:
    form = page.get_by_role("form", name="New task")
    form.get_by_label("Title").fill(title)
    form.get_by_role("button", name="Add task").click()


def edit(page: Page, title: str) -> Locator:
    """Open the editor of a task and return its form. The title of the task may change afterwards."""
    page.get_by_role("button", name=f"Edit: {title}").click()
    return page.get_by_role("form", name="Edit task")


def delay_first(page: Page, path: str, method: str) -> list[Route]:
    """Delay the first matching request; the test continues or fulfills the route in the returned list."""
    delayed: list[Route] = []

    def handle(route: Route) -> None:
        if delayed or route.request.method != method:
            route.continue_()
        else:
            delayed.append(route)

    page.route(re.compile(path), handle)
    return delayed


def respond(route: Route, status: int) -> None:
    headers = {"Access-Control-Allow-Origin": "*", "Content-Type": "application/problem+json"}
    route.fulfill(status=status, headers=headers, json={"detail": DETAIL})


def respond_503(delayed: list[Route]) -> None:
    respond(delayed[0], 503)


def lose_response(route: Route) -> None:
    route.fetch()  # the service carries the request out
    route.abort()


def requests_of(page: Page, part: str) -> list[str]:
    """Return a list to which each further request is added whose URL contains the part: its method and its URL."""
    found: list[str] = []
    page.on("request", lambda request: found.append(f"{request.method} {request.url}") if part in request.url else None)
    return found


# ---- One task -------------------------------------------------------------------------------


def test_a_task_is_added_with_all_its_fields(page: Page, tasks: Tasks) -> None:
    form = page.get_by_role("form", name="New task")
    form.get_by_label("Description").fill("before it rains")
    form.get_by_label("Priority").select_option("high")
    form.get_by_label("Tags").fill("garden, home,")
    form.get_by_label("Due").fill("2040-06-01T09:00")
    add(page, "Mow the lawn")
    expect(row(page, "Mow the lawn")).to_contain_text("before it rains")
    expect(row(page, "Mow the lawn")).to_contain_text("high priority")
    expect(row(page, "Mow the lawn")).to_contain_text("#garden #home")
    expect(row(page, "Mow the lawn")).to_contain_text("Due 1 Jun 2040, 09:00")
    expect(form.get_by_label("Title")).to_have_value("")
    expect(row(page, "Mow the lawn").get_by_role("checkbox")).to_be_enabled()
    task = tasks()[0]
    assert (task["title"], task["description"], task["priority"]) == ("Mow the lawn", "before it rains", "high")
    assert (task["tags"], task["due_date"]) == (["garden", "home"], "2040-06-01T07:00:00.000000Z")  # 09:00 in Berlin


def test_a_reload_shows_the_same_tasks(page: Page) -> None:
    add(page, "Buy eggs")
    expect(count_of(page, "All")).to_have_text("2")
    page.get_by_role("checkbox", name="Done: Buy milk").check()
    expect(count_of(page, "Done")).to_have_text("1")
    page.reload()
    expect(titles(page)).to_have_text(["Buy eggs", "Buy milk"])
    expect(page.get_by_role("checkbox", name="Done: Buy milk")).to_be_checked()
    expect(page.get_by_role("checkbox", name="Done: Buy eggs")).not_to_be_checked()


def test_editing_a_task_sends_only_changed_fields(page: Page, tasks: Tasks) -> None:
    sent = requests_of(page, "/tasks/")
    form = edit(page, "Buy milk")
    expect(form.get_by_label("Title")).to_be_focused()
    expect(form.get_by_label("Description")).to_have_value("Two litres")
    form.get_by_label("Title").fill("Buy oat milk")
    form.get_by_label("Tags").fill("home, shop")
    with page.expect_response(lambda response: response.request.method == "PATCH") as saving:
        form.get_by_role("button", name="Save").click()
    assert saving.value.request.post_data_json == {"title": "Buy oat milk", "tags": ["home", "shop"]}
    assert re.fullmatch(r'"\d+"', saving.value.request.headers["if-match"])
    assert [request.split()[0] for request in sent if not request.startswith("OPTIONS")] == ["PATCH"]  # no read
    expect(row(page, "Buy oat milk")).to_contain_text("#home #shop")
    expect(form).to_be_hidden()
    expect(page.get_by_role("button", name="Edit: Buy oat milk")).to_be_focused()
    assert [(task["title"], task["description"]) for task in tasks()] == [("Buy oat milk", "Two litres")]


def test_a_task_can_be_completed_and_reopened(page: Page, tasks: Tasks) -> None:
    box = page.get_by_role("checkbox", name="Done: Buy milk")
    box.check()
    expect(count_of(page, "Done")).to_have_text("1")
    assert tasks()[0]["completed"] is True
    box.uncheck()
    expect(count_of(page, "Done")).to_have_text("0")
    assert tasks()[0]["completed"] is False


def test_two_quick_clicks_restore_the_state(page: Page, tasks: Tasks) -> None:
    delayed = delay_first(page, "/complete$", "PATCH")
    box = page.get_by_role("checkbox", name="Done: Buy milk")
    with page.expect_request("**/complete"):
        box.check()
    sent: list[Request] = []
    page.on("request", lambda request: sent.append(request))
    box.uncheck()
    assert sent == [], "the second write did not wait for the first"
    with page.expect_response(lambda response: response.request.post_data_json == {"completed": False}):
        delayed[0].continue_()
    expect(box).not_to_be_checked()
    assert tasks()[0]["completed"] is False


def test_undo_restores_a_deleted_task_under_its_id(page: Page, create_task: CreateTask, tasks: Tasks) -> None:
    eggs = create_task("Buy eggs", extra={"color": "red"}, order=3)
    page.reload()
    page.get_by_role("button", name="Delete: Buy eggs").click()
    expect(message(page)).to_have_text("Deleted “Buy eggs”.")
    assert [task["title"] for task in tasks()] == ["Buy milk"]
    page.get_by_role("button", name="Undo").click()
    expect(titles(page)).to_have_text(["Buy eggs", "Buy milk"])
    expect(count_of(page, "All")).to_have_text("2")
    restored = tasks()[0]
    assert restored | {"version": eggs["version"], "updated_at": eggs["updated_at"]} == eggs


def test_an_overdue_task_is_marked_until_it_is_completed(page: Page, create_task: CreateTask) -> None:
    create_task("Call the plumber", due_date=YESTERDAY)
    page.reload()
    expect(row(page, "Call the plumber")).to_contain_text("Overdue:")
    expect(row(page, "Buy milk")).not_to_contain_text("Overdue")
    expect(count_of(page, "Overdue")).to_have_text("1")
    page.get_by_role("checkbox", name="Done: Call the plumber").check()
    expect(row(page, "Call the plumber")).not_to_contain_text("Overdue")
    expect(count_of(page, "Overdue")).to_have_text("0")


def test_titles_are_shown_as_text_not_as_markup(page: Page) -> None:
    add(page, "<img src=x onerror='document.title=1'>")
    expect(titles(page).first).to_have_text("<img src=x onerror='document.title=1'>")
    expect(page.locator("#list img")).to_have_count(0)
    expect(page).to_have_title("Tasks")


# ---- Many tasks -----------------------------------------------------------------------------


def test_show_more_lists_each_task_once(page: Page, create_task: CreateTask) -> None:
    for number in range(44):
        create_task(f"Task {number}")
    with page.expect_response("**/changes"):  # which has the tasks of all pages
        page.reload()
    expect(titles(page)).to_have_count(20)
    for total in (40, 45):
        page.get_by_role("button", name="Show more").click()
        expect(titles(page)).to_have_count(total)
    expect(page.get_by_role("button", name="Show more")).to_be_hidden()
    assert titles(page).all_text_contents() == [*(f"Task {number}" for number in reversed(range(44))), "Buy milk"]


def test_a_search_is_sent_once_after_typing(page: Page, create_task: CreateTask) -> None:
    create_task("Buy eggs", description="for a MILKshake")
    create_task("Mow the lawn")
    searches: list[str] = []
    page.on("request", lambda request: searches.append(request.url) if "q=" in request.url else None)
    with page.expect_response(re.compile("q=milk&")):
        page.get_by_label("Search").press_sequentially("milk", delay=20)
    expect(titles(page)).to_have_text(["Buy eggs", "Buy milk"])
    assert [re.findall("q=(.*?)&", url) for url in searches] == [["milk"]]
    page.get_by_label("Search").fill("")
    expect(titles(page)).to_have_count(3)


def test_a_new_search_cancels_the_previous_one(page: Page) -> None:
    delay_first(page, "q=eggs", "GET")
    with page.expect_request(re.compile("q=eggs")):
        page.get_by_label("Search").fill("eggs")
    with page.expect_event("requestfailed", lambda request: "q=eggs" in request.url, timeout=5_000):
        page.get_by_label("Search").fill("milk")
    expect(titles(page)).to_have_text(["Buy milk"])
    expect(page.locator("header").get_by_role("alert")).to_be_hidden()  # a cancelled search is no error


def test_the_list_can_be_sorted(page: Page, create_task: CreateTask) -> None:
    create_task("apples", priority="high", due_date="2040-01-02T00:00:00Z")
    create_task("Cherries", priority="low", due_date="2040-01-01T00:00:00Z")
    for label, order in (
        ("Title", ["apples", "Buy milk", "Cherries"]),
        ("Due first", ["Cherries", "apples", "Buy milk"]),
        ("Most important", ["apples", "Buy milk", "Cherries"]),
        ("Newest", ["Cherries", "apples", "Buy milk"]),
    ):
        page.get_by_label("Sort by").select_option(label)
        expect(titles(page)).to_have_text(order)


def test_toggle_all_and_clear_completed_include_tasks_of_other_pages(
    page: Page, create_task: CreateTask, tasks: Tasks
) -> None:
    for number in range(24):
        create_task(f"Task {number}")
    page.reload()
    expect(titles(page)).to_have_count(20)
    page.get_by_role("button", name="Toggle all").click()
    expect(message(page)).to_have_text("Changed 25.")
    assert all(task["completed"] for task in tasks())
    page.get_by_role("button", name="Toggle all").click()
    expect(count_of(page, "Open")).to_have_text("25")
    assert not any(task["completed"] for task in tasks())
    page.get_by_role("checkbox", name="Done: Task 5").check()
    page.get_by_role("checkbox", name="Done: Task 7").check()
    expect(count_of(page, "Done")).to_have_text("2")
    page.get_by_role("button", name="Clear completed").click()
    expect(message(page)).to_have_text("Deleted 2.")
    assert {"Task 5", "Task 7"}.isdisjoint(task["title"] for task in tasks())
    assert len(tasks()) == 23


def test_toggle_all_changes_only_the_search_results(page: Page, create_task: CreateTask, tasks: Tasks) -> None:
    create_task("Mow the lawn")
    page.get_by_label("Search").fill("mow")
    expect(titles(page)).to_have_text(["Mow the lawn"])
    page.get_by_role("button", name="Toggle all").click()
    expect(message(page)).to_have_text("Changed 1.")
    assert [(task["title"], task["completed"]) for task in tasks()] == [("Mow the lawn", True), ("Buy milk", False)]


def test_the_sidebar_shows_counts_and_filters(page: Page, create_task: CreateTask) -> None:
    create_task("Call the plumber", due_date=YESTERDAY, priority="high", tags=["home", "a & b"])
    create_task("Mow the lawn", completed=True)
    page.reload()
    for label, expected in {
        "All": ["Mow the lawn", "Call the plumber", "Buy milk"],
        "Open": ["Call the plumber", "Buy milk"],
        "Done": ["Mow the lawn"],
        "Overdue": ["Call the plumber"],
        "Priority high": ["Call the plumber"],
        "#home": ["Call the plumber", "Buy milk"],
        "#a & b": ["Call the plumber"],
    }.items():
        expect(count_of(page, label)).to_have_text(str(len(expected)))
        count_of(page, label).click()
        expect(titles(page)).to_have_text(expected)
        expect(page.get_by_role("button", pressed=True)).to_contain_text(label)


# ---- Errors ---------------------------------------------------------------------------------


def test_a_toggle_is_optimistic_and_rolled_back_on_error(page: Page) -> None:
    delayed = delay_first(page, "/complete$", "PATCH")
    box = page.get_by_role("checkbox", name="Done: Buy milk")
    with page.expect_request("**/complete"):
        box.check()
    expect(box).to_be_checked()
    respond_503(delayed)
    expect(message(page)).to_have_text(DETAIL)
    expect(box).not_to_be_checked()


def test_a_delete_is_optimistic_and_rolled_back_on_error(page: Page, create_task: CreateTask) -> None:
    create_task("Buy eggs")
    page.reload()
    delayed = delay_first(page, "/tasks/", "DELETE")
    with page.expect_request(lambda request: request.method == "DELETE"):
        page.get_by_role("button", name="Delete: Buy eggs").click()
    expect(titles(page)).to_have_text(["Buy milk"])
    respond_503(delayed)
    expect(message(page)).to_have_text(DETAIL)
    expect(titles(page)).to_have_text(["Buy eggs", "Buy milk"])


def test_a_new_task_is_optimistic_and_rolled_back_on_error(page: Page, tasks: Tasks) -> None:
    delayed = delay_first(page, "/tasks/", "PUT")
    with page.expect_request(lambda request: request.method == "PUT"):
        add(page, "Buy eggs")
    expect(titles(page)).to_have_text(["Buy eggs", "Buy milk"])
    respond_503(delayed)
    expect(message(page)).to_have_text(DETAIL)
    expect(titles(page)).to_have_text(["Buy milk"])
    expect(page.get_by_role("form", name="New task").get_by_label("Title")).to_have_value("Buy eggs")
    page.get_by_role("button", name="Try again").click()
    expect(count_of(page, "All")).to_have_text("2")
    expect(page.get_by_role("form", name="New task").get_by_label("Title")).to_have_value("")
    assert [task["title"] for task in tasks()] == ["Buy eggs", "Buy milk"]


def test_an_edit_is_optimistic_and_rolled_back_on_error(page: Page) -> None:
    delayed = delay_first(page, "/tasks/", "PATCH")
    form = edit(page, "Buy milk")
    form.get_by_label("Title").fill("Buy oat milk")
    with page.expect_request(lambda request: request.method == "PATCH"):
        form.get_by_role("button", name="Save").click()
    expect(titles(page)).to_have_text(["Buy oat milk"])
    respond_503(delayed)
    expect(message(page)).to_have_text(DETAIL)
    expect(titles(page)).to_have_text(["Buy milk"])
    expect(form.get_by_label("Title")).to_have_value("Buy oat milk")  # the typed text is kept


def test_toggle_all_is_optimistic_and_rolled_back_on_error(page: Page) -> None:
    delayed = delay_first(page, "/tasks[?]", "PATCH")
    box = page.get_by_role("checkbox", name="Done: Buy milk")
    with page.expect_request(lambda request: request.method == "PATCH"):
        page.get_by_role("button", name="Toggle all").click()
    expect(box).to_be_checked()
    respond_503(delayed)
    expect(message(page)).to_have_text(DETAIL)
    expect(box).not_to_be_checked()


def test_a_validation_error_shows_the_detail_of_the_service(page: Page, tasks: Tasks) -> None:
    page.get_by_role("form", name="New task").get_by_label("Tags").fill(",".join(map(str, range(21))))
    add(page, "Too many tags")
    expect(message(page)).to_contain_text("body.tags: List should have at most 20 items")
    expect(titles(page)).to_have_text(["Buy milk"])
    assert len(tasks()) == 1


def test_retrying_after_a_lost_response_creates_no_second_task(page: Page, tasks: Tasks) -> None:
    page.route(re.compile("/tasks/"), lose_response, times=1)
    add(page, "Buy eggs")
    expect(message(page)).to_contain_text("No response from")
    assert len(tasks()) == 2
    with page.expect_response(lambda response: response.request.method == "PUT") as repeated:
        page.get_by_role("button", name="Try again").click()
    assert repeated.value.header_value("Idempotent-Replayed") == "true"
    expect(titles(page)).to_have_text(["Buy eggs", "Buy milk"])
    assert len(tasks()) == 2
    add(page, "Buy eggs")  # a new task with the same title
    expect(count_of(page, "All")).to_have_text("3")


def test_a_task_whose_response_was_lost_is_shown(page: Page) -> None:
    page.route(re.compile("/tasks/"), lose_response, times=1)
    add(page, "Buy eggs")
    expect(message(page)).to_contain_text("No response from")
    expect(titles(page)).to_have_text(["Buy eggs", "Buy milk"])


def test_a_toggle_whose_response_was_lost_is_shown(page: Page) -> None:
    page.route(re.compile("/complete$"), lose_response, times=1)
    box = page.get_by_role("checkbox", name="Done: Buy milk")
    box.click()
    expect(message(page)).to_contain_text("No response from")
    expect(box).to_be_checked()


def test_a_conflict_with_a_second_tab_is_detected(page: Page, tasks: Tasks) -> None:
    mine = edit(page, "Buy milk")
    expect(mine.get_by_label("Title")).to_be_visible()
    second = page.context.new_page()
    second.goto(page.url)
    theirs = edit(second, "Buy milk")
    theirs.get_by_label("Title").fill("Buy soy milk")
    theirs.get_by_role("button", name="Save").click()
    expect(count_of(second, "All")).to_have_text("1")
    expect(theirs).to_be_hidden()
    mine.get_by_label("Title").fill("Buy oat milk")
    with page.expect_response(lambda response: response.request.method == "PATCH") as saving:
        mine.get_by_role("button", name="Save").click()
    assert saving.value.status == 412
    expect(mine.get_by_role("alert")).to_contain_text("Changed elsewhere: it is “Buy soy milk” now.")
    expect(mine.get_by_label("Title")).to_have_value("Buy oat milk")
    assert tasks()[0]["title"] == "Buy soy milk"
    mine.get_by_role("button", name="Save").click()  # the second Save overwrites the other change
    expect(mine).to_be_hidden()
    expect(titles(page)).to_have_text(["Buy oat milk"])
    page.reload()
    expect(titles(page)).to_have_text(["Buy oat milk"])


def test_the_page_recovers_after_a_restart_of_the_service(
    context: BrowserContext, origin: str, database_url: str, person: str
) -> None:
    with service_for(origin, database_url) as first:
        page = open_page(context, origin, first.url, person)
        expect(page.get_by_text("Nothing here.")).to_be_visible()
        add(page, "Buy milk")
        expect(count_of(page, "All")).to_have_text("1")
    box = page.get_by_role("checkbox", name="Done: Buy milk")
    box.click()
    expect(message(page)).to_contain_text("No response from")
    expect(page.locator("header").get_by_role("alert")).to_contain_text("Trying again")
    expect(box).not_to_be_checked()
    expect(titles(page)).to_have_text(["Buy milk"])
    with service_for(origin, database_url, "--port", str(urlsplit(first.url).port)) as second:
        assert second.url == first.url
        expect(page.locator("header").get_by_role("alert")).to_be_hidden()  # without a reload
        box.check()
        expect(count_of(page, "Done")).to_have_text("1")


def test_a_disallowed_origin_can_neither_read_nor_write(
    context: BrowserContext, other_origin: str, api: Service, person: str, create_task: CreateTask, tasks: Tasks
) -> None:
    task = create_task("Secret")
    page = open_page(context, other_origin, api.url, person)
    expect(page.locator("header").get_by_role("alert")).to_contain_text("No response from")
    expect(titles(page)).to_have_count(0)
    expect(page.get_by_label("Summary").get_by_role("button")).to_have_count(0)
    fetch = """([method, url]) => fetch(url, {method, body: method === 'GET' ? undefined : '{"title": "Mine"}',
        headers: method === 'GET' ? {} : {'Content-Type': 'application/json'}})
        .then(response => response.text()).catch(error => error.name)"""
    for method, url in (("GET", task["url"]), ("PATCH", task["url"]), ("DELETE", task["url"])):
        assert page.evaluate(fetch, [method, url]) == "TypeError"
    assert page.evaluate(fetch, ["POST", task["url"].removesuffix(f"/{task['id']}")]) == "TypeError"
    assert tasks() == [task]


# ---- Changes made elsewhere -----------------------------------------------------------------


@pytest.fixture
def second(page: Page) -> Page:
    """The same page in a second tab, which has a cursor."""
    second = page.context.new_page()
    with second.expect_response("**/changes"):
        second.goto(page.url)
    expect(titles(second)).to_have_text(["Buy milk"])
    return second


def test_a_second_tab_shows_changes_within_two_seconds(page: Page, second: Page) -> None:
    lists = requests_of(second, "/tasks?")
    add(page, "Buy eggs")
    expect(titles(second)).to_have_text(["Buy eggs", "Buy milk"], timeout=2_000)
    expect(count_of(second, "All")).to_have_text("2")
    form = edit(page, "Buy milk")
    form.get_by_label("Title").fill("Buy oat milk")
    form.get_by_role("button", name="Save").click()
    expect(titles(second)).to_have_text(["Buy eggs", "Buy oat milk"], timeout=2_000)
    page.get_by_role("checkbox", name="Done: Buy oat milk").check()
    expect(second.get_by_role("checkbox", name="Done: Buy oat milk")).to_be_checked(timeout=2_000)
    page.get_by_role("button", name="Delete: Buy oat milk").click()
    expect(titles(second)).to_have_text(["Buy eggs"], timeout=2_000)
    page.get_by_role("button", name="Undo").click()
    expect(titles(second)).to_have_text(["Buy eggs", "Buy oat milk"], timeout=2_000)
    assert lists == []


def test_a_bulk_change_is_shown_in_a_second_tab(page: Page, second: Page, create_task: CreateTask) -> None:
    create_task("Buy eggs")
    page.get_by_role("button", name="Toggle all").click()
    expect(second.get_by_role("checkbox", name="Done: Buy eggs")).to_be_checked()
    expect(second.get_by_role("checkbox", name="Done: Buy milk")).to_be_checked()
    page.get_by_role("button", name="Clear completed").click()
    expect(titles(second)).to_have_count(0)
    expect(second.get_by_text("Nothing here.")).to_be_visible()


def test_a_change_elsewhere_appears_where_it_belongs(page: Page, create_task: CreateTask) -> None:
    page.get_by_label("Sort by").select_option("Title")
    with page.expect_response(re.compile("q=milk")):
        page.get_by_label("Search").fill("milk two")
    with page.expect_response(re.compile("tag=home")):
        count_of(page, "#home").click()
    lists = requests_of(page, "/tasks?")
    for title, tags in (("Chocolate milk", ["home"]), ("almond milk", ["home"]), ("Bread", ["home"]), ("Milk", [])):
        create_task(title, description="Two", tags=tags)
    expect(titles(page)).to_have_text(["almond milk", "Buy milk", "Chocolate milk"])
    expect(count_of(page, "All")).to_have_text("5")
    expect(titles(page)).to_have_text(["almond milk", "Buy milk", "Chocolate milk"])
    assert lists == []


@pytest.mark.parametrize("label", ["Newest", "Due first", "Most important", "Title", "Last changed"])
def test_changes_elsewhere_are_sorted_as_by_the_service(page: Page, create_task: CreateTask, label: str) -> None:
    with page.expect_response("**/tasks?*"):
        page.get_by_label("Sort by").select_option(label)
    for title, fields in {
        "apples": {"due_date": "2040-01-02T00:00:00Z"},
        "Cherries": {"priority": "high"},
        "Bananas": {"priority": "low", "due_date": "2040-01-01T00:00:00Z"},
        "Apricots": {"priority": "high"},
    }.items():
        create_task(title, **fields)
    expect(titles(page)).to_have_count(5)
    shown = titles(page).all_text_contents()
    with page.expect_response("**/tasks?*"):
        page.get_by_label("Search").fill(" ")
    expect(titles(page)).to_have_text(shown)


def test_the_list_is_loaded_again_after_an_expired_cursor(page: Page, create_task: CreateTask) -> None:
    with page.expect_response(re.compile("/changes[?]since=")):
        pass
    page.route(re.compile("/changes[?]since="), lambda route: respond(route, 410), times=1)
    with page.expect_response("**/tasks?*"), page.expect_response("**/changes"):
        pass
    create_task("Buy eggs")
    expect(titles(page)).to_have_text(["Buy eggs", "Buy milk"])


def test_a_failed_write_hides_no_change_made_meanwhile(page: Page, tasks: Tasks) -> None:
    delayed_changes = delay_first(page, "/changes[?]", "GET")
    with page.expect_request(re.compile("/changes[?]")):
        pass
    delayed_toggle = delay_first(page, "/complete$", "PATCH")
    with page.expect_request("**/complete"):
        page.get_by_role("checkbox", name="Done: Buy milk").click()
    httpx2.patch(tasks()[0]["url"], json={"title": "Buy oat milk"})
    with page.expect_response(re.compile("/changes[?]")):
        delayed_changes[0].continue_()
    page.wait_for_timeout(500)
    respond_503(delayed_toggle)
    expect(message(page)).to_have_text(DETAIL)
    expect(titles(page)).to_have_text(["Buy oat milk"])
    expect(page.get_by_role("checkbox", name="Done: Buy oat milk")).not_to_be_checked()


def test_a_hidden_tab_asks_less_often(page: Page, create_task: CreateTask) -> None:
    page.evaluate("() => Object.defineProperty(document, 'hidden', {configurable: true, value: true})")
    page.wait_for_timeout(3_000)  # for requests that were planned before
    asked = requests_of(page, "/changes")
    create_task("Buy eggs")
    page.wait_for_timeout(3_000)
    assert asked == []
    page.evaluate("() => { delete document.hidden; document.dispatchEvent(new Event('visibilitychange')) }")
    expect(titles(page)).to_have_text(["Buy eggs", "Buy milk"])


# ---- Accessibility and defaults -------------------------------------------------------------


def test_everything_works_with_the_keyboard_alone(page: Page, tasks: Tasks) -> None:
    press = page.keyboard.press
    press("n")
    page.keyboard.type("Buy eggs")
    press("Enter")
    expect(count_of(page, "All")).to_have_text("2")
    page.locator("body").evaluate("() => document.activeElement.blur()")
    press("/")
    expect(page.get_by_label("Search")).to_be_focused()
    expect(page.get_by_label("Search")).to_have_value("")
    for _ in range(4):  # past sort, toggle all, clear completed
        press("Tab")
    expect(page.get_by_role("checkbox", name="Done: Buy eggs")).to_be_focused()
    press("ArrowDown")
    expect(page.get_by_role("checkbox", name="Done: Buy milk")).to_be_focused()
    press("Space")
    expect(count_of(page, "Done")).to_have_text("1")
    expect(page.get_by_role("checkbox", name="Done: Buy milk")).to_be_focused()
    press("ArrowUp")
    press("Enter")
    expect(page.get_by_role("form", name="Edit task").get_by_label("Title")).to_be_focused()
    press("Escape")
    press("Enter")
    expect(page.get_by_role("form", name="Edit task").get_by_label("Title")).to_be_focused()
    page.keyboard.type(" and ham")
    press("Enter")
    expect(page.get_by_role("button", name="Edit: Buy eggs and ham")).to_be_focused()
    press("Shift+Tab")
    press("Delete")
    expect(message(page)).to_have_text("Deleted “Buy eggs and ham”.")
    expect(page.get_by_role("checkbox", name="Done: Buy milk")).to_be_focused()
    assert [(task["title"], task["completed"]) for task in tasks()] == [("Buy milk", True)]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_accessibility_violation(page: Page, create_task: CreateTask, scheme: str) -> None:
    create_task("Call the plumber", due_date=YESTERDAY, priority="high", tags=["home"])
    create_task("Mow the lawn", completed=True)
    page.emulate_media(color_scheme="dark" if scheme == "dark" else "light")
    page.reload()
    edit(page, "Buy milk").get_by_label("Title").fill("Buy oat milk")
    page.get_by_role("button", name="Delete: Mow the lawn").click()
    expect(message(page)).to_contain_text("Deleted")
    page.add_script_tag(path=HERE / "tests/clients/node_modules/axe-core/axe.min.js")
    results = page.evaluate("() => axe.run()")
    assert [(rule["id"], [node["html"] for node in rule["nodes"]]) for rule in results["violations"]] == []
    assert {"label", "color-contrast", "button-name"} <= {rule["id"] for rule in results["passes"]}
    background = page.evaluate("() => getComputedStyle(document.documentElement).backgroundColor")
    assert background == {"light": "rgb(243, 245, 249)", "dark": "rgb(16, 20, 28)"}[scheme]


def test_without_parameters_it_uses_a_random_user_and_port_8000(context: BrowserContext, origin: str) -> None:
    urls: list[str] = []

    def respond_empty(route: Route, request: Request) -> None:
        urls.append(request.url)
        status = 200 if "?" in request.url else 503  # an empty list, and no summary
        route.fulfill(status=status, headers={"Access-Control-Allow-Origin": "*"}, json=[])

    context.route("http://127.0.0.1:8000/**", respond_empty)
    page = context.new_page()
    for _ in range(2):
        page.goto(f"{origin}/todo.html")
        expect(page.get_by_text("Nothing here.")).to_be_visible()
    users = {re.findall("^http://127.0.0.1:8000/api/([0-9a-f-]{36})/tasks[?]", url)[0] for url in urls if "?" in url}
    assert len(users) == 1


def test_the_picture_in_the_readme_shows_the_page(page: Page, create_task: CreateTask, tmp_path: Path) -> None:
    """Write the picture to the file named by SCREENSHOT, which `make screenshot` sets."""
    day = datetime.now(UTC).replace(hour=9, minute=0, second=0, microsecond=0)
    create_task("Call the plumber", priority="high", tags=["home"], due_date=(day - timedelta(days=2)).isoformat())
    create_task(
        "Write to Grandma", description="and ask for the recipe", due_date=(day + timedelta(days=3)).isoformat()
    )
    create_task("Water the tomatoes", priority="low", tags=["garden"], completed=True)
    page.reload()
    expect(count_of(page, "All")).to_have_text("4")
    expect(titles(page)).to_have_count(4)
    file = HERE / os.environ.get("SCREENSHOT", tmp_path / "todo.png")
    page.set_viewport_size({"width": 1000, "height": 850})
    page.screenshot(path=file, animations="disabled")
    assert 10_000 < file.stat().st_size < 150_000


def test_the_readme_names_the_page_and_its_picture() -> None:
    readme = (HERE / "README.md").read_text()
    assert "python3 -m http.server 3000 -d examples" in readme
    assert "docs/todo.png" in readme
    assert (HERE / "docs/todo.png").stat().st_size < 150_000
