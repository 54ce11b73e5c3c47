"""Many at once: no update is lost."""

from fastapi.testclient import TestClient

from tests.conftest import Create, local
from tests.helpers import concurrently


def test_200_toggles_at_once_leave_a_task_as_it_was(client: TestClient, create: Create) -> None:
    task = create()
    path = local(task["url"])
    answers = concurrently(200, lambda _: client.patch(f"{path}/complete"))
    assert [answer.status_code for answer in answers] == [200] * 200
    assert sum(answer.json()["completed"] for answer in answers) == 100
    assert client.get(path).json() == task | {"updated_at": client.get(path).json()["updated_at"]}


def test_200_patches_of_two_fields_at_once_keep_both(client: TestClient, create: Create) -> None:
    path = local(create()["url"])
    changes = [{"title": "new"}, {"description": "new"}]
    answers = concurrently(200, lambda number: client.patch(path, json=changes[number % 2]))
    assert [answer.status_code for answer in answers] == [200] * 200
    task = client.get(path).json()
    assert (task["title"], task["description"]) == ("new", "new")


def test_200_creates_at_once_are_200_tasks(client: TestClient, url: str) -> None:
    answers = concurrently(200, lambda number: client.post(url, json={"title": str(number)}))
    assert {answer.json()["title"] for answer in answers} == {str(number) for number in range(200)}
    listed = client.get(url).json()
    assert {task["id"] for task in listed} == {answer.json()["id"] for answer in answers}
    assert [task["created_at"] for task in listed] == sorted((task["created_at"] for task in listed), reverse=True)


def test_of_50_deletes_at_once_one_finds_the_task(client: TestClient, create: Create) -> None:
    path = local(create()["url"])
    answers = concurrently(50, lambda _: client.delete(path))
    assert sorted(answer.status_code for answer in answers) == [200] + [404] * 49


def test_updated_at_never_goes_back_and_always_moves(client: TestClient, create: Create) -> None:
    path = local(create()["url"])
    for _ in range(10):
        answers = concurrently(16, lambda number: client.patch(path, json={"order": number}))
        seen = [answer.json()["updated_at"] for answer in answers]
        assert len(set(seen)) == len(seen)
        assert client.get(path).json()["updated_at"] == max(seen)
