"""The second clever room: endpoints declared as FastAPI's, called directly.

FastAPI solves an endpoint's signature anew for every request: dependencies, exit stacks, a body that
is parsed to Python objects before it is validated. Nothing here needs that. `DirectRoute` is a
`route_class` (https://fastapi.tiangolo.com/how-to/custom-request-and-route/). FastAPI reads the
signature, once, and makes OpenAPI of it. At request time each parameter is validated by the validator
that pydantic built for it, a body straight from its bytes, and the endpoint is called; `DirectMiddleware`
does so before FastAPI's layers for all other routes.

What FastAPI would do and this does not is refused by name when the endpoint is declared or the app is
made, so that nothing is ever skipped in silence. A router that is no `DirectRouter` has all of FastAPI,
beside these.
"""

import inspect
import re
from codecs import BOM_UTF8
from collections.abc import Callable, Iterable, Mapping
from typing import Any, cast, get_args, get_origin, get_type_hints
from urllib.parse import parse_qsl

from fastapi import FastAPI, Request, Response, params
from fastapi._compat import ModelField
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute, APIRouter, iter_route_contexts
from pydantic import BaseModel, ValidationError
from starlette._utils import get_route_path
from starlette.convertors import StringConvertor
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Receive, Scope, Send

MAX_BODY_SIZE = 1024 * 1024  # bytes
TOO_LARGE = f"The body is over {MAX_BODY_SIZE:,} bytes."
ABSENT = object()  # a value that was not sent, or a default that there is not


class JSONBytes(Response):
    """A response of JSON that is bytes already, as are its headers."""

    def __init__(self, body: bytes, status_code: int = 200, headers: Iterable[tuple[bytes, bytes]] = ()) -> None:
        self.status_code = status_code
        self.body = body
        self.background = None
        self.raw_headers = [
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(body)),
            *headers,
        ]


class ConnectedRequest(Request):
    """A request that can be asked at little cost whether its client is still there."""

    async def is_disconnected(self) -> bool:
        """Tell whether the client has gone, without waiting for it.

        Starlette cancels a wait that has just begun, which takes 50 us where many ask. Here a wait is
        begun and dropped.
        """
        receiving = self._receive()
        if not inspect.iscoroutine(receiving):
            return await super().is_disconnected()
        try:
            receiving.send(None)
        except StopIteration as received:
            return bool(received.value["type"] == "http.disconnect")
        receiving.close()
        return False


class _Parameter:
    """A parameter of an endpoint, as FastAPI has read it from the signature."""

    def __init__(self, place: str, field: ModelField) -> None:
        self.name = field.name
        self.key = field.alias
        self.header = field.alias.lower().encode()
        self.is_model = _is_model(field)
        self.loc = (place,) if place == "body" or self.is_model else (place, field.alias)
        self.default = ABSENT if field.field_info.is_required() else field.get_default()
        validator = field._type_adapter.validator
        self.validate = validator.validate_json if place == "body" else validator.validate_python

    def take(self, value: Any, arguments: dict[str, Any], errors: list[dict[str, Any]]) -> None:
        """Validate a value into the arguments, or note what is wrong with it. A body is JSON, in bytes."""
        if value is not ABSENT:
            try:
                arguments[self.name] = self.validate(value)
            except ValidationError as error:
                found = error.errors(include_url=False, include_input=False)
                errors += [{**one, "loc": (*self.loc, *one["loc"])} for one in found]
        elif self.default is not ABSENT:
            arguments[self.name] = self.default
        else:
            errors.append({"type": "missing", "loc": self.loc, "msg": "Field required"})


class DirectRoute(APIRoute):
    """A route that calls its endpoint with validated arguments, and sends the Response that it returns.

    An endpoint is an `async def` that returns a `Response`. It may take parameters of path, query and
    header, one model for the whole query, one JSON body, and the `Request`. Anything else raises
    TypeError when it is declared.
    """

    def __init__(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:
        super().__init__(path, endpoint, **options)
        _refuse_what_is_ignored(self)
        dependant = self.dependant
        self._request_name = dependant.request_param_name
        self._path = [_Parameter("path", field) for field in dependant.path_params]
        self._headers = [_Parameter("header", field) for field in dependant.header_params]
        self._query = [_Parameter("query", field) for field in dependant.query_params]
        self._body = [_Parameter("body", field) for field in dependant.body_params]
        self._lists = _list_names(dependant.query_params)

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Respond to a request that has this route's path."""
        if scope["method"] not in (self.methods or ()):
            await super().handle(scope, receive, send)  # 405
            return
        response = await self.endpoint(**await self._arguments(scope, receive))
        await response(scope, receive, send)

    async def _arguments(self, scope: Scope, receive: Receive) -> dict[str, Any]:
        """Return the validated arguments of the endpoint. What they are made of need not wait with it."""
        headers = dict(reversed(scope["headers"]))  # of two equal ones the first counts
        body = await _read_body(scope, receive, headers)  # also where none is expected: it may be too large
        arguments = self._validated(scope, headers, body)
        if self._request_name:
            arguments[self._request_name] = ConnectedRequest(scope, receive)
        return arguments

    def _validated(self, scope: Scope, headers: dict[bytes, bytes], body: bytes) -> dict[str, Any]:
        """Return the arguments by name. Raises RequestValidationError with all that is wrong."""
        arguments: dict[str, Any] = {}
        errors: list[dict[str, Any]] = []
        for parameter in self._path:
            parameter.take(scope["path_params"].get(parameter.key, ABSENT), arguments, errors)
        for parameter in self._headers:
            value = headers.get(parameter.header)
            parameter.take(ABSENT if value is None else value.decode("latin-1"), arguments, errors)
        if self._query:
            values = _query_values(scope["query_string"], self._lists)
            for parameter in self._query:
                parameter.take(values if parameter.is_model else values.get(parameter.key, ABSENT), arguments, errors)
        for parameter in self._body:
            if not body:
                parameter.take(ABSENT, arguments, errors)
            elif _is_json(headers.get(b"content-type", b"")):
                parameter.take(body.removeprefix(BOM_UTF8), arguments, errors)  # RFC 8259, section 8.1
            else:
                # Without this a page of another site could send one as plain text, which no browser asks about.
                msg = "Body should be JSON, sent with Content-Type: application/json"
                errors.append({"type": "content_type", "loc": ("body",), "msg": msg})
        if errors:
            raise RequestValidationError(errors)
        return arguments


class DirectRouter(APIRouter):
    """A router of DirectRoutes, which finds the one for a request by itself (see DirectMiddleware)."""

    def __init__(self, **options: Any) -> None:
        super().__init__(route_class=DirectRoute, **options)
        self._paths: dict[str, tuple[re.Pattern[str], dict[str, DirectRoute]]] = {}

    def add_api_route(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:
        """Add a route, as a decorator does."""
        super().add_api_route(path, endpoint, **options)
        route = cast(DirectRoute, self.routes[-1])
        _, by_method = self._paths.setdefault(route.path, (route.path_regex, {}))
        by_method.update(dict.fromkeys(route.methods or (), route))

    def find(self, path: str, method: str) -> tuple[DirectRoute, dict[str, str]] | None:
        """Return the route that has this path and method, and the parameters of the path."""
        for regex, by_method in self._paths.values():
            if (found := regex.match(path)) and (route := by_method.get(method)):
                return route, found.groupdict()
        return None


class DirectMiddleware:
    """Hands a request to its direct route, and everything else to FastAPI.

    FastAPI's own way there goes through exit stacks and two searches for the route, which took a
    quarter of a read's time. What it does for an exception is done here, with the same handlers.
    """

    def __init__(self, app: ASGIApp, routers: list[DirectRouter], handlers: Mapping[Any, Any]) -> None:
        self.app = app
        self.routers = routers
        self.handlers = {kind: handler for kind, handler in handlers.items() if isinstance(kind, type)}
        self.handled: tuple[type[Exception], ...] = tuple(self.handlers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Respond to a request."""
        if scope["type"] == "http":
            path = get_route_path(scope)
            for router in self.routers:
                if found := router.find(path, scope["method"]):
                    scope["route"], scope["path_params"] = found
                    try:
                        await found[0].handle(scope, receive, send)
                    except self.handled as error:
                        await self._handle(error, scope, receive, send)
                    return
        await self.app(scope, receive, send)

    async def _handle(self, error: Exception, scope: Scope, receive: Receive, send: Send) -> None:
        kind = next(kind for kind in type(error).__mro__ if kind in self.handlers)
        response = await self.handlers[kind](Request(scope, receive), error)
        await response(scope, receive, send)


async def _read_body(scope: Scope, receive: Receive, headers: dict[bytes, bytes]) -> bytes:
    """Return the body of a request.

    Raises HTTPException 413 when it is too large, ClientDisconnect when the client goes away meanwhile,
    and RequestValidationError when it is shorter than announced: a server drops the body of a request
    that asks for an Upgrade, and what was to set a task must not toggle it then.
    """
    length = headers.get(b"content-length", b"0")
    chunked = b"transfer-encoding" in headers
    if length == b"0" and not chunked and scope["http_version"] in ("1.0", "1.1"):  # RFC 9112, section 6.3
        return b""
    if length.isdigit() and int(length) > MAX_BODY_SIZE:
        raise HTTPException(413, TOO_LARGE)
    body, more = bytearray(), True  # no bytes, which would be copied with each of a million small pieces
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        body += message.get("body", b"")
        more = message.get("more_body", False)
        if len(body) > MAX_BODY_SIZE:
            raise HTTPException(413, TOO_LARGE)
    if (length.isdigit() and len(body) < int(length)) or (chunked and b"upgrade" in headers):
        msg = "Body did not arrive"
        raise RequestValidationError([{"type": "body_missing", "loc": ("body",), "msg": msg}])
    return bytes(body)


def _is_json(content_type: bytes) -> bool:
    kind = content_type.partition(b";")[0].strip().lower()
    return kind == b"application/json" or (kind.startswith(b"application/") and kind.endswith(b"+json"))


def _query_values(query: bytes, lists: frozenset[str]) -> dict[str, Any]:
    """Return the values of a query string by name. Raises RequestValidationError for one that is repeated."""
    values: dict[str, Any] = {}
    for name, value in parse_qsl(query.decode("latin-1"), keep_blank_values=True):
        if name in lists:
            values.setdefault(name, []).append(value)
        elif name in values:
            msg = "Query parameter must not be repeated"
            raise RequestValidationError([{"type": "repeated", "loc": ("query", name), "msg": msg}])
        else:
            values[name] = value
    return values


def _is_model(field: ModelField) -> bool:
    return isinstance(field.field_info.annotation, type) and issubclass(field.field_info.annotation, BaseModel)


def _list_names(fields: list[ModelField]) -> frozenset[str]:
    """Return the names of the query parameters that may be repeated."""
    types: dict[str, Any] = {}
    for field in fields:
        kind: Any = field.field_info.annotation
        if _is_model(field):
            types |= {name: info.annotation for name, info in kind.model_fields.items()}
        else:
            types[field.alias] = kind
    return frozenset(name for name, kind in types.items() if _has_list(kind))


def _has_list(kind: Any) -> bool:
    return get_origin(kind) is list or any(map(_has_list, get_args(kind)))


# ---- What is refused ------------------------------------------------------------------------


def _refuse_what_is_ignored(route: APIRoute) -> None:
    """Raise TypeError when the declaration of an endpoint has something that `DirectRoute` would ignore."""
    dependant, body = route.dependant, route.dependant.body_params
    headers = dependant.header_params
    ignored = {
        "Depends()": dependant.dependencies or route.dependencies,
        "a cookie": dependant.cookie_params,
        "a form or a file": any(isinstance(field.field_info, params.Form) for field in body),
        "several bodies": len(body) > 1 or (body and route._embed_body_fields),
        "a model of headers": any(map(_is_model, headers)),
        "a header that may be repeated": _list_names(headers),
        "BackgroundTasks": dependant.background_tasks_param_name,
        "a Response as a parameter": dependant.response_param_name,
        "SecurityScopes": dependant.security_scopes_param_name,
        "HTTPConnection": dependant.http_connection_param_name,
        "a WebSocket": dependant.websocket_param_name,
        "a default_factory": any(f.field_info.default_factory for f in [*headers, *dependant.query_params, *body]),
        "max_body_size": route.max_body_size,
        "form_limits": route.form_limits,
        "a convertor in the path": any(type(c) is not StringConvertor for c in route.param_convertors.values()),
        "a function without `async`": not inspect.iscoroutinefunction(route.endpoint),
        "a return value that is not a Response": not _returns_response(route.endpoint),
    }
    for what, found in ignored.items():
        if found:
            raise TypeError(f"{route.name}: DirectRoute would ignore {what}; use an APIRouter for it")


def _returns_response(endpoint: Callable[..., Any]) -> bool:
    returned = get_type_hints(endpoint).get("return")
    return isinstance(returned, type) and issubclass(returned, Response)


def check_routes(app: FastAPI) -> None:
    """Raise TypeError when an included router has something that `DirectRouter` would ignore."""
    for context in iter_route_contexts(app.routes):
        route = context.original_route
        if isinstance(route, DirectRoute):
            ignored = {
                "dependencies": context.dependencies,
                "max_body_size": context.max_body_size,
                "prefix": context.path != route.path,
            }
            for what, found in ignored.items():
                if found:
                    raise TypeError(f"{route.name}: DirectRouter would ignore the {what} of include_router()")
    for included in app.routes:
        router = getattr(included, "original_router", None)
        if isinstance(router, DirectRouter) and not all(isinstance(route, DirectRoute) for route in router.routes):
            raise TypeError("DirectRouter would ignore a route that is none of its endpoints")
