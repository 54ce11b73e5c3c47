"""DirectRoute: validation of parameters, and rejection of declarations that it does not support."""

import inspect
from collections.abc import Callable, Iterator
from enum import StrEnum
from typing import Annotated, Any

import pytest
from fastapi import (
    APIRouter,
    BackgroundTasks,
    Cookie,
    Depends,
    FastAPI,
    Header,
    Query,
    Request,
    Response,
    WebSocket,
)
from fastapi.dependencies.models import Dependant
from fastapi.responses import PlainTextResponse
from fastapi.routing import APIRoute, iter_route_contexts
from fastapi.security import SecurityScopes
from fastapi.testclient import TestClient
from pydantic import BaseModel
from starlette.requests import HTTPConnection

from main import create_app
from routing import DirectMiddleware, DirectRoute, DirectRouter, check_routes
from settings import Settings


class Color(StrEnum):
    red = "red"
    blue = "blue"


class Filter(BaseModel):
    color: list[Color] = []
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
async def path_parameters(name: str, size: int) -> Response:
    return echo(name=name, size=size)


@router.get("/query")
async def query_parameters(word: str, number: int = 3, color: Annotated[list[Color], Query()] = []) -> Response:  # noqa: B006
    return echo(word=word, number=number, color=[str(item) for item in color])


@router.get("/model")
async def query_model(query: Annotated[Filter, Query()]) -> Response:
    return echo(**query.model_dump(mode="json"))


@router.get("/header")
async def header_parameters(
    x_token: Annotated[str, Header(max_length=5)], x_more: Annotated[str | None, Header()] = None
) -> Response:
    return echo(x_token=x_token, x_more=x_more)


@router.post("/body")
async def body(request: Request, item: Item) -> Response:
    return echo(method=request.method, **item.model_dump())


@router.put("/body")
async def optional_body(item: Item | None = None) -> Response:
    return echo(item=item and item.model_dump())


@pytest.fixture(scope="module", params=[True, False], ids=["DirectMiddleware", "FastAPI's router"])
def direct(request: pytest.FixtureRequest, settings: Settings) -> Iterator[TestClient]:
    """A client of an app with the router above, found by DirectMiddleware or by FastAPI."""
    app = create_app(settings)
    app.include_router(router)
    if request.param:
        app.add_middleware(DirectMiddleware, routers=[router], handlers=app.exception_handlers)
    check_routes(app)
    with TestClient(app) as client:
        yield client


@pytest.mark.parametrize(
    ("method", "path", "options", "expected"),
    [
        ("GET", "/a%20b/7", {}, {"name": "a b", "size": 7}),
        ("GET", "/query?word=x", {}, {"word": "x", "number": 3, "color": []}),
        (
            "GET",
            "/query?word=&number=4&color=red&color=blue",
            {},
            {"word": "", "number": 4, "color": ["red", "blue"]},
        ),
        ("GET", "/model", {}, {"color": [], "size": 1}),
        ("GET", "/model?color=red&size=2", {}, {"color": ["red"], "size": 2}),
        ("GET", "/header", {"headers": {"X-Token": "t"}}, {"x_token": "t", "x_more": None}),
        ("GET", "/header", {"headers": {"x-token": "t", "X-MORE": "m"}}, {"x_token": "t", "x_more": "m"}),
        ("POST", "/body", {"json": {"name": "n"}}, {"method": "POST", "name": "n", "size": 1}),
        ("PUT", "/body", {}, {"item": None}),
        ("PUT", "/body", {"json": {"name": "n", "size": 2}}, {"item": {"name": "n", "size": 2}}),
    ],
)
def test_parameters_are_passed_with_their_declared_types(
    direct: TestClient, method: str, path: str, options: dict[str, Any], expected: dict[str, Any]
) -> None:
    assert direct.request(method, f"/direct{path}", **options).text == repr(expected)


@pytest.mark.parametrize(
    ("method", "path", "options", "expected"),
    [
        ("GET", "/a/b", {}, [(["path", "size"], "int_parsing")]),
        ("GET", "/query", {}, [(["query", "word"], "missing")]),
        ("GET", "/query?word=a&word=b", {}, [(["query", "word"], "repeated")]),
        ("GET", "/query?number=x", {}, [(["query", "word"], "missing"), (["query", "number"], "int_parsing")]),
        (
            "GET",
            "/model?color=red&color=x&size=y",
            {},
            [(["query", "color", 1], "enum"), (["query", "size"], "int_parsing")],
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
def test_all_validation_errors_are_returned_together(
    direct: TestClient, method: str, path: str, options: dict[str, Any], expected: list[Any]
) -> None:
    response = direct.request(method, f"/direct{path}", **options)
    assert response.status_code == 422
    assert [(error["loc"], error["type"]) for error in response.json()["errors"]] == expected


def test_an_undeclared_method_is_405_with_allow(direct: TestClient) -> None:
    response = direct.delete("/direct/body")
    assert (response.status_code, response.headers["allow"]) == (405, "POST, PUT")


async def dependency(x: Annotated[int, Depends(lambda: 1)]) -> Response: ...
async def cookie(x: Annotated[str, Cookie()]) -> Response: ...
async def background(x: BackgroundTasks) -> Response: ...
async def response_parameter(x: Response) -> Response: ...
async def connection(x: HTTPConnection) -> Response: ...
async def scopes(x: SecurityScopes) -> Response: ...
async def websocket(x: WebSocket) -> Response: ...
async def default_factory(x: Annotated[list[int], Query(default_factory=list)]) -> Response: ...
async def two_bodies(x: Item, y: Item) -> Response: ...
async def header_model(x: Annotated[Headers, Header()]) -> Response: ...
async def header_list(x: Annotated[list[str], Header()]) -> Response: ...
async def no_response() -> dict[str, str]: ...  # type: ignore[empty-body]
async def no_annotation(): ...  # type: ignore[no-untyped-def]
async def convertor(x: int) -> Response: ...
def not_async() -> Response: ...


@pytest.mark.parametrize(
    ("endpoint", "feature"),
    [
        (dependency, r"Depends\(\)"),
        (cookie, "a cookie"),
        (background, "BackgroundTasks"),
        (response_parameter, "a Response as a parameter"),
        (connection, "HTTPConnection"),
        (scopes, "SecurityScopes"),
        (websocket, "a WebSocket"),
        (default_factory, "a default_factory"),
        (two_bodies, "several bodies"),
        (header_model, "a model of headers"),
        (header_list, "a header that may be repeated"),
        (no_response, "a return value that is not a Response"),
        (no_annotation, "a return value that is not a Response"),
        (not_async, "a function without `async`"),
    ],
)
def test_an_unsupported_parameter_or_return_type_is_rejected_by_name(
    endpoint: Callable[..., Any], feature: str
) -> None:
    with pytest.raises(TypeError, match=f"^{endpoint.__name__}: DirectRoute does not support {feature}"):
        DirectRouter().post("/x")(endpoint)


@pytest.mark.parametrize(
    ("options", "feature"),
    [
        ({"dependencies": [Depends(lambda: 1)]}, r"Depends\(\)"),
        ({"max_body_size": 1}, "max_body_size"),
    ],
)
def test_unsupported_options_of_decorator_and_router_are_rejected(options: dict[str, Any], feature: str) -> None:
    with pytest.raises(TypeError, match=f"does not support {feature}"):
        DirectRouter().get("/x", **options)(path_parameters)
    with pytest.raises(TypeError, match=f"does not support {feature}"):
        DirectRouter(**options).get("/x")(path_parameters)


def test_form_limits_are_rejected() -> None:
    with pytest.raises(TypeError, match="does not support form_limits"):
        DirectRouter().get("/x", form_limits={"max_files": 1})(path_parameters)


def test_a_convertor_in_a_path_is_rejected() -> None:
    with pytest.raises(TypeError, match="does not support a convertor in the path"):
        DirectRouter().get("/{x:int}")(convertor)


@pytest.mark.parametrize("options", [{"dependencies": [Depends(lambda: 1)]}, {"max_body_size": 1}, {"prefix": "/more"}])
def test_unsupported_options_of_include_router_are_rejected(options: dict[str, Any]) -> None:
    app = FastAPI()
    app.include_router(router, **options)
    with pytest.raises(TypeError, match=f"does not support {next(iter(options))} of include_router"):
        check_routes(app)


def test_dependencies_of_the_app_are_rejected() -> None:
    app = FastAPI(dependencies=[Depends(lambda: 1)])
    app.include_router(router)
    with pytest.raises(TypeError, match="does not support dependencies"):
        check_routes(app)


def test_another_kind_of_route_in_a_direct_router_is_rejected() -> None:
    mixed = DirectRouter()
    mixed.add_route("/x", lambda _request: Response())
    app = FastAPI()
    app.include_router(mixed)
    with pytest.raises(TypeError, match="a route that is not a DirectRoute"):
        check_routes(app)


def test_an_api_router_in_the_same_app_has_all_features(settings: Settings) -> None:
    plain = APIRouter(prefix="/plain")
    log: list[str] = []

    def session_user(session: Annotated[str, Cookie()]) -> Iterator[str]:
        yield session.upper()
        log.append("closed")

    class Named(BaseModel):
        name: str
        hidden: int = 0

    @plain.post("/{x:int}", response_model=Named, response_model_exclude={"hidden"})
    def endpoint(
        x: int, user: Annotated[str, Depends(session_user)], item: Item, tasks: BackgroundTasks, response: Response
    ) -> Named:
        tasks.add_task(log.append, "background task")
        response.headers["X-Value"] = str(x)
        return Named(name=f"{user} {item.name}")

    app = create_app(settings)
    app.include_router(plain)
    check_routes(app)
    with TestClient(app, cookies={"session": "ann"}) as client:
        response = client.post("/plain/7", json={"name": "n"})
        assert (response.status_code, response.json(), response.headers["x-value"]) == (200, {"name": "ANN n"}, "7")
        assert sorted(log) == ["background task", "closed"]
        assert client.post("/plain/7", json={}).json()["errors"][0]["loc"] == ["body", "name"]
        assert client.get("/api/somebody/tasks").json() == []
    assert "/plain/{x}" in app.openapi()["paths"]


def test_fastapi_has_the_internals_that_routing_uses() -> None:
    """If this fails after an upgrade, compare routing.py with the new version of FastAPI."""
    needed = {
        *("path_params", "query_params", "header_params", "cookie_params", "body_params", "dependencies"),
        *("request_param_name", "websocket_param_name", "http_connection_param_name", "response_param_name"),
        *("background_tasks_param_name", "security_scopes_param_name"),
    }
    assert needed <= set(Dependant.__dataclass_fields__), "FastAPI has changed how it reads signatures"
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
    assert set(Dependant.__dataclass_fields__) == known, (
        "FastAPI has a new kind of parameter that routing.py does not reject"
    )
    route = DirectRoute("/{task_id}", body)
    assert route.dependant.body_params[0]._type_adapter.validator.validate_json(b'{"name": "n"}') == Item(name="n")
    app = FastAPI()
    app.include_router(router)
    contexts = [
        context for context in iter_route_contexts(app.routes) if isinstance(context.original_route, DirectRoute)
    ]
    assert {context.path for context in contexts} == {route.path for route in router.routes}  # type: ignore[attr-defined]
    assert inspect.iscoroutinefunction(APIRoute.handle)
