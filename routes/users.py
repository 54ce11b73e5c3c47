"""The endpoints of a user as a whole: the summary, the changes, and the end of an account."""

import hashlib
from datetime import UTC, datetime, timedelta
from typing import Annotated

from fastapi import Query, Request, Response
from starlette.exceptions import HTTPException

import errors
import queries
from errors import problem_responses, response_headers
from routes import API_ROUTER_OPTIONS, conditional_response, fetch, fit_page, get_tasks_url
from routing import DirectRouter, JSONBytes
from schemas import Changes, ChangesCursor, ChangesQuery, Deleted, EraseQuery, IfNoneMatch, Summary, UserId

TAG = {"name": "users", "description": "A user as a whole."}
router = DirectRouter(prefix="/api/{user_id}", tags=[TAG["name"]], **API_ROUTER_OPTIONS)


@router.get("", response_model=Summary)
async def read_summary(request: Request, user_id: UserId) -> Response:
    """Count the user's tasks, for a sidebar. Without tasks all numbers are 0."""
    [(summary,)] = await fetch(request, queries.read_summary(user_id))
    return JSONBytes(summary)


@router.delete("", response_model=Deleted)
async def erase_user(request: Request, user_id: UserId, parameters: Annotated[EraseQuery, Query()]) -> Response:
    """Remove everything that the service keeps of a user, deleted tasks included. It cannot be restored."""
    if parameters.confirm != user_id:
        raise errors.validation_error(("query", "confirm"), "Input should be the user_id of the path", "confirm")
    [(count,)] = await fetch(request, queries.erase_user(user_id))
    return JSONBytes(b'{"deleted": %d}' % count)


# ---- Changes --------------------------------------------------------------------------------

CURSOR_LIFETIME = timedelta(days=queries.KEPT_DAYS)
CURSOR_RENEWAL = timedelta(days=1)  # a client that polls gets a new cursor after this time, even without changes
# For so long after an upgrade, processes of version 1.0.0 may run beside this one. They count no changes.
UPGRADE_PERIOD = timedelta(days=1)
EPOCH = datetime.fromtimestamp(0, UTC)


@router.get("/changes", response_model=Changes, responses=response_headers(200, "ETag") | problem_responses(304, 410))
async def list_changes(
    request: Request, user_id: UserId, parameters: Annotated[ChangesQuery, Query()], if_none_match: IfNoneMatch = None
) -> Response:
    """List the tasks that were created, changed or deleted since a cursor, for a client that keeps a copy.

    A client that begins without a cursor, replaces or removes its copy of each task, and goes on with each new
    cursor until `more` is false, has exactly the tasks of one moment, which is not before its last request.
    """
    since = _decode_cursor(parameters, user_id)
    query = queries.list_changes(
        user_id,
        tasks_url=get_tasks_url(request, user_id),
        after=(since.version, since.task_id),
        limit=parameters.limit + 1,  # one more than the page: are there more changes?
    )
    rows = await fetch(request, query)
    now, epoch, newest, *_ = rows[0]
    upgraded_at = request.app.state.upgraded_at
    if parameters.since is not None:
        _check_cursor(since, now, epoch, newest, upgraded_at)
    changes = [(task, version, id_) for *_, task, version, id_ in rows if task and version is not None and id_]
    page = fit_page([task for task, *_ in changes[: parameters.limit]], envelope=ENVELOPE_SIZE)
    more = len(changes) > len(page)
    cursor = since._replace(epoch=epoch or 0)
    if page:
        _, version, task_id = changes[len(page) - 1]
        # A complete client is behind all tasks of the last version, because no later change gets its number.
        cursor = cursor._replace(version=version, task_id=task_id if more else queries.LAST_ID)
    # A client in the middle of the changes is no more up to date than before them.
    is_idle = parameters.since is not None and not page
    if parameters.since is None or (page and not more) or (is_idle and now - since.complete_at > CURSOR_RENEWAL):
        cursor = cursor._replace(complete_at=now)
    body = _changes_body(page, cursor.encode(user_id), more)
    # The ETag changes once a day: otherwise a browser's cache could return the response with an expired cursor.
    day = (cursor.complete_at - (upgraded_at or EPOCH)) // CURSOR_RENEWAL
    etag = hashlib.sha256(repr((cursor.epoch, cursor.version, cursor.task_id, day)).encode()).hexdigest()[:32]
    return conditional_response(if_none_match, body, etag)


def _decode_cursor(parameters: ChangesQuery, user_id: str) -> ChangesCursor:
    if parameters.since is None:
        return ChangesCursor.beginning()
    try:
        return ChangesCursor.decode(parameters.since, user_id)
    except ValueError:
        raise errors.validation_error(("query", "since"), "Cursor does not belong to this user", "cursor") from None


def _check_cursor(
    since: ChangesCursor, now: datetime, epoch: int | None, newest: int | None, upgraded_at: datetime | None
) -> None:
    """Raise HTTPException 410 when the changes since the cursor are not complete.

    That is so when deletions since then may have been removed, when the cursor comes from before a restore of
    the database or the end of the account, and when a process of version 1.0.0 may have written since then.
    """
    is_old = now - since.complete_at > CURSOR_LIFETIME
    has_received = since.version >= 0
    is_other = has_received and (since.epoch != epoch or (newest is not None and since.version > newest))
    is_from_upgrade = upgraded_at is not None and since.complete_at < upgraded_at + UPGRADE_PERIOD <= now
    if is_old or is_other or is_from_upgrade:
        raise HTTPException(410, "The cursor is too old. Begin again without it.")


def _changes_body(page: list[bytes], cursor: str, more: bool) -> bytes:
    return b'{"changes": [%b], "cursor": "%b", "more": %b}' % (
        b",".join(page),
        cursor.encode(),
        b"true" if more else b"false",
    )


ENVELOPE_SIZE = len(_changes_body([], ChangesCursor.beginning().encode(""), more=False))
