"""Error responses as problem details (`application/problem+json`, RFC 9457), and their part of the OpenAPI schema.

The exception handlers turn exceptions of the endpoints, of FastAPI and of the database into problems. The
middleware uses the other functions for errors that no exception handler sees.
"""

import json
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from http import HTTPStatus
from typing import Any
from urllib.parse import quote
from uuid import uuid4

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import iter_route_contexts
from starlette._utils import get_route_path
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import Scope

from database import DatabaseUnavailable
from schemas import (
    MAX_ERRORS,
    MULTILINE_TEXT,
    NO_CONTROL_CHARACTERS,
    USER_ID_PATTERN,
    Problem,
    ServerProblem,
    ValidationProblem,
)

logger = logging.getLogger("tasks")

MEDIA_TYPE = "application/problem+json"
CONTENT_TYPE = (b"content-type", MEDIA_TYPE.encode())
# A problem repeats at most this many characters of the request's path, and of each name in `loc`. The longest
# path of a route has 185 characters, without the root path.
MAX_INSTANCE_LENGTH = 500
MAX_LOC_LENGTH = 100
TITLES = {413: "Content Too Large", 422: "Unprocessable Content"}  # as in RFC 9110; Python before 3.13 has older ones
REQUEST_ID = re.compile(r"[A-Za-z0-9._:=@/+-]{1,128}")  # an X-Request-Id that is logged and repeated
TRACEPARENT = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}(-.*)?")
RETRY_AFTER = {"Retry-After": "1"}  # seconds: most outages are short, as when a serverless database wakes up
# The `detail` of a problem that replaces a plain-text response. Only a rejected preflight is a plain 400.
PLAIN_TEXT_DETAILS = {400: "CORS does not allow this origin, method or header."}


def not_found() -> HTTPException:
    """Return the exception for a task that does not exist, and for a task of another user."""
    return HTTPException(404, "There is no such task.")


def validation_error(loc: tuple[str | int, ...], msg: str, error_type: str) -> RequestValidationError:
    """Return the exception for input that breaks a rule which a schema cannot express.

    The arguments are the members `loc`, `msg` and `type` of the one item in `errors`.
    """
    return RequestValidationError([{"loc": loc, "msg": msg, "type": error_type}])


def problem(scope: Scope, status: int, detail: str, headers: Mapping[str, str] | None = None, **more: Any) -> Response:
    """Return the response to a request that has a problem as its body.

    A problem has the five members of RFC 9457, section 3.1, and those in `more` (section 3.2). No problem has a
    type of its own, so `title` is the phrase of the status. From status 500 on, it also has `request_id`.
    """
    if status >= 500:
        more["request_id"] = request_id(scope)
    body = {
        "type": "about:blank",
        "title": TITLES.get(status, HTTPStatus(status).phrase),
        "status": status,
        "detail": detail,
        "instance": quote(scope["path"][:MAX_INSTANCE_LENGTH], safe="/:@!$&'()*+,;=-._~"),  # RFC 3986, section 3.3
    }
    # JSON in ASCII, because a name in `loc` may contain a lone surrogate, which UTF-8 cannot encode.
    return Response(json.dumps(body | more), status, headers, MEDIA_TYPE)


def request_id(scope: Scope) -> str:
    """Return the id of a request, which its problem and its log messages have in common.

    It is the `X-Request-Id` of the request, or else the trace id of its `traceparent` (W3C Trace Context, section
    3.2), or else a new one. A header that is not valid counts as missing.
    """
    if "request_id" not in scope:
        headers = Headers(scope=scope)
        if REQUEST_ID.fullmatch(given := headers.get("x-request-id", "")):
            scope["request_id"] = given
        elif match := TRACEPARENT.fullmatch(headers.get("traceparent", "")):
            scope["request_id"] = match[1]
        else:
            scope["request_id"] = uuid4().hex
    return str(scope["request_id"])


def describe_request(scope: Scope) -> str:
    """Return the method, path template and id of a request, for a log message without user ids and searches."""
    return f"{scope['method']} {path_template(scope) or 'unknown path'} {request_id(scope)}"


def path_template(scope: Scope) -> str | None:
    """Return the path of a request with names in place of its values, or None when no route matches."""
    return next((route.path for route in _matching_routes(scope)), None)


async def handle_http_exception(request: Request, error: HTTPException) -> Response:
    """Return the response to an HTTPException of an endpoint, of the router or of FastAPI."""
    if error.status_code == 400:  # FastAPI raises it only for a body that it cannot decode
        return await handle_validation_error(
            request, validation_error(("body",), "Body should be JSON in UTF-8", "json_invalid")
        )
    if error.status_code >= 500:
        logger.warning("[%s] %s", describe_request(request.scope), error.detail)
    headers = dict(error.headers or {})
    if error.status_code == 405:  # Starlette names only the methods of the first route with this path
        methods = {method for route in _matching_routes(request.scope) for method in route.methods or ()}
        headers["Allow"] = ", ".join(sorted(methods))  # of all routes with this path (RFC 9110, section 15.5.6)
    return problem(request.scope, error.status_code, error.detail, headers)


async def handle_validation_error(request: Request, error: RequestValidationError) -> Response:
    """Return the response to input that is not valid. It never repeats a value, which may be of any length."""
    return _validation_problem(request.scope, error.errors())


def _validation_problem(scope: Scope, errors: Sequence[Any]) -> Response:
    items = [
        {"loc": [_truncate(name) for name in error["loc"]], "msg": _message(error), "type": error["type"]}
        for error in errors[:MAX_ERRORS]
    ]
    details = [f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in items]
    if len(errors) > MAX_ERRORS:
        details.append(f"and {len(errors) - MAX_ERRORS} more")
    return problem(scope, 422, f"{'; '.join(details)}.", errors=items)


def _truncate(name: str | int) -> str | int:
    return f"{name[:MAX_LOC_LENGTH]}…" if isinstance(name, str) and len(name) > MAX_LOC_LENGTH else name


PATTERN_MESSAGES = {
    NO_CONTROL_CHARACTERS: "String should have no control characters",
    MULTILINE_TEXT: "String should have no control characters except tabs and line breaks",
    USER_ID_PATTERN: "String should have no slash and no control characters",
}


def _message(error: dict[str, Any]) -> str:
    """Return the message of an error: pydantic's, unless it is unclear to a client or repeats the input."""
    if error["type"] == "model_type":  # pydantic's names a Python class
        return "Input should be a JSON object"
    if error["type"] == "uuid_parsing":  # pydantic's repeats a character of the input
        return "Input should be a UUID"
    if error["type"] == "string_pattern_mismatch":
        return PATTERN_MESSAGES.get(error["ctx"]["pattern"], str(error["msg"]))
    return str(error["msg"])


async def handle_database_unavailable(request: Request, error: DatabaseUnavailable) -> Response:
    """Return the response when the database is unreachable, too slow or overloaded, and log the cause."""
    logger.warning("[%s] Database unavailable: %s", describe_request(request.scope), error)
    return problem(request.scope, 503, "The database does not respond. Please try again.", RETRY_AFTER)


async def handle_disconnect(request: Request, _error: ClientDisconnect) -> Response:
    """Return the response to a client that disconnected before its request was complete. uvicorn discards it."""
    return problem(request.scope, 400, "The request is not complete.")


def replace_plain_text(scope: Scope, status: int, headers: Headers) -> Response:
    """Return a response with a problem and the status of a plain-text error response, which it replaces.

    Starlette responds to some errors in plain text, for example to a rejected preflight. The headers are kept,
    except those that describe the old body.
    """
    kept = {name: value for name, value in headers.items() if name not in ("content-type", "content-length")}
    return problem(scope, status, PLAIN_TEXT_DETAILS.get(status, HTTPStatus(status).phrase), kept)


def ambiguous_path_problem(scope: Scope) -> Response:
    """Return the response to a request with an ambiguous path (see `middleware`)."""
    msg = "Path should be UTF-8, without an encoded slash or a trailing newline"
    return _validation_problem(scope, [{"loc": ("path",), "msg": msg, "type": "path_encoding"}])


def shutdown_problem(scope: Scope) -> Response:
    """Return the response to a request that is cancelled because the service shuts down."""
    return problem(scope, 503, "The service is shutting down. Please try again.", RETRY_AFTER)


def unexpected_problem(scope: Scope) -> Response:
    """Return the response to a request whose handling raised an unexpected exception."""
    return problem(scope, 500, "Internal error")


def _matching_routes(scope: Scope) -> Iterator[Any]:
    """Yield each route whose path template matches the path of a request, whatever its methods are."""
    path = get_route_path(scope)
    return (route for route in iter_route_contexts(scope["app"].routes) if route.path_regex.match(path))


# ---- OpenAPI --------------------------------------------------------------------------------

RESPONSES: dict[int, tuple[type[Problem] | None, str]] = {
    304: (None, "`If-None-Match` has the current ETag. The body is empty."),
    401: (Problem, "A token is required and is missing or not valid."),
    404: (Problem, "There is no such task, or it belongs to another user."),
    410: (Problem, "The task was deleted and a create is repeated, or the cursor is too old: begin again without it."),
    412: (Problem, "`If-Match` names an older version, or the task exists already. Nothing was changed."),
    413: (Problem, "The body is over 1 MiB. Nothing was changed."),
    422: (ValidationProblem, "The input breaks a rule. Nothing was changed."),
    500: (ServerProblem, "Internal error of the service."),
    503: (ServerProblem, "The database does not respond. Please try again."),
}
HEADER_DESCRIPTIONS = {
    "ETag": "The version, for `If-Match` and `If-None-Match`.",
    "Idempotent-Replayed": "`true` if the key was sent before, so that no task was created.",
    "Link": 'The URL of the next page, with `rel="next"`, if there is one.',
    "Location": "The URL of the task.",
    "X-Total-Count": "The number of tasks that the filters select, if `total=true`.",
}

Responses = dict[int | str, dict[str, Any]]


def problem_responses(*statuses: int) -> Responses:
    """Return the `responses` of an endpoint (FastAPI's parameter) for these statuses."""
    return {status: {"model": RESPONSES[status][0], "description": RESPONSES[status][1]} for status in statuses}


def response_headers(status: int, *names: str) -> Responses:
    """Return the `responses` of an endpoint for these headers of a successful response."""
    headers = {name: {"description": HEADER_DESCRIPTIONS[name], "schema": {"type": "string"}} for name in names}
    return {status: {"headers": headers}}


def customize_openapi(app: FastAPI) -> None:
    """Extend the app's OpenAPI schema by what FastAPI cannot declare: the media type of errors, and bearer tokens."""
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        schema = generate()
        schema["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"}}
        for path, operations in schema["paths"].items():
            for operation in operations.values():
                # Whether a token is required under /api depends on the settings, so it is declared as optional.
                operation["security"] = [{"token": []}, {}] if path.startswith("/api/") else []
                for status, response in operation["responses"].items():  # statuses are strings in OpenAPI
                    if status >= "400" and "application/json" in response.get("content", {}):
                        response["content"][MEDIA_TYPE] = response["content"].pop("application/json")
        return schema

    app.openapi = openapi  # type: ignore[method-assign]  # the way that FastAPI documents
