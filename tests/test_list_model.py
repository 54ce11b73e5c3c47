"""The list against a plain model of the contract, on random tasks, filters, orders and pages."""

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

from tests.conftest import local

# Few values, so that there are ties and matches; awkward ones, so that quoting matters.
TEXT = st.text("aAbB%_\\'\"äÄ\u03c9\u03a9🥛 \n", min_size=1, max_size=6).map(str.strip).filter(bool)
MOMENTS = [datetime(2026, 1, 1, tzinfo=UTC) + timedelta(microseconds=step) for step in (0, 1, 2, 10**9)]
MOMENT = st.sampled_from(MOMENTS)
TAG = st.sampled_from(["x", "y", "%", "\\", "ä"])
PRIORITIES = ["low", "medium", "high"]

TASK = st.fixed_dictionaries(
    {
        "title": TEXT,
        "description": st.none() | TEXT,
        "completed": st.booleans(),
        "priority": st.sampled_from(PRIORITIES),
        "tags": st.lists(TAG, max_size=3, unique=True),
        "due_date": st.none() | MOMENT,
        "order": st.none() | st.sampled_from([-(2**31), -1, 0, 1, 2**31 - 1]),
        "created_at": MOMENT,
        "updated_at": MOMENT,
    }
)
FILTERS = st.fixed_dictionaries(
    {},
    optional={
        "completed": st.booleans(),
        "priority": st.lists(st.sampled_from(PRIORITIES), min_size=1, max_size=2),
        "tag": st.lists(TAG, min_size=1, max_size=2),
        "q": st.lists(TEXT, min_size=0, max_size=2).map(" ".join),
        "due_before": MOMENT,
        "due_after": MOMENT,
        "updated_after": MOMENT,
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
    """Whether the contract says that the filters select the task."""
    text = f"{task['title']}\n{task['description'] or ''}".lower()
    due = task["due_date"]
    rules: dict[str, Callable[[Any], bool]] = {
        "completed": lambda value: task["completed"] is value,
        "priority": lambda value: task["priority"] in value,
        "tag": lambda value: set(value) <= set(task["tags"]),
        "q": lambda value: all(word.lower() in text for word in value.split()),
        "due_before": lambda value: due is not None and due < value,
        "due_after": lambda value: due is not None and due > value,
        "updated_after": lambda value: task["updated_at"] > value,
    }
    return all(rules[name](value) for name, value in filters.items())


def ordered(tasks: list[dict[str, Any]], sort: str) -> list[str]:
    """The ids in the order that the contract says."""
    name = sort.removeprefix("-")

    def key(task: dict[str, Any]) -> tuple[Any, ...]:
        value = task[name]
        if name == "priority":
            value = PRIORITIES.index(value)
        if name == "title":
            value = value.lower()
        return (value is None, 0 if value is None else value, task["id"])

    return [task["id"] for task in sorted(tasks, key=key, reverse=sort.startswith("-"))]


class Table:
    """The tasks of one user, written past the service so that times can be chosen."""

    def __init__(self, url: str) -> None:
        self.connection = psycopg2.connect(url)
        self.connection.autocommit = True
        self.user = f"user-{uuid4()}"
        self.number = 0

    def add(self, task: dict[str, Any]) -> dict[str, Any]:
        self.number += 1  # the same ids in every run of one example, in no order
        task = task | {"id": str(uuid5(NAMESPACE_OID, str(self.number))), "user_id": self.user}
        task["completed_at"] = task["created_at"] if task["completed"] else None
        names = ", ".join(f'"{name}"' for name in task)
        values = ", ".join(f"%({name})s" for name in task)
        with self.connection.cursor() as cursor:
            values = values.replace("%(priority)s", "%(priority)s::task_priority")
            cursor.execute(f"INSERT INTO tasks ({names}) VALUES ({values})", task)  # noqa: S608
        return task

    def remove(self, task: dict[str, Any]) -> None:
        with self.connection.cursor() as cursor:
            cursor.execute("DELETE FROM tasks WHERE user_id = %s AND id = %s", [self.user, task["id"]])


def query(filters: dict[str, Any], **more: object) -> str:
    def spelled(value: object) -> object:
        if isinstance(value, bool):
            return str(value).lower()
        return value.isoformat() if isinstance(value, datetime) else value

    return urlencode({name: spelled(value) for name, value in (filters | more).items()}, doseq=True)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(TASK, max_size=12), FILTERS, SORT, st.integers(1, 5))
def test_following_the_pages_gives_exactly_what_the_contract_says(
    client: TestClient, database_url: str, tasks: list[dict[str, Any]], filters: dict[str, Any], sort: str, limit: int
) -> None:
    table = Table(database_url)
    with closing(table.connection):
        tasks = [table.add(task) for task in tasks]
    expected = ordered([task for task in tasks if matches(task, filters)], sort)
    path, seen = f"/api/{table.user}/tasks?{query(filters, sort=sort, limit=limit, total='true')}", []
    while path:
        answer = client.get(path)
        assert answer.status_code == 200, answer.text
        assert answer.headers["x-total-count"] == str(len(expected))
        page = [task["id"] for task in answer.json()]
        assert len(page) == min(limit, len(expected) - len(seen))
        seen += page
        path = local(answer.links["next"]["url"]) if "next" in answer.links else ""
    assert seen == expected
    assert [
        task["id"] for task in client.get(f"/api/{table.user}/tasks?{query(filters, sort=sort)}").json()
    ] == expected


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(TASK, min_size=1, max_size=12), FILTERS, SORT, st.integers(1, 3), st.data())
def test_a_task_that_is_there_throughout_comes_exactly_once_while_others_come_and_go(
    client: TestClient,
    database_url: str,
    tasks: list[dict[str, Any]],
    filters: dict[str, Any],
    sort: str,
    limit: int,
    data: st.DataObject,
) -> None:
    table = Table(database_url)
    with closing(table.connection):
        there = [table.add(task) for task in tasks]
        path, seen = f"/api/{table.user}/tasks?{query(filters, sort=sort, limit=limit)}", []
        while path:
            answer = client.get(path)
            assert answer.status_code == 200, answer.text
            seen += [task["id"] for task in answer.json()]
            path = local(answer.links["next"]["url"]) if "next" in answer.links else ""
            if there and data.draw(st.booleans(), "remove one"):
                table.remove(there.pop(data.draw(st.integers(0, len(there) - 1), "which")))
            if len(seen) < 30 and data.draw(st.booleans(), "add one"):
                table.add(data.draw(TASK, "new"))
    throughout = ordered([task for task in there if matches(task, filters)], sort)
    assert [task_id for task_id in seen if task_id in throughout] == throughout
    assert len(seen) == len(set(seen))


def test_the_words_of_a_search_are_taken_literally(client: TestClient, url: str) -> None:
    for title in ("100%", "100x", "a_b", "axb", "c\\d", "cd"):
        client.post(url, json={"title": title})
    for word, found in (("0%", {"100%"}), ("a_b", {"a_b"}), ("c\\d", {"c\\d"}), ("\\", {"c\\d"}), ("%", {"100%"})):
        answer = client.get(f"{url}?{urlencode({'q': word})}")
        assert {task["title"] for task in answer.json()} == found
    assert len(client.get(f"{url}?{urlencode({'q': '  '})}").json()) == 6
    assert re.search("control characters", client.get(f"{url}?q=%00").json()["detail"])
