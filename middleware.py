"""The middleware around all routes: CORS, common response headers, path validation, problems for unhandled errors."""

import asyncio
import logging
import sys
from functools import partial
from typing import Any
from urllib.parse import unquote_to_bytes

from starlette._utils import get_route_path
from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

import errors

logger = logging.getLogger("tasks")

SECURITY_HEADERS = [(b"x-content-type-options", b"nosniff")]
# A browser may cache a response under /api, but must revalidate it with its ETag before each use. A shared
# cache must not store it (RFC 9111, section 5.2.2).
API_HEADERS = [*SECURITY_HEADERS, (b"cache-control", b"private, no-cache")]
# The headers of every response. Keys: (the path starts with /api/, the request has an Origin header). With an
# Origin, CORSMiddleware adds `Vary: Origin` itself.
COMMON_HEADERS = {
    (True, True): [*API_HEADERS, (b"vary", b"Authorization")],
    (True, False): [*API_HEADERS, (b"vary", b"Authorization, Origin")],
    (False, True): SECURITY_HEADERS,
    (False, False): [*SECURITY_HEADERS, (b"vary", b"Origin")],
}
MAX_LOGGED_ORIGINS = 20
MAX_ORIGIN_LENGTH = 270  # characters; a host name has at most 253


def common_headers(scope: Scope, headers: dict[bytes, bytes]) -> list[tuple[bytes, bytes]]:
    """Return the headers to add to the response. `headers` are those of the request."""
    common = COMMON_HEADERS[get_route_path(scope).startswith("/api/"), b"origin" in headers]
    if b"upgrade" in headers or scope["method"] == "CONNECT":
        # uvicorn does not read the body of such a request, and would parse it as the next request.
        return [*common, (b"connection", b"close")]
    return common


class ProblemCORSMiddleware(CORSMiddleware):
    """Starlette's CORSMiddleware, which responds to a rejected preflight with a problem, and logs rejected origins.

    A request without an `Origin` is passed on at once.
    """

    def __init__(self, app: ASGIApp, /, **options: Any) -> None:
        super().__init__(app, **options)
        self._logged: set[str] = set()  # origins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Respond to a preflight, or pass the request on."""
        headers = dict(scope["headers"]) if scope["type"] == "http" else {}
        if b"origin" not in headers:
            await self.app(scope, receive, send)
            return
        self._log_if_rejected(scope, headers)
        if scope["method"] == "OPTIONS" and b"access-control-request-method" in headers:
            response = self.preflight_response(Headers(scope=scope))
            if response.status_code >= 400:
                response = errors.replace_plain_text(scope, response.status_code, response.headers)
            response.headers.raw.extend(common_headers(scope, headers))
            await response(scope, receive, send)
        else:
            await super().__call__(scope, receive, send)

    def _log_if_rejected(self, scope: Scope, headers: dict[bytes, bytes]) -> None:
        """Log the origin of a request if CORS does not allow it, once for each of the first MAX_LOGGED_ORIGINS."""
        origin = headers[b"origin"].decode("latin-1")
        # Browsers also send an Origin with a POST from a page of this service, such as /docs. It needs no CORS.
        host = headers[b"origin"].rpartition(b"://")[2]
        if self.is_allowed_origin(origin) or host in (headers.get(b"host"), headers.get(b"x-forwarded-host")):
            return
        origin = origin[:MAX_ORIGIN_LENGTH]
        if origin not in self._logged and len(self._logged) < MAX_LOGGED_ORIGINS:
            self._logged.add(origin)
            logger.warning("[%s] CORS_ORIGINS does not contain %a", errors.describe_request(scope), origin)


class ServiceMiddleware:
    """Middleware that adds the common headers to every response, and makes every error a problem.

    An ambiguous path (see `_is_ambiguous`) gets 422, before anything else reads it. An unhandled exception
    gets 500. A request that is cancelled at shutdown gets 503. The plain-text error response of an inner
    layer is replaced by a problem.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on. Add the common headers to its response, or replace it."""
        if scope["type"] != "http":
            await self.app(scope, receive, partial(_send_lifespan, send))
            return
        common = common_headers(scope, dict(scope["headers"]))
        started = replaced = False

        async def send_common(message: Message) -> None:
            nonlocal started, replaced
            if message["type"] == "http.response.start":
                started = True
                message["headers"] = [*message["headers"], *common]
                if message["status"] >= 400 and errors.CONTENT_TYPE not in message["headers"]:
                    replaced = True
                    response = errors.replace_plain_text(scope, message["status"], Headers(raw=message["headers"]))
                    await response(scope, receive, send)
            if not replaced:
                await send(message)

        try:
            raw_path = scope.get("raw_path") or b""
            if b"%" in raw_path and _is_ambiguous(raw_path):
                await errors.ambiguous_path_problem(scope)(scope, receive, send_common)
            else:
                await self.app(scope, receive, send_common)
        except asyncio.CancelledError:
            # uvicorn cancels a request only when its time for a graceful shutdown is over. If this was
            # raised again, uvicorn would send 500 and log a traceback.
            logger.warning("[%s] Not finished before the service ended", errors.describe_request(scope))
            if not started:
                await errors.shutdown_problem(scope)(scope, receive, send_common)
        except Exception as error:
            # uvicorn logs the traceback, without the id of the request.
            logger.error("[%s] Internal error: %s", errors.describe_request(scope), type(error).__name__)
            if not started:
                await errors.unexpected_problem(scope)(scope, receive, send_common)
            raise


async def _send_lifespan(send: Send, message: Message) -> None:
    """Send a message of the lifespan. When SystemExit ended the start-up, send its text instead of a traceback."""
    # Starlette sends `lifespan.startup.failed` in its except block, so this is the exception that ended the start-up.
    error = sys.exc_info()[1]
    if message["type"] == "lifespan.startup.failed" and isinstance(error, SystemExit):
        message = {"type": "lifespan.startup.failed", "message": str(error)}
    await send(message)


def _is_ambiguous(raw_path: bytes) -> bool:
    """Return whether a path may change its meaning when it is percent-decoded.

    uvicorn decodes the path before it is routed. A gateway and this service could then read different
    users in the same path: an encoded slash would become a separator, and a trailing newline would be
    ignored by the routes. Bytes that are not UTF-8 would all become U+FFFD, which makes different users
    the same one.
    """
    try:
        decoded = unquote_to_bytes(raw_path).decode()
    except UnicodeDecodeError:
        return True
    return b"%2F" in raw_path.upper() or decoded.endswith("\n")
