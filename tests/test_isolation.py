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
