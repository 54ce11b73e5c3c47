"""Tests of the changes, with which a client keeps a copy of a user's tasks."""

import base64
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import httpx2
import psycopg2
import psycopg2.extras
import pytest
from fastapi.testclient import TestClient

import queries
from database import create_tables
from main import create_app
from schemas import ChangesCursor
from settings import Settings
from tests.conftest import Create, local
from tests.helpers import fetch_value

MAX_PAGE_BYTES = 2 * 1024 * 1024
MILK = "\N{GLASS OF MILK}"  # four bytes in UTF-8


@pytest.fixture
def path(user: str) -> str:
    """Return the path of the user's changes."""
    return f"/api/{user}/changes"


def get(client: TestClient, path: str, since: str | None = None, **parameters: object) -> Any:
    """Return a page of the changes as JSON."""
    query = parameters | ({} if since is None else {"since": since})
    response = client.get(path, params=query)
    assert response.status_code == 200, response.text
    return response.json()


def get_pages(client: TestClient, path: str, since: str | None = None, **parameters: object) -> Iterator[Any]:
    """Yield each page of the changes, until there are no more."""
    more = True
    while more:
        page = get(client, path, since, **parameters)
        since, more = page["cursor"], page["more"]
        yield page


def titles(page: Any) -> list[str]:
    """Return the titles of the tasks in a page of changes."""
    return [change["title"] for change in page["changes"]]


def update_copy(copy: dict[str, Any], page: Any) -> None:
    """Take the changes of a page over into a copy, as a client does."""
    for change in page["changes"]:
        task = {name: value for name, value in change.items() if name != "deleted_at"}
        copy[change["id"]] = task
        if change["deleted_at"] is not None:
            del copy[change["id"]]


def insert_tasks(database_url: str, user: str, number: int, **fields: object) -> list[str]:
    """Insert tasks as version 1.0.0 does, which counts no changes, and return their ids in ascending order."""
    ids = sorted(str(uuid4()) for _ in range(number))
    rows = [{"title": "old"} | fields | {"user_id": user, "id": task_id} for task_id in ids]
    names = ", ".join(rows[0])
    values = f"({', '.join(f'%({name})s' for name in rows[0])})"
    with closing(psycopg2.connect(database_url)) as connection, connection, connection.cursor() as cursor:
        psycopg2.extras.execute_values(cursor, f"INSERT INTO tasks ({names}) VALUES %s", rows, values)  # noqa: S608
    return ids


# ---- Content and order ----------------------------------------------------------------------


def test_user_without_tasks_has_no_changes_and_a_cursor(client: TestClient, path: str, create: Create) -> None:
    page = get(client, path)
    assert (page["changes"], page["more"]) == ([], False)
    assert get(client, path, page["cursor"]) == page
    task = create()
    assert get(client, path, page["cursor"])["changes"] == [task | {"deleted_at": None}]


def test_changes_begin_with_every_task_in_the_order_of_changes(client: TestClient, path: str, create: Create) -> None:
    a, b, c, d = (create(title=title) for title in "abcd")
    client.patch(local(b["url"]), json={"title": "B"})
    client.delete(local(a["url"]))
    client.patch(f"{local(d['url'])}/complete")
    page = get(client, path)
    assert titles(page) == ["c", "B", "a", "d"]
    versions = [change["version"] for change in page["changes"]]
    assert versions == sorted(versions)
    assert page["changes"][0] == c | {"deleted_at": None}
    assert page["changes"][1] == client.get(local(b["url"])).json() | {"deleted_at": None}
    assert [change["deleted_at"] is None for change in page["changes"]] == [True, True, False, True]


def test_cursor_leads_to_exactly_the_changes_since(client: TestClient, url: str, path: str, create: Create) -> None:
    a, b, _ = (create(title=title) for title in "abc")
    cursor = get(client, path)["cursor"]
    client.put(local(b["url"]), json={"title": "B"})
    deleted = client.delete(local(a["url"])).json()
    create(title="d")
    page = get(client, path, cursor)
    assert titles(page) == ["B", "a", "d"]
    deleted_at = page["changes"][1]["deleted_at"]
    assert page["changes"][1] == deleted | {"deleted_at": deleted_at}
    assert datetime.now(UTC) - timedelta(minutes=1) < datetime.fromisoformat(deleted_at) <= datetime.now(UTC)
    client.patch(local(b["url"]), json={"title": "BB"})
    assert titles(get(client, path, cursor)) == ["a", "d", "BB"]
    assert titles(get(client, path, page["cursor"])) == ["BB"]
    assert client.get(url).json()[0]["title"] == "d"


def test_restored_task_is_a_change_with_a_higher_version(client: TestClient, path: str, create: Create) -> None:
    task = create(extra={"a": 1}, completed=True)
    client.delete(local(task["url"]))
    first = get(client, path)
    restored = client.post(f"{local(task['url'])}/restore").json()
    second = get(client, path, first["cursor"])
    assert second["changes"] == [restored | {"deleted_at": None}]
    assert first["changes"][0]["version"] < second["changes"][0]["version"]


def test_bulk_change_and_bulk_delete_are_in_the_changes(
    client: TestClient, url: str, path: str, create: Create
) -> None:
    for title in "abcde":
        create(title=title)
    cursor = get(client, path)["cursor"]
    client.patch(f"{url}?q=b", json={"priority": "high"})
    client.patch(url, json={"completed": True})
    pages = list(get_pages(client, path, cursor, limit=1))
    changes = [change for page in pages for change in page["changes"]]
    assert sorted(change["title"] for change in changes) == list("abcde")
    assert len({change["version"] for change in changes}) == 1
    assert all(change["completed"] for change in changes)
    assert client.delete(f"{url}?priority=high").json() == {"deleted": 1}
    (deleted,) = get(client, path, pages[-1]["cursor"])["changes"]
    assert (deleted["title"], deleted["deleted_at"] is None) == ("b", False)


@pytest.mark.parametrize(("limit", "sizes"), [(1, [1] * 6), (2, [2, 2, 2]), (4, [4, 2]), (6, [6]), (1000, [6])])
def test_pages_have_each_change_once(
    client: TestClient, path: str, create: Create, limit: int, sizes: list[int]
) -> None:
    for title in "abcdef":
        create(title=title)
    pages = list(get_pages(client, path, limit=limit))
    assert [len(page["changes"]) for page in pages] == sizes
    assert "".join(title for page in pages for title in titles(page)) == "abcdef"


def test_change_between_two_pages_is_in_a_later_one(client: TestClient, path: str, create: Create) -> None:
    a, _, c, _ = (create(title=title) for title in "abcd")
    copy: dict[str, Any] = {}
    first = get(client, path, limit=2)
    update_copy(copy, first)
    client.patch(local(a["url"]), json={"title": "A"})
    client.delete(local(c["url"]))
    create(title="e")
    pages = list(get_pages(client, path, first["cursor"], limit=2))
    assert [titles(page) for page in pages] == [["d", "A"], ["c", "e"]]
    for page in pages:
        update_copy(copy, page)
    assert sorted(task["title"] for task in copy.values()) == ["A", "b", "d", "e"]


def test_copy_equals_the_list_after_concurrent_writes(client: TestClient, url: str, path: str, create: Create) -> None:
    tasks = [create(title=str(number)) for number in range(8)]
    copy: dict[str, Any] = {}

    def follow(since: str | None) -> str:
        for page in get_pages(client, path, since, limit=3):
            update_copy(copy, page)
            since = page["cursor"]
        assert since
        return since

    def send(number: int) -> None:
        target = local(tasks[number % 8]["url"])
        requests: list[dict[str, Any]] = [
            {"method": "PATCH", "url": target, "json": {"order": number}},
            {"method": "DELETE", "url": target},
            {"method": "POST", "url": f"{target}/restore"},
            {"method": "POST", "url": url, "json": {"title": "new"}},
            {"method": "PATCH", "url": f"{url}?completed=false", "json": {"completed": True}},
        ]
        assert client.request(**requests[number % 5]).status_code in (200, 201, 404)

    cursor = follow(None)
    with ThreadPoolExecutor(8) as threads:
        for _ in range(5):
            writes = [threads.submit(send, number) for number in range(40)]
            while not all(write.done() for write in writes):
                cursor = follow(cursor)
            cursor = follow(cursor)
            assert copy == {task["id"]: task for task in client.get(url).json()}
            for write in writes:
                write.result()


def test_page_ends_before_it_exceeds_2_mib(client: TestClient, user: str, path: str, database_url: str) -> None:
    tags = [f"{number:02}".ljust(50, MILK) for number in range(20)]
    insert_tasks(database_url, user, 300, title=MILK * 200, description=MILK * 2000, tags=tags)
    response = client.get(path)
    assert MAX_PAGE_BYTES - 20_000 < len(response.content) <= MAX_PAGE_BYTES
    pages = list(get_pages(client, path))
    assert [page["more"] for page in pages] == [True, False]
    assert sum(len(page["changes"]) for page in pages) == 300


def test_change_over_2_mib_is_a_page_of_its_own(client: TestClient, user: str, path: str, database_url: str) -> None:
    insert_tasks(database_url, user, 2, tags=["x" * (MAX_PAGE_BYTES + 1)])  # longer than validation allows
    assert [len(page["changes"]) for page in get_pages(client, path)] == [1, 1]


def test_changes_have_the_scheme_and_host_of_the_request(client: TestClient, path: str, create: Create) -> None:
    task = create()
    headers = {"X-Forwarded-Proto": "https", "Host": "api.example.com"}
    (change,) = client.get(path, headers=headers).json()["changes"]
    assert change["url"] == f"https://api.example.com{local(task['url'])}"


# ---- While nothing changes ------------------------------------------------------------------


def test_cursor_stays_the_same_while_nothing_changes(client: TestClient, path: str, create: Create) -> None:
    create(), create()
    cursor = get(client, path)["cursor"]
    for limit in (1000, 1):
        for _ in range(2):
            page = get(client, path, cursor, limit=limit)
            assert page == {"changes": [], "cursor": cursor, "more": False}


def test_requests_that_change_nothing_are_no_changes(
    client: TestClient, url: str, path: str, user: str, create: Create
) -> None:
    headers = {"Idempotency-Key": "k"}
    client.post(url, json={"title": "t"}, headers=headers)
    task = create()
    target = local(task["url"])
    cursor = get(client, path)["cursor"]
    responses = [
        client.post(url, json={"title": "t"}, headers=headers),
        client.post(url, json={"title": "other"}, headers=headers),
        client.put(target, json={"title": "x"}, headers={"If-None-Match": "*"}),
        client.patch(target, json={"title": "x"}, headers={"If-Match": '"1"'}),
        client.delete(target, headers={"If-Match": '"1"'}),
        client.patch(target, json={"titel": "x"}),
        client.delete(f"{url}/{uuid4()}"),
        client.post(f"{url}/{uuid4()}/restore"),
        client.post(f"{target}/restore"),
        client.delete(f"{url}?completed=true"),
        client.patch(f"{url}?completed=true", json={"title": "x"}),
        client.get(f"/api/{user}"),
    ]
    assert [response.status_code for response in responses] == [201, 422, 412, 412, 412, 422, 404, 404] + [200] * 4
    page = get(client, path, cursor)
    assert (page["changes"], page["more"]) == ([], False)


def test_if_none_match_gives_304_while_there_is_nothing_new(client: TestClient, path: str, create: Create) -> None:
    task = create()
    first = client.get(path)
    headers = {"If-None-Match": first.headers["etag"], "Origin": "http://localhost:3000"}
    for query in ("", "?limit=1", f"?since={first.json()['cursor']}", f"?since={first.json()['cursor']}&limit=1"):
        response = client.get(path + query, headers=headers)
        assert (response.status_code, response.content) == (304, b"")
        assert response.headers["etag"] == first.headers["etag"]
        assert response.headers["access-control-allow-origin"] == "http://localhost:3000"
    for change in (
        lambda: client.patch(local(task["url"]), json={"title": "new"}),
        lambda: client.delete(local(task["url"])),
        lambda: client.post(f"{local(task['url'])}/restore"),
    ):
        cursor = get(client, path)["cursor"]
        etag = client.get(path, params={"since": cursor}).headers["etag"]
        assert client.get(path, params={"since": cursor}, headers={"If-None-Match": etag}).status_code == 304
        change()
        for query in ("", f"?since={cursor}"):
            response = client.get(path + query, headers={"If-None-Match": etag})
            assert (response.status_code, len(response.json()["changes"])) == (200, 1)


@pytest.mark.parametrize("with_since", [False, True])
def test_etag_changes_when_a_full_last_page_gets_a_successor(
    client: TestClient, path: str, create: Create, *, with_since: bool
) -> None:
    query = {"limit": "2"} | ({"since": get(client, path)["cursor"]} if with_since else {})
    create(), create()
    last = client.get(path, params=query)
    assert last.json()["more"] is False
    create()
    response = client.get(path, params=query, headers={"If-None-Match": last.headers["etag"]})
    assert (response.status_code, response.json()["more"]) == (200, True)
    assert response.json()["changes"] == last.json()["changes"]


def count_read_tasks(plan: Any) -> int:
    """Return how many rows of `tasks` a plan of EXPLAIN (ANALYZE, FORMAT JSON) has read."""
    rows = plan["Actual Rows"] + plan.get("Rows Removed by Filter", 0) if plan.get("Relation Name") == "tasks" else 0
    return round(rows * plan["Actual Loops"]) + sum(map(count_read_tasks, plan.get("Plans", [])))


def test_poll_reads_only_the_counter_and_what_was_changed(empty_database: str) -> None:
    # A database of its own, with statistics: PostgreSQL prefers another index, or none, in a table that it takes
    # for a small one.
    create_tables(empty_database)
    counters = "INSERT INTO task_users (user_id, epoch, revision) SELECT n, 1, 100 FROM generate_series(1, 100) n"
    tasks = (
        "INSERT INTO tasks (user_id, id, title, version, revision) SELECT u, gen_random_uuid(), 't', r, r"
        " FROM generate_series(1, 100) u, generate_series(1, 100) r"
    )
    for statement in (counters, tasks, "ANALYZE"):
        fetch_value(empty_database, statement)
    for revision, expected in ((100, 0), (99, 1)):
        query = queries.list_changes("7", tasks_url="", after=(revision, queries.LAST_ID), limit=1000)
        with closing(psycopg2.connect(empty_database)) as connection, connection.cursor() as sql:
            sql.execute(f"EXPLAIN (ANALYZE, FORMAT JSON) {query.statement.sql}", query.values)
            (([explained],),) = sql.fetchall()
        assert count_read_tasks(explained["Plan"]) == expected


# ---- Cursors that are rejected --------------------------------------------------------------


def assert_rejected(response: httpx2.Response, status: int) -> None:
    """Assert that the response is 422 for the cursor, or 410, which asks the client to begin again."""
    assert response.status_code == status, response.text
    if status == 422:
        assert response.json()["errors"][0]["loc"] == ["query", "since"]
    else:
        assert "Begin again" in response.json()["detail"]


def test_cursor_that_was_cut_or_changed_is_422(client: TestClient, path: str, create: Create) -> None:
    create()
    cursor = get(client, path)["cursor"]
    texts = [cursor[:-1], cursor[1:], cursor + "A", cursor + "=", cursor[::-1], cursor.lower(), "", "é", "0", "\0"]
    texts += ["A" * 5000, *(cursor[:index] for index in range(1, len(cursor)))]
    # Of any content, times outside of the years 1 to 9999 among them.
    texts += [base64.urlsafe_b64encode(bytes([byte]) * 49).rstrip(b"=").decode() for byte in range(0, 256, 15)]
    for index in range(len(cursor)):
        character = "A" if cursor[index] != "A" else "B"
        texts.append(cursor[:index] + character + cursor[index + 1 :])
    for text in texts:
        assert_rejected(client.get(path, params={"since": text}), 422)


def test_cursor_of_another_user_is_422(client: TestClient, path: str, create: Create) -> None:
    create()
    cursor = get(client, path)["cursor"]
    other = f"/api/user-{uuid4()}/changes"
    assert_rejected(client.get(other, params={"since": cursor}), 422)
    assert_rejected(client.get(path, params={"since": get(client, other)["cursor"]}), 422)


def test_cursor_of_a_list_is_422(client: TestClient, url: str, path: str, create: Create) -> None:
    create(), create()
    cursor = client.get(f"{url}?limit=1").links["next"]["url"].rpartition("=")[2]
    assert_rejected(client.get(path, params={"since": cursor}), 422)
    assert client.get(url, params={"cursor": get(client, path)["cursor"]}).status_code == 422


@pytest.mark.parametrize(
    ("query", "name"),
    [
        *((f"limit={limit}", "limit") for limit in ("0", "-1", "1001", "1e3", "x", "1.0", "")),
        ("limit=1&limit=1", "limit"),
        ("since=a&since=b", "since"),
        ("cursor=a", "cursor"),
        ("completed=true", "completed"),
    ],
)
def test_query_of_the_changes_that_breaks_a_rule_is_422(client: TestClient, path: str, query: str, name: str) -> None:
    response = client.get(f"{path}?{query}")
    assert response.status_code == 422
    assert response.json()["errors"][0]["loc"] == ["query", name]


@pytest.mark.parametrize("comes_back", [False, True])
def test_cursor_from_before_an_erased_user_is_410(
    client: TestClient, user: str, path: str, create: Create, *, comes_back: bool
) -> None:
    create(), create()
    cursors = [get(client, path)["cursor"], get(client, path, limit=1)["cursor"]]
    client.delete(f"/api/{user}?confirm={user}")
    if comes_back:
        create(title="new")
    for cursor in cursors:
        assert_rejected(client.get(path, params={"since": cursor}), 410)
    assert titles(get(client, path)) == ["new"] * comes_back


def test_cursor_from_before_the_first_write_stays_valid(client: TestClient, path: str, create: Create) -> None:
    cursor = get(client, path)["cursor"]
    create(title="a"), create(title="b")
    assert [titles(page) for page in get_pages(client, path, cursor, limit=1)] == [["a"], ["b"]]


def test_cursor_of_another_epoch_is_410(
    client: TestClient, user: str, path: str, create: Create, database_url: str
) -> None:
    create()
    cursor = get(client, path)["cursor"]
    for step, status in ((1, 410), (-1, 200)):
        fetch_value(database_url, "UPDATE task_users SET epoch = epoch + %s WHERE user_id = %s", step, user)
        assert client.get(path, params={"since": cursor}).status_code == status


def test_cursor_from_the_future_is_410(
    client: TestClient, user: str, path: str, create: Create, database_url: str
) -> None:
    """A database that was restored from a backup gives the numbers after the backup a second time."""
    task = create()
    before = ChangesCursor.decode(get(client, path)["cursor"], user)
    client.patch(local(task["url"]), json={"title": "lost"})
    cursor = get(client, path)["cursor"]
    statement = "UPDATE task_users SET revision = %s WHERE user_id = %s"
    fetch_value(database_url, statement, before.version, user)
    assert_rejected(client.get(path, params={"since": cursor}), 410)


def change_cursor(cursor: str, user: str, **values: Any) -> str:
    """Return a cursor with other values."""
    return ChangesCursor.decode(cursor, user)._replace(**values).encode(user)


def test_cursor_older_than_30_days_is_410(client: TestClient, user: str, path: str, create: Create) -> None:
    create()
    cursor = get(client, path)["cursor"]
    for days, status in ((30, 410), (90, 410), (29, 200)):
        complete_at = datetime.now(UTC) - timedelta(days=days)
        since = change_cursor(cursor, user, complete_at=complete_at)
        assert client.get(path, params={"since": since}).status_code == status


def test_cursor_between_two_pages_keeps_its_age(client: TestClient, user: str, path: str, create: Create) -> None:
    complete_at = datetime.now(UTC) - timedelta(days=29)
    since = change_cursor(get(client, path)["cursor"], user, complete_at=complete_at)
    for _ in range(3):
        create()
    ages = []
    for page in get_pages(client, path, since, limit=1):
        ages.append(datetime.now(UTC) - ChangesCursor.decode(page["cursor"], user).complete_at)
    assert [age.days for age in ages] == [29, 29, 0]


def test_cursor_is_renewed_after_a_day_without_changes(
    client: TestClient, user: str, path: str, create: Create
) -> None:
    create()
    cursor = get(client, path)["cursor"]
    for hours, is_renewed in ((23, False), (25, True), (24 * 29, True)):
        since = change_cursor(cursor, user, complete_at=datetime.now(UTC) - timedelta(hours=hours))
        page = get(client, path, since)
        assert (page["changes"], page["cursor"] != since) == ([], is_renewed)
        renewed, old = (ChangesCursor.decode(text, user) for text in (page["cursor"], since))
        assert renewed._replace(complete_at=old.complete_at) == old
        if is_renewed:
            assert datetime.now(UTC) - renewed.complete_at < timedelta(minutes=1)


# ---- Tasks of version 1.0.0 -----------------------------------------------------------------


def test_tasks_of_version_1_are_complete_from_the_first_request(
    client: TestClient, user: str, path: str, database_url: str
) -> None:
    ids = insert_tasks(database_url, user, 5)
    for limit in (2, 1000):
        pages = list(get_pages(client, path, limit=limit))
        changes = [change for page in pages for change in page["changes"]]
        assert [change["id"] for change in changes] == ids
        assert {change["version"] for change in changes} == {1}
    cursor = pages[-1]["cursor"]
    assert get(client, path, cursor) == {"changes": [], "cursor": cursor, "more": False}
    assert client.patch(f"/api/{user}/tasks/{ids[2]}", json={"title": "new"}, headers={"If-Match": '"1"'}).is_success
    assert_rejected(client.get(path, params={"since": cursor}), 410)  # from now on there is a counter
    assert [change["id"] for change in get(client, path)["changes"]] == [ids[0], ids[1], ids[3], ids[4], ids[2]]


def test_deleted_task_of_version_1_is_a_change(client: TestClient, user: str, path: str, database_url: str) -> None:
    (task_id,) = insert_tasks(database_url, user, 1)
    cursor = get(client, path)["cursor"]
    client.delete(f"/api/{user}/tasks/{task_id}")  # the first write, which creates the counter
    assert_rejected(client.get(path, params={"since": cursor}), 410)
    (change,) = get(client, path)["changes"]
    assert change["deleted_at"] is not None


def test_cursor_of_an_erased_user_of_version_1_is_410(
    client: TestClient, user: str, path: str, database_url: str
) -> None:
    insert_tasks(database_url, user, 1)
    cursor = get(client, path)["cursor"]
    client.delete(f"/api/{user}?confirm={user}")
    assert_rejected(client.get(path, params={"since": cursor}), 410)


@contextmanager
def upgraded(settings: Settings, ago: timedelta) -> Iterator[TestClient]:
    """Start the service on a database that was upgraded from version 1.0.0 so long ago."""
    app = create_app(settings)
    with TestClient(app) as client:
        app.state.upgraded_at = datetime.now(UTC) - ago
        yield client


def pass_time(client: TestClient, cursor: str, user: str, time: timedelta) -> str:
    """Let the upgrade be so much longer ago, and return the cursor as if it had been made so long ago."""
    client.app.state.upgraded_at -= time  # type: ignore[attr-defined]
    complete_at = ChangesCursor.decode(cursor, user).complete_at - time
    return change_cursor(cursor, user, complete_at=complete_at)


HOUR = timedelta(hours=1)


@pytest.mark.parametrize(
    ("upgraded_ago", "cursor_ago", "status"),
    [
        (23 * HOUR, 30 * HOUR, 200),  # the day after the upgrade is not over
        (23 * HOUR, 1 * HOUR, 200),
        (25 * HOUR, 2 * HOUR, 410),  # from within the day, in which version 1.0.0 may have written
        (25 * HOUR, 30 * HOUR, 410),
        (27 * HOUR, 2 * HOUR, 200),  # from after the day
        (90 * 24 * HOUR, 20 * 24 * HOUR, 200),
    ],
)
def test_cursor_from_the_day_after_an_upgrade_is_410_afterwards(
    client: TestClient,
    settings: Settings,
    user: str,
    path: str,
    create: Create,
    upgraded_ago: timedelta,
    cursor_ago: timedelta,
    status: int,
) -> None:
    create()
    since = change_cursor(get(client, path)["cursor"], user, complete_at=datetime.now(UTC) - cursor_ago)
    with upgraded(settings, upgraded_ago) as other:
        assert other.get(path, params={"since": since}).status_code == status
        assert get(other, path)["changes"] == get(client, path)["changes"]


@pytest.mark.parametrize(("hours", "status"), [(23, 304), (25, 200)])
def test_poll_with_an_etag_gets_the_renewed_cursor(
    settings: Settings, user: str, path: str, hours: int, status: int
) -> None:
    with upgraded(settings, 90 * 24 * HOUR + HOUR / 2) as client:
        client.post(f"/api/{user}/tasks", json={"title": "t"})
        first = client.get(path)
        since = pass_time(client, first.json()["cursor"], user, hours * HOUR)
        response = client.get(path, params={"since": since}, headers={"If-None-Match": first.headers["etag"]})
        assert response.status_code == status


def test_cached_response_with_a_cursor_too_old_is_not_confirmed(settings: Settings, user: str, path: str) -> None:
    """A browser sends the ETag of its cached copy by itself, and would read the old cursor again."""
    with upgraded(settings, 23 * HOUR) as client:
        client.post(f"/api/{user}/tasks", json={"title": "t"})
        cached = client.get(path)
        headers = {"If-None-Match": cached.headers["etag"]}
        assert client.get(path, headers=headers).status_code == 304
        since = pass_time(client, cached.json()["cursor"], user, 2 * HOUR)
        assert_rejected(client.get(path, params={"since": since}), 410)
        assert client.get(path, headers=headers).status_code == 200
