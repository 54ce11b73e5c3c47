"""What one request may ask for, and what one answer may hold, has a limit."""

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

from tests.conftest import Create, local

PAGE = 2 * 1024 * 1024
MILK = "\N{GLASS OF MILK}"  # four bytes
FULL = {
    "title": MILK * 200,
    "description": MILK * 2000,
    "tags": [f"{number:02}".ljust(50, MILK) for number in range(20)],
}


def fill(database_url: str, user: str, number: int, **fields: object) -> None:
    """Write so many tasks of the user with these fields past the service, which would take long."""
    rows = [fields | {"user_id": user, "id": str(uuid4())} for _ in range(number)]
    names = ", ".join(rows[0])
    values = f"({', '.join(f'%({name})s' for name in rows[0])})"
    with closing(psycopg2.connect(database_url)) as connection, connection, connection.cursor() as cursor:
        statement = f"INSERT INTO tasks ({names}) VALUES %s"  # noqa: S608
        psycopg2.extras.execute_values(cursor, statement, rows, values)


def hold_refused(answer: httpx2.Response, *loc: str) -> None:
    assert answer.status_code == 422, answer.text[:1000]
    assert answer.json()["errors"][0]["loc"] == list(loc)


# ---- What is asked for ----------------------------------------------------------------------


def search(client: TestClient, url: str, q: str) -> list[httpx2.Response]:
    """The answers to a list and to bulk changes with this search."""
    path = f"{url}?{urlencode({'q': q})}"
    return [client.get(path), client.patch(path, json={"completed": True}), client.delete(path)]


@pytest.mark.parametrize("q", ["x" * 201, MILK * 201, " ".join("abcdefghijk"), "a\N{NO-BREAK SPACE}" * 11])
def test_a_search_over_200_characters_or_10_words_is_refused(
    client: TestClient, url: str, create: Create, q: str
) -> None:
    task = create(title=q[:200])
    for answer in search(client, url, q):
        hold_refused(answer, "query", "q")
    assert client.get(url).json() == [task]


@pytest.mark.parametrize("q", ["x" * 200, MILK * 200, "\t".join("abcdefghij"), " a" * 10 + " " * 180])
def test_a_search_of_200_characters_and_10_words_is_carried_out(
    client: TestClient, url: str, create: Create, q: str
) -> None:
    task = create(title=q.replace("\t", " "))
    found, changed, deleted = search(client, url, q)
    assert [one["id"] for one in found.json()] == [task["id"]]
    assert (changed.json(), deleted.json()) == ({"updated": 1}, {"deleted": 1})


def test_a_filter_is_repeated_at_most_100_times(client: TestClient, url: str, create: Create) -> None:
    task = create(tags=["home"])
    for name, value in (("tag", "home"), ("priority", "medium")):
        assert client.get(f"{url}?{'&'.join([f'{name}={value}'] * 100)}").json() == [task]
        path = f"{url}?{'&'.join([f'{name}={value}'] * 101)}"
        for answer in (client.get(path), client.delete(path), client.patch(path, json={"completed": True})):
            hold_refused(answer, "query", name)
    assert client.get(url).json() == [task]


def test_a_query_over_4096_characters_is_refused(client: TestClient, url: str, create: Create) -> None:
    task = create()
    padding = 4096 - len("tag=")
    assert client.get(f"{url}?tag={'+' * (padding - 1)}x").json() == []
    for query in (f"tag={'+' * padding}x", f"{'x' * 5000}=1", "&".join(f"x{number}" for number in range(2000))):
        for answer in (client.get(f"{url}?{query}"), client.delete(f"{url}?{query}")):
            hold_refused(answer, "query")
            assert len(answer.content) < 1000
    assert client.get(url).json() == [task]


@pytest.mark.parametrize("header", ["If-Match", "If-None-Match"])
def test_a_condition_over_8_kib_is_refused(client: TestClient, url: str, create: Create, header: str) -> None:
    task = create()
    path = local(task["url"])
    etag = client.get(path).headers["etag"]
    fits = f"{etag}, ".rjust(8192 - 3, " ") + '"0"'
    requests = {
        "If-Match": [("PATCH", path), ("PUT", path), ("PATCH", f"{path}/complete"), ("DELETE", path)],
        "If-None-Match": [("GET", path), ("GET", url)],
    }[header]
    for method, where in requests:
        body = {"title": "new", "completed": True} if method in ("PATCH", "PUT") else None
        answer = client.request(method, where, json=body, headers={header: '"0",' * 2048 + " "})
        hold_refused(answer, "header", header.lower())
    assert client.get(path).json() == task
    method, where = requests[0]
    answer = client.request(method, where, json={"title": "new"}, headers={header: fits})
    assert answer.status_code == (200 if header == "If-Match" else 304)


# ---- What is answered -----------------------------------------------------------------------


@pytest.mark.parametrize("query", ["", "limit=200", "limit=1000&total=true", "sort=title&q=*", "tag=00&sort=-due_date"])
def test_a_page_ends_where_it_would_pass_2_mib(client: TestClient, user: str, database_url: str, query: str) -> None:
    fields = FULL | {"title": "*" + MILK * 199, "tags": ["00", *FULL["tags"][1:]]}  # type: ignore[index]
    fill(database_url, user, 300, **fields)
    limit = 200 if "limit=200" in query else 1000
    path, seen = f"/api/{user}/tasks?{query}", []
    while path:
        answer = client.get(path)
        assert answer.status_code == 200, answer.text
        assert answer.headers.get("x-total-count", "300") == "300"
        assert len(answer.content) <= PAGE
        page = answer.json()
        seen += [task["id"] for task in page]
        path = local(answer.links["next"]["url"]) if "next" in answer.links else ""
        # One more would have been too much.
        size = len(json.dumps(page[0], ensure_ascii=False, separators=(",", ":")).encode()) + 1
        assert len(page) == limit or not path or len(answer.content) + size > PAGE
    assert len(seen) == len(set(seen)) == 300


def test_a_page_of_exactly_2_mib_is_whole(client: TestClient, user: str, database_url: str) -> None:
    fill(database_url, user, 200, **FULL)
    path = f"/api/{user}/tasks"
    page = client.get(path)
    *others, last = page.json()
    assert "next" in page.links

    def shorten(task: dict[str, Any], by: int) -> None:
        whole, rest = divmod(2000 * 4 - by, 4)
        answer = client.patch(f"{path}/{task['id']}", json={"description": MILK * whole + "x" * rest})
        assert answer.status_code == 200

    # One task more fits in as soon as what is here is shorter by what it lacks.
    lacking = len(client.get(f"{path}/{last['id']}").content) + 1 - (PAGE - len(page.content))
    shorten(others[0], lacking // 2)
    shorten(others[1], lacking - lacking // 2 - 1)
    assert len(client.get(path).json()) == len(others) + 1
    shorten(others[1], lacking - lacking // 2)
    exact = client.get(path)
    assert (len(exact.content), len(exact.json())) == (PAGE, len(others) + 2)


@pytest.mark.parametrize("limit", [100, 1000])
def test_a_page_holds_at_least_one_task(client: TestClient, user: str, database_url: str, limit: int) -> None:
    fill(database_url, user, 2, title="x", tags=["x" * (PAGE + 1)])  # by hand, past every rule
    first = client.get(f"/api/{user}/tasks?limit={limit}")
    following = client.get(local(first.links["next"]["url"]))
    assert (len(first.json()), len(following.json())) == (1, 1)
    assert "next" not in following.links


def test_a_page_of_100_tasks_is_cut_as_well(client: TestClient, database_url: str) -> None:
    user = f"{uuid4()}".ljust(128, MILK)
    # Tasks from before control characters were refused: each is six bytes in JSON.
    fill(database_url, user, 100, title="\x01" * 200, description="\x01" * 2000, tags=["\x01" * 50] * 20)
    path, pages = f"/api/{quote(user)}/tasks?limit=100", []
    while path:
        answer = client.get(path)
        assert len(answer.content) <= PAGE
        pages.append(len(answer.json()))
        path = local(answer.links["next"]["url"]) if "next" in answer.links else ""
    assert sum(pages) == 100
    assert len(pages) == 2


@pytest.mark.parametrize("character", [MILK, "\x01", '"'], ids=ascii)
def test_a_link_is_shorter_than_8_kib(client: TestClient, database_url: str, character: str) -> None:
    user = f"{uuid4()}".ljust(128, MILK)
    fill(database_url, user, 2, title=character * 200, tags=["x"])
    query = "sort=title&limit=1&tag=" + "x".rjust(4096 - len("sort=title&limit=1&tag="), "+")
    answer = client.get(f"/api/{quote(user)}/tasks?{query}", headers={"Host": f"{'x' * 253}:65535"})
    assert answer.status_code == 200, answer.text
    assert 6000 < len(answer.headers["link"]) < 8192
    following = client.get(local(answer.links["next"]["url"]))
    assert len(following.json()) == 1
    assert "link" not in following.headers


@pytest.mark.parametrize("header", ["Host", "X-Forwarded-Host"])
def test_a_host_of_any_length_makes_no_task_longer(client: TestClient, url: str, create: Create, header: str) -> None:
    task = create()
    [listed] = client.get(url, headers={header: "x" * 60_000}).json()
    assert listed == task


def test_a_summary_names_the_1000_most_used_tags(client: TestClient, user: str, database_url: str) -> None:
    for number in range(60):
        fill(database_url, user, 1, title="x", tags=[f"{number * 20 + place:04}" for place in range(20)])
    fill(database_url, user, 1, title="x", tags=["1199", "0999", "zz"])
    tags = client.get(f"/api/{user}").json()["tags"]
    assert list(tags) == [*(f"{number:04}" for number in range(998)), "0999", "1199"]
    assert {tag for tag, number in tags.items() if number == 2} == {"0999", "1199"}


def test_a_refusal_lists_20_errors_and_counts_the_others(client: TestClient, url: str, create: Create) -> None:
    task = create()
    body = {"title": "", "tags": [""] * 20}
    parameters = "&".join(f"x{number}=" for number in range(500))
    for answer, others in (
        (client.post(url, json=body), 1),
        (client.put(local(task["url"]), json=body), 1),
        (client.patch(url, json=body), 1),
        (client.delete(f"{url}?{parameters}"), 480),
        (client.get(f"{url}?{parameters}"), 480),
    ):
        assert answer.status_code == 422
        assert len(answer.json()["errors"]) == 20
        assert answer.json()["detail"].endswith(f"; and {others} more.")
        assert len(answer.content) < 8192
    assert client.get(url).json() == [task]


def test_an_error_shows_at_most_100_characters_of_a_name(client: TestClient, url: str) -> None:
    name = "x" * 3000
    problem = client.get(f"{url}?{name}=1").json()
    assert problem["errors"][0]["loc"] == ["query", "x" * 100 + "…"]
    assert name not in problem["detail"]


@pytest.mark.parametrize("path", ["/" + "x" * 60_000, "/api/" + quote(MILK) * 5_000, "/api/%00/" + "%" * 60_000])
def test_an_error_shows_at_most_500_characters_of_a_path(client: TestClient, path: str) -> None:
    answer = client.get(path)
    assert 400 <= answer.status_code < 500
    assert len(answer.content) < 500 * 12 + 1000
