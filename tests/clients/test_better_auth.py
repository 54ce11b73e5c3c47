"""The service accepts the tokens of a real Better Auth server."""

from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from tests.clients.helpers import better_auth, sign_up
from tests.helpers import eventually
from tests.servers import Service, service

HERE = Path(__file__).resolve().parent


@pytest.fixture(scope="module")
def issuer() -> Iterator[str]:
    """The URL of a Better Auth server without users."""
    with better_auth("better-auth.mjs") as url:
        yield url


@pytest.fixture(scope="module")
def started(issuer: str, database_url: str) -> Iterator[Service]:
    settings = {"AUTH_JWKS_URL": f"{issuer}/api/auth/jwks", "AUTH_ISSUER": issuer, "AUTH_AUDIENCE": issuer}
    with service(DATABASE_URL=database_url, **settings) as started:
        yield started


def test_a_user_of_better_auth_can_use_the_service(issuer: str, started: Service) -> None:
    user, token = sign_up(issuer)
    url = f"{started.url}/api/{user}/tasks"
    created = eventually(201, lambda: httpx2.post(url, json={"title": "Buy milk"}, headers=token))
    assert created.json()["user_id"] == user
    assert httpx2.get(url, headers=token).json() == [created.json()]
    assert httpx2.delete(created.json()["url"], headers=token).json()["id"] == created.json()["id"]


def test_a_token_gives_no_access_to_another_users_tasks(issuer: str, started: Service) -> None:
    (user, token), (other, others_token) = sign_up(issuer), sign_up(issuer)
    url = f"{started.url}/api/{user}/tasks"
    task = eventually(201, lambda: httpx2.post(url, json={"title": "private"}, headers=token)).json()
    for path in (url, task["url"], f"{started.url}/api/{user}"):
        assert httpx2.get(path, headers=others_token).status_code == 404
        assert httpx2.get(path).status_code == 401
    assert httpx2.get(f"{started.url}/api/{other}/tasks", headers=others_token).json() == []
