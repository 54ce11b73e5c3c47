"""The tasks of a user. Each endpoint is one SQL statement, and the JSON it makes is passed on."""

import hashlib
import json
import re
import secrets
from bisect import bisect
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from itertools import accumulate
from typing import Annotated, Any, TypeVar
from urllib.parse import quote, urlencode
from uuid import UUID, uuid4

from fastapi import APIRouter, Body, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ValidationError
from pydantic.json_schema import SkipJsonSchema
from starlette.datastructures import URL
from starlette.exceptions import HTTPException

import errors
import queries
import schemas
from errors import declared, with_headers
from queries import Columns, Statement
from routes import API_ROUTER
from schemas import IdempotencyKey, TaskId, TaskInput, TaskPatch, UserId

TAG = {"name": "tasks", "description": "A user's tasks, one by one and many at once."}
router = APIRouter(prefix="/api/{user_id}/tasks", tags=[TAG["name"]], **API_ROUTER)

WRITTEN = with_headers(200, "ETag") | declared(404, 412)
GUARDED = {"parameters": [schemas.IF_MATCH]}

MAX_SHORT = 100  # a page of so many tasks is never much over queries.MAX_PAGE_SIZE: none has more than 22 KB

# The most asked for come first: the router tries them in this order.


@router.get(
    "",
    response_model=list[schemas.Task],
    responses=with_headers(200, "ETag", "Link", "X-Total-Count") | declared(304),
    openapi_extra={"parameters": [schemas.IF_NONE_MATCH, *schemas.parameters(schemas.ListQuery)]},
)
async def list_tasks(request: Request, user_id: UserId) -> Response:
    """A page of the user's tasks, newest first.

    When more follow, `Link` has the address of the next page. Following it to the end gives each
    task once, also while others are added or removed.
    """
    if_none_match = _etags(request, "if-none-match", "")
    query = _query(request, schemas.ListQuery)
    filters = query.given()
    values: dict[str, Any] = {"limit": query.limit + 1}  # one more than is shown tells whether more follow
    if query.cursor is not None:
        try:
            values["after_value"], values["after_id"] = query.place(user_id)
        except ValueError:
            raise errors.invalid(("query", "cursor"), "Cursor is not one of this list", "cursor") from None
    after = query.cursor is not None
    long = query.limit > MAX_SHORT
    statement = queries.list_tasks(query.sort, frozenset(filters), after=after, total=query.total, long=long)
    rows = await _fetch(request, statement, user_id=user_id, **values, **queries.filter_values(filters))
    page, body = _page([task for task, _ in rows[: query.limit] if task is not None])
    headers = {"X-Total-Count": str(rows[0][1])} if query.total else {}
    if page and len(rows) > len(page):
        cursor = query.cursor_after(json.loads(page[-1]), user_id)
        others = _beside_cursor(request)
        next_page = f"{_tasks_url(request, user_id)[:-1]}?{urlencode([*others, ('cursor', cursor)])}"
        headers["Link"] = f'<{next_page}>; rel="next"'
    headers["ETag"] = f'"{hashlib.blake2b(body, digest_size=16).hexdigest()}"'
    return _unless_same(if_none_match, body, headers)


@router.post(
    "",
    status_code=201,
    response_model=schemas.Task,
    responses=with_headers(201, "ETag", "Location", "Idempotent-Replayed"),
)
async def create_task(
    request: Request, user_id: UserId, body: TaskInput, idempotency_key: IdempotencyKey = None
) -> Response:
    """Create one task. `Location` has its address.

    With an `Idempotency-Key`, sending it again makes no second task: the answer is the task as it
    is by now, with `Idempotent-Replayed: true`.
    """
    # The id comes from owner and key, so that the table's primary key is what makes it happen once.
    task_id = uuid4() if idempotency_key is None else _digest(user_id, idempotency_key)
    fingerprint = None if idempotency_key is None else _digest(body.model_dump_json())
    version = secrets.randbits(53)  # anywhere, see models.Task; 53 bits are exact in JavaScript too
    statement = queries.create_task(completed=body.completed, keyed=idempotency_key is not None)
    values = body.model_dump() | {"task_id": task_id, "version": version, "fingerprint": fingerprint}
    [(task, version_now, first_fingerprint)] = await _fetch(request, statement, user_id=user_id, **values)
    if fingerprint != first_fingerprint:
        where = ("header", "Idempotency-Key")
        raise errors.invalid(where, "The key was sent before with another body", "idempotency_key_reused")
    headers = {"Location": f"{_tasks_url(request, user_id)}{task_id}", "ETag": f'"{version_now}"'}
    if version_now != version:
        headers["Idempotent-Replayed"] = "true"
    return _answer(task, headers, 201)


@router.get(
    "/{task_id}",
    response_model=schemas.Task,
    responses=with_headers(200, "ETag") | declared(304, 404),
    openapi_extra={"parameters": [schemas.IF_NONE_MATCH]},
)
async def read_task(request: Request, user_id: UserId, task_id: TaskId) -> Response:
    """One task."""
    if_none_match = _etags(request, "if-none-match", "")
    return _unless_same(if_none_match, *await _fetch_task(request, queries.READ_TASK, user_id=user_id, task_id=task_id))


@router.patch("/{task_id}/complete", response_model=schemas.Task, responses=WRITTEN, openapi_extra=GUARDED)
async def complete_task(
    request: Request, user_id: UserId, task_id: TaskId, body: schemas.Completion | SkipJsonSchema[None] = None
) -> Response:
    """Toggle a task without a body, or set it with `{"completed": true}`, which is safe to repeat."""
    if body is not None:
        return await _set_fields(request, user_id, task_id, body)
    await _check_that_there_is_no_body(request)
    return _answer(*await _write_task(request, queries.toggle_task, user_id=user_id, task_id=task_id))


@router.patch("/{task_id}", response_model=schemas.Task, responses=WRITTEN, openapi_extra=GUARDED)
async def update_task(request: Request, user_id: UserId, task_id: TaskId, body: TaskPatch) -> Response:
    """Change the fields that are sent. `null` clears one that can be null."""
    return await _set_fields(request, user_id, task_id, body)


@router.put("/{task_id}", response_model=schemas.Task, responses=WRITTEN, openapi_extra=GUARDED)
async def replace_task(request: Request, user_id: UserId, task_id: TaskId, body: TaskInput) -> Response:
    """Replace a task. A field that is left out goes back to its default."""
    return await _set_fields(request, user_id, task_id, body)


@router.delete("/{task_id}", response_model=schemas.Task, responses=declared(404, 412), openapi_extra=GUARDED)
async def delete_task(request: Request, user_id: UserId, task_id: TaskId) -> Response:
    """Delete a task. The answer is the task that was deleted, so that "undo" can create it again."""
    task, _ = await _write_task(request, queries.delete_task, user_id=user_id, task_id=task_id)
    return _answer(task)


# ---- All that the filters select ------------------------------------------------------------

SELECTION = {"parameters": schemas.parameters(schemas.Selection)}
SomeFields = Annotated[
    TaskPatch, Body(json_schema_extra={"anyOf": [{"required": [name]} for name in TaskPatch.model_fields]})
]


@router.patch("", response_model=schemas.Updated, openapi_extra=SELECTION)
async def update_tasks(request: Request, user_id: UserId, body: SomeFields) -> Response:
    """Change every task that the filters select ("toggle all"). At least one field must be sent."""
    values, given = body.model_dump(), _query(request, schemas.Selection).given()
    if not values:
        raise errors.invalid(("body",), "Input should have a field to change", "nothing_to_change")
    statement = queries.update_tasks(frozenset(values), frozenset(given))
    [(number,)] = await _fetch(request, statement, user_id=user_id, **values, **queries.filter_values(given))
    return _answer(f'{{"updated": {number}}}')


@router.delete("", response_model=schemas.Deleted, openapi_extra=SELECTION)
async def delete_tasks(request: Request, user_id: UserId) -> Response:
    """Delete every task that the filters select ("clear completed"); without a filter, all of them."""
    given = _query(request, schemas.Selection).given()
    statement = queries.delete_tasks(frozenset(given))
    [(number,)] = await _fetch(request, statement, user_id=user_id, **queries.filter_values(given))
    return _answer(f'{{"deleted": {number}}}')


# ---- What they share ------------------------------------------------------------------------


Query = TypeVar("Query", bound=schemas.Filters)


def _query(request: Request, model: type[Query]) -> Query:
    """Return the query parameters as a `model`; raise 422 for what it does not take.

    FastAPI's `Query()` asks the model for the type of each of its fields at every request, which
    took a sixth of the time of a list. And of a parameter that is sent twice it takes the last.
    """
    # Encoded, no byte becomes more than six.
    longest = 6 * len(request.scope["query_string"])
    if longest > schemas.MAX_QUERY and len(urlencode(_beside_cursor(request))) > schemas.MAX_QUERY:
        msg = f"Query should have at most {schemas.MAX_QUERY:,} characters beside the cursor"
        raise errors.invalid(("query",), msg, "query_too_long")
    values: dict[str, Any] = {}
    for name, value in request.query_params.multi_items():
        if name in schemas.REPEATABLE:
            values.setdefault(name, []).append(value)
        elif name in values:
            raise errors.invalid(("query", name), "Parameter should be there once", "repeated")
        else:
            values[name] = value
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise RequestValidationError([one | {"loc": ("query", *one["loc"])} for one in error.errors()]) from None


def _beside_cursor(request: Request) -> list[tuple[str, str]]:
    """Return the query parameters that `Link` repeats."""
    return [(name, value) for name, value in request.query_params.multi_items() if name != "cursor"]


async def _check_that_there_is_no_body(request: Request) -> None:
    """Raise 422 for a body of `null`, and for one that was announced and did not arrive.

    The server drops the body of a request that asks for an Upgrade, as some clients do on plain
    HTTP. What was to set a task must not toggle it then.
    """
    sent = request.headers.get("content-length", "0") != "0"
    lost = "transfer-encoding" in request.headers and "upgrade" in request.headers
    if sent or lost or await request.body():
        raise errors.invalid(("body",), "Input should be an object, or there should be no body", "body_missing")


async def _fetch(request: Request, statement: Statement[*Columns], **values: Any) -> list[tuple[*Columns]]:
    await request.body()  # also of a GET or DELETE: one that is too large is refused before anything is done
    values |= {"tasks_url": _tasks_url(request, values["user_id"]), "now": datetime.now(UTC)}
    rows: list[tuple[*Columns]] = await request.app.state.database.fetch(statement, **values)
    return rows


async def _fetch_task(request: Request, statement: Statement[Any, Any], **values: Any) -> tuple[str, dict[str, str]]:
    """Return the task that `statement` returns, and its ETag as a header.

    Raises 404 when it does not exist, and 412 when `If-Match` names another version.
    """
    rows = await _fetch(request, statement, **values)
    if not rows:
        raise errors.not_found()
    [(task, version)] = rows
    if task is None:
        raise HTTPException(412, "The task has been changed since.")
    return task, {"ETag": f'"{version}"'}


def _etags(request: Request, name: str, default: str) -> str:
    """Return the header of this name; raise 422 for one that is too long."""
    value = request.headers.get(name, default)
    if len(value) > schemas.MAX_ETAGS:
        msg = f"Header should have at most {schemas.MAX_ETAGS:,} characters"
        raise errors.invalid(("header", name), msg, "string_too_long")
    return value.strip()


ETAGS = re.compile(r'(?:^|,)\s*(?:W/)?"(0|[1-9]\d{0,17})"(?=\s*(?:,|$))')


async def _write_task(
    request: Request, write: Callable[..., Statement[Any, Any]], **values: Any
) -> tuple[str, dict[str, str]]:
    """Return the task as `write` leaves it, like `_fetch_task`, if `If-Match` allows."""
    if_match = _etags(request, "if-match", "*")
    if if_match != "*":
        # `W/` is passed over: a proxy that compresses adds it, and the version stays the same.
        values["versions"] = [int(version) for version in ETAGS.findall(if_match)]
    return await _fetch_task(request, write(guarded=if_match != "*"), **values)


async def _set_fields(request: Request, user_id: str, task_id: UUID, body: BaseModel) -> Response:
    values = body.model_dump()
    write = partial(queries.update_task, frozenset(values))
    return _answer(*await _write_task(request, write, user_id=user_id, task_id=task_id, **values))


def _page(tasks: list[str]) -> tuple[list[str], bytes]:
    """Return as many of the tasks as fit into a page, but at least one, and their JSON array."""
    body = f"[{','.join(tasks)}]".encode()
    if len(body) <= queries.MAX_PAGE_SIZE or len(tasks) == 1:
        return tasks, body
    ends = accumulate((len(task.encode()) + 1 for task in tasks), initial=1)  # of the array behind each task
    return _page(tasks[: max(1, bisect(list(ends), queries.MAX_PAGE_SIZE) - 1)])


def _unless_same(if_none_match: str, body: str | bytes, headers: dict[str, str]) -> Response:
    """The answer to a read, or 304 when the client has it already (RFC 9110, section 13.1.2)."""
    if if_none_match == "*" or headers["ETag"] in if_none_match:
        return Response(status_code=304, headers=headers)
    return _answer(body, headers)


def _answer(text: str | bytes, headers: dict[str, str] | None = None, status: int = 200) -> Response:
    return Response(text, status, headers, "application/json")


def _digest(*parts: str) -> UUID:
    """An id that is always the same for these texts, in the form of version 4."""
    return UUID(bytes=hashlib.blake2b("\0".join(parts).encode(), digest_size=16).digest(), version=4)


HOST = re.compile(r"([\w.-]{1,253}|\[[0-9A-Fa-f:.]+\])(:\d{1,5})?", re.ASCII)


def _tasks_url(request: Request, user_id: str) -> str:
    """The absolute address of the user's tasks as the client sees it, with a slash at its end.

    A proxy may say in `X-Forwarded-Proto` and `X-Forwarded-Host` what was asked of it. Anybody
    else may say so as well: the address goes back to whoever asked, and to nobody else.
    """
    scheme = _forwarded(request, "proto")
    if scheme not in ("http", "https", "ws", "wss"):
        scheme = request.scope["scheme"]
    hosts = (_forwarded(request, "host"), request.headers.get("host", ""))
    # Else its own: request.base_url would take a Host of any length, and each task repeats it.
    own = dict(request.scope, headers=[], path="/", query_string=b"")
    host = next(filter(HOST.fullmatch, hosts), None) or URL(scope=own).netloc
    root = request.scope.get("root_path", "").rstrip("/")
    return f"{scheme.replace('ws', 'http')}://{host}{root}/api/{quote(user_id, safe='')}/tasks/"


def _forwarded(request: Request, name: str) -> str:
    """What the outermost proxy, the first in the list, says."""
    return request.headers.get(f"x-forwarded-{name}", "").split(",")[0].strip()
