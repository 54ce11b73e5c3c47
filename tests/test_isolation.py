"""Isolation of users: for every other user, a task does not exist."""

from typing import Any
from uuid import uuid4

import pytest
from fastapi.testclient import TestClient

from tests.conftest import Create, local

REQUESTS: list[tuple[str, str, Any]] = [
    ("GET", "", None),
    ("PUT", "", {"title": "mine now"}),
    ("PATCH", "", {"title": "mine now"}),
    ("PATCH", "", {}),
    ("DELETE", "", None),
    ("PATCH", "/complete", None),
    ("PATCH", "/complete", {"completed": True}),
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
    client.delete(local(task["url"]))
    assert while_it_exists == send()
    assert while_it_exists[0] == 404


def test_a_list_has_only_the_tasks_of_its_user(client: TestClient, url: str, create: Create) -> None:
    mine = create()
    other = f"/api/user-{uuid4()}/tasks"
    theirs = client.post(other, json={"title": "theirs"}).json()
    assert client.get(url).json() == [mine]
    assert client.get(other).json() == [theirs]


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
