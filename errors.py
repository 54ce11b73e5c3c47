"""Failures as problem+json (RFC 9457), and what OpenAPI says of them."""

import json
import logging
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any
from urllib.parse import quote

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import iter_route_contexts
from starlette._utils import get_route_path
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import Scope

from database import DatabaseUnavailable
from schemas import MAX_ERRORS, MULTILINE_TEXT, NO_CONTROL_CHARACTERS, USER_ID, Problem, ValidationProblem

logger = logging.getLogger("tasks")

MEDIA_TYPE = "application/problem+json"
CONTENT_TYPE = (b"content-type", MEDIA_TYPE.encode())
# What a problem repeats of a request: characters of a path, and of each name in `loc`.
MAX_INSTANCE_LENGTH = 500  # the longest that is routed has 185, and what the service is mounted at
MAX_LOC_LENGTH = 100
RENAMED = {413: "Content Too Large", 422: "Unprocessable Content"}  # RFC 9110; Python has these from 3.13 on
RETRY = {"Retry-After": "1"}  # in seconds: an outage is over in a moment (Neon wakes up) or for longer
PLAIN = {
    400: "This origin, method or header is not allowed here."
}  # of a preflight, for which Starlette has plain text


def not_found() -> HTTPException:
    """The one answer for a task that does not exist and for a task of somebody else."""
    return HTTPException(404, "There is no such task.")


def validation_error(loc: tuple[str | int, ...], msg: str, kind: str) -> RequestValidationError:
    """An input that breaks a rule which no schema can state."""
    return RequestValidationError([{"loc": loc, "msg": msg, "type": kind}])


def problem(scope: Scope, status: int, detail: str, headers: Mapping[str, str] | None = None, **more: Any) -> Response:
    """Return the failure of a request as problem+json, with `more` beside the five fields of all."""
    body = {
        "type": "about:blank",
        "title": RENAMED.get(status, HTTPStatus(status).phrase),
        "status": status,
        "detail": detail,
        "instance": quote(scope["path"][:MAX_INSTANCE_LENGTH], safe="/:@!$&'()*+,;=-._~"),  # RFC 3986, section 3.3
    }
    # In ASCII: a name in `loc` may hold half a surrogate pair, which no UTF-8 can.
    return Response(json.dumps(body | more), status, headers, MEDIA_TYPE)


async def handle_http_exception(request: Request, error: HTTPException) -> Response:
    """What FastAPI, the router and the endpoints refuse."""
    if error.status_code == 400:  # FastAPI's word for a body that it cannot even decode
        return await handle_validation_error(
            request, validation_error(("body",), "The body is not JSON in UTF-8", "json_invalid")
        )
    headers = dict(error.headers or {})
    if error.status_code == 405:  # the router names only the methods of the first route that fits
        headers["Allow"] = ", ".join(_methods(request))
    return problem(request.scope, error.status_code, error.detail, headers)


async def handle_validation_error(request: Request, error: RequestValidationError) -> Response:
    """Respond to input that breaks a rule. The input is never shown: it may be anything, of any length."""
    return _invalid_problem(request.scope, error.errors())


def _invalid_problem(scope: Scope, broken: Sequence[Any]) -> Response:
    found = [
        {"loc": [_in_short(name) for name in one["loc"]], "msg": _message(one), "type": one["type"]}
        for one in broken[:MAX_ERRORS]
    ]
    detail = [f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in found]
    if len(broken) > MAX_ERRORS:
        detail.append(f"and {len(broken) - MAX_ERRORS} more")
    return problem(scope, 422, f"{'; '.join(detail)}.", errors=found)


def _in_short(name: str | int) -> str | int:
    return f"{name[:MAX_LOC_LENGTH]}…" if isinstance(name, str) and len(name) > MAX_LOC_LENGTH else name


PATTERNS = {
    NO_CONTROL_CHARACTERS: "String should have no control characters",
    MULTILINE_TEXT: "String should have no control characters but tabs and line breaks",
    USER_ID: "String should have no slash and no control characters",
}


def _message(error: dict[str, Any]) -> str:
    if error["type"] == "model_type":  # pydantic speaks of Python's objects here
        return "Input should be a JSON object"
    if error["type"] == "uuid_parsing":  # shows the character that is wrong
        return "Input should be a UUID"
    if error["type"] == "string_pattern_mismatch":
        return PATTERNS.get(error["ctx"]["pattern"], str(error["msg"]))
    return str(error["msg"])


async def handle_database_unavailable(request: Request, error: DatabaseUnavailable) -> Response:
    logger.warning("Database unavailable: %s", error)
    return problem(request.scope, 503, "The database does not answer. Please try again.", RETRY)


async def handle_disconnect(request: Request, _error: ClientDisconnect) -> Response:
    """Respond to a client that has gone, as ASGI demands a response; none will read it."""
    return problem(request.scope, 400, "The request was not complete.")


def replace_plain_text(scope: Scope, status: int, headers: Headers) -> Response:
    """Return a problem instead of the plain text of a layer that knows none, with its other headers."""
    kept = {name: value for name, value in headers.items() if name not in ("content-type", "content-length")}
    return problem(scope, status, PLAIN.get(status, HTTPStatus(status).phrase), kept)


def path_problem(scope: Scope) -> Response:
    """Return the response to a path that is not what it says."""
    msg = "Path should be UTF-8, without an encoded slash or a newline at its end"
    return _invalid_problem(scope, [{"loc": ("path",), "msg": msg, "type": "path_encoding"}])


def shutdown_problem(scope: Scope) -> Response:
    """Return the response to a request that did not finish before the service shuts down."""
    return problem(scope, 503, "The service is shutting down. Please try again.", RETRY)


def unexpected_problem(scope: Scope) -> Response:
    """Return the response to a request that met a mistake of this service."""
    return problem(scope, 500, "Internal error")


def _methods(request: Request) -> list[str]:
    """Return all methods of all routes that have this path (RFC 9110, section 15.5.6)."""
    path = get_route_path(request.scope)
    routes = [route for route in iter_route_contexts(request.app.routes) if route.path_regex.match(path)]
    return sorted({method for route in routes for method in route.methods or ()})


# ---- In OpenAPI -----------------------------------------------------------------------------

RESPONSES: dict[int, tuple[type[Problem] | None, str]] = {
    304: (None, "It is still the one that the client has."),
    401: (Problem, "A token is required and is missing or not valid."),
    404: (Problem, "There is no such task, or it is somebody else's."),
    410: (Problem, "The task was deleted, or the cursor is too old: begin without it."),
    412: (Problem, "`If-Match` names an older version, or the task exists already. Nothing was changed."),
    413: (Problem, "The body is over 1 MiB. Nothing was changed."),
    422: (ValidationProblem, "The input breaks a rule. Nothing was changed."),
    500: (Problem, "A mistake of the service."),
    503: (Problem, "The database does not answer. Trying again later may help."),
}
HEADERS = {
    "ETag": "The version, for If-Match and If-None-Match.",
    "Idempotent-Replayed": "`true` when the key was sent before, and no task was made.",
    "Link": 'The address of the next page, with `rel="next"`, when there is one.',
    "Location": "The address of the task.",
    "X-Total-Count": "How many tasks the filters select, when `total=true`.",
}

Responses = dict[int | str, dict[str, Any]]


def problem_responses(*statuses: int) -> Responses:
    """What FastAPI's `responses` takes for these statuses."""
    return {status: {"model": RESPONSES[status][0], "description": RESPONSES[status][1]} for status in statuses}


def response_headers(status: int, *names: str) -> Responses:
    """What FastAPI's `responses` takes for these headers of a success."""
    headers = {name: {"description": HEADERS[name], "schema": {"type": "string"}} for name in names}
    return {status: {"headers": headers}}


def customize_openapi(app: FastAPI) -> None:
    """Say in OpenAPI what FastAPI cannot: the media type of errors, and that a token may be required."""
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        schema = generate()
        schema["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"}}
        for path, operations in schema["paths"].items():
            for operation in operations.values():
                # Under /api either, as the path may be trusted; elsewhere never.
                operation["security"] = [{"token": []}, {}] if path.startswith("/api/") else []
                for status, answer in operation["responses"].items():
                    if status >= "400" and "application/json" in answer.get("content", {}):
                        answer["content"][MEDIA_TYPE] = answer["content"].pop("application/json")
        return schema

    app.openapi = openapi  # type: ignore[method-assign]  # as FastAPI's own manual extends it
