"""Tests of conditional requests (RFC 9110, section 13) and of the Idempotency-Key header."""

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


def test_deleted_task_created_again_by_its_key_has_another_etag(client: TestClient, url: str) -> None:
    headers = {"Idempotency-Key": "k"}
    first = client.post(url, json={"title": "t"}, headers=headers)
    client.delete(local(first.json()["url"]))
    second = client.post(url, json={"title": "t"}, headers=headers)
    assert second.json()["id"] == first.json()["id"]
    assert second.headers["etag"] != first.headers["etag"]
    assert "idempotent-replayed" not in second.headers


def test_repeated_idempotency_key_with_the_same_body_creates_one_task(client: TestClient, url: str) -> None:
    headers = {"Idempotency-Key": str(uuid4())}
    first = client.post(url, json={"title": "t", "tags": ["a"]}, headers=headers)
    assert "idempotent-replayed" not in first.headers
    assert UUID(first.json()["id"]).version == 4
    # The same task in other JSON.
    second = client.post(
        url, content=b'{"tags" : ["a"],\n "title":" t"}', headers=headers | {"Content-Type": "application/json"}
    )
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
    for body in ({"title": "u"}, {"title": "t", "completed": True}, {"title": "t", "tags": ["a"]}):
        response = client.post(url, json=body, headers=headers)
        assert response.status_code == 422
        assert response.json()["errors"][0]["loc"] == ["header", "idempotency-key"]
    assert client.get(url).json() == [first.json()]
    assert get_etag(client, local(first.json()["url"])) == first.headers["etag"]


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
