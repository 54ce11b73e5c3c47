"""The endpoints of a user's tasks. Each runs one SQL statement, and sends the JSON that PostgreSQL made."""

import hashlib
import json
import re
from typing import Annotated, Any
from urllib.parse import parse_qsl, urlencode
from uuid import UUID, uuid4

from fastapi import Query, Request, Response
from starlette.exceptions import HTTPException

import errors
import queries
import schemas
from errors import problem_responses, response_headers
from routes import API_ROUTER_OPTIONS, conditional_response, fetch, fit_page, get_tasks_url
from routing import DirectRouter, JSONBytes
from schemas import CreateOnly, IdempotencyKey, IfMatch, IfNoneMatch, TaskId, TaskInput, TaskPatch, UserId

TAG = {"name": "tasks", "description": "A user's tasks, single and in bulk."}
router = DirectRouter(prefix="/api/{user_id}/tasks", tags=[TAG["name"]], **API_ROUTER_OPTIONS)

WRITE_RESPONSES = response_headers(200, "ETag") | problem_responses(404, 412)
CREATED_BY_PUT: errors.Responses = {
    201: {"model": schemas.Task, "description": "The task was created, by this request or an earlier one."}
    | response_headers(201, "ETag", "Idempotent-Replayed")[201]
}

# The most frequent endpoints come first: the router tries them in this order.


@router.get(
    "",
    response_model=list[schemas.Task],
    responses=response_headers(200, "ETag", "Link", "X-Total-Count") | problem_responses(304),
)
async def list_tasks(
    request: Request,
    user_id: UserId,
    parameters: Annotated[schemas.ListQuery, Query()],
    if_none_match: IfNoneMatch = None,
) -> Response:
    """List the user's tasks, newest first, one page at a time.

    When there are more tasks, `Link` has the URL of the next page. Following it to the end returns each
    task once, even while other tasks are added or removed.
    """
    tasks_url = get_tasks_url(request, user_id)
    query = queries.list_tasks(
        user_id,
        tasks_url=tasks_url,
        sort=parameters.sort,
        filters=parameters.to_dict(),
        after=_decode_cursor(parameters, user_id),
        limit=parameters.limit + 1,  # one more row shows whether there is a next page
        total=parameters.total,
    )
    rows = await fetch(request, query)
    page = fit_page([task for task, _ in rows[: parameters.limit] if task is not None], envelope=len(b"[]"))
    body = b"[%b]" % b",".join(page)
    headers = []
    if parameters.total:
        headers.append((b"x-total-count", f"{rows[0][1]}".encode()))
    if page and len(rows) > len(page):
        headers.append((b"link", _next_link(request, parameters, tasks_url, json.loads(page[-1]), user_id)))
    etag = hashlib.sha256(body, usedforsecurity=False).hexdigest()[:32]
    return conditional_response(if_none_match, body, etag, *headers)


@router.post(
    "",
    status_code=201,
    response_model=schemas.Task,
    responses=response_headers(201, "ETag", "Location", "Idempotent-Replayed") | problem_responses(410),
)
async def create_task(
    request: Request, user_id: UserId, body: TaskInput, idempotency_key: IdempotencyKey = None
) -> Response:
    """Create a task. `Location` has its URL.

    A request that is repeated with the same `Idempotency-Key` creates no second task: the response is the
    current state of the first, with `Idempotent-Replayed: true`.
    """
    # The id is derived from owner and key, so that the primary key prevents a second task.
    task_id = uuid4() if idempotency_key is None else _uuid_digest(user_id, idempotency_key)
    fingerprint = None if idempotency_key is None else _fingerprint(body)
    tasks_url = get_tasks_url(request, user_id)
    query = queries.create_task(
        user_id, task_id, tasks_url=tasks_url, fields=body.model_dump(mode="json"), fingerprint=fingerprint
    )
    [(task, version, is_new, found_fingerprint, is_deleted)] = await fetch(request, query)
    if found_fingerprint != fingerprint:
        where = ("header", "idempotency-key")
        raise errors.validation_error(where, "The key was already used with another body", "idempotency_key_reused")
    return _created_response(task, version, is_new, is_deleted, (b"location", f"{tasks_url}{task_id}".encode()))


@router.get(
    "/{task_id}", response_model=schemas.Task, responses=response_headers(200, "ETag") | problem_responses(304, 404)
)
async def read_task(request: Request, user_id: UserId, task_id: TaskId, if_none_match: IfNoneMatch = None) -> Response:
    """Read a task."""
    rows = await fetch(request, queries.read_task(user_id, task_id, tasks_url=get_tasks_url(request, user_id)))
    if not rows:
        raise errors.not_found()
    [(task, version)] = rows
    return conditional_response(if_none_match, task, version)


@router.patch("/{task_id}/complete", response_model=schemas.Task, responses=WRITE_RESPONSES)
async def complete_task(
    request: Request,
    user_id: UserId,
    task_id: TaskId,
    body: schemas.OptionalCompletion = None,
    if_match: IfMatch = None,
) -> Response:
    """Toggle `completed`. With a body, set it to the value there: such a request is safe to repeat."""
    if body is not None:
        return await _update_fields(request, user_id, task_id, body.model_dump(mode="json"), if_match)
    tasks_url, versions = get_tasks_url(request, user_id), _parse_if_match(if_match)
    return _task_response(
        await fetch(request, queries.toggle_task(user_id, task_id, tasks_url=tasks_url, versions=versions))
    )


@router.patch("/{task_id}", response_model=schemas.Task, responses=WRITE_RESPONSES)
async def update_task(
    request: Request, user_id: UserId, task_id: TaskId, body: TaskPatch, if_match: IfMatch = None
) -> Response:
    """Change the fields that are sent. `null` clears a nullable field."""
    return await _update_fields(request, user_id, task_id, body.model_dump(mode="json"), if_match)


@router.put(
    "/{task_id}",
    response_model=schemas.Task,
    responses=WRITE_RESPONSES | CREATED_BY_PUT | problem_responses(410),
)
async def replace_task(
    request: Request,
    user_id: UserId,
    task_id: TaskId,
    body: TaskInput,
    if_match: IfMatch = None,
    if_none_match: CreateOnly = None,
) -> Response:
    """Replace a task. A field that is omitted is reset to its default.

    With `If-None-Match: *` create a task under an id that the client made (a UUID of version 4). A request that
    is repeated creates no second task: the response is the current state of the first, with
    `Idempotent-Replayed: true`.
    """
    if if_none_match is None:
        return await _update_fields(request, user_id, task_id, body.model_dump(mode="json"), if_match)
    if if_none_match.strip() != "*" or if_match is not None:
        where = ("header", "if-none-match")
        raise errors.validation_error(where, "Header should be *, without If-Match", "if_none_match")
    if task_id.version != 4:
        raise errors.validation_error(("path", "task_id"), "Input should be a UUID of version 4", "uuid_version")
    fingerprint = _fingerprint(body, "PUT")
    query = queries.create_task(
        user_id,
        task_id,
        tasks_url=get_tasks_url(request, user_id),
        fields=body.model_dump(mode="json"),
        fingerprint=fingerprint,
    )
    [(task, version, is_new, found_fingerprint, is_deleted)] = await fetch(request, query)
    if found_fingerprint != fingerprint and not is_deleted:
        raise HTTPException(412, "The task exists already.")
    return _created_response(task, version, is_new, is_deleted)


@router.delete("/{task_id}", response_model=schemas.Task, responses=problem_responses(404, 412))
async def delete_task(request: Request, user_id: UserId, task_id: TaskId, if_match: IfMatch = None) -> Response:
    """Delete a task. For 30 days it can be restored."""
    query = queries.delete_task(
        user_id, task_id, tasks_url=get_tasks_url(request, user_id), versions=_parse_if_match(if_match)
    )
    return _task_response(await fetch(request, query), etag=False)


@router.post(
    "/{task_id}/restore", response_model=schemas.Task, responses=response_headers(200, "ETag") | problem_responses(404)
)
async def restore_task(request: Request, user_id: UserId, task_id: TaskId) -> Response:
    """Restore a task that was deleted in the last 30 days. A task that is not deleted is left unchanged."""
    query = queries.restore_task(user_id, task_id, tasks_url=get_tasks_url(request, user_id))
    return _task_response([*await fetch(request, query)])


# ---- Bulk -----------------------------------------------------------------------------------


@router.patch("", response_model=schemas.Updated)
async def update_tasks(
    request: Request, user_id: UserId, filters: Annotated[schemas.BulkFilters, Query()], body: schemas.BulkPatch
) -> Response:
    """Change all tasks that match the filters ("complete all"). At least one field must be sent."""
    fields = body.model_dump(mode="json")
    if not fields:
        raise errors.validation_error(("body",), "Input should have at least one field", "nothing_to_change")
    [(count,)] = await fetch(request, queries.update_tasks(user_id, fields=fields, filters=filters.to_dict()))
    return JSONBytes(b'{"updated": %d}' % count)


@router.delete("", response_model=schemas.Deleted)
async def delete_tasks(request: Request, user_id: UserId, filters: Annotated[schemas.BulkFilters, Query()]) -> Response:
    """Delete all tasks that match the filters ("clear completed"). Without a filter, all of the user's tasks.

    For 30 days each can be restored.
    """
    [(count,)] = await fetch(request, queries.delete_tasks(user_id, filters=filters.to_dict()))
    return JSONBytes(b'{"deleted": %d}' % count)


# ---- Helpers --------------------------------------------------------------------------------


async def _update_fields(
    request: Request, user_id: str, task_id: UUID, fields: dict[str, Any], if_match: str | None
) -> Response:
    tasks_url, versions = get_tasks_url(request, user_id), _parse_if_match(if_match)
    query = queries.update_task(user_id, task_id, tasks_url=tasks_url, fields=fields, versions=versions)
    return _task_response(await fetch(request, query))


# An ETag of this service in a comma-separated list.
ETAG_IN_LIST = re.compile(r'(?:^|,)\s*(?:W/)?"(0|[1-9]\d{0,17})"(?=\s*(?:,|$))')


def _parse_if_match(if_match: str | None) -> list[int] | None:
    """Return the versions in `If-Match`, or None when it matches any version (RFC 9110, section 13.1.1).

    A header without a valid ETag has no versions, so that it matches none.
    """
    if if_match is None or if_match.strip() == "*":
        return None
    # A weak ETag (`W/`) counts too: a proxy that compresses the response makes it weak.
    return [int(version) for version in ETAG_IN_LIST.findall(if_match)]


def _task_response(rows: list[tuple[bytes | None, int | None]], *, etag: bool = True) -> Response:
    """Return the written task. Raises HTTPException: 404 without a task, 412 for another version."""
    if not rows:
        raise errors.not_found()
    [(task, version)] = rows
    if task is None:
        raise HTTPException(412, "The task has been changed since.")
    return JSONBytes(task, 200, [(b"etag", f'"{version}"'.encode())] if etag else [])


def _created_response(
    task: bytes, version: int, is_new: bool, is_deleted: bool, *headers: tuple[bytes, bytes]
) -> Response:
    """Return a created task, or one that an earlier request created. Raises HTTPException 410 when it is deleted."""
    if is_deleted:
        raise HTTPException(410, "The task was created by an earlier request and has been deleted since.")
    replayed = [] if is_new else [(b"idempotent-replayed", b"true")]
    return JSONBytes(task, 201, [*headers, (b"etag", b'"%d"' % version), *replayed])


def _fingerprint(body: TaskInput, *context: str) -> UUID:
    """Return a digest of a body, which the order of names in its JSON does not change."""
    parts = [*context, body.model_dump_json(exclude={"extra"})]
    if body.extra:  # the digest of a body without it is that of version 1.0.0
        parts.append(json.dumps(body.extra, sort_keys=True))
    return _uuid_digest(*parts)


def _uuid_digest(*parts: str) -> UUID:
    """Return a digest of the strings, in the form of a UUID of version 4."""
    return UUID(bytes=hashlib.blake2b("\0".join(parts).encode(), digest_size=16).digest(), version=4)


def _decode_cursor(parameters: schemas.ListQuery, user_id: str) -> tuple[Any, UUID] | None:
    if parameters.cursor is None:
        return None
    try:
        return parameters.decode_cursor(user_id)
    except ValueError:
        raise errors.validation_error(("query", "cursor"), "Cursor does not belong to this list", "cursor") from None


def _next_link(
    request: Request, parameters: schemas.ListQuery, tasks_url: str, last: dict[str, Any], user_id: str
) -> bytes:
    """Return the value of `Link` for the page that follows the task `last` (RFC 8288)."""
    query_string = parse_qsl(request.scope["query_string"].decode("latin-1"), keep_blank_values=True)
    next_page = [(name, value) for name, value in query_string if name != "cursor"]
    next_page.append(("cursor", parameters.encode_cursor(last, user_id)))
    return f'<{tasks_url[:-1]}?{urlencode(next_page)}>; rel="next"'.encode()
