"""Endpoints that are declared as in FastAPI and called without its dependency injection.

For every request FastAPI solves the dependencies of the endpoint, opens exit stacks, and parses the body
into Python objects before it validates them. The endpoints of this service do not need that.

`DirectRoute` is a custom route class (https://fastapi.tiangolo.com/how-to/custom-request-and-route/).
FastAPI reads the signature of the endpoint once and generates OpenAPI from it. For a request, the route
validates each parameter with the validator that pydantic has built, a JSON body directly from its bytes,
and calls the endpoint. `DirectMiddleware` finds the route before FastAPI's own middleware and router run.

A declaration with a feature of FastAPI that these classes do not support raises TypeError at start-up, so
that no feature is silently ignored. A plain `APIRouter` in the same app has all features of FastAPI.
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
BODY_TOO_LARGE = f"The body is over {MAX_BODY_SIZE:,} bytes."
UNSET = object()  # the value of a parameter that was not sent, and the default of one that has none


# ---- Routes ---------------------------------------------------------------------------------


class DirectRoute(APIRoute):
    """A route that validates the parameters, calls the endpoint and sends the Response that it returns.

    An endpoint is an `async def` function that returns a `Response`. It may have path, query and header
    parameters, one model for all query parameters, one JSON body, and the `Request`. The constructor
    raises TypeError when the endpoint declares anything else.
    """

    def __init__(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:
        super().__init__(path, endpoint, **options)
        _reject_unsupported(self)
        dependant = self.dependant
        self._request_name = dependant.request_param_name
        self._path_params = [_Parameter("path", field) for field in dependant.path_params]
        self._header_params = [_Parameter("header", field) for field in dependant.header_params]
        self._query_params = [_Parameter("query", field) for field in dependant.query_params]
        self._body_params = [_Parameter("body", field) for field in dependant.body_params]
        self._repeatable = _repeatable_names(dependant.query_params)

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Respond to a request whose path matches this route."""
        # FastAPI's router calls this for another method when no route of the path has it.
        if scope["method"] not in (self.methods or ()):
            await super().handle(scope, receive, send)  # which raises HTTPException 405
            return
        response = await self.endpoint(**await self._read_arguments(scope, receive))
        await response(scope, receive, send)

    async def _read_arguments(self, scope: Scope, receive: Receive) -> dict[str, Any]:
        """Return the validated arguments of the endpoint.

        This is a function of its own so that the body and the headers are freed while the endpoint runs.
        """
        headers = dict(reversed(scope["headers"]))  # reversed, so that the first of repeated headers is used
        body = await _read_body(scope, receive, headers)  # for every endpoint, because the size limit applies to all
        arguments = self._validate(scope, headers, body)
        if self._request_name:
            arguments[self._request_name] = DirectRequest(scope, receive)
        return arguments

    def _validate(self, scope: Scope, headers: dict[bytes, bytes], body: bytes) -> dict[str, Any]:
        """Return the arguments by name. Raises RequestValidationError with all errors when there are any."""
        arguments: dict[str, Any] = {}
        errors: list[dict[str, Any]] = []
        for parameter in self._path_params:
            parameter.validate_into(scope["path_params"].get(parameter.key, UNSET), arguments, errors)
        for parameter in self._header_params:
            value = headers.get(parameter.header)
            parameter.validate_into(UNSET if value is None else value.decode("latin-1"), arguments, errors)
        if self._query_params:
            values = _query_values(scope["query_string"], self._repeatable)
            for parameter in self._query_params:
                parameter.validate_into(
                    values if parameter.is_model else values.get(parameter.key, UNSET), arguments, errors
                )
        for parameter in self._body_params:
            if not body:
                parameter.validate_into(UNSET, arguments, errors)
            elif _is_json(headers.get(b"content-type", b"")):
                parameter.validate_into(body.removeprefix(BOM_UTF8), arguments, errors)  # RFC 8259, section 8.1
            else:
                # A page of another site can send text/plain without a CORS preflight, so it is not read as JSON.
                msg = "Body should be JSON, sent with Content-Type: application/json"
                errors.append({"type": "content_type", "loc": ("body",), "msg": msg})
        if errors:
            raise RequestValidationError(errors)
        return arguments


class DirectRouter(APIRouter):
    """A router of DirectRoutes. `find` replaces FastAPI's search for a route (see DirectMiddleware)."""

    def __init__(self, **options: Any) -> None:
        super().__init__(route_class=DirectRoute, **options)
        # By path template: the regular expression of the path, and its routes by method.
        self._paths: dict[str, tuple[re.Pattern[str], dict[str, DirectRoute]]] = {}

    def add_api_route(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:
        """Add a route. FastAPI's decorators call this."""
        super().add_api_route(path, endpoint, **options)
        route = cast(DirectRoute, self.routes[-1])
        _, by_method = self._paths.setdefault(route.path, (route.path_regex, {}))
        by_method.update(dict.fromkeys(route.methods or (), route))

    def find(self, path: str, method: str) -> tuple[DirectRoute, dict[str, str]] | None:
        """Return the route that matches the path and the method, and its path parameters; None if there is none."""
        for regex, by_method in self._paths.values():
            if (match := regex.match(path)) and (route := by_method.get(method)):
                return route, match.groupdict()
        return None


class DirectMiddleware:
    """A middleware that calls the DirectRoute of a request, and passes all other requests to FastAPI.

    FastAPI would open exit stacks and search for the route twice, which took a quarter of the time of a
    read. Exceptions are passed to the exception handlers of the app, as FastAPI does.
    """

    def __init__(self, app: ASGIApp, routers: list[DirectRouter], handlers: Mapping[Any, Any]) -> None:
        self.app = app
        self.routers = routers
        # The keys are classes of exceptions. Starlette also has handlers for a status, which are not supported here.
        self.handlers = {key: handler for key, handler in handlers.items() if isinstance(key, type)}
        self.handled: tuple[type[Exception], ...] = tuple(self.handlers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Respond to a request."""
        if scope["type"] == "http":
            path = get_route_path(scope)
            for router in self.routers:
                if found := router.find(path, scope["method"]):
                    route, path_params = found
                    scope["route"], scope["path_params"] = route, path_params
                    try:
                        await route.handle(scope, receive, send)
                    except self.handled as error:
                        await self._handle(error, scope, receive, send)
                    return
        await self.app(scope, receive, send)

    async def _handle(self, error: Exception, scope: Scope, receive: Receive, send: Send) -> None:
        """Respond with the exception handler of the error's class, or of its nearest base class that has one."""
        handler = next(self.handlers[cls] for cls in type(error).__mro__ if cls in self.handlers)
        response = await handler(Request(scope, receive), error)
        await response(scope, receive, send)


# ---- Responses and requests -----------------------------------------------------------------


class JSONBytes(Response):
    """A JSON response whose body and headers are already bytes."""

    def __init__(self, body: bytes, status_code: int = 200, headers: Iterable[tuple[bytes, bytes]] = ()) -> None:
        self.status_code = status_code
        self.body = body
        self.background = None
        self.raw_headers = [
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(body)),
            *headers,
        ]


class DirectRequest(Request):
    """The Request that an endpoint of a DirectRoute receives. Its `is_disconnected` is faster than Starlette's."""

    async def is_disconnected(self) -> bool:
        """Return whether the client has disconnected. Do not wait.

        Starlette opens a cancel scope around `receive()`, which takes 50 µs under load. This method
        runs `receive()` up to the point at which it would wait, and then closes it.
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


# ---- Parameters -----------------------------------------------------------------------------


class _Parameter:
    """A parameter of an endpoint, as FastAPI has read it from the signature."""

    def __init__(self, location: str, field: ModelField) -> None:
        self.name = field.name  # of the endpoint's argument
        self.key = field.alias  # the name in the request
        self.header = field.alias.lower().encode()
        self.is_model = _is_model(field)
        self.loc = (location,) if location == "body" or self.is_model else (location, field.alias)
        self.default = UNSET if field.field_info.is_required() else field.get_default()
        validator = field._type_adapter.validator
        self.validate = validator.validate_json if location == "body" else validator.validate_python

    def validate_into(self, value: Any, arguments: dict[str, Any], errors: list[dict[str, Any]]) -> None:
        """Validate a value and add it to `arguments`, or add its errors to `errors`.

        The value of a body is its JSON as bytes. If the value is UNSET, the default is used.
        """
        if value is not UNSET:
            try:
                arguments[self.name] = self.validate(value)
            except ValidationError as error:
                items = error.errors(include_url=False, include_input=False)
                errors += [{**item, "loc": (*self.loc, *item["loc"])} for item in items]
        elif self.default is not UNSET:
            arguments[self.name] = self.default
        else:
            errors.append({"type": "missing", "loc": self.loc, "msg": "Field required"})


async def _read_body(scope: Scope, receive: Receive, headers: dict[bytes, bytes]) -> bytes:
    """Return the body of a request.

    Raises HTTPException 413 when it is larger than MAX_BODY_SIZE, ClientDisconnect when the client
    disconnects, and RequestValidationError when the body is incomplete.
    """
    length = headers.get(b"content-length", b"0")
    chunked = b"transfer-encoding" in headers
    if length == b"0" and not chunked and scope["http_version"] in ("1.0", "1.1"):
        return b""  # without either header a request has no body (RFC 9112, section 6.3)
    if length.isdigit() and int(length) > MAX_BODY_SIZE:
        raise HTTPException(413, BODY_TOO_LARGE)
    body, more = bytearray(), True  # a bytes object would be copied for each chunk
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        body += message.get("body", b"")
        more = message.get("more_body", False)
        if len(body) > MAX_BODY_SIZE:
            raise HTTPException(413, BODY_TOO_LARGE)
    # uvicorn drops the body of a request with Upgrade. If it is chunked, nothing else shows that it had one, so it
    # always counts as incomplete: without its body, `PATCH .../complete` would toggle instead of setting a value.
    if (length.isdigit() and len(body) < int(length)) or (chunked and b"upgrade" in headers):
        msg = "Body did not arrive"
        raise RequestValidationError([{"type": "body_missing", "loc": ("body",), "msg": msg}])
    return bytes(body)


def _is_json(content_type: bytes) -> bool:
    media_type = content_type.partition(b";")[0].strip().lower()
    return media_type == b"application/json" or (
        media_type.startswith(b"application/") and media_type.endswith(b"+json")
    )


def _query_values(query: bytes, repeatable: frozenset[str]) -> dict[str, Any]:
    """Return the query parameters by name.

    A parameter in `repeatable` has a list of values. Raises RequestValidationError when another one is
    repeated.
    """
    values: dict[str, Any] = {}
    for name, value in parse_qsl(query.decode("latin-1"), keep_blank_values=True):
        if name in repeatable:
            values.setdefault(name, []).append(value)
        elif name in values:
            msg = "Query parameter must not be repeated"
            raise RequestValidationError([{"type": "repeated", "loc": ("query", name), "msg": msg}])
        else:
            values[name] = value
    return values


def _is_model(field: ModelField) -> bool:
    return isinstance(field.field_info.annotation, type) and issubclass(field.field_info.annotation, BaseModel)


def _repeatable_names(fields: list[ModelField]) -> frozenset[str]:
    """Return the names of the parameters that may be repeated: those whose type contains a list."""
    types: dict[str, Any] = {}
    for field in fields:
        annotation: Any = field.field_info.annotation
        if _is_model(field):
            types |= {name: info.annotation for name, info in annotation.model_fields.items()}
        else:
            types[field.alias] = annotation
    return frozenset(name for name, annotation in types.items() if _contains_list(annotation))


def _contains_list(annotation: Any) -> bool:
    return get_origin(annotation) is list or any(map(_contains_list, get_args(annotation)))


# ---- Checks of declarations -----------------------------------------------------------------


def _reject_unsupported(route: APIRoute) -> None:
    """Check the declaration of an endpoint. Raises TypeError when DirectRoute does not support a part of it."""
    dependant, body = route.dependant, route.dependant.body_params
    headers = dependant.header_params
    unsupported = {
        "Depends()": dependant.dependencies or route.dependencies,
        "a cookie": dependant.cookie_params,
        "a form or a file": any(isinstance(field.field_info, params.Form) for field in body),
        "several bodies": len(body) > 1 or (body and route._embed_body_fields),
        "a model of headers": any(map(_is_model, headers)),
        "a header that may be repeated": _repeatable_names(headers),
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
    for feature, used in unsupported.items():
        if used:
            raise TypeError(f"{route.name}: DirectRoute does not support {feature}; use an APIRouter")


def _returns_response(endpoint: Callable[..., Any]) -> bool:
    returned = get_type_hints(endpoint).get("return")
    return isinstance(returned, type) and issubclass(returned, Response)


def check_routes(app: FastAPI) -> None:
    """Check the routers of the app. Raises TypeError when DirectRouter does not support how one is included."""
    for context in iter_route_contexts(app.routes):
        route = context.original_route
        if isinstance(route, DirectRoute):
            unsupported = {
                "dependencies": context.dependencies,
                "max_body_size": context.max_body_size,
                "prefix": context.path != route.path,
            }
            for option, used in unsupported.items():
                if used:
                    raise TypeError(f"{route.name}: DirectRouter does not support {option} of include_router()")
    for included in app.routes:
        router = getattr(included, "original_router", None)
        if isinstance(router, DirectRouter) and not all(isinstance(route, DirectRoute) for route in router.routes):
            raise TypeError("DirectRouter does not support a route that is not a DirectRoute")
