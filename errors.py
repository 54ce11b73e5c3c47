"""Failures as problem+json (RFC 9457), what all answers have in common, and what OpenAPI says of both."""

import asyncio
import json
import logging
import sys
from collections.abc import Mapping
from functools import partial
from http import HTTPStatus
from typing import Any
from urllib.parse import quote, unquote_to_bytes

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette._utils import get_route_path
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from database import DatabaseUnavailable
from schemas import MAX_ERRORS, NO_CONTROLS, TEXT, USER_ID, Problem, ValidationProblem

logger = logging.getLogger("tasks")

MEDIA_TYPE = "application/problem+json"
MAX_BODY_SIZE = 1024 * 1024  # bytes
# What a problem repeats of a request: characters of a path, and of each name in `loc`.
MAX_PATH = 500  # the longest that is routed has 185, and what the service is mounted at
MAX_NAME = 100
RENAMED = {413: "Content Too Large", 422: "Unprocessable Content"}  # RFC 9110; Python has these from 3.13 on
IN_COMMON = [(b"x-content-type-options", b"nosniff")]
IN_COMMON_UNDER_API = [*IN_COMMON, (b"cache-control", b"private, no-cache"), (b"vary", b"Authorization")]
RETRY = {"Retry-After": "1"}  # in seconds: an outage is over in a moment (Neon wakes up) or for longer
# For what layers say that know no problem+json: CORS of a preflight, the limit of a body.
PLAIN = {
    400: "This origin, method or header is not allowed here.",
    413: f"The body is over {MAX_BODY_SIZE:,} bytes.",
}


def not_found() -> HTTPException:
    """The one answer for a task that does not exist and for a task of somebody else."""
    return HTTPException(404, "There is no such task.")


def invalid(loc: tuple[str | int, ...], msg: str, kind: str) -> RequestValidationError:
    """An input that breaks a rule which no schema can state."""
    return RequestValidationError([{"loc": loc, "msg": msg, "type": kind}])


def problem(scope: Scope, status: int, detail: str, headers: Mapping[str, str] | None = None, **more: Any) -> Response:
    """Return the failure of a request as problem+json, with `more` beside the five fields of all."""
    body = {
        "type": "about:blank",
        "title": RENAMED.get(status, HTTPStatus(status).phrase),
        "status": status,
        "detail": detail,
        "instance": quote(scope["path"][:MAX_PATH], safe="/:@!$&'()*+,;=-._~"),  # RFC 3986, section 3.3
    }
    # In ASCII: a name in `loc` may hold half a surrogate pair, which no UTF-8 can.
    return Response(json.dumps(body | more), status, headers, MEDIA_TYPE)


async def handle_http_exception(request: Request, error: HTTPException) -> Response:
    """What FastAPI, the router and the endpoints refuse."""
    if error.status_code == 400:  # FastAPI's word for a body that it cannot even decode
        return await handle_invalid(request, invalid(("body",), "The body is not JSON in UTF-8", "json_invalid"))
    headers = dict(error.headers or {})
    if error.status_code == 405:  # the router names only the methods of the first route that fits
        headers["Allow"] = ", ".join(_methods(request))
    return problem(request.scope, error.status_code, PLAIN.get(error.status_code, error.detail), headers)


async def handle_invalid(request: Request, error: RequestValidationError) -> Response:
    """Input that breaks a rule. The answer never shows the input, which may be anything, and of any length."""
    broken = error.errors()
    found = [
        {"loc": [_in_short(name) for name in one["loc"]], "msg": _message(one), "type": one["type"]}
        for one in broken[:MAX_ERRORS]
    ]
    said = [f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in found]
    if len(broken) > MAX_ERRORS:
        said.append(f"and {len(broken) - MAX_ERRORS} more")
    return problem(request.scope, 422, f"{'; '.join(said)}.", errors=found)


def _in_short(name: str | int) -> str | int:
    return f"{name[:MAX_NAME]}…" if isinstance(name, str) and len(name) > MAX_NAME else name


OF_PATTERNS = {
    NO_CONTROLS: "String should have no control characters",
    TEXT: "String should have no control characters but tabs and line breaks",
    USER_ID: "String should have no slash and no control characters",
}


def _message(error: dict[str, Any]) -> str:
    if error["type"] == "model_attributes_type":  # pydantic speaks of Python's objects here
        return "Input should be a JSON object, sent with Content-Type: application/json"
    if error["type"] == "uuid_parsing":  # shows the character that is wrong
        return "Input should be a UUID"
    if error["type"] == "string_pattern_mismatch":
        return OF_PATTERNS.get(error["ctx"]["pattern"], str(error["msg"]))
    return str(error["msg"])


async def handle_unavailable(request: Request, error: DatabaseUnavailable) -> Response:
    logger.warning("Database unavailable: %s", error)
    return problem(request.scope, 503, "The database does not answer. Please try again.", RETRY)


async def handle_gone(request: Request, _error: ClientDisconnect) -> Response:
    """The client went away in the middle of its request. Nobody hears this."""
    return problem(request.scope, 400, "The request was not complete.")


async def handle_unexpected(request: Request, _error: Exception) -> Response:
    """A mistake of this service. The server logs it, with its stack, once this has answered."""
    return problem(request.scope, 500, "Something went wrong in the service.")


def routed_path(scope: Scope) -> str:
    """The path that the routes are tried with: without the one that the whole service is mounted at.

    By the router's own rule, as the check of the owner must see exactly what is routed.
    """
    return get_route_path(scope)


def _methods(request: Request) -> list[str]:
    """All methods of all routes that have this path (RFC 9110, section 15.5.6)."""
    path, routes = routed_path(request.scope), request.app.routes
    found = [route for route in routes if isinstance(route, Route) and route.path_regex.match(path)]
    return sorted({method for route in found for method in route.methods or ()})


class AnswerMiddleware:
    """What all answers have in common. It is the outermost of all, so that it sees each of them.

    Plain text becomes a problem. No browser may guess another type. What is under /api may be kept
    by the browser alone, which asks with its ETag before it shows it again, and never by a cache
    that several users share. A request that the end of the service cuts off is told so. The
    connection ends where the server would take what follows for another request.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, partial(_send_reason, send))
            return
        begun = replaced = False

        async def send_in_common(message: Message) -> None:
            nonlocal begun, replaced
            if message["type"] == "http.response.start":
                begun = True
                under_api = routed_path(scope).startswith("/api/")
                message["headers"] = [*message["headers"], *(IN_COMMON_UNDER_API if under_api else IN_COMMON)]
                if leaves_http(scope):
                    message["headers"].append((b"connection", b"close"))
                replaced = message["status"] >= 400 and (b"content-type", MEDIA_TYPE.encode()) not in message["headers"]
                if replaced:
                    headers = MutableHeaders(raw=message["headers"])
                    del headers["content-type"], headers["content-length"]
                    detail = PLAIN.get(message["status"], HTTPStatus(message["status"]).phrase)
                    await problem(scope, message["status"], detail, headers)(scope, receive, send)
            if not replaced:
                await send(message)

        try:
            await self.app(scope, receive, send_in_common)
        except asyncio.CancelledError:
            # The service ends, and waits no longer for a request that is still under way. The
            # server, which cancels nothing else, would answer with a 500 and a stack in the log.
            logger.warning("Not finished before the service ended: %s", scope["method"])
            if not begun:
                answer = problem(scope, 503, "The service is going down. Please try again.", RETRY)
                await answer(scope, receive, send_in_common)


def leaves_http(scope: Scope) -> bool:
    """Tell whether the request asks for another protocol: by Upgrade (RFC 9110, section 7.8) or CONNECT.

    uvicorn reads no body of such a request. What follows its head, it takes for the next request.
    """
    return scope["method"] == "CONNECT" or any(name == b"upgrade" for name, _ in scope["headers"])


async def _send_reason(send: Send, message: Message) -> None:
    """Pass on what the lifespan says; of a start that was given up on purpose the reason, not the stack."""
    reason = sys.exc_info()[1]  # Starlette sends while it handles the exception
    if message["type"] == "lifespan.startup.failed" and isinstance(reason, SystemExit):
        message = {"type": "lifespan.startup.failed", "message": str(reason)}
    await send(message)


class StrictPathMiddleware:
    """Refuses a path that decodes to another one than it says.

    The server decodes the path before it is routed. An encoded slash would become a real one, so
    that a gateway and this service disagree on whose tasks are meant; bytes that are not UTF-8
    would all become the same character, and with it different users one; and a newline at the end
    would be passed over.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        raw = scope.get("raw_path") or b""
        if b"%" in raw and not _is_strict(raw):
            msg = "Path should be UTF-8, without an encoded slash or a newline at its end"
            answer = await handle_invalid(Request(scope), invalid(("path",), msg, "path_encoding"))
            await answer(scope, receive, send)
        else:
            await self.app(scope, receive, send)


def _is_strict(raw_path: bytes) -> bool:
    try:
        decoded = unquote_to_bytes(raw_path).decode()
    except UnicodeDecodeError:
        return False
    return b"%2F" not in raw_path.upper() and not decoded.endswith("\n")


# ---- In OpenAPI -----------------------------------------------------------------------------

ANSWERS: dict[int, tuple[type[Problem] | None, str]] = {
    304: (None, "It is still the one that the client has."),
    401: (Problem, "A token is required and is missing or not valid."),
    404: (Problem, "There is no such task, or it is somebody else's."),
    412: (Problem, "`If-Match` names an older version. Nothing was changed."),
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


def declared(*statuses: int) -> Responses:
    """What FastAPI's `responses` takes for these statuses."""
    return {status: {"model": ANSWERS[status][0], "description": ANSWERS[status][1]} for status in statuses}


def with_headers(status: int, *names: str) -> Responses:
    """What FastAPI's `responses` takes for these headers of a success."""
    headers = {name: {"description": HEADERS[name], "schema": {"type": "string"}} for name in names}
    return {status: {"headers": headers}}


def document(app: FastAPI) -> None:
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
