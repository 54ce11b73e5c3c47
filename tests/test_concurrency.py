"""Concurrent requests: no update is lost."""

from fastapi.testclient import TestClient

from tests.conftest import Create, changed, local
from tests.helpers import concurrently


def test_200_concurrent_toggles_leave_a_task_unchanged(client: TestClient, create: Create) -> None:
    task = create()
    path = local(task["url"])
    responses = concurrently(200, lambda _: client.patch(f"{path}/complete"))
    assert [response.status_code for response in responses] == [200] * 200
    assert sum(response.json()["completed"] for response in responses) == 100
    toggled = client.get(path).json()
    assert toggled == task | changed(toggled)
    assert len({response.json()["version"] for response in responses}) == 200


def test_concurrent_patches_of_different_fields_keep_both(client: TestClient, create: Create) -> None:
    path = local(create()["url"])
    changes = [{"title": "new"}, {"description": "new"}]
    responses = concurrently(200, lambda number: client.patch(path, json=changes[number % 2]))
    assert [response.status_code for response in responses] == [200] * 200
    task = client.get(path).json()
    assert (task["title"], task["description"]) == ("new", "new")


def test_200_concurrent_creates_are_200_tasks(client: TestClient, url: str) -> None:
    responses = concurrently(200, lambda number: client.post(url, json={"title": str(number)}))
    assert {response.json()["title"] for response in responses} == {str(number) for number in range(200)}
    tasks = client.get(url).json()
    assert {task["id"] for task in tasks} == {response.json()["id"] for response in responses}
    assert [task["created_at"] for task in tasks] == sorted((task["created_at"] for task in tasks), reverse=True)


def test_one_of_50_concurrent_deletes_finds_the_task(client: TestClient, create: Create) -> None:
    path = local(create()["url"])
    responses = concurrently(50, lambda _: client.delete(path))
    assert sorted(response.status_code for response in responses) == [200] + [404] * 49


def test_updated_at_increases_with_every_update(client: TestClient, create: Create) -> None:
    path = local(create()["url"])
    for _ in range(10):
        responses = concurrently(16, lambda number: client.patch(path, json={"order": number}))
        times = [response.json()["updated_at"] for response in responses]
        assert len(set(times)) == len(times)
        assert client.get(path).json()["updated_at"] == max(times)
