"""The list: newest first, in pages."""

import base64
from contextlib import closing
from uuid import uuid4

import psycopg2
import pytest
from fastapi.testclient import TestClient

from tests.conftest import Create, local


def follow(client: TestClient, path: str) -> list[list[str]]:
    """The titles of all pages, from `path` on."""
    pages = []
    while path:
        answer = client.get(path)
        assert answer.status_code == 200
        pages.append([task["title"] for task in answer.json()])
        path = local(answer.links["next"]["url"]) if "next" in answer.links else ""
    return pages


def test_a_user_without_tasks_has_an_empty_list(client: TestClient, url: str) -> None:
    answer = client.get(url)
    assert (answer.status_code, answer.text) == (200, "[]")
    assert "link" not in answer.headers


def test_the_newest_task_comes_first_and_all_come_without_a_limit(client: TestClient, url: str, create: Create) -> None:
    tasks = [create(title=str(number)) for number in range(30)]
    assert client.get(url).json() == tasks[::-1]


@pytest.mark.parametrize(("limit", "sizes"), [(1, [1] * 6), (2, [2, 2, 2]), (4, [4, 2]), (6, [6]), (1000, [6])])
def test_following_next_gives_each_task_once(
    client: TestClient, url: str, create: Create, limit: int, sizes: list[int]
) -> None:
    for number in range(6):
        create(title=str(number))
    pages = follow(client, f"{url}?limit={limit}")
    assert [len(page) for page in pages] == sizes
    assert [title for page in pages for title in page] == ["5", "4", "3", "2", "1", "0"]


def test_tasks_that_come_and_go_between_pages_disturb_no_other(client: TestClient, url: str, create: Create) -> None:
    tasks = [create(title=str(number)) for number in range(7)]
    first = client.get(f"{url}?limit=3")
    assert [task["title"] for task in first.json()] == ["6", "5", "4"]
    create(title="new")
    for gone in (tasks[6], tasks[4], tasks[2]):  # on the page, the one it ended with, on the next page
        client.delete(local(gone["url"]))
    assert follow(client, local(first.links["next"]["url"])) == [["3", "1", "0"]]


def test_tasks_of_one_instant_are_all_in_the_pages(
    client: TestClient, url: str, user: str, create: Create, database_url: str
) -> None:
    created = {create()["id"] for _ in range(5)}
    with closing(psycopg2.connect(database_url)) as connection, connection, connection.cursor() as cursor:
        cursor.execute("UPDATE tasks SET created_at = now() WHERE user_id = %s", [user])
    path, listed = f"{url}?limit=2", []
    while path:
        answer = client.get(path)
        listed += [task["id"] for task in answer.json()]
        path = local(answer.links["next"]["url"]) if "next" in answer.links else ""
    assert listed == sorted(created, reverse=True)


def test_the_next_page_is_at_the_address_the_client_used(client: TestClient, url: str, create: Create) -> None:
    create(), create()
    link = client.get(f"{url}?limit=1", headers={"X-Forwarded-Proto": "https", "Host": "api.example.com"}).links
    assert link["next"]["url"].startswith(f"https://api.example.com{url}?limit=1&cursor=")


@pytest.mark.parametrize("limit", ["0", "-1", "1001", "1e3", "x", "1.0", "1_0", "%201", "", "9" * 1000])
def test_a_limit_outside_of_1_to_1000_is_refused(client: TestClient, url: str, limit: str) -> None:
    answer = client.get(f"{url}?limit={limit}")
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["loc"] == ["query", "limit"]


def test_a_parameter_of_which_only_the_last_would_count_is_refused(client: TestClient, url: str) -> None:
    for name, value in (("q", "a"), ("limit", "1"), ("sort", "title"), ("completed", "true")):
        answer = client.get(f"{url}?{name}={value}&{name}={value}")
        assert answer.status_code == 422
        assert answer.json()["errors"][0]["loc"] == ["query", name]


def test_an_unknown_query_parameter_is_refused(client: TestClient, url: str) -> None:
    answer = client.get(f"{url}?limt=10")
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["loc"] == ["query", "limt"]


def test_a_cursor_that_was_tampered_with_is_refused(client: TestClient, url: str, create: Create) -> None:
    create(), create()
    following = local(client.get(f"{url}?limit=1").links["next"]["url"])
    path, _, cursor = following.rpartition("=")
    spoiled = [
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
    for place in range(len(cursor)):
        other = "A" if cursor[place] != "A" else "B"
        spoiled.append(cursor[:place] + other + cursor[place + 1 :])
    for text in spoiled:
        answer = client.get(f"{path}={text}")
        assert answer.status_code == 422, text
        assert answer.json()["errors"][0]["loc"] == ["query", "cursor"]


def test_a_cursor_of_another_user_is_refused(client: TestClient, url: str, create: Create) -> None:
    create(), create()
    cursor = client.get(f"{url}?limit=1").links["next"]["url"].rpartition("=")[2]
    assert client.get(f"/api/user-{uuid4()}/tasks?cursor={cursor}").status_code == 422


@pytest.mark.parametrize(
    "other", ["sort=created_at", "sort=title", "q=a", "completed=false", "priority=low", "tag=a&tag=b", "tag=b"]
)
def test_a_cursor_of_another_order_or_other_filters_is_refused(
    client: TestClient, url: str, create: Create, other: str
) -> None:
    create(tags=["a"]), create(tags=["a"])
    for made_for in ("limit=1", "limit=1&tag=a", "limit=1&sort=-title"):
        cursor = client.get(f"{url}?{made_for}").links["next"]["url"].rpartition("=")[2]
        assert client.get(f"{url}?{made_for}&cursor={cursor}").status_code == 200
        assert client.get(f"{url}?{other}&cursor={cursor}").status_code == 422


def test_a_cursor_goes_on_with_another_limit(client: TestClient, url: str, create: Create) -> None:
    for number in range(4):
        create(title=str(number))
    cursor = client.get(f"{url}?limit=1").links["next"]["url"].rpartition("=")[2]
    rest = client.get(f"{url}?limit=1000&total=true&cursor={cursor}")
    assert [task["title"] for task in rest.json()] == ["2", "1", "0"]
    assert rest.headers["x-total-count"] == "4"


def test_a_cursor_says_of_a_task_only_what_is_sorted_by(client: TestClient, url: str, create: Create) -> None:
    create(title="secret"), create(title="secret")
    for sort, said in (("-created_at", False), ("title", True)):
        cursor = client.get(f"{url}?limit=1&sort={sort}").links["next"]["url"].rpartition("=")[2]
        assert (b"secret" in base64.urlsafe_b64decode(cursor + "==")) is said


@pytest.mark.parametrize("sign", ["", "-"])
def test_the_order_by_title_ignores_case_across_pages(client: TestClient, url: str, create: Create, sign: str) -> None:
    for title in ("b", "C", "A", "\u00c4", "d", "B"):
        create(title=title)
    titles = [title for page in follow(client, f"{url}?sort={sign}title&limit=1") for title in page]
    assert [title.lower() for title in titles] == sorted("bcad\u00e4b", reverse=bool(sign))


@pytest.mark.parametrize("name", ["due_date", "order"])
def test_nulls_come_last_and_with_a_minus_first_and_none_is_lost_between_pages(
    client: TestClient, url: str, create: Create, name: str
) -> None:
    values = {"due_date": ["2026-01-01T00:00:00Z", "2027-01-01T00:00:00Z"], "order": [1, 2]}[name]
    for number in range(12):
        create(title=str(number), **{name: [*values, None][number % 3]})
    for sign in ("", "-"):
        titles = [title for page in follow(client, f"{url}?sort={sign}{name}&limit=1") for title in page]
        ranks = [int(title) % 3 for title in titles]
        assert ranks == sorted([0, 1, 2] * 4, reverse=bool(sign))
        assert len(set(titles)) == 12
