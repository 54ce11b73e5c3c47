"""Tests of the limits on the size of requests and of responses."""

import json
from contextlib import closing
from typing import Any
from urllib.parse import quote, urlencode
from uuid import uuid4

import httpx2
import psycopg2
import psycopg2.extras
import pytest
from fastapi.testclient import TestClient

from tests.conftest import Create, get_pages, local

MAX_PAGE_BYTES = 2 * 1024 * 1024
MILK = "\N{GLASS OF MILK}"  # four bytes in UTF-8
LARGEST_FIELDS: dict[str, Any] = {
    "title": MILK * 200,
    "description": MILK * 2000,
    "tags": [f"{number:02}".ljust(50, MILK) for number in range(20)],
}


def insert_tasks(database_url: str, user: str, number: int, **fields: object) -> None:
    """Insert `number` tasks of the user with these fields in one statement, without the validation of the service."""
    rows = [fields | {"user_id": user, "id": str(uuid4())} for _ in range(number)]
    names = ", ".join(rows[0])
    values = f"({', '.join(f'%({name})s' for name in rows[0])})"
    with closing(psycopg2.connect(database_url)) as connection, connection, connection.cursor() as cursor:
        statement = f"INSERT INTO tasks ({names}) VALUES %s"  # noqa: S608
        psycopg2.extras.execute_values(cursor, statement, rows, values)


def assert_rejected(response: httpx2.Response, *loc: str) -> None:
    """Assert that the response is a 422 problem whose first error has this location."""
    assert response.status_code == 422, response.text[:1000]
    assert response.json()["errors"][0]["loc"] == list(loc)


# ---- Requests -------------------------------------------------------------------------------


def send_searches(client: TestClient, url: str, q: str) -> list[httpx2.Response]:
    """Return the responses to the list, the bulk update and the bulk delete with this search."""
    path = f"{url}?{urlencode({'q': q})}"
    return [client.get(path), client.patch(path, json={"completed": True}), client.delete(path)]


@pytest.mark.parametrize("q", ["x" * 201, MILK * 201, " ".join("abcdefghijk"), "a\N{NO-BREAK SPACE}" * 11])
def test_search_over_200_characters_or_10_words_is_rejected(
    client: TestClient, url: str, create: Create, q: str
) -> None:
    task = create(title=q[:200])
    for response in send_searches(client, url, q):
        assert_rejected(response, "query", "q")
    assert client.get(url).json() == [task]


@pytest.mark.parametrize("q", ["x" * 200, MILK * 200, "\t".join("abcdefghij"), " a" * 10 + " " * 180])
def test_search_of_200_characters_and_10_words_is_accepted(
    client: TestClient, url: str, create: Create, q: str
) -> None:
    task = create(title=q.replace("\t", " "))
    listed, updated, deleted = send_searches(client, url, q)
    assert [found["id"] for found in listed.json()] == [task["id"]]
    assert (updated.json(), deleted.json()) == ({"updated": 1}, {"deleted": 1})


def test_filter_repeated_over_100_times_is_rejected(client: TestClient, url: str, create: Create) -> None:
    task = create(tags=["home"])
    for name, value in (("tag", "home"), ("priority", "medium"), ("id", task["id"])):
        assert client.get(f"{url}?{'&'.join([f'{name}={value}'] * 100)}").json() == [task]
        path = f"{url}?{'&'.join([f'{name}={value}'] * 101)}"
        for response in (client.get(path), client.delete(path), client.patch(path, json={"completed": True})):
            assert_rejected(response, "query", name)
    assert client.get(url).json() == [task]


def test_query_over_4096_characters_is_rejected(client: TestClient, url: str, create: Create) -> None:
    task = create()
    padding = 4096 - len("tag=")
    assert client.get(f"{url}?tag={'+' * (padding - 1)}x").json() == []
    for query in (f"tag={'+' * padding}x", f"{'x' * 5000}=1", "&".join(f"x{number}" for number in range(2000))):
        for response in (client.get(f"{url}?{query}"), client.delete(f"{url}?{query}")):
            assert_rejected(response, "query")
            assert len(response.content) < 1000
    assert client.get(url).json() == [task]


@pytest.mark.parametrize("header", ["If-Match", "If-None-Match"])
def test_conditional_header_over_8_kib_is_rejected(client: TestClient, url: str, create: Create, header: str) -> None:
    task = create()
    path = local(task["url"])
    etag = client.get(path).headers["etag"]
    longest = f"{etag}, ".rjust(8192 - 3, " ") + '"0"'
    requests = {
        "If-Match": [("PATCH", path), ("PUT", path), ("PATCH", f"{path}/complete"), ("DELETE", path)],
        "If-None-Match": [("GET", path), ("GET", url)],
    }[header]
    for method, target in requests:
        body = {"title": "new", "completed": True} if method in ("PATCH", "PUT") else None
        response = client.request(method, target, json=body, headers={header: '"0",' * 2048 + " "})
        assert_rejected(response, "header", header.lower())
    assert client.get(path).json() == task
    method, target = requests[0]
    response = client.request(method, target, json={"title": "new"}, headers={header: longest})
    assert response.status_code == (200 if header == "If-Match" else 304)


# ---- Responses ------------------------------------------------------------------------------


@pytest.mark.parametrize("query", ["", "limit=200", "limit=1000&total=true", "sort=title&q=*", "tag=00&sort=-due_date"])
def test_page_ends_before_it_exceeds_2_mib(client: TestClient, user: str, database_url: str, query: str) -> None:
    fields = LARGEST_FIELDS | {"title": "*" + MILK * 199, "tags": ["00", *LARGEST_FIELDS["tags"][1:]]}
    insert_tasks(database_url, user, 300, **fields)
    limit = 200 if "limit=200" in query else 1000
    listed: list[str] = []
    for page in get_pages(client, f"/api/{user}/tasks?{query}"):
        assert page.headers.get("x-total-count", "300") == "300"
        assert len(page.content) <= MAX_PAGE_BYTES
        tasks = page.json()
        listed += [task["id"] for task in tasks]
        task_size = len(json.dumps(tasks[0], ensure_ascii=False, separators=(",", ":")).encode()) + len(",")
        is_full = len(page.content) + task_size > MAX_PAGE_BYTES
        assert is_full or len(tasks) == limit or "next" not in page.links
    assert len(listed) == len(set(listed)) == 300


def test_page_may_have_exactly_2_mib(client: TestClient, user: str, database_url: str) -> None:
    insert_tasks(database_url, user, 200, version=10**15, **LARGEST_FIELDS)  # as long as the next version
    path = f"/api/{user}/tasks"
    page = client.get(path)
    *tasks, last = page.json()
    assert "next" in page.links

    def shorten_description(task: dict[str, Any], by: int) -> None:
        four_byte, one_byte = divmod(2000 * 4 - by, 4)
        response = client.patch(f"{path}/{task['id']}", json={"description": MILK * four_byte + "x" * one_byte})
        assert response.status_code == 200

    # One more task needs this many bytes more than are free in the page, so two other tasks are shortened by them.
    excess = len(client.get(f"{path}/{last['id']}").content) + len(",") - (MAX_PAGE_BYTES - len(page.content))
    shorten_description(tasks[0], excess // 2)
    shorten_description(tasks[1], excess - excess // 2 - 1)
    assert len(client.get(path).json()) == len(tasks) + 1
    shorten_description(tasks[1], excess - excess // 2)
    longer_page = client.get(path)
    assert (len(longer_page.content), len(longer_page.json())) == (MAX_PAGE_BYTES, len(tasks) + 2)


@pytest.mark.parametrize("limit", [100, 1000])
def test_page_with_a_task_over_2_mib_has_one_task(client: TestClient, user: str, database_url: str, limit: int) -> None:
    insert_tasks(database_url, user, 2, title="x", tags=["x" * (MAX_PAGE_BYTES + 1)])  # longer than validation allows
    first = client.get(f"/api/{user}/tasks?limit={limit}")
    second = client.get(local(first.links["next"]["url"]))
    assert (len(first.json()), len(second.json())) == (1, 1)
    assert "next" not in second.links


def test_page_of_100_tasks_ends_before_it_exceeds_2_mib(client: TestClient, database_url: str) -> None:
    user = f"{uuid4()}".ljust(128, MILK)
    # Older versions accepted control characters, each of which takes six bytes in JSON.
    insert_tasks(database_url, user, 100, title="\x01" * 200, description="\x01" * 2000, tags=["\x01" * 50] * 20)
    pages = list(get_pages(client, f"/api/{quote(user)}/tasks?limit=100"))
    assert all(len(page.content) <= MAX_PAGE_BYTES for page in pages)
    assert sum(len(page.json()) for page in pages) == 100
    assert len(pages) == 2


@pytest.mark.parametrize("character", [MILK, "\x01", '"'], ids=ascii)
def test_link_header_is_shorter_than_8_kib(client: TestClient, database_url: str, character: str) -> None:
    user = f"{uuid4()}".ljust(128, MILK)
    insert_tasks(database_url, user, 2, title=character * 200, tags=["x"])
    query = "sort=title&limit=1&tag=" + "x".rjust(4096 - len("sort=title&limit=1&tag="), "+")
    response = client.get(f"/api/{quote(user)}/tasks?{query}", headers={"Host": f"{'x' * 253}:65535"})
    assert response.status_code == 200, response.text
    assert 6000 < len(response.headers["link"]) < 8192
    next_page = client.get(local(response.links["next"]["url"]))
    assert len(next_page.json()) == 1
    assert "link" not in next_page.headers


@pytest.mark.parametrize("header", ["Host", "X-Forwarded-Host"])
def test_overlong_host_header_does_not_lengthen_task_urls(
    client: TestClient, url: str, create: Create, header: str
) -> None:
    task = create()
    [listed] = client.get(url, headers={header: "x" * 60_000}).json()
    assert listed == task


def test_summary_returns_the_1000_most_used_tags(client: TestClient, user: str, database_url: str) -> None:
    for number in range(60):
        insert_tasks(database_url, user, 1, title="x", tags=[f"{number * 20 + index:04}" for index in range(20)])
    insert_tasks(database_url, user, 1, title="x", tags=["1199", "0999", "zz"])
    tags = client.get(f"/api/{user}").json()["tags"]
    assert list(tags) == [*(f"{number:04}" for number in range(998)), "0999", "1199"]
    assert {tag for tag, number in tags.items() if number == 2} == {"0999", "1199"}


def test_validation_problem_lists_20_errors_and_counts_the_others(client: TestClient, url: str, create: Create) -> None:
    task = create()
    body = {"title": "", "tags": [""] * 20}
    parameters = "&".join(f"x{number}=" for number in range(500))
    for response, unlisted in (
        (client.post(url, json=body), 1),
        (client.put(local(task["url"]), json=body), 1),
        (client.patch(url, json=body), 1),
        (client.delete(f"{url}?{parameters}"), 480),
        (client.get(f"{url}?{parameters}"), 480),
    ):
        assert response.status_code == 422
        assert len(response.json()["errors"]) == 20
        assert response.json()["detail"].endswith(f"; and {unlisted} more.")
        assert len(response.content) < 8192
    assert client.get(url).json() == [task]


def test_problem_contains_at_most_100_characters_of_a_name(client: TestClient, url: str) -> None:
    name = "x" * 3000
    problem = client.get(f"{url}?{name}=1").json()
    assert problem["errors"][0]["loc"] == ["query", "x" * 100 + "…"]
    assert name not in problem["detail"]


@pytest.mark.parametrize("path", ["/" + "x" * 60_000, "/api/" + quote(MILK) * 5_000, "/api/%00/" + "%" * 60_000])
def test_problem_contains_at_most_500_characters_of_a_path(client: TestClient, path: str) -> None:
    response = client.get(path)
    assert 400 <= response.status_code < 500
    assert len(response.content) < 500 * 12 + 1000
