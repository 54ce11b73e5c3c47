"""Tests of validation: invalid input returns 422 with the location of the error, and changes nothing."""

import json
from contextlib import closing
from typing import Any
from uuid import uuid4

import psycopg2
import pytest
from fastapi.testclient import TestClient

from tests.conftest import Create, changed, local

SOME_ID = "00000000-0000-4000-8000-000000000000"
INVALID_FIELDS = [
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
    ("extra", None),
    ("extra", []),
    ("extra", "{}"),
    ("extra", 1),
    ("extra", {"a": "\0"}),
    ("extra", {"a\0": 1}),
    ("extra", {"a": [{"b": ["\0"]}]}),
    ("extra", {"a": "x" * (4096 - len('{"a":""}') + 1)}),
    ("extra", {"\N{GLASS OF MILK}" * 1023: 1}),
    ("titel", "x"),
    ("deleted_at", None),
    ("Title", "x"),
    ("", 1),
]


@pytest.mark.parametrize(("name", "value"), INVALID_FIELDS)
def test_invalid_field_is_rejected_and_changes_nothing(
    client: TestClient, url: str, create: Create, name: str, value: object
) -> None:
    task = create()
    body = {"title": "new"} | {name: value}
    for method, path in (("POST", url), ("PUT", local(task["url"])), ("PATCH", local(task["url"]))):
        response = client.request(method, path, json=body)
        assert response.status_code == 422
        assert response.json()["errors"][0]["loc"][:2] == ["body", name]
        assert name in response.json()["detail"]
    assert client.get(url).json() == [task]


# C0, DEL and C1 control characters (Unicode standard, section 23.1)
CONTROLS = [chr(code) for code in (*range(0x20), *range(0x7F, 0xA0))]
TAB_AND_NEWLINES = "\t\n\r"
TRIMMED_CONTROLS = "\t\n\v\f\r\x85"


@pytest.mark.parametrize("control", CONTROLS, ids=ascii)
def test_control_characters_are_rejected_except_tab_and_newlines_in_descriptions(
    client: TestClient, url: str, create: Create, control: str
) -> None:
    task = create()
    path, text = local(task["url"]), f"a{control}b"
    fields: list[tuple[str, Any]] = [("title", text), ("tags", ["home", text]), ("description", text)]
    if control in TAB_AND_NEWLINES:
        task = client.patch(path, json={"description": text}).json()
        assert task["description"] == text
        del fields[-1]
    for name, value in fields:
        for method, target in (("POST", url), ("PUT", path), ("PATCH", path), ("PATCH", url)):
            response = client.request(method, target, json={"title": "x", name: value})
            assert response.status_code == 422
            assert response.json()["errors"][0]["loc"][:2] == ["body", name]
            assert "control characters" in response.json()["detail"]
    assert client.get(url).json() == [task]


@pytest.mark.parametrize("control", CONTROLS, ids=ascii)
def test_title_and_tags_are_trimmed_before_control_characters_are_checked(
    client: TestClient, url: str, control: str
) -> None:
    response = client.post(url, json={"title": f"{control}x{control}", "tags": [f"{control}x{control}"]})
    if control in TRIMMED_CONTROLS:
        assert (response.json()["title"], response.json()["tags"]) == ("x", ["x"])
    else:
        assert response.status_code == 422


@pytest.mark.parametrize("control", CONTROLS, ids=ascii)
def test_filters_allow_the_same_control_characters_as_tasks(client: TestClient, url: str, control: str) -> None:
    assert client.get(url, params={"tag": f"a{control}b"}).status_code == 422
    expected = 200 if control in TAB_AND_NEWLINES else 422
    assert client.get(url, params={"q": f"a{control}b"}).status_code == expected
    assert client.delete(url, params={"q": f"a{control}b"}).status_code == expected


def test_stored_control_characters_do_not_make_a_task_unusable(
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
    completed = client.patch(path, json={"completed": True}).json()
    assert completed["title"] == task["title"]
    assert client.get(f"/api/{user}/changes").json()["changes"][-1] == completed | {"deleted_at": None}
    deleted = client.delete(path).json()
    assert deleted == completed | changed(deleted)


def test_order_may_be_written_as_a_float_without_a_fraction(create: Create) -> None:
    assert create(order=5.0)["order"] == 5  # RFC 8259, section 6, does not distinguish integers


def test_length_limits_count_characters_and_not_bytes(create: Create) -> None:
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
    b'{"title": "x", "extra": {"a": NaN}}',
    b'{"title": "x", "extra": {"a": [-Infinity]}}',
    b'{"title": "x", "extra": {"a": 1e400}}',
    b'{"title": "x", "extra": {"a": ' + b"9" * 5000 + b"}}",
    b'{"title": "x", "extra": {"a": "\\ud800"}}',
    b'{"title": "x", "extra": {"\\udfff": 1}}',
    b'{"title": "x", "extra": {"a": ' + b"[" * 2000 + b"]" * 2000 + b"}}",
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
def test_body_that_is_not_a_task_object_is_rejected(client: TestClient, url: str, create: Create, body: bytes) -> None:
    task = create()
    for method, path in (("POST", url), ("PUT", local(task["url"])), ("PATCH", local(task["url"]))):
        response = client.request(method, path, content=body, headers={"Content-Type": "application/json"})
        assert response.status_code == 422
        assert response.json()["errors"]
        assert response.json()["errors"][0]["loc"][0] == "body"
    assert client.get(url).json() == [task]


def test_byte_order_mark_before_the_body_is_ignored(client: TestClient, url: str) -> None:
    body = b'\xef\xbb\xbf{"title": "x"}'
    response = client.post(url, content=body, headers={"Content-Type": "application/json"})
    assert response.json()["title"] == "x"


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", ""])
def test_body_without_a_json_content_type_is_rejected(client: TestClient, url: str, content_type: str) -> None:
    response = client.post(url, content=b'{"title": "x"}', headers={"Content-Type": content_type})
    assert response.status_code == 422
    assert "Content-Type: application/json" in response.json()["detail"]


@pytest.mark.parametrize(
    "body", [{}, {"completed": None}, {"completed": "true"}, {"completed": True, "done": 1}, [], "x", 1]
)
def test_complete_rejects_a_body_without_a_boolean(client: TestClient, create: Create, body: object) -> None:
    task = create()
    assert client.patch(f"{local(task['url'])}/complete", json=body).status_code == 422
    assert client.get(local(task["url"])).json() == task


@pytest.mark.parametrize("body", [b"null", b" null "])
def test_complete_rejects_null_instead_of_toggling(client: TestClient, create: Create, body: bytes) -> None:
    task = create()
    response = client.patch(
        f"{local(task['url'])}/complete", content=body, headers={"Content-Type": "application/json"}
    )
    assert response.status_code == 422
    assert client.get(local(task["url"])).json() == task


@pytest.mark.parametrize("task_id", ["1", "x", SOME_ID[:-1], SOME_ID + "0", "%00", "g" * 36])
def test_task_id_that_is_not_a_uuid_is_rejected(client: TestClient, url: str, task_id: str) -> None:
    for method in ("GET", "DELETE"):
        response = client.request(method, f"{url}/{task_id}")
        assert response.status_code == 422
        assert response.json()["errors"][0]["loc"] == ["path", "task_id"]
        assert "`" not in response.text


@pytest.mark.parametrize("user_id", ["x" * 129, "%00", "a%0Ab", "%7F", "%C2%85", "%1F"])
def test_user_id_with_control_characters_or_over_128_is_rejected(client: TestClient, user_id: str) -> None:
    for method, path in (("GET", "tasks"), ("POST", "tasks"), ("GET", f"tasks/{uuid4()}")):
        response = client.request(method, f"/api/{user_id}/{path}", json={"title": "x"} if method == "POST" else None)
        assert response.status_code == 422
        assert response.json()["errors"][0]["loc"] == ["path", "user_id"]


def test_validation_problem_never_contains_the_input(client: TestClient, url: str) -> None:
    response = client.post(url, json={"title": "my secret " * 100, "priority": "my secret"})
    assert response.status_code == 422
    assert "secret" not in response.text


def test_validation_problem_lists_all_invalid_fields(client: TestClient, url: str) -> None:
    response = client.post(url, json={"title": "", "priority": "urgent", "order": "1"})
    assert [error["loc"] for error in response.json()["errors"]] == [
        ["body", "title"],
        ["body", "priority"],
        ["body", "order"],
    ]


READ_ONLY = {
    "id": 1,
    "user_id": None,
    "url": [],
    "version": "x",
    "completed_at": True,
    "created_at": {},
    "updated_at": "",
}


def test_read_only_fields_may_have_any_value(client: TestClient, url: str, user: str, create: Create) -> None:
    task = create()
    path = local(task["url"])
    for method, target, body in (
        ("POST", url, {"title": "new"}),
        ("PUT", path, {"title": "new"}),
        ("PATCH", path, {"title": "new"}),
        ("PATCH", path, {}),
        ("PATCH", url, {"title": "new"}),
        ("PATCH", f"{path}/complete", {"completed": False}),
    ):
        assert client.request(method, target, json=body | READ_ONLY).status_code in (200, 201)
    stored = client.get(path).json()
    assert stored == task | {"title": "new"} | changed(stored)
    assert {task["user_id"] for task in client.get(url).json()} == {user}


def test_unknown_field_of_a_bulk_update_is_rejected(client: TestClient, url: str, create: Create) -> None:
    task = create()
    response = client.patch(url, json={"completed": True, "titel": "x"})
    assert response.status_code == 422
    assert [error["loc"] for error in response.json()["errors"]] == [["body", "titel"]]
    assert client.get(url).json() == [task]


def test_every_unknown_field_is_named_and_no_value(client: TestClient, url: str) -> None:
    response = client.post(url, json={"title": "x", "Tags": ["secret"], "x" * 5000: "secret"})
    assert [error["loc"] for error in response.json()["errors"]] == [["body", "Tags"], ["body", "x" * 100 + "…"]]
    assert "secret" not in response.text


@pytest.mark.parametrize("character", ["x", "\N{GLASS OF MILK}", '"', "\n", "\x7f", "\u2028"], ids=ascii)
def test_extra_may_have_exactly_4_kib_as_json(client: TestClient, create: Create, character: str) -> None:
    size = len(json.dumps(character, ensure_ascii=False).encode()) - 2
    length, rest = divmod(4096 - len('{"a":""}'), size)
    extra = {"a": character * length + "x" * rest}
    task = create(extra=extra)
    assert task["extra"] == extra
    assert client.get(local(task["url"])).json() == task
    assert client.patch(local(task["url"]), json={"extra": {"a": extra["a"] + "x"}}).status_code == 422


@pytest.mark.parametrize(
    "extra",
    [
        {"": "", "a b": "\u202e\u05d0", "__proto__": {"toString": None}, "\x07": "\x1b\t\n"},
        {"a": [[], {}, [[{"b": [None, True, False, "null"]}]]]},
        json.loads('{"a": ' + "[" * 100 + "]" * 100 + "}"),
        {"title": "x", "id": 1, "$ref": "#", "%(user_id)s": "%s", "'": "\\'; DROP TABLE tasks --"},
    ],
)
def test_extra_is_returned_as_it_was_sent(client: TestClient, url: str, create: Create, extra: Any) -> None:
    task = create(extra=extra)
    assert task["extra"] == extra
    assert client.get(url).json() == [task]
    assert client.patch(url, json={"extra": {"other": 1}}).json() == {"updated": 1}
    assert client.put(local(task["url"]), json={"title": "t", "extra": extra}).json()["extra"] == extra
    assert client.get(f"/api/{task['user_id']}/changes").json()["changes"][0]["extra"] == extra


NUMBERS = "0 -0 -0.0 1 1.0 1e2 1E-7 1.10 0.1 5e-324 1.7976931348623157e308 9007199254740993 -12345678901234567890123"


@pytest.mark.parametrize("number", NUMBERS.split())
def test_number_in_extra_comes_back_equal(client: TestClient, url: str, number: str) -> None:
    body = f'{{"title": "x", "extra": {{"a": {number}, "b": [{number}]}}}}'
    task = client.post(url, content=body, headers={"Content-Type": "application/json"}).json()
    assert task["extra"] == {"a": json.loads(number), "b": [json.loads(number)]}
    assert type(task["extra"]["a"]) is type(json.loads(number))


def test_extra_is_replaced_as_a_whole(client: TestClient, create: Create) -> None:
    path = local(create(extra={"a": {"b": 1}, "c": 2})["url"])
    assert client.patch(path, json={"extra": {"a": {"d": 3}}}).json()["extra"] == {"a": {"d": 3}}
    assert client.patch(path, json={"title": "t"}).json()["extra"] == {"a": {"d": 3}}
    assert client.put(path, json={"title": "t"}).json()["extra"] == {}
