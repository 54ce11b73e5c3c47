"""What stands around all routes: CORS, the headers that all responses have, and a response whatever happens."""

import asyncio
import logging
import sys
from functools import partial
from urllib.parse import unquote_to_bytes

from starlette._utils import get_route_path
from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

import errors

logger = logging.getLogger("tasks")

SECURITY_HEADERS = [(b"x-content-type-options", b"nosniff")]
# What is under /api may be kept by the browser alone, which asks with its ETag before it shows it again,
# and never by a cache that several users share.
API_HEADERS = [*SECURITY_HEADERS, (b"cache-control", b"private, no-cache")]
# By whether it is under /api and whether it came from a page, for which CORSMiddleware adds `Vary: Origin` itself.
HEADERS = {
    (True, True): [*API_HEADERS, (b"vary", b"Authorization")],
    (True, False): [*API_HEADERS, (b"vary", b"Authorization, Origin")],
    (False, True): SECURITY_HEADERS,
    (False, False): [*SECURITY_HEADERS, (b"vary", b"Origin")],
}


def common_headers(scope: Scope, headers: dict[bytes, bytes]) -> list[tuple[bytes, bytes]]:
    """Return what the response to a request with these headers has, whichever layer makes it."""
    common = HEADERS[get_route_path(scope).startswith("/api/"), b"origin" in headers]
    if b"upgrade" in headers or scope["method"] == "CONNECT":
        # uvicorn reads no body of such a request: what follows its head, it takes for the next one.
        return [*common, (b"connection", b"close")]
    return common


class ProblemCORSMiddleware(CORSMiddleware):
    """Starlette's CORS, which only a request with an `Origin` goes through; a refused preflight gets a problem."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or respond to a preflight."""
        headers = dict(scope["headers"]) if scope["type"] == "http" else {}
        if b"origin" not in headers:
            await self.app(scope, receive, send)
        elif scope["method"] == "OPTIONS" and b"access-control-request-method" in headers:
            response = self.preflight_response(Headers(scope=scope))
            if response.status_code >= 400:
                response = errors.replace_plain_text(scope, response.status_code, response.headers)
            response.headers.raw.extend(common_headers(scope, headers))
            await response(scope, receive, send)
        else:
            await super().__call__(scope, receive, send)


class ServiceMiddleware:
    """Sends what all responses have in common, and a problem where a layer failed or said plain text.

    A path that decodes to another one than it says is refused here, before anything looks at it. A
    request that is cut off when the service shuts down gets a 503.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, and see to its response."""
        if scope["type"] != "http":
            await self.app(scope, receive, partial(_send_reason, send))
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
            if b"%" in raw_path and not _is_strict(raw_path):
                await errors.path_problem(scope)(scope, receive, send_common)
            else:
                await self.app(scope, receive, send_common)
        except asyncio.CancelledError:
            # The service shuts down, and waits no longer for a request that is still under way. The
            # server, which cancels nothing else, would send a 500 and log a stack.
            logger.warning("Not finished before the service ended: %s", scope["method"])
            if not started:
                await errors.shutdown_problem(scope)(scope, receive, send_common)
        except Exception:
            if not started:
                await errors.unexpected_problem(scope)(scope, receive, send_common)
            raise  # for the server, which logs it with its stack


async def _send_reason(send: Send, message: Message) -> None:
    """Pass on what the lifespan says; of a start that was given up on purpose the reason, not the stack."""
    reason = sys.exc_info()[1]  # Starlette sends while it handles the exception
    if message["type"] == "lifespan.startup.failed" and isinstance(reason, SystemExit):
        message = {"type": "lifespan.startup.failed", "message": str(reason)}
    await send(message)


def _is_strict(raw_path: bytes) -> bool:
    """Tell whether a path is what it says.

    The server decodes the path before it is routed. An encoded slash would become a real one, so
    that a gateway and this service disagree on whose tasks are meant; bytes that are not UTF-8
    would all become the same character, and with it different users one; and a newline at the end
    would be passed over.
    """
    try:
        decoded = unquote_to_bytes(raw_path).decode()
    except UnicodeDecodeError:
        return False
    return b"%2F" not in raw_path.upper() and not decoded.endswith("\n")
