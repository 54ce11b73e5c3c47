"""The tasks of a user. Each endpoint is one SQL statement, and the JSON that it makes is the response."""

import hashlib
import json
import random
import re
from bisect import bisect
from functools import lru_cache
from itertools import accumulate
from typing import Annotated, Any
from urllib.parse import parse_qsl, quote, urlencode
from uuid import UUID, uuid4

from fastapi import Query, Request, Response
from starlette.datastructures import URL
from starlette.exceptions import HTTPException

import errors
import queries
import schemas
from errors import problem_responses, response_headers
from routes import API_ROUTER, fetch
from routing import DirectRouter, JSONBytes
from schemas import IdempotencyKey, IfMatch, IfNoneMatch, TaskId, TaskInput, TaskPatch, UserId

TAG = {"name": "tasks", "description": "A user's tasks, one by one and many at once."}
router = DirectRouter(prefix="/api/{user_id}/tasks", tags=[TAG["name"]], **API_ROUTER)

WRITTEN = response_headers(200, "ETag") | problem_responses(404, 412)

# The most asked for come first: the router tries them in this order.


@router.get(
    "",
    response_model=list[schemas.Task],
    responses=response_headers(200, "ETag", "Link", "X-Total-Count") | problem_responses(304),
)
async def list_tasks(
    request: Request,
    user_id: UserId,
    query: Annotated[schemas.ListQuery, Query()],
    if_none_match: IfNoneMatch = None,
) -> Response:
    """A page of the user's tasks, newest first.

    When more follow, `Link` has the address of the next page. Following it to the end gives each
    task once, also while others are added or removed.
    """
    tasks_url = _tasks_url(request, user_id)
    statement = queries.list_tasks(
        user_id,
        tasks_url=tasks_url,
        sort=query.sort,
        filters=query.filters(),
        after=_after(query, user_id),
        limit=query.limit + 1,  # one more than is shown tells whether more follow
        total=query.total,
    )
    rows = await fetch(request, statement)
    page, body = _page([task for task, _ in rows[: query.limit] if task is not None])
    headers = []
    if query.total:
        headers.append((b"x-total-count", f"{rows[0][1]}".encode()))
    if page and len(rows) > len(page):
        headers.append((b"link", _next_page(request, query, tasks_url, json.loads(page[-1]), user_id)))
    etag = hashlib.sha256(body, usedforsecurity=False).hexdigest()[:32]
    return _unless_same(if_none_match, body, etag, *headers)


@router.post(
    "",
    status_code=201,
    response_model=schemas.Task,
    responses=response_headers(201, "ETag", "Location", "Idempotent-Replayed"),
)
async def create_task(
    request: Request, user_id: UserId, body: TaskInput, idempotency_key: IdempotencyKey = None
) -> Response:
    """Create one task. `Location` has its address.

    With an `Idempotency-Key`, sending it again makes no second task: the response is the task as it
    is by now, with `Idempotent-Replayed: true`.
    """
    # The id comes from owner and key, so that the table's primary key is what makes it happen once.
    task_id = uuid4() if idempotency_key is None else _digest(user_id, idempotency_key)
    fingerprint = None if idempotency_key is None else _digest(body.model_dump_json())
    version = random.getrandbits(53)  # anywhere, see models.Task; exact in JavaScript too
    tasks_url = _tasks_url(request, user_id)
    fields = body.model_dump(mode="json")
    statement = queries.create_task(
        user_id, task_id, tasks_url=tasks_url, fields=fields, version=version, fingerprint=fingerprint
    )
    [(task, found_version, found_fingerprint)] = await fetch(request, statement)
    if found_fingerprint != fingerprint:
        where = ("header", "idempotency-key")
        raise errors.validation_error(where, "The key was sent before with another body", "idempotency_key_reused")
    headers = [(b"location", f"{tasks_url}{task_id}".encode()), (b"etag", b'"%d"' % found_version)]
    if found_version != version:
        headers.append((b"idempotent-replayed", b"true"))
    return JSONBytes(task, 201, headers)


@router.get(
    "/{task_id}", response_model=schemas.Task, responses=response_headers(200, "ETag") | problem_responses(304, 404)
)
async def read_task(request: Request, user_id: UserId, task_id: TaskId, if_none_match: IfNoneMatch = None) -> Response:
    """One task."""
    rows = await fetch(request, queries.read_task(user_id, task_id, tasks_url=_tasks_url(request, user_id)))
    if not rows:
        raise errors.not_found()
    [(task, version)] = rows
    return _unless_same(if_none_match, task, version)


@router.patch("/{task_id}/complete", response_model=schemas.Task, responses=WRITTEN)
async def complete_task(
    request: Request,
    user_id: UserId,
    task_id: TaskId,
    body: schemas.OptionalCompletion = None,
    if_match: IfMatch = None,
) -> Response:
    """Toggle a task without a body, or set it with `{"completed": true}`, which is safe to repeat."""
    if body is not None:
        return await _set_fields(request, user_id, task_id, body.model_dump(mode="json"), if_match)
    tasks_url, versions = _tasks_url(request, user_id), _versions(if_match)
    return _written(await fetch(request, queries.toggle_task(user_id, task_id, tasks_url=tasks_url, versions=versions)))


@router.patch("/{task_id}", response_model=schemas.Task, responses=WRITTEN)
async def update_task(
    request: Request, user_id: UserId, task_id: TaskId, body: TaskPatch, if_match: IfMatch = None
) -> Response:
    """Change the fields that are sent. `null` clears one that can be null."""
    return await _set_fields(request, user_id, task_id, body.model_dump(mode="json"), if_match)


@router.put("/{task_id}", response_model=schemas.Task, responses=WRITTEN)
async def replace_task(
    request: Request, user_id: UserId, task_id: TaskId, body: TaskInput, if_match: IfMatch = None
) -> Response:
    """Replace a task. A field that is left out goes back to its default."""
    return await _set_fields(request, user_id, task_id, body.model_dump(mode="json"), if_match)


@router.delete("/{task_id}", response_model=schemas.Task, responses=problem_responses(404, 412))
async def delete_task(request: Request, user_id: UserId, task_id: TaskId, if_match: IfMatch = None) -> Response:
    """Delete a task. The response is the task that was deleted, so that "undo" can create it again."""
    statement = queries.delete_task(
        user_id, task_id, tasks_url=_tasks_url(request, user_id), versions=_versions(if_match)
    )
    return _written(await fetch(request, statement), etag=False)


# ---- All that the filters select ------------------------------------------------------------


@router.patch("", response_model=schemas.Updated)
async def update_tasks(
    request: Request, user_id: UserId, selection: Annotated[schemas.Selection, Query()], body: schemas.NonEmptyTaskPatch
) -> Response:
    """Change every task that the filters select ("toggle all"). At least one field must be sent."""
    fields = body.model_dump(mode="json")
    if not fields:
        raise errors.validation_error(("body",), "Input should have a field to change", "nothing_to_change")
    [(count,)] = await fetch(request, queries.update_tasks(user_id, fields=fields, filters=selection.filters()))
    return JSONBytes(b'{"updated": %d}' % count)


@router.delete("", response_model=schemas.Deleted)
async def delete_tasks(request: Request, user_id: UserId, selection: Annotated[schemas.Selection, Query()]) -> Response:
    """Delete every task that the filters select ("clear completed"); without a filter, all of them."""
    [(count,)] = await fetch(request, queries.delete_tasks(user_id, filters=selection.filters()))
    return JSONBytes(b'{"deleted": %d}' % count)


# ---- What they share ------------------------------------------------------------------------


async def _set_fields(
    request: Request, user_id: str, task_id: UUID, fields: dict[str, Any], if_match: str | None
) -> Response:
    tasks_url, versions = _tasks_url(request, user_id), _versions(if_match)
    statement = queries.update_task(user_id, task_id, tasks_url=tasks_url, fields=fields, versions=versions)
    return _written(await fetch(request, statement))


ETAGS = re.compile(r'(?:^|,)\s*(?:W/)?"(0|[1-9]\d{0,17})"(?=\s*(?:,|$))')


def _versions(if_match: str | None) -> list[int] | None:
    """Return the versions that `If-Match` names, or None when any will do (RFC 9110, section 13.1.1)."""
    if if_match is None or if_match.strip() == "*":
        return None
    # `W/` is passed over: a proxy that compresses adds it, and the version stays the same.
    return [int(version) for version in ETAGS.findall(if_match)]


def _written(rows: list[tuple[bytes | None, int | None]], *, etag: bool = True) -> Response:
    """Return the task that was written. Raises 404 when there is none, and 412 when it has another version."""
    if not rows:
        raise errors.not_found()
    [(task, version)] = rows
    if task is None:
        raise HTTPException(412, "The task has been changed since.")
    return JSONBytes(task, 200, [(b"etag", f'"{version}"'.encode())] if etag else [])


def _page(tasks: list[bytes]) -> tuple[list[bytes], bytes]:
    """Return as many of the tasks as fit into a page, but at least one, and their JSON array."""
    body = b"[" + b",".join(tasks) + b"]"
    if len(body) <= queries.MAX_PAGE_SIZE or len(tasks) == 1:
        return tasks, body
    ends = accumulate((len(task) + 1 for task in tasks), initial=1)  # of the array behind each task
    return _page(tasks[: max(1, bisect(list(ends), queries.MAX_PAGE_SIZE) - 1)])


def _unless_same(if_none_match: str | None, body: bytes, etag: object, *headers: tuple[bytes, bytes]) -> Response:
    """Return what was read, or 304 when the client has it already (RFC 9110, section 13.1.2)."""
    quoted = f'"{etag}"'
    all_headers = [(b"etag", quoted.encode()), *headers]
    if if_none_match is not None and (if_none_match.strip() == "*" or quoted in if_none_match):
        response = Response(status_code=304)
        response.raw_headers = all_headers
        return response
    return JSONBytes(body, 200, all_headers)


def _digest(*parts: str) -> UUID:
    """Return an id that is always the same for these texts, in the form of version 4."""
    return UUID(bytes=hashlib.blake2b("\0".join(parts).encode(), digest_size=16).digest(), version=4)


def _after(query: schemas.ListQuery, user_id: str) -> tuple[Any, UUID] | None:
    if query.cursor is None:
        return None
    try:
        return query.decode_cursor(user_id)
    except ValueError:
        raise errors.validation_error(("query", "cursor"), "Cursor does not belong to this list", "cursor") from None


def _next_page(request: Request, query: schemas.ListQuery, tasks_url: str, last: dict[str, Any], user_id: str) -> bytes:
    """Return the value of `Link` that leads to the page behind the task `last` (RFC 8288)."""
    given = parse_qsl(request.scope["query_string"].decode("latin-1"), keep_blank_values=True)
    parameters = [(name, value) for name, value in given if name != "cursor"]
    parameters.append(("cursor", query.encode_cursor(last, user_id)))
    return f'<{tasks_url[:-1]}?{urlencode(parameters)}>; rel="next"'.encode()


HOST = re.compile(r"([\w.-]{1,253}|\[[0-9A-Fa-f:.]+\])(:\d{1,5})?", re.ASCII)


def _tasks_url(request: Request, user_id: str) -> str:
    """Return the absolute address of the user's tasks as the client sees it, with a slash at its end.

    A proxy may say in `X-Forwarded-Proto` and `X-Forwarded-Host` what was asked of it. Anybody
    else may say so as well: the address goes back to whoever asked, and to nobody else.
    """
    headers = dict(reversed(request.scope["headers"]))
    host = headers.get(b"host", b"")
    forwarded = headers.get(b"x-forwarded-proto", b""), headers.get(b"x-forwarded-host", b"")
    origin = _origin(request.scope["scheme"], host, *forwarded)
    if origin is None:  # the server's own: request.base_url would take a Host of any length
        origin = str(URL(scope=dict(request.scope, headers=[], path="", query_string=b"", root_path=""))).rstrip("/")
    return f"{origin}{request.scope.get('root_path', '').rstrip('/')}/api/{quote(user_id, safe='')}/tasks/"


@lru_cache(maxsize=256)
def _origin(scheme: str, host: bytes, forwarded_proto: bytes, forwarded_host: bytes) -> str | None:
    """Return scheme and host of an address, or None when no header names a host that can be one."""
    # The outermost proxy is the first in the list.
    proto, proxy_host = (value.decode("latin-1").split(",")[0].strip() for value in (forwarded_proto, forwarded_host))
    if proto in ("http", "https", "ws", "wss"):
        scheme = proto
    found = next(filter(HOST.fullmatch, (proxy_host, host.decode("latin-1"))), None)
    return found and f"{scheme.replace('ws', 'http')}://{found}"
