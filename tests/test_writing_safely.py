"""No edit is lost and no task is made twice: ETag, If-Match, If-None-Match, Idempotency-Key."""

from typing import Any
from uuid import UUID, uuid4

import pytest
from fastapi.testclient import TestClient

from tests.conftest import Create, local
from tests.helpers import concurrently

WRITES: list[tuple[str, str, Any]] = [
    ("PUT", "", {"title": "new"}),
    ("PATCH", "", {"title": "new"}),
    ("PATCH", "/complete", None),
    ("PATCH", "/complete", {"completed": True}),
    ("DELETE", "", None),
]
writes = pytest.mark.parametrize(("method", "suffix", "body"), WRITES)


def etag(client: TestClient, path: str) -> str:
    return client.get(path).headers["etag"]


def test_the_etag_of_a_task_is_the_same_until_it_changes(client: TestClient, url: str) -> None:
    created = client.post(url, json={"title": "t"})
    path = local(created.json()["url"])
    seen = [created.headers["etag"]]
    assert etag(client, path) == seen[0]
    for method, suffix, body in WRITES[:-1]:
        answer = client.request(method, path + suffix, json=body)
        assert answer.headers["etag"] == etag(client, path)
        assert answer.headers["etag"] not in seen
        seen.append(answer.headers["etag"])
    assert all(tag.startswith('"') and tag.endswith('"') for tag in seen)


def test_a_read_with_the_etag_is_304_without_a_body(client: TestClient, create: Create) -> None:
    path = local(create()["url"])
    tag = etag(client, path)
    for sent in (tag, f"W/{tag}", f'"other", {tag}', "*"):
        answer = client.get(path, headers={"If-None-Match": sent, "Origin": "http://localhost:3000"})
        assert (answer.status_code, answer.content, answer.headers["etag"]) == (304, b"", tag)
        assert answer.headers["access-control-allow-origin"] == "http://localhost:3000"
    client.patch(path, json={"title": "new"})
    assert client.get(path, headers={"If-None-Match": tag}).status_code == 200


def test_a_list_with_the_etag_is_304_until_a_task_of_it_changes(client: TestClient, url: str, create: Create) -> None:
    task = create()
    create(title="other")
    answer = client.get(f"{url}?limit=1&total=true")
    again = client.get(f"{url}?limit=1&total=true", headers={"If-None-Match": answer.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert again.headers["link"] == answer.headers["link"]
    assert again.headers["x-total-count"] == "2"
    tag = etag(client, url)
    client.patch(local(task["url"]), json={"title": "new"})
    assert client.get(url, headers={"If-None-Match": tag}).status_code == 200
    assert client.get(f"/api/user-{uuid4()}/tasks", headers={"If-None-Match": tag}).status_code == 200


@writes
def test_a_write_with_the_etag_of_now_is_done(
    client: TestClient, create: Create, method: str, suffix: str, body: Any
) -> None:
    for sent in ("{}", '"0", {}', "W/{}", "*"):
        path = local(create()["url"])
        tag = sent.format(etag(client, path))
        assert client.request(method, path + suffix, json=body, headers={"If-Match": tag}).status_code == 200


@writes
@pytest.mark.parametrize(
    "sent",
    [
        "{old}",
        '"0"',
        '"x"',
        "nonsense",
        '"x"{now}"y"',
        '"0{bare}"',
        "w/{now}",
        "",
        '"99999999999999999999999"',
        '"-1"',
        '"1e3"',
    ],
)
def test_a_write_with_another_etag_is_412_and_changes_nothing(
    client: TestClient, create: Create, method: str, suffix: str, body: Any, sent: str
) -> None:
    path = local(create()["url"])
    old = etag(client, path)
    task = client.patch(path, json={"description": "changed meanwhile"}).json()
    now = etag(client, path)
    answer = client.request(
        method, path + suffix, json=body, headers={"If-Match": sent.format(old=old, now=now, bare=now.strip('"'))}
    )
    assert answer.status_code == 412
    assert answer.json()["title"] == "Precondition Failed"
    assert (client.get(path).json(), etag(client, path)) == (task, now)


@writes
def test_a_guarded_write_to_what_is_not_there_is_404(
    client: TestClient, create: Create, method: str, suffix: str, body: Any
) -> None:
    task = create()
    tag = etag(client, local(task["url"]))
    for path in (f"/api/user-{uuid4()}/tasks/{task['id']}", f"/api/{task['user_id']}/tasks/{uuid4()}"):
        for sent in (tag, '"0"', "*"):
            answer = client.request(method, path + suffix, json=body, headers={"If-Match": sent})
            assert answer.status_code == 404
    assert client.get(local(task["url"])).json() == task


def test_a_guarded_write_that_meets_a_delete_is_done_or_404(client: TestClient, create: Create) -> None:
    def meet(path: str, guard: dict[str, str]) -> list[int]:
        asks: list[dict[str, Any]] = [
            {"method": "DELETE"},
            {"method": "PATCH", "json": {"order": 1}, "headers": guard},
            {"method": "DELETE", "headers": guard},
        ]
        return [answer.status_code for answer in concurrently(3, lambda n: client.request(url=path, **asks[n]))]

    for _ in range(30):
        path = local(create()["url"])
        deleted, changed, deleted_if = meet(path, {"If-Match": etag(client, path)})
        assert 200 in (deleted, deleted_if)
        assert changed in (200, 404)
        assert deleted_if in ((200, 404) if changed == 404 else (200, 404, 412))


@pytest.mark.parametrize("number", [2, 50])
def test_of_several_writes_from_one_etag_exactly_one_wins(client: TestClient, create: Create, number: int) -> None:
    path = local(create(title="old")["url"])
    headers = {"If-Match": etag(client, path)}
    answers = concurrently(number, lambda n: client.patch(path, json={"title": f"by {n}"}, headers=headers))
    assert sorted(answer.status_code for answer in answers) == [200] + [412] * (number - 1)
    (winner,) = (answer for answer in answers if answer.status_code == 200)
    assert client.get(path).json() == winner.json()


def test_a_task_that_is_created_again_under_its_key_has_none_of_its_old_etags(client: TestClient, url: str) -> None:
    key = {"Idempotency-Key": "again"}
    first = client.post(url, json={"title": "t"}, headers=key)
    client.delete(local(first.json()["url"]))
    second = client.post(url, json={"title": "t"}, headers=key)
    assert second.json()["id"] == first.json()["id"]
    assert second.headers["etag"] != first.headers["etag"]
    assert "idempotent-replayed" not in second.headers


def test_the_same_key_and_body_is_one_task(client: TestClient, url: str) -> None:
    key = {"Idempotency-Key": str(uuid4())}
    first = client.post(url, json={"title": "t", "tags": ["a"]}, headers=key)
    assert "idempotent-replayed" not in first.headers
    assert UUID(first.json()["id"]).version == 4
    # The same request in another spelling.
    second = client.post(
        url, content=b'{"tags" : ["a"],\n "title":" t"}', headers=key | {"Content-Type": "application/json"}
    )
    assert second.status_code == 201
    assert second.headers["idempotent-replayed"] == "true"
    assert second.json() == first.json()
    assert [second.headers[name] for name in ("location", "etag")] == [
        first.headers[name] for name in ("location", "etag")
    ]
    assert client.get(url).json() == [first.json()]


def test_a_repeat_shows_the_task_as_it_is_by_now(client: TestClient, url: str) -> None:
    key = {"Idempotency-Key": "k"}
    first = client.post(url, json={"title": "t"}, headers=key).json()
    changed = client.patch(local(first["url"]), json={"title": "u", "completed": True})
    again = client.post(url, json={"title": "t"}, headers=key)
    assert again.json() == changed.json()
    assert again.headers["etag"] == changed.headers["etag"]
    assert again.headers["idempotent-replayed"] == "true"


def test_the_same_key_with_another_body_is_refused_and_changes_nothing(client: TestClient, url: str) -> None:
    key = {"Idempotency-Key": "k"}
    first = client.post(url, json={"title": "t"}, headers=key)
    for body in ({"title": "u"}, {"title": "t", "completed": True}, {"title": "t", "tags": ["a"]}):
        answer = client.post(url, json=body, headers=key)
        assert answer.status_code == 422
        assert answer.json()["errors"][0]["loc"] == ["header", "idempotency-key"]
    assert client.get(url).json() == [first.json()]
    assert etag(client, local(first.json()["url"])) == first.headers["etag"]


def test_a_key_belongs_to_its_user(client: TestClient, url: str) -> None:
    key = {"Idempotency-Key": "k"}
    mine = client.post(url, json={"title": "mine"}, headers=key)
    theirs = client.post(f"/api/user-{uuid4()}/tasks", json={"title": "theirs"}, headers=key)
    assert theirs.status_code == 201
    assert theirs.json()["id"] != mine.json()["id"]


@pytest.mark.parametrize("completed", [False, True])
def test_50_of_one_key_at_once_make_one_task_that_all_50_answers_show(
    client: TestClient, url: str, completed: bool
) -> None:
    headers, body = {"Idempotency-Key": "k"}, {"title": "t", "completed": completed}
    answers = concurrently(50, lambda _: client.post(url, json=body, headers=headers))
    (task,) = client.get(url).json()
    assert [answer.status_code for answer in answers] == [201] * 50
    assert all(answer.json() == task for answer in answers)
    assert sum("idempotent-replayed" not in answer.headers for answer in answers) == 1


@pytest.mark.parametrize("key", ["", "x" * 256, "a b", "tab\t", "\x7f", "ü".encode().decode("latin-1")])
def test_a_key_that_is_not_1_to_255_visible_characters_is_refused(client: TestClient, url: str, key: str) -> None:
    answer = client.post(url, json={"title": "t"}, headers={b"Idempotency-Key": key.encode("latin-1")})
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["loc"] == ["header", "idempotency-key"]
    assert client.get(url).json() == []


@pytest.mark.parametrize("key", ["!", "~" * 255, '"8e03978e-40d5-43dd-bc93-6894a57f9324"', "{}\\'%s--"])
def test_a_key_is_any_visible_text(client: TestClient, url: str, key: str) -> None:
    assert client.post(url, json={"title": "t"}, headers={"Idempotency-Key": key}).status_code == 201
