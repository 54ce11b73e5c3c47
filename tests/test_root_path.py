"""The service below a root path: the path whose owner is authenticated is always the path that is routed."""

import asyncio
import json
from typing import Any
from urllib.parse import unquote

import pytest
from fastapi import FastAPI
from fastapi.routing import iter_route_contexts
from fastapi.testclient import TestClient
from pydantic import SecretStr
from starlette._utils import get_route_path

import auth
from main import create_app
from settings import Settings

ROOTS = [
    "",
    "/",
    "//",
    "/a",
    "/a/",
    "/ap",
    "/api",
    "/api/",
    "/api/x",
    "/api/x/",
    "/todo",
    "/todo/",
    "todo",
    "/%61",
    "/é",
]
TASK = "00000000-0000-4000-8000-000000000000"
PATHS = [
    "", "/", "/api", "/api/", "/api/x", "/api/x/", "/api/x/tasks", "/api/x/tasks/", f"/api/x/tasks/{TASK}",
    f"/api/x/tasks/{TASK}/restore", "/api/x/changes",
    f"/api/x/tasks/{TASK}/complete", "//api/x/tasks", "/api//x/tasks", "/api//tasks", "/api/x//tasks", "api/x/tasks",
    "/api/api/x/tasks", "/apiapi/x/tasks", "/a/api/x/tasks", "/api/x/api/x/tasks", "/api/x/tasks/api/x/tasks",
    "/todo/api/x/tasks", "/todo/todo/api/x/tasks", "/./api/x/tasks", "/../api/x/tasks", "/api/../api/x/tasks",
    "/api/./tasks", "/api/../tasks", "/%61pi/x/tasks", "/api/%78/tasks", "/api%2Fx/tasks", "/api/x%2Ftasks",
    "/api/x/tasks%0A", "/api/x%0A", "/api/%00/tasks", "/api/%FF/tasks", "/API/x/tasks", "/api/x/tasks;a",
    "/a//api/x/tasks", "/a", "/apix/tasks", "/x/tasks", "/tasks", "//", "///api/x/tasks", "/api/x/tasks?/api/y/tasks",
]  # fmt: skip


class Reached(Exception):
    """Raised when an endpoint runs a query."""


class NoDatabase:
    """A database in which every query raises `Reached`."""

    async def fetch(self, *_: object, **__: object) -> None:
        raise Reached


@pytest.fixture(scope="module")
def app_with_tokens(settings: Settings) -> FastAPI:
    """Return an app that requires tokens, with a `NoDatabase`."""
    secret = SecretStr("a secret of the tests, long enough for it")
    app = create_app(settings.model_copy(update={"auth_secret": secret}))
    app.state.verifier = auth.TokenVerifier(settings.model_copy(update={"auth_secret": secret}))
    app.state.database = NoDatabase()
    return app


def scope_of(app: FastAPI, method: str, root: str, raw: str, *, with_raw: bool = True) -> dict[str, Any]:
    """Return the ASGI scope of a request, in which `raw_path` is optional."""
    more = {"raw_path": raw.encode()} if with_raw else {}
    return {
        "type": "http", "http_version": "1.1", "method": method, "scheme": "http", "query_string": b"", "app": app,
        "path": unquote(raw), "root_path": root, "headers": [(b"host", b"localhost")], **more,
    }  # fmt: skip


def send_request(app: FastAPI, scope: dict[str, Any]) -> tuple[int, dict[bytes, bytes], bytes]:
    """Send a request to the app without a server. Return status, headers and body."""
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(app(scope, receive, send))
    return sent[0]["status"], dict(sent[0]["headers"]), b"".join(message.get("body", b"") for message in sent)


def route_path(app: FastAPI, scope: dict[str, Any]) -> str:
    """Return the declared path of the route that matches the request, or an empty string."""
    path = get_route_path(scope)
    return next((route.path or "" for route in iter_route_contexts(app.routes) if route.path_regex.match(path)), "")


@pytest.mark.parametrize("with_raw", [True, False], ids=["with raw_path", "without raw_path"])
@pytest.mark.parametrize("root", ROOTS)
def test_no_request_under_api_is_processed_without_a_token(app_with_tokens: FastAPI, root: str, with_raw: bool) -> None:
    checked = 0
    for path in PATHS:
        for raw in {path, root + path}:
            for method in ("GET", "DELETE", "PATCH"):
                scope = scope_of(app_with_tokens, method, root, raw, with_raw=with_raw)
                under_api = route_path(app_with_tokens, scope).startswith("/api/")
                status, headers, _ = send_request(app_with_tokens, scope)
                if under_api:
                    checked += 1
                    rejected_before = with_raw and "%" in raw and status == 422
                    assert rejected_before or status == 401, (root, raw, status)
                    assert headers[b"cache-control"] == b"private, no-cache", (root, raw)
    assert checked > 3 * 4


@pytest.mark.parametrize(("root", "path"), [("", "/health"), ("/", "/health"), ("/a", "/a/health"), ("/a", "/health")])
def test_a_405_names_the_allowed_methods_below_any_root_path(app_with_tokens: FastAPI, root: str, path: str) -> None:
    status, headers, _ = send_request(app_with_tokens, scope_of(app_with_tokens, "PUT", root, path))
    assert (status, headers[b"allow"]) == (405, b"GET")


@pytest.mark.parametrize(("root", "path"), [("/", "//"), ("/todo", "/todo/")])
def test_the_root_redirects_to_the_documentation_below_any_root_path(
    app_with_tokens: FastAPI, root: str, path: str
) -> None:
    status, headers, _ = send_request(app_with_tokens, scope_of(app_with_tokens, "GET", root, path))
    assert (status, headers[b"location"]) == (307, root.rstrip("/").encode() + b"/docs")


def test_the_instance_of_a_problem_includes_the_root_path(app_with_tokens: FastAPI) -> None:
    _, _, body = send_request(app_with_tokens, scope_of(app_with_tokens, "GET", "/todo", "/todo/api/x/tasks"))
    assert json.loads(body)["instance"] == "/todo/api/x/tasks"


@pytest.mark.parametrize("root", ["/", "/todo"])
def test_the_url_of_a_task_includes_the_root_path_once(settings: Settings, user: str, root: str) -> None:
    with TestClient(create_app(settings), root_path=root) as client:
        task = client.post(f"/api/{user}/tasks", json={"title": "any"}).json()
        assert task["url"] == f"http://testserver{root.rstrip('/')}/api/{user}/tasks/{task['id']}"
        assert client.delete(task["url"]).json()["url"] == task["url"]
        assert client.get(f"/api/{user}/changes").json()["changes"][0]["url"] == task["url"]
