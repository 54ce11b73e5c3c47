"""Isolation of users: for every other user, a task does not exist."""

from typing import Any
from uuid import uuid4

import pytest
from fastapi.testclient import TestClient

from tests.conftest import Create, changed, local

REQUESTS: list[tuple[str, str, Any]] = [
    ("GET", "", None),
    ("PUT", "", {"title": "mine now"}),
    ("PATCH", "", {"title": "mine now"}),
    ("PATCH", "", {}),
    ("DELETE", "", None),
    ("PATCH", "/complete", None),
    ("PATCH", "/complete", {"completed": True}),
    ("POST", "/restore", None),
]


@pytest.mark.parametrize(("method", "suffix", "body"), REQUESTS)
def test_another_users_task_and_a_missing_task_have_identical_responses(
    client: TestClient, create: Create, method: str, suffix: str, body: Any
) -> None:
    task = create(title="private")
    path = f"/api/user-{uuid4()}/tasks/{task['id']}{suffix}"

    def send() -> tuple[int, list[tuple[str, str]], bytes]:
        response = client.request(method, path, json=body, headers={"Origin": "http://localhost:3000"})
        headers = [header for header in response.headers.multi_items() if header[0] != "date"]
        return response.status_code, headers, response.content

    while_it_exists = send()
    assert client.get(local(task["url"])).json() == task, "another user changed it"
    deleted = client.delete(local(task["url"])).json()
    assert while_it_exists == send()
    restored = client.post(f"{local(task['url'])}/restore").json()
    assert restored == deleted | changed(restored), "another user changed it"
    assert while_it_exists[0] == 404


def test_a_list_has_only_the_tasks_of_its_user(client: TestClient, url: str, create: Create) -> None:
    mine = create()
    other = f"/api/user-{uuid4()}/tasks"
    theirs = client.post(other, json={"title": "theirs"}).json()
    assert client.get(url).json() == [mine]
    assert client.get(other).json() == [theirs]


def test_bulk_requests_and_filters_reach_no_task_of_another_user(client: TestClient, url: str, create: Create) -> None:
    mine, stranger = create(extra={"a": 1}, completed=True), f"/api/user-{uuid4()}"
    for query in (f"id={mine['id']}", "completed=true", "completed_after=2000-01-01T00:00:00Z"):
        assert client.get(f"{stranger}/tasks?{query}&total=true").headers["x-total-count"] == "0"
        assert client.patch(f"{stranger}/tasks?{query}", json={"title": "x"}).json() == {"updated": 0}
        assert client.delete(f"{stranger}/tasks?{query}").json() == {"deleted": 0}
    assert client.get(url).json() == [mine]


def test_changes_have_only_the_tasks_of_their_user(client: TestClient, user: str, create: Create) -> None:
    stranger = f"user-{uuid4()}"
    before = [client.get(f"/api/{name}/changes").json() for name in (user, stranger)]
    mine = create()
    client.delete(local(create()["url"]))
    for query in ({}, {"since": before[1]["cursor"]}):
        assert client.get(f"/api/{stranger}/changes", params=query).json()["changes"] == []
    theirs = client.post(f"/api/{stranger}/tasks", json={"title": "theirs"}).json()
    changes = client.get(f"/api/{user}/changes", params={"since": before[0]["cursor"]}).json()["changes"]
    assert changes[0] == mine | {"deleted_at": None}
    assert [change["user_id"] for change in changes] == [user, user]
    assert client.get(f"/api/{stranger}/changes").json()["changes"] == [theirs | {"deleted_at": None}]


def test_erasing_another_user_changes_nothing(client: TestClient, url: str, user: str, create: Create) -> None:
    mine, stranger = create(), f"user-{uuid4()}"
    assert client.delete(f"/api/{stranger}?confirm={stranger}").json() == {"deleted": 0}
    for path in (f"/api/{stranger}?confirm={user}", f"/api/{user}?confirm={stranger}"):
        assert client.delete(path).status_code == 422
    assert client.get(url).json() == [mine]


def test_id_of_another_users_task_is_free(client: TestClient, create: Create) -> None:
    task = create(title="private")
    path = f"/api/user-{uuid4()}/tasks/{task['id']}"
    response = client.put(path, json={"title": "mine"}, headers={"If-None-Match": "*"})
    assert (response.status_code, response.json()["title"]) == (201, "mine")
    client.delete(path)
    assert client.get(local(task["url"])).json() == task


def test_similar_user_ids_are_different_users(client: TestClient, user: str, create: Create) -> None:
    create()
    for other in (user.upper(), user + " ", " " + user, user + "%", user[:-1], user[:-1] + "_"):
        assert client.get(f"/api/{other.replace('%', '%25')}/tasks").json() == []


@pytest.mark.parametrize(
    "path", ["/api/{}%2Ftasks", "/api/{}/tasks%2f{}", "/api/{}/tasks%0A", "/api/{}%FF/tasks", "/api/%ED%A0%80{}/tasks"]
)
def test_an_ambiguous_path_is_422(client: TestClient, user: str, create: Create, path: str) -> None:
    task = create()
    path = path.format(user, task["id"])
    for method, body in (("GET", None), ("POST", {"title": "x"}), ("DELETE", None)):
        response = client.request(method, path, json=body, headers={"Origin": "http://localhost:3000"})
        assert response.status_code == 422
        assert response.json()["errors"][0]["loc"] == ["path"]
        assert response.headers["access-control-allow-origin"] == "http://localhost:3000"
    assert client.get(local(task["url"])).json() == task


def test_invalid_utf_8_is_not_the_user_u_fffd(client: TestClient) -> None:
    assert client.post("/api/%FF/tasks", json={"title": "x"}).status_code == 422
    assert client.get("/api/%EF%BF%BD/tasks").status_code == 200
