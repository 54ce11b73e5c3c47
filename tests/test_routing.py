"""Endpoints are declared as FastAPI's and called directly; what that would ignore is refused."""

import inspect
from collections.abc import Callable, Iterator
from enum import StrEnum
from typing import Annotated, Any

import pytest
from fastapi import APIRouter, BackgroundTasks, Cookie, Depends, FastAPI, Header, Query, Request, Response
from fastapi.dependencies.models import Dependant
from fastapi.responses import PlainTextResponse
from fastapi.routing import APIRoute, iter_route_contexts
from fastapi.security import SecurityScopes
from fastapi.testclient import TestClient
from pydantic import BaseModel
from starlette.requests import HTTPConnection

from main import create_app
from routing import DirectRoute, DirectRouter, check_routes
from settings import Settings


class Colour(StrEnum):
    red = "red"
    blue = "blue"


class Filter(BaseModel):
    colour: list[Colour] = []
    size: int = 1


class Item(BaseModel):
    name: str
    size: int = 1


class Headers(BaseModel):
    x_one: str


def echo(**values: Any) -> Response:
    return PlainTextResponse(repr(values))


router = DirectRouter(prefix="/direct")


@router.get("/{name}/{size}")
async def in_path(name: str, size: int) -> Response:
    return echo(name=name, size=size)


@router.get("/query")
async def in_query(word: str, number: int = 3, colour: Annotated[list[Colour], Query()] = []) -> Response:  # noqa: B006
    return echo(word=word, number=number, colour=[str(one) for one in colour])


@router.get("/model")
async def in_query_model(query: Annotated[Filter, Query()]) -> Response:
    return echo(**query.model_dump(mode="json"))


@router.get("/header")
async def in_header(
    x_token: Annotated[str, Header(max_length=5)], x_more: Annotated[str | None, Header()] = None
) -> Response:
    return echo(x_token=x_token, x_more=x_more)


@router.post("/body")
async def in_body(request: Request, item: Item) -> Response:
    return echo(method=request.method, **item.model_dump())


@router.put("/body")
async def in_optional_body(item: Item | None = None) -> Response:
    return echo(item=item and item.model_dump())


@pytest.fixture(scope="module")
def direct(settings: Settings) -> Iterator[TestClient]:
    app = create_app(settings)
    app.include_router(router)
    check_routes(app)
    with TestClient(app) as client:
        yield client


@pytest.mark.parametrize(
    ("method", "path", "more", "expected"),
    [
        ("GET", "/a%20b/7", {}, {"name": "a b", "size": 7}),
        ("GET", "/query?word=x", {}, {"word": "x", "number": 3, "colour": []}),
        (
            "GET",
            "/query?word=&number=4&colour=red&colour=blue",
            {},
            {"word": "", "number": 4, "colour": ["red", "blue"]},
        ),
        ("GET", "/model", {}, {"colour": [], "size": 1}),
        ("GET", "/model?colour=red&size=2", {}, {"colour": ["red"], "size": 2}),
        ("GET", "/header", {"headers": {"X-Token": "t"}}, {"x_token": "t", "x_more": None}),
        ("GET", "/header", {"headers": {"x-token": "t", "X-MORE": "m"}}, {"x_token": "t", "x_more": "m"}),
        ("POST", "/body", {"json": {"name": "n"}}, {"method": "POST", "name": "n", "size": 1}),
        ("PUT", "/body", {}, {"item": None}),
        ("PUT", "/body", {"json": {"name": "n", "size": 2}}, {"item": {"name": "n", "size": 2}}),
    ],
)
def test_parameters_arrive_as_they_are_declared(
    direct: TestClient, method: str, path: str, more: dict[str, Any], expected: dict[str, Any]
) -> None:
    assert direct.request(method, f"/direct{path}", **more).text == repr(expected)


@pytest.mark.parametrize(
    ("method", "path", "more", "expected"),
    [
        ("GET", "/a/b", {}, [(["path", "size"], "int_parsing")]),
        ("GET", "/query", {}, [(["query", "word"], "missing")]),
        ("GET", "/query?word=a&word=b", {}, [(["query", "word"], "repeated")]),
        ("GET", "/query?number=x", {}, [(["query", "word"], "missing"), (["query", "number"], "int_parsing")]),
        (
            "GET",
            "/model?colour=red&colour=x&size=y",
            {},
            [(["query", "colour", 1], "enum"), (["query", "size"], "int_parsing")],
        ),
        ("GET", "/header", {}, [(["header", "x-token"], "missing")]),
        ("GET", "/header", {"headers": {"X-Token": "longer"}}, [(["header", "x-token"], "string_too_long")]),
        ("POST", "/body", {}, [(["body"], "missing")]),
        ("POST", "/body", {"json": {"size": "s"}}, [(["body", "name"], "missing"), (["body", "size"], "int_parsing")]),
        ("POST", "/body", {"content": '{"name": "n"}'}, [(["body"], "content_type")]),
        (
            "POST",
            "/body",
            {"content": "{", "headers": {"Content-Type": "application/json"}},
            [(["body"], "json_invalid")],
        ),
    ],
)
def test_all_that_is_wrong_is_told_at_once(
    direct: TestClient, method: str, path: str, more: dict[str, Any], expected: list[Any]
) -> None:
    response = direct.request(method, f"/direct{path}", **more)
    assert response.status_code == 422
    assert [(error["loc"], error["type"]) for error in response.json()["errors"]] == expected


def test_a_method_that_is_not_there_is_405(direct: TestClient) -> None:
    response = direct.delete("/direct/body")
    assert (response.status_code, response.headers["allow"]) == (405, "POST, PUT")


async def depends(x: Annotated[int, Depends(lambda: 1)]) -> Response: ...
async def cookie(x: Annotated[str, Cookie()]) -> Response: ...
async def background(x: BackgroundTasks) -> Response: ...
async def response_parameter(x: Response) -> Response: ...
async def connection(x: HTTPConnection) -> Response: ...
async def scopes(x: SecurityScopes) -> Response: ...
async def two_bodies(x: Item, y: Item) -> Response: ...
async def header_model(x: Annotated[Headers, Header()]) -> Response: ...
async def header_list(x: Annotated[list[str], Header()]) -> Response: ...
async def no_response() -> dict[str, str]: ...  # type: ignore[empty-body]
async def no_annotation(): ...  # type: ignore[no-untyped-def]
async def convertor(x: int) -> Response: ...
def no_coroutine() -> Response: ...


@pytest.mark.parametrize(
    ("endpoint", "named"),
    [
        (depends, r"Depends\(\)"),
        (cookie, "a cookie"),
        (background, "BackgroundTasks"),
        (response_parameter, "a Response as a parameter"),
        (connection, "HTTPConnection"),
        (scopes, "SecurityScopes"),
        (two_bodies, "several bodies"),
        (header_model, "a model of headers"),
        (header_list, "a header that may be repeated"),
        (no_response, "a return value that is not a Response"),
        (no_annotation, "a return value that is not a Response"),
        (no_coroutine, "a function without `async`"),
    ],
)
def test_what_would_be_ignored_is_refused_by_name(endpoint: Callable[..., Any], named: str) -> None:
    with pytest.raises(TypeError, match=f"^{endpoint.__name__}: DirectRoute would ignore {named}"):
        DirectRouter().post("/x")(endpoint)


@pytest.mark.parametrize(
    ("options", "named"),
    [({"dependencies": [Depends(lambda: 1)]}, r"Depends\(\)"), ({"max_body_size": 1}, "max_body_size")],
)
def test_what_a_decorator_says_and_would_be_ignored_is_refused(options: dict[str, Any], named: str) -> None:
    with pytest.raises(TypeError, match=f"would ignore {named}"):
        DirectRouter().get("/x", **options)(in_path)
    with pytest.raises(TypeError, match=f"would ignore {named}"):
        DirectRouter(**options).get("/x")(in_path)


def test_a_convertor_in_a_path_is_refused() -> None:
    with pytest.raises(TypeError, match="would ignore a convertor in the path"):
        DirectRouter().get("/{x:int}")(convertor)


@pytest.mark.parametrize("options", [{"dependencies": [Depends(lambda: 1)]}, {"max_body_size": 1}, {"prefix": "/more"}])
def test_what_an_inclusion_says_and_would_be_ignored_is_refused(options: dict[str, Any]) -> None:
    app = FastAPI()
    app.include_router(router, **options)
    with pytest.raises(TypeError, match=f"would ignore the {next(iter(options))} of include_router"):
        check_routes(app)


def test_dependencies_of_the_whole_app_are_refused() -> None:
    app = FastAPI(dependencies=[Depends(lambda: 1)])
    app.include_router(router)
    with pytest.raises(TypeError, match="would ignore the dependencies"):
        check_routes(app)


def test_a_route_of_another_kind_in_the_same_router_is_refused() -> None:
    own = DirectRouter()
    own.add_route("/x", lambda _request: Response())
    app = FastAPI()
    app.include_router(own)
    with pytest.raises(TypeError, match="none of its endpoints"):
        check_routes(app)


def test_a_router_of_ones_own_has_all_of_fastapi(settings: Settings) -> None:
    own = APIRouter(prefix="/own")
    log: list[str] = []

    def current(session: Annotated[str, Cookie()]) -> Iterator[str]:
        yield session.upper()
        log.append("closed")

    class Named(BaseModel):
        name: str
        hidden: int = 0

    @own.post("/{x:int}", response_model=Named, response_model_exclude={"hidden"})
    def endpoint(
        x: int, who: Annotated[str, Depends(current)], item: Item, later: BackgroundTasks, response: Response
    ) -> Named:
        later.add_task(log.append, "later")
        response.headers["X-Own"] = str(x)
        return Named(name=f"{who} {item.name}")

    app = create_app(settings)
    app.include_router(own)
    check_routes(app)
    with TestClient(app, cookies={"session": "ann"}) as client:
        answer = client.post("/own/7", json={"name": "n"})
        assert (answer.status_code, answer.json(), answer.headers["x-own"]) == (200, {"name": "ANN n"}, "7")
        assert sorted(log) == ["closed", "later"]
        assert client.post("/own/7", json={}).json()["errors"][0]["loc"] == ["body", "name"]
        assert client.get("/api/somebody/tasks").json() == []
    assert "/own/{x}" in app.openapi()["paths"]


def test_fastapi_still_has_what_direct_routes_are_built_on() -> None:
    """When this fails after an upgrade, read routing.py beside FastAPI's new version."""
    needed = {
        *("path_params", "query_params", "header_params", "cookie_params", "body_params", "dependencies"),
        *("request_param_name", "websocket_param_name", "http_connection_param_name", "response_param_name"),
        *("background_tasks_param_name", "security_scopes_param_name"),
    }
    assert needed <= set(Dependant.__dataclass_fields__), "FastAPI reads signatures in another way now"
    known = needed | {
        "name",
        "call",
        "own_oauth_scopes",
        "parent_oauth_scopes",
        "use_cache",
        "path",
        "scope",
        "concurrency",
    }
    assert set(Dependant.__dataclass_fields__) == known, "FastAPI takes a kind of parameter that is not refused yet"
    route = DirectRoute("/{task_id}", in_body)
    assert route.dependant.body_params[0]._type_adapter.validator.validate_json(b'{"name": "n"}') == Item(name="n")
    app = FastAPI()
    app.include_router(router)
    contexts = [
        context for context in iter_route_contexts(app.routes) if isinstance(context.original_route, DirectRoute)
    ]
    assert {context.path for context in contexts} == {route.path for route in router.routes}  # type: ignore[attr-defined]
    assert inspect.iscoroutinefunction(APIRoute.handle)
