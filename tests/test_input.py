"""Bad input gets a clear 422 and changes nothing."""

from contextlib import closing
from typing import Any
from uuid import uuid4

import psycopg2
import pytest
from fastapi.testclient import TestClient

from tests.conftest import Create, local

SOME_ID = "00000000-0000-4000-8000-000000000000"
BAD_FIELDS = [
    ("title", ""),
    ("title", " \t\n"),
    ("title", "x" * 201),
    ("title", None),
    ("title", 1),
    ("title", ["x"]),
    ("title", "a\0b"),
    ("description", "x" * 2001),
    ("description", "\0"),
    ("description", 1),
    ("completed", "yes"),
    ("completed", 1),
    ("completed", None),
    ("priority", "urgent"),
    ("priority", "HIGH"),
    ("priority", None),
    ("priority", 1),
    ("tags", "home"),
    ("tags", None),
    ("tags", [1]),
    ("tags", [""]),
    ("tags", ["x" * 51]),
    ("tags", ["a\0b"]),
    ("tags", [str(number) for number in range(21)]),
    ("tags", {"home": 1}),
    ("due_date", "tomorrow"),
    ("due_date", "2026-12-24"),
    ("due_date", "2026-12-24T18:00:00"),
    ("due_date", "2026-12-24T18:00Z"),
    ("due_date", "2026-02-30T18:00:00Z"),
    ("due_date", "2026-12-24T25:00:00Z"),
    ("due_date", "2026-12-24T24:00:00Z"),
    ("due_date", "2026-12-31T23:59:60Z"),
    ("due_date", "0001-01-01T00:00:00+23:59"),
    ("due_date", "2026-12-24T18:00:00+24:00"),
    ("due_date", "10000-01-01T00:00:00Z"),
    ("due_date", "0001-01-01T00:00:00+01:00"),
    ("due_date", "9999-12-31T23:59:59-01:00"),
    ("due_date", 1766599200),
    ("due_date", "1766599200"),
    ("due_date", "٢٠٢٦-12-24T18:00:00Z"),
    ("order", 2**31),
    ("order", -(2**31) - 1),
    ("order", 1.5),
    ("order", "1"),
    ("order", True),
]


@pytest.mark.parametrize(("name", "value"), BAD_FIELDS)
def test_a_field_that_breaks_a_rule_is_refused_and_changes_nothing(
    client: TestClient, url: str, create: Create, name: str, value: object
) -> None:
    task = create()
    body = {"title": "new"} | {name: value}
    for method, path in (("POST", url), ("PUT", local(task["url"])), ("PATCH", local(task["url"]))):
        answer = client.request(method, path, json=body)
        assert answer.status_code == 422
        assert answer.json()["errors"][0]["loc"][:2] == ["body", name]
        assert name in answer.json()["detail"]
    assert client.get(url).json() == [task]


# C0, DEL and C1 (Unicode, chapter 23.1)
CONTROLS = [chr(code) for code in (*range(0x20), *range(0x7F, 0xA0))]
TAB_AND_LINE_BREAKS = "\t\n\r"
TRIMMED = "\t\n\v\f\r\x85"


@pytest.mark.parametrize("control", CONTROLS, ids=ascii)
def test_control_characters_are_refused_but_tab_and_line_breaks_in_descriptions(
    client: TestClient, url: str, create: Create, control: str
) -> None:
    task = create()
    path, text = local(task["url"]), f"a{control}b"
    fields: list[tuple[str, Any]] = [("title", text), ("tags", ["home", text]), ("description", text)]
    if control in TAB_AND_LINE_BREAKS:
        task = client.patch(path, json={"description": text}).json()
        assert task["description"] == text
        del fields[-1]
    for name, value in fields:
        for method, where in (("POST", url), ("PUT", path), ("PATCH", path), ("PATCH", url)):
            answer = client.request(method, where, json={"title": "x", name: value})
            assert answer.status_code == 422
            assert answer.json()["errors"][0]["loc"][:2] == ["body", name]
            assert "control characters" in answer.json()["detail"]
    assert client.get(url).json() == [task]


@pytest.mark.parametrize("control", CONTROLS, ids=ascii)
def test_whitespace_around_a_title_or_tag_is_trimmed_first(client: TestClient, url: str, control: str) -> None:
    answer = client.post(url, json={"title": f"{control}x{control}", "tags": [f"{control}x{control}"]})
    if control in TRIMMED:
        assert (answer.json()["title"], answer.json()["tags"]) == ("x", ["x"])
    else:
        assert answer.status_code == 422


@pytest.mark.parametrize("control", CONTROLS, ids=ascii)
def test_a_filter_takes_the_characters_that_a_task_may_have(client: TestClient, url: str, control: str) -> None:
    assert client.get(url, params={"tag": f"a{control}b"}).status_code == 422
    searched = 200 if control in TAB_AND_LINE_BREAKS else 422
    assert client.get(url, params={"q": f"a{control}b"}).status_code == searched
    assert client.delete(url, params={"q": f"a{control}b"}).status_code == searched


def test_a_task_with_control_characters_from_before_can_still_be_used(
    client: TestClient, url: str, user: str, create: Create, database_url: str
) -> None:
    task, other = create(title="a"), create(title="z")
    with closing(psycopg2.connect(database_url)) as connection, connection, connection.cursor() as cursor:
        statement = "UPDATE tasks SET title = %s, tags = %s, description = %s WHERE user_id = %s AND id = %s"
        cursor.execute(statement, ["a\x1b[2J", ["\x07"], "\x7f\x9b", user, task["id"]])
    path = local(task["url"])
    task |= {"title": "a\x1b[2J", "tags": ["\x07"], "description": "\x7f\x9b"}
    assert client.get(path).json() == task
    first = client.get(f"{url}?sort=title&limit=1")
    assert first.json() == [task]
    assert client.get(local(first.links["next"]["url"])).json() == [other]
    assert client.get(f"/api/{user}").json()["tags"] == {"\x07": 1}
    changed = client.patch(path, json={"completed": True}).json()
    assert changed["title"] == task["title"]
    assert client.delete(path).json() == changed


def test_a_whole_number_may_be_written_with_a_point(create: Create) -> None:
    assert create(order=5.0)["order"] == 5  # RFC 8259, section 6, knows one kind of number


def test_lengths_are_counted_in_characters_not_bytes(create: Create) -> None:
    task = create(title="🥛" * 200, description="é" * 2000, tags=["ü" * 50])
    assert (len(task["title"]), len(task["description"]), len(task["tags"][0])) == (200, 2000, 50)


RAW_BODIES = [
    b"",
    b" ",
    b"{",
    b"null",
    b"[]",
    b'"x"',
    b"1",
    b"NaN",
    b'{"title": NaN}',
    b'{"title": "x", "order": Infinity}',
    b'{"title": "x", "order": -Infinity}',
    b'{"title": "x", "order": 1e999}',
    b'{"title": "x", "order": ' + b"9" * 5000 + b"}",
    b'{"title": "\\ud800"}',
    b'{"title": "x", "tags": ["\\udfff"]}',
    b'{"title": "\\u0000"}',
    b'{"title": "\xff"}',
    b"[" * 100_000,
    b'{"a":' * 100_000,
    b'{"title": "x"',
    b"\0",
]


@pytest.mark.parametrize("body", RAW_BODIES, ids=lambda body: repr(body[:30]))
def test_a_body_that_is_no_task_is_refused(client: TestClient, url: str, create: Create, body: bytes) -> None:
    task = create()
    for method, path in (("POST", url), ("PUT", local(task["url"])), ("PATCH", local(task["url"]))):
        answer = client.request(method, path, content=body, headers={"Content-Type": "application/json"})
        assert answer.status_code == 422
        assert answer.json()["errors"]
        assert answer.json()["errors"][0]["loc"][0] == "body"
    assert client.get(url).json() == [task]


def test_a_byte_order_mark_before_a_body_is_ignored(client: TestClient, url: str) -> None:
    body = b'\xef\xbb\xbf{"title": "x"}'
    answer = client.post(url, content=body, headers={"Content-Type": "application/json"})
    assert answer.json()["title"] == "x"


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", ""])
def test_a_body_that_is_not_called_json_is_refused(client: TestClient, url: str, content_type: str) -> None:
    answer = client.post(url, content=b'{"title": "x"}', headers={"Content-Type": content_type})
    assert answer.status_code == 422
    assert "Content-Type: application/json" in answer.json()["detail"]


@pytest.mark.parametrize("body", [{}, {"completed": None}, {"completed": "true"}, [], "x", 1])
def test_complete_takes_nothing_but_a_boolean(client: TestClient, create: Create, body: object) -> None:
    task = create()
    assert client.patch(f"{local(task['url'])}/complete", json=body).status_code == 422
    assert client.get(local(task["url"])).json() == task


@pytest.mark.parametrize("body", [b"null", b" null "])
def test_complete_toggles_without_a_body_only(client: TestClient, create: Create, body: bytes) -> None:
    task = create()
    answer = client.patch(f"{local(task['url'])}/complete", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 422
    assert client.get(local(task["url"])).json() == task


@pytest.mark.parametrize("task_id", ["1", "x", SOME_ID[:-1], SOME_ID + "0", "%00", "g" * 36])
def test_a_task_id_that_is_no_uuid_is_refused(client: TestClient, url: str, task_id: str) -> None:
    for method in ("GET", "DELETE"):
        answer = client.request(method, f"{url}/{task_id}")
        assert answer.status_code == 422
        assert answer.json()["errors"][0]["loc"] == ["path", "task_id"]
        assert "`" not in answer.text


@pytest.mark.parametrize("user_id", ["x" * 129, "%00", "a%0Ab", "%7F", "%C2%85", "%1F"])
def test_a_user_id_that_is_too_long_or_has_control_characters_is_refused(client: TestClient, user_id: str) -> None:
    for method, path in (("GET", "tasks"), ("POST", "tasks"), ("GET", f"tasks/{uuid4()}")):
        answer = client.request(method, f"/api/{user_id}/{path}", json={"title": "x"} if method == "POST" else None)
        assert answer.status_code == 422
        assert answer.json()["errors"][0]["loc"] == ["path", "user_id"]


def test_an_error_never_shows_the_input(client: TestClient, url: str) -> None:
    answer = client.post(url, json={"title": "my secret " * 100, "priority": "my secret"})
    assert answer.status_code == 422
    assert "secret" not in answer.text


def test_all_broken_rules_are_told_at_once(client: TestClient, url: str) -> None:
    answer = client.post(url, json={"title": "", "priority": "urgent", "order": "1"})
    assert [error["loc"] for error in answer.json()["errors"]] == [
        ["body", "title"],
        ["body", "priority"],
        ["body", "order"],
    ]
