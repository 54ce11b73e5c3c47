"""Tests of the list: its order, its pages and its cursors."""

import base64
from contextlib import closing
from datetime import datetime, timedelta
from uuid import uuid4

import psycopg2
import pytest
from fastapi.testclient import TestClient

from tests.conftest import Create, get_pages, local

SOME_ID = "00000000-0000-4000-8000-000000000000"


def titles_by_page(client: TestClient, path: str) -> list[list[str]]:
    """Return the titles of each page, beginning with the page at `path`."""
    return [[task["title"] for task in page.json()] for page in get_pages(client, path)]


def test_list_is_empty_for_a_user_without_tasks(client: TestClient, url: str) -> None:
    response = client.get(url)
    assert (response.status_code, response.text) == (200, "[]")
    assert "link" not in response.headers


def test_list_without_a_limit_returns_all_tasks_newest_first(client: TestClient, url: str, create: Create) -> None:
    tasks = [create(title=str(number)) for number in range(30)]
    assert client.get(url).json() == tasks[::-1]


@pytest.mark.parametrize(("limit", "sizes"), [(1, [1] * 6), (2, [2, 2, 2]), (4, [4, 2]), (6, [6]), (1000, [6])])
def test_pages_return_each_task_exactly_once(
    client: TestClient, url: str, create: Create, limit: int, sizes: list[int]
) -> None:
    for number in range(6):
        create(title=str(number))
    pages = titles_by_page(client, f"{url}?limit={limit}")
    assert [len(page) for page in pages] == sizes
    assert [title for page in pages for title in page] == ["5", "4", "3", "2", "1", "0"]


def test_pages_stay_complete_while_tasks_are_created_and_deleted(client: TestClient, url: str, create: Create) -> None:
    tasks = [create(title=str(number)) for number in range(7)]
    first = client.get(f"{url}?limit=3")
    assert [task["title"] for task in first.json()] == ["6", "5", "4"]
    create(title="new")
    for task in (tasks[6], tasks[4], tasks[2]):  # the first and the last of this page, and one of the next page
        client.delete(local(task["url"]))
    assert titles_by_page(client, local(first.links["next"]["url"])) == [["3", "1", "0"]]


def test_pages_include_all_tasks_with_the_same_created_at(
    client: TestClient, url: str, user: str, create: Create, database_url: str
) -> None:
    created = {create()["id"] for _ in range(5)}
    with closing(psycopg2.connect(database_url)) as connection, connection, connection.cursor() as cursor:
        cursor.execute("UPDATE tasks SET created_at = now() WHERE user_id = %s", [user])
    listed = [task["id"] for page in get_pages(client, f"{url}?limit=2") for task in page.json()]
    assert listed == sorted(created, reverse=True)


def test_next_link_has_the_scheme_and_host_of_the_request(client: TestClient, url: str, create: Create) -> None:
    create(), create()
    link = client.get(f"{url}?limit=1", headers={"X-Forwarded-Proto": "https", "Host": "api.example.com"}).links
    assert link["next"]["url"].startswith(f"https://api.example.com{url}?limit=1&cursor=")


@pytest.mark.parametrize("limit", ["0", "-1", "1001", "1e3", "x", "1.0", "1_0", "%201", "", "9" * 1000])
def test_limit_outside_1_to_1000_is_rejected(client: TestClient, url: str, limit: str) -> None:
    response = client.get(f"{url}?limit={limit}")
    assert response.status_code == 422
    assert response.json()["errors"][0]["loc"] == ["query", "limit"]


def test_repeated_query_parameter_with_a_single_value_is_rejected(client: TestClient, url: str) -> None:
    for name, value in (("q", "a"), ("limit", "1"), ("sort", "title"), ("completed", "true")):
        response = client.get(f"{url}?{name}={value}&{name}={value}")
        assert response.status_code == 422
        assert response.json()["errors"][0]["loc"] == ["query", name]


def test_unknown_query_parameter_is_rejected(client: TestClient, url: str) -> None:
    response = client.get(f"{url}?limt=10")
    assert response.status_code == 422
    assert response.json()["errors"][0]["loc"] == ["query", "limt"]


def test_modified_cursor_is_rejected(client: TestClient, url: str, create: Create) -> None:
    create(), create()
    next_path = local(client.get(f"{url}?limit=1").links["next"]["url"])
    path, _, cursor = next_path.rpartition("=")
    modified = [
        cursor[:-1],
        cursor[1:],
        cursor + "A",
        cursor + "=",
        cursor[::-1],
        "",
        "é",
        "0",
        "A" * 5000,
        cursor.lower(),
    ]
    for index in range(len(cursor)):
        character = "A" if cursor[index] != "A" else "B"
        modified.append(cursor[:index] + character + cursor[index + 1 :])
    for text in modified:
        response = client.get(f"{path}={text}")
        assert response.status_code == 422, text
        assert response.json()["errors"][0]["loc"] == ["query", "cursor"]


def test_cursor_of_another_user_is_rejected(client: TestClient, url: str, create: Create) -> None:
    create(), create()
    cursor = client.get(f"{url}?limit=1").links["next"]["url"].rpartition("=")[2]
    assert client.get(f"/api/user-{uuid4()}/tasks?cursor={cursor}").status_code == 422


@pytest.mark.parametrize(
    "other",
    [
        "sort=created_at",
        "sort=title",
        "q=a",
        "completed=false",
        "priority=low",
        "tag=a&tag=b",
        "tag=b",
        f"id={SOME_ID}",
    ],
)
def test_cursor_with_another_sort_or_other_filters_is_rejected(
    client: TestClient, url: str, create: Create, other: str
) -> None:
    create(tags=["a"]), create(tags=["a"])
    for query in ("limit=1", "limit=1&tag=a", "limit=1&sort=-title"):
        cursor = client.get(f"{url}?{query}").links["next"]["url"].rpartition("=")[2]
        assert client.get(f"{url}?{query}&cursor={cursor}").status_code == 200
        assert client.get(f"{url}?{other}&cursor={cursor}").status_code == 422


def test_cursor_may_be_used_with_another_limit(client: TestClient, url: str, create: Create) -> None:
    for number in range(4):
        create(title=str(number))
    cursor = client.get(f"{url}?limit=1").links["next"]["url"].rpartition("=")[2]
    page = client.get(f"{url}?limit=1000&total=true&cursor={cursor}")
    assert [task["title"] for task in page.json()] == ["2", "1", "0"]
    assert page.headers["x-total-count"] == "4"


def test_cursor_contains_no_field_but_the_sort_field(client: TestClient, url: str, create: Create) -> None:
    create(title="secret"), create(title="secret")
    for sort, expected in (("-created_at", False), ("title", True)):
        cursor = client.get(f"{url}?limit=1&sort={sort}").links["next"]["url"].rpartition("=")[2]
        assert (b"secret" in base64.urlsafe_b64decode(cursor + "==")) is expected


@pytest.mark.parametrize("sign", ["", "-"])
def test_sort_by_title_ignores_case_across_pages(client: TestClient, url: str, create: Create, sign: str) -> None:
    for title in ("b", "C", "A", "\u00c4", "d", "B"):
        create(title=title)
    titles = [title for page in titles_by_page(client, f"{url}?sort={sign}title&limit=1") for title in page]
    assert [title.lower() for title in titles] == sorted("bcad\u00e4b", reverse=bool(sign))


@pytest.mark.parametrize("name", ["due_date", "order"])
def test_nulls_sort_last_ascending_and_first_descending_across_pages(
    client: TestClient, url: str, create: Create, name: str
) -> None:
    values = {"due_date": ["2026-01-01T00:00:00Z", "2027-01-01T00:00:00Z"], "order": [1, 2]}[name]
    for number in range(12):
        create(title=str(number), **{name: [*values, None][number % 3]})
    for sign in ("", "-"):
        titles = [title for page in titles_by_page(client, f"{url}?sort={sign}{name}&limit=1") for title in page]
        ranks = [int(title) % 3 for title in titles]
        assert ranks == sorted([0, 1, 2] * 4, reverse=bool(sign))
        assert len(set(titles)) == 12


def test_time_filters_exclude_the_time_itself(client: TestClient, url: str, create: Create) -> None:
    task = create(completed=True, due_date="2026-01-01T00:00:00Z")
    create()
    for name, field in (("completed", "completed_at"), ("due", "due_date")):
        time = datetime.fromisoformat(task[field])
        microsecond = timedelta(microseconds=1)
        for suffix, step in (("before", microsecond), ("after", -microsecond)):
            for value, expected in ((time, []), (time + step, [task])):
                assert client.get(url, params={f"{name}_{suffix}": value.isoformat()}).json() == expected
