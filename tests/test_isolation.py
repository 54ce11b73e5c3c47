"""What is somebody else's answers as if it did not exist."""

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
def test_a_strangers_task_answers_byte_for_byte_like_one_that_does_not_exist(
    client: TestClient, create: Create, method: str, suffix: str, body: Any
) -> None:
    task = create(title="private")
    path = f"/api/user-{uuid4()}/tasks/{task['id']}{suffix}"

    def ask() -> tuple[int, list[tuple[str, str]], bytes]:
        answer = client.request(method, path, json=body, headers={"Origin": "http://localhost:3000"})
        headers = [header for header in answer.headers.multi_items() if header[0] != "date"]
        return answer.status_code, headers, answer.content

    while_it_exists = ask()
    assert client.get(local(task["url"])).json() == task, "a stranger changed it"
    client.delete(local(task["url"]))
    assert while_it_exists == ask()
    assert while_it_exists[0] == 404


def test_a_list_holds_the_tasks_of_its_user_alone(client: TestClient, url: str, create: Create) -> None:
    mine = create()
    other = f"/api/user-{uuid4()}/tasks"
    theirs = client.post(other, json={"title": "theirs"}).json()
    assert client.get(url).json() == [mine]
    assert client.get(other).json() == [theirs]


def test_user_ids_that_look_alike_are_different_users(client: TestClient, user: str, create: Create) -> None:
    create()
    for other in (user.upper(), user + " ", " " + user, user + "%", user[:-1], user[:-1] + "_"):
        assert client.get(f"/api/{other.replace('%', '%25')}/tasks").json() == []


@pytest.mark.parametrize(
    "path", ["/api/{}%2Ftasks", "/api/{}/tasks%2f{}", "/api/{}/tasks%0A", "/api/{}%FF/tasks", "/api/%ED%A0%80{}/tasks"]
)
def test_a_path_that_decodes_to_another_is_refused(client: TestClient, user: str, create: Create, path: str) -> None:
    task = create()
    path = path.format(user, task["id"])
    for method, body in (("GET", None), ("POST", {"title": "x"}), ("DELETE", None)):
        answer = client.request(method, path, json=body, headers={"Origin": "http://localhost:3000"})
        assert answer.status_code == 422
        assert answer.json()["errors"][0]["loc"] == ["path"]
        assert answer.headers["access-control-allow-origin"] == "http://localhost:3000"
    assert client.get(local(task["url"])).json() == task


def test_users_whose_names_are_no_text_are_not_one_user(client: TestClient) -> None:
    assert client.post("/api/%FF/tasks", json={"title": "x"}).status_code == 422
    assert client.get("/api/%EF%BF%BD/tasks").status_code == 200
