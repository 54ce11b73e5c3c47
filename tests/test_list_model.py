"""Compare the list with a simple model in Python, for random tasks, filters, sorts and page sizes (Hypothesis)."""

import re
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlencode
from uuid import NAMESPACE_OID, uuid4, uuid5

import psycopg2
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.conftest import get_pages

# There are only a few values, so that tasks tie and match. Some need escaping in SQL, LIKE patterns or URLs.
TEXT = st.text("aAbB%_\\'\"äÄ\u03c9\u03a9🥛 \n", min_size=1, max_size=6).map(str.strip).filter(bool)
TIMESTAMPS = [datetime(2026, 1, 1, tzinfo=UTC) + timedelta(microseconds=step) for step in (0, 1, 2, 10**9)]
TIMESTAMP = st.sampled_from(TIMESTAMPS)
TAG = st.sampled_from(["x", "y", "%", "\\", "ä"])
PRIORITIES = ["low", "medium", "high"]

TASK = st.fixed_dictionaries(
    {
        "title": TEXT,
        "description": st.none() | TEXT,
        "priority": st.sampled_from(PRIORITIES),
        "tags": st.lists(TAG, max_size=3, unique=True),
        "due_date": st.none() | TIMESTAMP,
        "order": st.none() | st.sampled_from([-(2**31), -1, 0, 1, 2**31 - 1]),
        "created_at": TIMESTAMP,
        "updated_at": TIMESTAMP,
        "completed_at": st.none() | TIMESTAMP,
        "deleted_at": st.sampled_from([None, None, None, *TIMESTAMPS[:1]]),
    }
)
IDS = [str(uuid5(NAMESPACE_OID, str(number))) for number in range(1, 100)]  # of the tasks, in the order of adding
FILTERS = st.fixed_dictionaries(
    {},
    optional={
        "completed": st.booleans(),
        "priority": st.lists(st.sampled_from(PRIORITIES), min_size=1, max_size=2),
        "tag": st.lists(TAG, min_size=1, max_size=2),
        "q": st.lists(TEXT, min_size=0, max_size=2).map(" ".join),
        "due_before": TIMESTAMP,
        "due_after": TIMESTAMP,
        "updated_after": TIMESTAMP,
        "completed_before": TIMESTAMP,
        "completed_after": TIMESTAMP,
        "id": st.lists(st.sampled_from(IDS[:12]), min_size=1, max_size=8),
    },
)
SORT = st.sampled_from(
    [
        sign + name
        for name in ("created_at", "updated_at", "due_date", "priority", "title", "order")
        for sign in ("", "-")
    ]
)


def matches(task: dict[str, Any], filters: dict[str, Any]) -> bool:
    """Return whether the task lives and the filters select it."""
    text = f"{task['title']}\n{task['description'] or ''}".lower()
    due, completed_at = task["due_date"], task["completed_at"]
    rules: dict[str, Callable[[Any], bool]] = {
        "completed": lambda value: task["completed"] is value,
        "priority": lambda value: task["priority"] in value,
        "tag": lambda value: set(value) <= set(task["tags"]),
        "q": lambda value: all(word.lower() in text for word in value.split()),
        "due_before": lambda value: due is not None and due < value,
        "due_after": lambda value: due is not None and due > value,
        "updated_after": lambda value: task["updated_at"] > value,
        "completed_before": lambda value: completed_at is not None and completed_at < value,
        "completed_after": lambda value: completed_at is not None and completed_at > value,
        "id": lambda value: task["id"] in value,
    }
    return task["deleted_at"] is None and all(rules[name](value) for name, value in filters.items())


def sorted_ids(tasks: list[dict[str, Any]], sort: str) -> list[str]:
    """Return the ids of the tasks in the order of `sort`."""
    name = sort.removeprefix("-")

    def key(task: dict[str, Any]) -> tuple[Any, ...]:
        value = task[name]
        if name == "priority":
            value = PRIORITIES.index(value)
        if name == "title":
            value = value.lower()
        return (value is None, 0 if value is None else value, task["id"])

    return [task["id"] for task in sorted(tasks, key=key, reverse=sort.startswith("-"))]


class TaskTable:
    """The tasks of one new user, written in SQL, as the service would set `created_at` and `updated_at` itself."""

    def __init__(self, url: str) -> None:
        self.connection = psycopg2.connect(url)
        self.connection.autocommit = True
        self.user = f"user-{uuid4()}"
        self.number = 0

    def add(self, task: dict[str, Any]) -> dict[str, Any]:
        # The ids are the same whenever Hypothesis repeats an example, and not in ascending order.
        task = task | {"id": IDS[self.number], "user_id": self.user, "completed": task["completed_at"] is not None}
        self.number += 1
        names = ", ".join(f'"{name}"' for name in task)
        values = ", ".join(f"%({name})s" for name in task)
        with self.connection.cursor() as cursor:
            values = values.replace("%(priority)s", "%(priority)s::task_priority")
            cursor.execute(f"INSERT INTO tasks ({names}) VALUES ({values})", task)  # noqa: S608
        return task

    def remove(self, task: dict[str, Any]) -> None:
        with self.connection.cursor() as cursor:
            cursor.execute(
                "UPDATE tasks SET deleted_at = now() WHERE user_id = %s AND id = %s", [self.user, task["id"]]
            )


def encode_query(filters: dict[str, Any], **parameters: object) -> str:
    """Return the query string with these filters and parameters."""

    def encode(value: object) -> object:
        if isinstance(value, bool):
            return str(value).lower()
        return value.isoformat() if isinstance(value, datetime) else value

    return urlencode({name: encode(value) for name, value in (filters | parameters).items()}, doseq=True)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(TASK, max_size=12), FILTERS, SORT, st.integers(1, 5))
def test_pages_return_exactly_what_the_model_returns(
    client: TestClient, database_url: str, tasks: list[dict[str, Any]], filters: dict[str, Any], sort: str, limit: int
) -> None:
    table = TaskTable(database_url)
    with closing(table.connection):
        tasks = [table.add(task) for task in tasks]
    expected = sorted_ids([task for task in tasks if matches(task, filters)], sort)
    path = f"/api/{table.user}/tasks"
    listed: list[str] = []
    for page in get_pages(client, f"{path}?{encode_query(filters, sort=sort, limit=limit, total='true')}"):
        assert page.headers["x-total-count"] == str(len(expected))
        assert len(page.json()) == min(limit, len(expected) - len(listed))
        listed += [task["id"] for task in page.json()]
    assert listed == expected
    whole = client.get(f"{path}?{encode_query(filters, sort=sort)}")
    assert [task["id"] for task in whole.json()] == expected


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(TASK, min_size=1, max_size=12), FILTERS, SORT, st.integers(1, 3), st.data())
def test_pages_list_unchanged_tasks_once_while_others_change(
    client: TestClient,
    database_url: str,
    tasks: list[dict[str, Any]],
    filters: dict[str, Any],
    sort: str,
    limit: int,
    data: st.DataObject,
) -> None:
    table = TaskTable(database_url)
    with closing(table.connection):
        unchanged = [table.add(task) for task in tasks]
        listed: list[str] = []
        for page in get_pages(client, f"/api/{table.user}/tasks?{encode_query(filters, sort=sort, limit=limit)}"):
            listed += [task["id"] for task in page.json()]
            if unchanged and data.draw(st.booleans(), "remove a task"):
                table.remove(unchanged.pop(data.draw(st.integers(0, len(unchanged) - 1), "index")))
            if len(listed) < 30 and data.draw(st.booleans(), "add a task"):
                table.add(data.draw(TASK, "new task"))
    expected = sorted_ids([task for task in unchanged if matches(task, filters)], sort)
    assert [task_id for task_id in listed if task_id in expected] == expected
    assert len(listed) == len(set(listed))


def test_search_words_are_matched_literally(client: TestClient, url: str) -> None:
    for title in ("100%", "100x", "a_b", "axb", "c\\d", "cd"):
        client.post(url, json={"title": title})
    for word, expected in (("0%", {"100%"}), ("a_b", {"a_b"}), ("c\\d", {"c\\d"}), ("\\", {"c\\d"}), ("%", {"100%"})):
        response = client.get(f"{url}?{urlencode({'q': word})}")
        assert {task["title"] for task in response.json()} == expected
    assert len(client.get(f"{url}?{urlencode({'q': '  '})}").json()) == 6
    assert re.search("control characters", client.get(f"{url}?q=%00").json()["detail"])
