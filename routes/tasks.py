"""The tasks of a user.

Each endpoint is one SQL statement. PostgreSQL writes the JSON and it is passed on as it is.
"""

import json
import re
from datetime import UTC, datetime
from typing import Annotated, Any
from urllib.parse import quote, urlencode
from uuid import uuid4

from fastapi import APIRouter, Query, Request, Response

import queries
from errors import INVALID, NOT_FOUND, UNAVAILABLE, invalid, not_found
from queries import Statement
from schemas import Completion, Cursor, ListQuery, Task, TaskId, TaskInput, TaskPatch, UserId

router = APIRouter(prefix="/api/{user_id}/tasks", tags=["tasks"], responses=INVALID | UNAVAILABLE)

ALL_FIELDS = frozenset(TaskInput.model_fields)
HOST = re.compile(r"[\w.:\[\]-]+", re.ASCII)


@router.get("", response_model=list[Task])
async def list_tasks(request: Request, user_id: UserId, query: Annotated[ListQuery, Query()]) -> Response:
    """A page of the user's tasks, newest first.

    When more follow, the header `Link` has the address of the next page. Following it to the end
    gives each task once, also while others are added or removed.
    """
    values: dict[str, Any] = {"limit": query.limit + 1}  # one more than is shown tells whether more follow
    if query.cursor is not None:
        try:
            after = Cursor.decode(query.cursor, user_id)
        except ValueError:
            raise invalid(("query", "cursor"), "Cursor is not one of this list", "cursor_invalid") from None
        values |= {"after_created_at": after.created_at, "after_id": str(after.id)}
    rows = await _fetch(request, user_id, queries.list_tasks(after=query.cursor is not None), **values)
    page = [task for (task,) in rows[: query.limit]]
    headers = {}
    if len(rows) > query.limit:
        headers["Link"] = f'<{_next_page(request, user_id, json.loads(page[-1]))}>; rel="next"'
    return _json(f"[{','.join(page)}]", headers=headers)


@router.post("", status_code=201, response_model=Task)
async def create_task(request: Request, user_id: UserId, body: TaskInput) -> Response:
    """Create one task. The header `Location` has its address."""
    task_id = uuid4()
    statement = queries.create_task(completed=body.completed)
    [(task,)] = await _fetch(
        request, user_id, statement, task_id=str(task_id), **body.model_dump(exclude={"completed"})
    )
    return _json(task, 201, {"Location": f"{_tasks_url(request, user_id)}{task_id}"})


@router.get("/{task_id}", response_model=Task, responses=NOT_FOUND)
async def read_task(request: Request, user_id: UserId, task_id: TaskId) -> Response:
    """One task."""
    return await _one(request, user_id, task_id, queries.READ_TASK)


@router.put("/{task_id}", response_model=Task, responses=NOT_FOUND)
async def replace_task(request: Request, user_id: UserId, task_id: TaskId, body: TaskInput) -> Response:
    """Replace a task. A field that is left out goes back to its default."""
    return await _one(request, user_id, task_id, queries.update_task(ALL_FIELDS), **body.model_dump())


@router.patch("/{task_id}", response_model=Task, responses=NOT_FOUND)
async def update_task(request: Request, user_id: UserId, task_id: TaskId, body: TaskPatch) -> Response:
    """Change the fields that are sent. `null` clears one that can be null."""
    values = body.model_dump()
    return await _one(request, user_id, task_id, queries.update_task(frozenset(values)), **values)


@router.delete("/{task_id}", response_model=Task, responses=NOT_FOUND)
async def delete_task(request: Request, user_id: UserId, task_id: TaskId) -> Response:
    """Delete a task. The answer is the task that was deleted, so that "undo" can create it again."""
    return await _one(request, user_id, task_id, queries.DELETE_TASK)


@router.patch("/{task_id}/complete", response_model=Task, responses=NOT_FOUND)
async def complete_task(request: Request, user_id: UserId, task_id: TaskId, body: Completion | None = None) -> Response:
    """Toggle a task without a body, or set it with `{"completed": true}`, which is safe to repeat."""
    if body is None:
        return await _one(request, user_id, task_id, queries.TOGGLE_TASK)
    return await _one(request, user_id, task_id, queries.update_task(frozenset({"completed"})), **body.model_dump())


async def _one(
    request: Request, user_id: str, task_id: TaskId, statement: Statement[str], **values: object
) -> Response:
    """Answer with the one task that `statement` returns, or with 404."""
    rows = await _fetch(request, user_id, statement, task_id=str(task_id), now=datetime.now(UTC), **values)
    if not rows:
        raise not_found()
    return _json(rows[0][0])


async def _fetch(request: Request, user_id: str, statement: Statement[str], **values: object) -> list[tuple[str]]:
    rows: list[tuple[str]] = await request.app.state.database.fetch(
        statement, user_id=user_id, tasks_url=_tasks_url(request, user_id), **values
    )
    return rows


def _json(text: str, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(text, status, headers, "application/json")


def _tasks_url(request: Request, user_id: str) -> str:
    """The absolute address of the user's tasks as the client sees it, with a slash at its end.

    A proxy may say in `X-Forwarded-Proto` and `X-Forwarded-Host` what was asked of it. Anybody
    else may say so as well: the address goes back to whoever asked, and to nobody else.
    """
    base = request.base_url
    if (scheme := _forwarded(request, "proto")) in ("http", "https"):
        base = base.replace(scheme=scheme)
    if HOST.fullmatch(host := _forwarded(request, "host")):
        base = base.replace(netloc=host)
    return f"{base}api/{quote(user_id, safe='')}/tasks/"


def _forwarded(request: Request, name: str) -> str:
    """What the outermost proxy, the first in the list, says."""
    return request.headers.get(f"x-forwarded-{name}", "").split(",")[0].strip()


def _next_page(request: Request, user_id: str, last: dict[str, Any]) -> str:
    """The absolute address of the page that begins after the task `last`."""
    query = dict(request.query_params) | {"cursor": Cursor.model_validate(last).encode(user_id)}
    return f"{_tasks_url(request, user_id).rstrip('/')}?{urlencode(query)}"
