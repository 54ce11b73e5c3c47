"""The endpoints, one short function each, and here what several of them use."""

import re
from bisect import bisect
from functools import lru_cache
from itertools import accumulate
from typing import Any
from urllib.parse import quote

from fastapi import Request, Response
from starlette.datastructures import URL

import errors
from queries import MAX_PAGE_SIZE, Columns, Query
from routing import JSONBytes

# The operationId is the name of the function, so that a generated client has a method `create_task`.
ROUTER_OPTIONS: dict[str, Any] = {"generate_unique_id_function": lambda route: route.name}
API_ROUTER_OPTIONS = ROUTER_OPTIONS | {"responses": errors.problem_responses(401, 404, 413, 422, 500, 503)}


async def fetch(request: Request, query: Query[*Columns]) -> list[tuple[*Columns]]:
    """Run a query for a request and return its rows.

    Raises DatabaseUnavailable, and ClientDisconnect when the client has disconnected in the queue.
    """
    rows: list[tuple[*Columns]] = await request.app.state.database.fetch(query, request.is_disconnected)
    return rows


def fit_page(tasks: list[bytes], *, envelope: int) -> list[bytes]:
    """Return as many of the tasks as fit into MAX_PAGE_SIZE, at least one.

    `envelope` is the size of the body without any task, in bytes.
    """
    ends = list(accumulate((len(task) + 1 for task in tasks), initial=envelope - 1))  # body size up to each task
    return tasks if ends[-1] <= MAX_PAGE_SIZE else tasks[: max(1, bisect(ends, MAX_PAGE_SIZE) - 1)]


def conditional_response(
    if_none_match: str | None, body: bytes, etag: object, *headers: tuple[bytes, bytes]
) -> Response:
    """Return `body` with its ETag, or 304 when `If-None-Match` has this ETag (RFC 9110, section 13.1.2)."""
    quoted = f'"{etag}"'
    all_headers = [(b"etag", quoted.encode()), *headers]
    if if_none_match is not None and (if_none_match.strip() == "*" or quoted in if_none_match):
        response = Response(status_code=304)
        response.raw_headers = all_headers
        return response
    return JSONBytes(body, 200, all_headers)


HOST = re.compile(r"([\w.-]{1,253}|\[[0-9A-Fa-f:.]+\])(:\d{1,5})?", re.ASCII)


def get_tasks_url(request: Request, user_id: str) -> str:
    """Return the absolute URL of the user's tasks as the client sees it, with a slash at its end.

    Behind a proxy, `X-Forwarded-Proto` and `X-Forwarded-Host` have the scheme and host of the original request.
    A client can forge them, which changes only the URLs in its own response.
    """
    headers = dict(reversed(request.scope["headers"]))
    host = headers.get(b"host", b"")
    forwarded = headers.get(b"x-forwarded-proto", b""), headers.get(b"x-forwarded-host", b"")
    origin = _origin(request.scope["scheme"], host, *forwarded)
    if origin is None:  # the server's own address: request.base_url accepts a Host of any length
        origin = str(URL(scope=dict(request.scope, headers=[], path="", query_string=b"", root_path=""))).rstrip("/")
    return f"{origin}{request.scope.get('root_path', '').rstrip('/')}/api/{quote(user_id, safe='')}/tasks/"


@lru_cache(maxsize=256)
def _origin(scheme: str, host: bytes, forwarded_proto: bytes, forwarded_host: bytes) -> str | None:
    """Return the scheme and host of a URL, or None when no header has a valid host."""
    # Each proxy appends its value: the first is that of the outermost.
    proto, proxy_host = (value.decode("latin-1").split(",")[0].strip() for value in (forwarded_proto, forwarded_host))
    if proto in ("http", "https", "ws", "wss"):
        scheme = proto
    valid_host = next(filter(HOST.fullmatch, (proxy_host, host.decode("latin-1"))), None)
    return valid_host and f"{scheme.replace('ws', 'http')}://{valid_host}"
