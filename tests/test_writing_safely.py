"""Tests of conditional requests (RFC 9110, section 13) and of the Idempotency-Key header."""

import hashlib
from typing import Any
from uuid import UUID, uuid4

import httpx2
import pytest
from fastapi.testclient import TestClient

from tests.conftest import Create, local
from tests.helpers import concurrently, fetch_value

WRITES: list[tuple[str, str, Any]] = [
    ("PUT", "", {"title": "new"}),
    ("PATCH", "", {"title": "new"}),
    ("PATCH", "/complete", None),
    ("PATCH", "/complete", {"completed": True}),
    ("DELETE", "", None),
]
writes = pytest.mark.parametrize(("method", "suffix", "body"), WRITES)


def get_etag(client: TestClient, path: str) -> str:
    """Return the current `ETag` of the resource at `path`."""
    return client.get(path).headers["etag"]


def test_etag_changes_exactly_when_the_task_changes(client: TestClient, url: str) -> None:
    created = client.post(url, json={"title": "t"})
    path = local(created.json()["url"])
    etags = [created.headers["etag"]]
    assert get_etag(client, path) == etags[0]
    for method, suffix, body in WRITES[:-1]:
        response = client.request(method, path + suffix, json=body)
        assert response.headers["etag"] == get_etag(client, path)
        assert response.headers["etag"] not in etags
        etags.append(response.headers["etag"])
    assert all(etag.startswith('"') and etag.endswith('"') for etag in etags)


def test_if_none_match_with_the_current_etag_returns_304(client: TestClient, create: Create) -> None:
    path = local(create()["url"])
    etag = get_etag(client, path)
    for sent in (etag, f"W/{etag}", f'"other", {etag}', "*"):
        response = client.get(path, headers={"If-None-Match": sent, "Origin": "http://localhost:3000"})
        assert (response.status_code, response.content, response.headers["etag"]) == (304, b"", etag)
        assert response.headers["access-control-allow-origin"] == "http://localhost:3000"
    client.patch(path, json={"title": "new"})
    assert client.get(path, headers={"If-None-Match": etag}).status_code == 200


def test_list_returns_304_until_one_of_its_tasks_changes(client: TestClient, url: str, create: Create) -> None:
    task = create()
    create(title="other")
    response = client.get(f"{url}?limit=1&total=true")
    repeated = client.get(f"{url}?limit=1&total=true", headers={"If-None-Match": response.headers["etag"]})
    assert (repeated.status_code, repeated.content) == (304, b"")
    assert repeated.headers["link"] == response.headers["link"]
    assert repeated.headers["x-total-count"] == "2"
    etag = get_etag(client, url)
    client.patch(local(task["url"]), json={"title": "new"})
    assert client.get(url, headers={"If-None-Match": etag}).status_code == 200
    assert client.get(f"/api/user-{uuid4()}/tasks", headers={"If-None-Match": etag}).status_code == 200


def test_version_of_a_listed_task_is_what_if_match_needs(client: TestClient, url: str, create: Create) -> None:
    create(), create()
    for method, suffix, body in WRITES:
        for task in client.get(url).json():
            path = local(task["url"])
            assert get_etag(client, path) == f'"{task["version"]}"'
            headers = {"If-Match": f'"{task["version"]}"'}
            response = client.request(method, path + suffix, json=body, headers=headers)
            assert response.status_code == 200
            assert response.json()["version"] > task["version"]
            if method != "DELETE":
                assert response.headers["etag"] == f'"{response.json()["version"]}"'
                assert client.request(method, path + suffix, json=body, headers=headers).status_code == 412
    assert client.get(url).json() == []


@writes
def test_if_match_with_the_current_etag_succeeds(
    client: TestClient, create: Create, method: str, suffix: str, body: Any
) -> None:
    for sent in ("{}", '"0", {}', "W/{}", "*"):
        path = local(create()["url"])
        etag = sent.format(get_etag(client, path))
        assert client.request(method, path + suffix, json=body, headers={"If-Match": etag}).status_code == 200


@writes
@pytest.mark.parametrize(
    "sent",
    [
        "{old}",
        '"0"',
        '"x"',
        "nonsense",
        '"x"{current}"y"',
        '"0{unquoted}"',
        "w/{current}",
        "",
        '"99999999999999999999999"',
        '"-1"',
        '"1e3"',
    ],
)
def test_if_match_with_another_etag_returns_412_and_changes_nothing(
    client: TestClient, create: Create, method: str, suffix: str, body: Any, sent: str
) -> None:
    path = local(create()["url"])
    old = get_etag(client, path)
    task = client.patch(path, json={"description": "changed"}).json()
    current = get_etag(client, path)
    if_match = sent.format(old=old, current=current, unquoted=current.strip('"'))
    response = client.request(method, path + suffix, json=body, headers={"If-Match": if_match})
    assert response.status_code == 412
    assert response.json()["title"] == "Precondition Failed"
    assert (client.get(path).json(), get_etag(client, path)) == (task, current)


@writes
def test_if_match_on_a_missing_task_returns_404(
    client: TestClient, create: Create, method: str, suffix: str, body: Any
) -> None:
    task = create()
    etag = get_etag(client, local(task["url"]))
    for path in (f"/api/user-{uuid4()}/tasks/{task['id']}", f"/api/{task['user_id']}/tasks/{uuid4()}"):
        for sent in (etag, '"0"', "*"):
            response = client.request(method, path + suffix, json=body, headers={"If-Match": sent})
            assert response.status_code == 404
    assert client.get(local(task["url"])).json() == task


def test_if_match_during_a_concurrent_delete_succeeds_or_returns_404(client: TestClient, create: Create) -> None:
    def send_concurrently(path: str, condition: dict[str, str]) -> list[int]:
        requests: list[dict[str, Any]] = [
            {"method": "DELETE"},
            {"method": "PATCH", "json": {"order": 1}, "headers": condition},
            {"method": "DELETE", "headers": condition},
        ]
        responses = concurrently(len(requests), lambda n: client.request(url=path, **requests[n]))
        return [response.status_code for response in responses]

    for _ in range(30):
        path = local(create()["url"])
        deleted, patched, deleted_if_match = send_concurrently(path, {"If-Match": get_etag(client, path)})
        assert 200 in (deleted, deleted_if_match)
        assert patched in (200, 404)
        # The conditional delete returns 412 only if the update came before it.
        assert deleted_if_match in ((200, 404) if patched == 404 else (200, 404, 412))


@pytest.mark.parametrize("number", [2, 50])
def test_only_one_of_several_writes_with_one_etag_succeeds(client: TestClient, create: Create, number: int) -> None:
    path = local(create(title="old")["url"])
    headers = {"If-Match": get_etag(client, path)}
    responses = concurrently(number, lambda n: client.patch(path, json={"title": f"by {n}"}, headers=headers))
    assert sorted(response.status_code for response in responses) == [200] + [412] * (number - 1)
    (succeeded,) = (response for response in responses if response.status_code == 200)
    assert client.get(path).json() == succeeded.json()


def test_idempotency_key_of_a_deleted_task_returns_410(client: TestClient, url: str) -> None:
    headers = {"Idempotency-Key": "k"}
    path = local(client.post(url, json={"title": "t"}, headers=headers).json()["url"])
    client.delete(path)
    assert client.post(url, json={"title": "t"}, headers=headers).status_code == 410
    assert client.post(url, json={"title": "other"}, headers=headers).status_code == 422
    assert client.get(url).json() == []
    restored = client.post(f"{path}/restore")
    repeated = client.post(url, json={"title": "t"}, headers=headers)
    assert (repeated.status_code, repeated.json()) == (201, restored.json())
    assert repeated.headers["idempotent-replayed"] == "true"


def test_repeated_idempotency_key_with_the_same_body_creates_one_task(client: TestClient, url: str) -> None:
    headers = {"Idempotency-Key": str(uuid4())}
    fields = {"title": "t", "tags": ["a"], "extra": {"a": 0, "b": {"c": 1, "d": 2}}}
    first = client.post(url, json=fields, headers=headers)
    assert "idempotent-replayed" not in first.headers
    assert UUID(first.json()["id"]).version == 4
    # The same task in other JSON.
    body = b'{"extra": {"b": {"d": 2, "c": 1}, "a": 0}, "tags" : ["a"],\n "title":" t", "user_id": "x"}'
    second = client.post(url, content=body, headers=headers | {"Content-Type": "application/json"})
    assert second.status_code == 201
    assert second.headers["idempotent-replayed"] == "true"
    assert second.json() == first.json()
    for name in ("location", "etag"):
        assert second.headers[name] == first.headers[name]
    assert client.get(url).json() == [first.json()]


def test_repeated_idempotency_key_returns_the_current_task(client: TestClient, url: str) -> None:
    headers = {"Idempotency-Key": "k"}
    first = client.post(url, json={"title": "t"}, headers=headers).json()
    changed = client.patch(local(first["url"]), json={"title": "u", "completed": True})
    repeated = client.post(url, json={"title": "t"}, headers=headers)
    assert repeated.json() == changed.json()
    assert repeated.headers["etag"] == changed.headers["etag"]
    assert repeated.headers["idempotent-replayed"] == "true"


def test_repeated_idempotency_key_with_another_body_is_rejected(client: TestClient, url: str) -> None:
    headers = {"Idempotency-Key": "k"}
    first = client.post(url, json={"title": "t"}, headers=headers)
    for body in ({"title": "u"}, {"title": "t", "completed": True}, {"title": "t", "extra": {"a": 1}}):
        response = client.post(url, json=body, headers=headers)
        assert response.status_code == 422
        assert response.json()["errors"][0]["loc"] == ["header", "idempotency-key"]
    assert client.get(url).json() == [first.json()]
    assert get_etag(client, local(first.json()["url"])) == first.headers["etag"]


def test_idempotency_key_sent_to_version_1_is_replayed(
    client: TestClient, url: str, user: str, database_url: str
) -> None:
    def digest(*parts: str) -> str:
        return str(UUID(bytes=hashlib.blake2b("\0".join(parts).encode(), digest_size=16).digest(), version=4))

    body = (
        '{"title":"t","description":null,"completed":false,"priority":"medium","tags":[],"due_date":null,"order":null}'
    )
    statement = "INSERT INTO tasks (user_id, id, title, fingerprint) VALUES (%s, %s, 't', %s)"
    fetch_value(database_url, statement, user, digest(user, "k"), digest(body))
    response = client.post(url, json={"title": "t"}, headers={"Idempotency-Key": "k"})
    assert (response.status_code, response.headers.get("idempotent-replayed")) == (201, "true")
    assert client.get(url).json() == [response.json()]


def test_idempotency_key_applies_to_one_user_only(client: TestClient, url: str) -> None:
    headers = {"Idempotency-Key": "k"}
    first = client.post(url, json={"title": "t"}, headers=headers)
    second = client.post(f"/api/user-{uuid4()}/tasks", json={"title": "u"}, headers=headers)
    assert second.status_code == 201
    assert second.json()["id"] != first.json()["id"]


@pytest.mark.parametrize("completed", [False, True])
def test_50_concurrent_requests_with_one_key_return_the_same_task(
    client: TestClient, url: str, completed: bool
) -> None:
    headers, body = {"Idempotency-Key": "k"}, {"title": "t", "completed": completed}
    responses = concurrently(50, lambda _: client.post(url, json=body, headers=headers))
    (task,) = client.get(url).json()
    assert [response.status_code for response in responses] == [201] * 50
    assert all(response.json() == task for response in responses)
    assert sum("idempotent-replayed" not in response.headers for response in responses) == 1


@pytest.mark.parametrize("key", ["", "x" * 256, "a b", "tab\t", "\x7f", "ü".encode().decode("latin-1")])
def test_idempotency_key_outside_1_to_255_visible_characters_is_rejected(
    client: TestClient, url: str, key: str
) -> None:
    response = client.post(url, json={"title": "t"}, headers={b"Idempotency-Key": key.encode("latin-1")})
    assert response.status_code == 422
    assert response.json()["errors"][0]["loc"] == ["header", "idempotency-key"]
    assert client.get(url).json() == []


@pytest.mark.parametrize("key", ["!", "~" * 255, '"8e03978e-40d5-43dd-bc93-6894a57f9324"', "{}\\'%s--"])
def test_idempotency_key_may_be_any_visible_ascii_characters(client: TestClient, url: str, key: str) -> None:
    assert client.post(url, json={"title": "t"}, headers={"Idempotency-Key": key}).status_code == 201


def create_with_id(client: TestClient, path: str, **fields: object) -> httpx2.Response:
    """Send a create under an id that the client made."""
    return client.put(path, json={"title": "t"} | fields, headers={"If-None-Match": "*"})


def test_create_with_the_clients_id_returns_201(client: TestClient, url: str, user: str) -> None:
    path = f"{url}/{uuid4()}"
    response = create_with_id(client, path, extra={"a": 1}, completed=True)
    assert response.status_code == 201
    task = response.json()
    assert (task["url"], task["user_id"], task["extra"]) == (f"http://testserver{path}", user, {"a": 1})
    assert task["completed_at"] == task["created_at"] == task["updated_at"]
    assert response.headers["etag"] == f'"{task["version"]}"'
    assert "idempotent-replayed" not in response.headers
    assert client.get(url).json() == [client.get(path).json()] == [task]


def test_repeated_create_with_the_clients_id_returns_the_current_task(client: TestClient, url: str) -> None:
    path = f"{url}/{uuid4()}"
    create_with_id(client, path, extra={"a": 1, "b": 2})
    changed = client.patch(path, json={"title": "u", "completed": True})
    repeated = create_with_id(client, path, extra={"b": 2, "a": 1}, id="ignored", version=0)
    assert (repeated.status_code, repeated.json()) == (201, changed.json())
    assert repeated.headers["etag"] == changed.headers["etag"]
    assert repeated.headers["idempotent-replayed"] == "true"
    assert get_etag(client, path) == changed.headers["etag"]


def test_create_with_the_id_of_another_task_returns_412(client: TestClient, url: str, create: Create) -> None:
    path = f"{url}/{uuid4()}"
    tasks = [create_with_id(client, path).json(), create(title="t")]
    key = client.post(url, json={"title": "t"}, headers={"Idempotency-Key": "k"}).json()
    for response in (
        create_with_id(client, path, title="u"),
        create_with_id(client, path, extra={"a": 1}),
        create_with_id(client, local(tasks[1]["url"])),
        create_with_id(client, local(key["url"])),
    ):
        assert (response.status_code, response.json()["title"]) == (412, "Precondition Failed")
    assert client.get(f"{url}?sort=created_at").json() == [*tasks, key]


def test_create_with_the_id_of_a_deleted_task_returns_410(client: TestClient, url: str, create: Create) -> None:
    paths = [f"{url}/{uuid4()}", local(create()["url"])]
    create_with_id(client, paths[0])
    for path in paths:
        client.delete(path)
        assert create_with_id(client, path).status_code == 410
        assert create_with_id(client, path, title="u").status_code == 410
    assert client.get(url).json() == []


def test_clients_id_belongs_to_one_user_only(client: TestClient, url: str) -> None:
    task_id, other = uuid4(), f"/api/user-{uuid4()}/tasks"
    assert create_with_id(client, f"{url}/{task_id}").status_code == 201
    assert create_with_id(client, f"{other}/{task_id}", title="theirs").status_code == 201
    client.delete(f"{other}/{task_id}")
    assert client.get(f"{url}/{task_id}").json()["title"] == "t"


@pytest.mark.parametrize(
    "task_id",
    [
        "c232ab00-9414-11ec-b3c8-9f6bdeced846",  # version 1
        "5df41881-3aed-3515-88a7-2f4a814cf09e",  # version 3
        "01863ef8-5b5d-7c1e-9f0a-4c559d530c3d",  # version 7
        "00000000-0000-0000-0000-000000000000",
        "ffffffff-ffff-ffff-ffff-ffffffffffff",
        "5b1d6c1e-8f0a-4c55-0d53-0c3d8f7b2a10",  # of another variant
    ],
)
def test_clients_id_that_is_not_a_uuid_4_is_rejected(client: TestClient, url: str, task_id: str) -> None:
    response = create_with_id(client, f"{url}/{task_id}")
    assert response.status_code == 422
    assert response.json()["errors"][0]["loc"] == ["path", "task_id"]
    assert client.get(url).json() == []


@pytest.mark.parametrize(
    "headers",
    [
        {"If-None-Match": '"1"'},
        {"If-None-Match": ""},
        {"If-None-Match": "*, *"},
        {"If-None-Match": "*", "If-Match": "*"},
        {"If-None-Match": "*", "If-Match": '"1"'},
    ],
)
def test_put_rejects_other_values_of_if_none_match(
    client: TestClient, url: str, create: Create, headers: dict[str, str]
) -> None:
    task = create()
    for path in (local(task["url"]), f"{url}/{uuid4()}"):
        response = client.put(path, json={"title": "u"}, headers=headers)
        assert response.status_code == 422
        assert response.json()["errors"][0]["loc"] == ["header", "if-none-match"]
    assert client.get(url).json() == [task]


def test_put_without_if_none_match_creates_no_task(client: TestClient, url: str) -> None:
    for headers in ({}, {"If-Match": "*"}):
        assert client.put(f"{url}/{uuid4()}", json={"title": "t"}, headers=headers).status_code == 404
    assert client.get(url).json() == []


def test_50_concurrent_creates_with_one_id_make_one_task(client: TestClient, url: str) -> None:
    path = f"{url}/{uuid4()}"
    responses = concurrently(50, lambda _: create_with_id(client, path))
    (task,) = client.get(url).json()
    assert [response.status_code for response in responses] == [201] * 50
    assert all(response.json() == task for response in responses)
    assert sum("idempotent-replayed" not in response.headers for response in responses) == 1


def test_one_of_50_concurrent_creates_with_different_bodies_succeeds(client: TestClient, url: str) -> None:
    path = f"{url}/{uuid4()}"
    responses = concurrently(50, lambda number: create_with_id(client, path, title=f"by {number}"))
    assert sorted(response.status_code for response in responses) == [201] + [412] * 49
    assert client.get(url).json() == [response.json() for response in responses if response.status_code == 201]
