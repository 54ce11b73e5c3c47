"""Every SQL statement of the service. `docs/sql.md` shows each as PostgreSQL receives it.

A public function returns a `Query`: a statement and its parameters, for `Database.fetch`. The statement
is built from `models` and compiled once for each combination of options, so that PostgreSQL plans only
the conditions that were given. Each request runs one statement (two for an erasure), and every statement on
tasks names the owner. Where the result is a task, PostgreSQL writes its JSON. "Read one task: its JSON" means
that the rows of the result have this one column.

Some expressions are indirect because the statements also run on tables that Citus distributes by `user_id`
(docs/decisions.md): `now()` is never inside CASE or coalesce, no function that depends on a setting takes a
column, and JSON is made outside of INSERT, UPDATE and DELETE.
"""

import time
from collections.abc import Set
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache, lru_cache
from hashlib import blake2b
from typing import Any, Generic, TypeVarTuple
from uuid import UUID

import sqlalchemy as sa
from pydantic_core import to_json
from sqlalchemy.dialects.postgresql import ARRAY, aggregate_order_by, insert
from sqlalchemy.dialects.postgresql.psycopg2 import PGDialect_psycopg2
from sqlmodel import col

from models import Priority, Task, User
from schemas import MAX_SEARCH_WORDS, WRITABLE_FIELDS

Columns = TypeVarTuple("Columns")


@dataclass(frozen=True)
class Statement(Generic[*Columns]):
    """A compiled statement. Its rows have the types `Columns`.

    `sql` has a placeholder `%(name)s` for each parameter. `prepare` and `execute` are the same statement as
    PREPARE and EXECUTE, under `name`. They are empty when a statement has too many variants to be prepared.
    """

    sql: str
    name: str = ""
    prepare: str = ""
    execute: str = ""

    def bind(self, **values: object) -> "Query[*Columns]":
        """Return the statement with a value for each parameter."""
        return Query(self, values)


@dataclass(slots=True)
class Query(Generic[*Columns]):
    """A statement and the values of its parameters."""

    statement: Statement[*Columns]
    values: dict[str, Any]


TASKS: sa.Table = Task.__table__  # type: ignore[attr-defined]  # SQLModel adds it to a table's class
TIMESTAMP = sa.DateTime(timezone=True)

# The parameters that most statements have. `tasks_url` is the URL of the user's tasks with a slash at its end;
# `now` is the service's clock, where Citus does not allow now().
USER_ID = sa.bindparam("user_id", type_=sa.Text)
TASK_ID = sa.bindparam("task_id", type_=sa.Uuid)
TASKS_URL = sa.bindparam("tasks_url", type_=sa.Text)
NOW = sa.bindparam("now", type_=TIMESTAMP)

IS_LIVING = col(Task.deleted_at).is_(None)
IS_OWNER = col(Task.user_id) == USER_ID
IS_OWNED_TASK = IS_OWNER & (col(Task.id) == TASK_ID)  # which may be deleted
IS_TASK = IS_OWNED_TASK & IS_LIVING
HAS_VERSION = col(Task.version) == sa.any_(sa.bindparam("versions", type_=ARRAY(sa.BigInteger)))

LAST_ID = UUID(int=2**128 - 1)  # the position behind all tasks of one version
KEPT_DAYS = 30  # for which a deleted task is kept


# ---- One task -------------------------------------------------------------------------------


def read_task(user_id: str, task_id: UUID, *, tasks_url: str) -> Query[bytes, int]:
    """Read one task: its JSON and its version."""
    return _read_task().bind(user_id=user_id, task_id=str(task_id), tasks_url=tasks_url)


@cache
def _read_task() -> Statement[bytes, int]:
    return _compile(_select_json_and_version(TASKS).where(IS_TASK))


def create_task(
    user_id: str, task_id: UUID, *, tasks_url: str, fields: dict[str, Any], fingerprint: UUID | None
) -> Query[bytes, int, bool, UUID | None, bool]:
    """Create a task: its JSON and version, whether it is new, its fingerprint, and whether it is deleted.

    With a fingerprint, a task that exists under this id is left unchanged and returned.
    """
    statement = _create_task(completed=fields["completed"], idempotent=fingerprint is not None)
    return statement.bind(
        user_id=user_id,
        task_id=str(task_id),
        tasks_url=tasks_url,
        fingerprint=fingerprint,
        **_clock(),
        **_columns(fields),
    )


@cache
def _create_task(*, completed: bool, idempotent: bool) -> Statement[bytes, int, bool, UUID | None, bool]:
    counter, now = _count_change(), sa.func.now()
    values: dict[str, Any] = {name: sa.bindparam(name, type_=TASKS.c[name].type) for name in WRITABLE_FIELDS}
    values |= {"completed": sa.literal(completed), "completed_at": now if completed else sa.null()}
    values |= {"user_id": USER_ID, "id": TASK_ID, "created_at": now, "updated_at": now}
    values |= {"fingerprint": sa.bindparam("fingerprint", type_=sa.Uuid)}
    values |= {"version": counter.c.revision, "revision": counter.c.revision}
    create = insert(Task).from_select(list(values), sa.select(*values.values()))
    if idempotent:
        # DO NOTHING returns no row, and a SELECT in the same statement does not see a row that another request
        # has just committed. Setting a column to its own value locks the row and returns it.
        create = create.on_conflict_do_update(index_elements=["user_id", "id"], set_={"version": col(Task.version)})
    created = create.returning(TASKS).cte("created")
    result = _select_json_and_version(created)
    if not idempotent:
        return _compile(result.add_columns(sa.true(), sa.null(), sa.false()))
    is_new, is_deleted = created.c.revision == counter.c.revision, created.c.deleted_at.is_not(None)
    return _compile(result.add_columns(is_new, created.c.fingerprint, is_deleted).join(counter, sa.true()))


def update_task(
    user_id: str, task_id: UUID, *, tasks_url: str, fields: dict[str, Any], versions: list[int] | None = None
) -> Query[bytes | None, int | None]:
    """Set some fields of one task: its JSON and its version.

    There is no row when the task does not exist. With `versions`, the task is only written when it has one
    of these versions; otherwise the result is a row of NULLs. The same holds for `toggle_task` and
    `delete_task`.
    """
    statement = _update_task(frozenset(fields), if_match=versions is not None)
    return statement.bind(
        user_id=user_id, task_id=str(task_id), tasks_url=tasks_url, versions=versions, **_clock(), **_columns(fields)
    )


@cache
def _update_task(field_names: frozenset[str], *, if_match: bool) -> Statement[bytes | None, int | None]:
    # 256 sets of fields are possible: at most one field, or all of them, are frequent enough to be prepared.
    is_frequent = len(field_names) <= 1 or len(field_names) == len(WRITABLE_FIELDS)
    return _write_task(_set_fields(field_names), if_match=if_match, prepare=is_frequent)


def toggle_task(
    user_id: str, task_id: UUID, *, tasks_url: str, versions: list[int] | None = None
) -> Query[bytes | None, int | None]:
    """Complete one task, or reopen it when it is completed: its JSON and its version."""
    return _toggle_task(if_match=versions is not None).bind(
        user_id=user_id, task_id=str(task_id), tasks_url=tasks_url, versions=versions, **_clock()
    )


@cache
def _toggle_task(*, if_match: bool) -> Statement[bytes | None, int | None]:
    return _write_task(_set_completed(sa.not_(col(Task.completed))), if_match=if_match)


def delete_task(
    user_id: str, task_id: UUID, *, tasks_url: str, versions: list[int] | None = None
) -> Query[bytes | None, int | None]:
    """Delete one task: its JSON and its version. Tasks that were deleted 30 days ago are removed."""
    return _delete_task(if_match=versions is not None).bind(
        user_id=user_id, task_id=str(task_id), tasks_url=tasks_url, versions=versions, **_clock()
    )


@cache
def _delete_task(*, if_match: bool) -> Statement[bytes | None, int | None]:
    return _write_task({"deleted_at": sa.func.now()}, if_match=if_match, purge=True)


def restore_task(user_id: str, task_id: UUID, *, tasks_url: str) -> Query[bytes, int]:
    """Restore a task that was deleted in the last 30 days: its JSON and its version.

    A task that is not deleted is left unchanged. There is no row when the task does not exist.
    """
    return _restore_task().bind(user_id=user_id, task_id=str(task_id), tasks_url=tasks_url, **_clock())


@cache
def _restore_task() -> Statement[bytes, int]:
    counter = _count_change()
    changes = _change(counter) | {"updated_at": _next_updated_at(NOW)}
    values = {name: sa.case((IS_LIVING, TASKS.c[name]), else_=value) for name, value in changes.items()}
    restore = sa.update(Task).values(values | {"deleted_at": sa.null()})
    is_kept = IS_LIVING | (col(Task.deleted_at) > _days_ago(KEPT_DAYS))
    restored = restore.where(IS_OWNED_TASK, is_kept, counter.c.revision.is_not(None)).returning(TASKS).cte("restored")
    return _compile(_select_json_and_version(restored))


def _write_task(
    values: dict[str, Any], *, if_match: bool, prepare: bool = True, purge: bool = False
) -> Statement[bytes | None, int | None]:
    """Compile an UPDATE of one task, which returns the task."""
    counter = _count_change()
    write = sa.update(Task).values(values | _change(counter)).where(IS_TASK)
    if not if_match:
        result = _select_json_and_version(write.returning(TASKS).cte("written"))
        return _compile(_with_purge(result, counter) if purge else result, prepare=prepare)
    # Locks the task after the counter, and so sees its newest state. The outer join returns NULLs for a task that
    # exists and has another version.
    existing = sa.select(col(Task.id)).where(IS_TASK, counter.c.revision.is_not(None))
    locked = existing.with_for_update(key_share=True, of=TASKS).cte("existing")
    written = write.where(HAS_VERSION, TASKS.c.id == locked.c.id).returning(TASKS).cte("written")
    task = _select_json_and_version(written).subquery("task")
    result = sa.select(task.c.json, task.c.version).select_from(locked.outerjoin(task, sa.true()))
    return _compile(_with_purge(result, counter) if purge else result, prepare=prepare)


def _count_change() -> sa.CTE:
    """Return the number of this change, which the user's counter gives.

    The counter's row stays locked until the transaction ends, so that a user's changes commit in the order of
    their numbers. Every statement takes this lock before any other: otherwise two could deadlock.
    """
    new_epoch = sa.bindparam("new_epoch", type_=sa.BigInteger)
    create = insert(User).values(user_id=USER_ID, epoch=new_epoch, revision=new_epoch)
    count = create.on_conflict_do_update(index_elements=["user_id"], set_={"revision": col(User.revision) + 1})
    return count.returning(col(User.revision)).cte("counter")


def _clock() -> dict[str, Any]:
    """Return the parameters that a write takes from the service's clock."""
    return {"now": datetime.now(UTC).isoformat(), "new_epoch": time.time_ns() // 1000}


def _columns(fields: dict[str, Any]) -> dict[str, Any]:
    """Return the values of the columns for the fields of a body."""
    return fields | {"extra": to_json(fields["extra"]).decode()} if "extra" in fields else fields


def _change(counter: sa.CTE) -> dict[str, Any]:
    """Return what every UPDATE sets."""
    updated_at = _next_updated_at(sa.func.now())
    # A process of version 1.0.0 adds 1 to the version and does not count.
    version = sa.func.greatest(counter.c.revision, col(Task.version) + 1)
    return {"revision": counter.c.revision, "version": version, "updated_at": updated_at}


def _set_fields(names: Set[str]) -> dict[str, Any]:
    """Return what an UPDATE sets when the fields of these names are written."""
    values: dict[str, Any] = {name: sa.bindparam(name, type_=TASKS.c[name].type) for name in sorted(names)}
    if "completed" in names:
        values |= _set_completed(values["completed"])
    return values


def _set_completed(completed: sa.ColumnElement[bool]) -> dict[str, Any]:
    """Return what an UPDATE sets for a new value of `completed`. It keeps a `completed_at` that is set."""
    since = sa.func.coalesce(col(Task.completed_at), sa.func.greatest(NOW, col(Task.created_at)))
    return {"completed": completed, "completed_at": sa.case((completed, since))}


def _next_updated_at(now: sa.ColumnElement[Any]) -> sa.ColumnElement[Any]:
    """Return the current time, but at least a microsecond after the last change.

    now() is the time at which the statement began. A statement that waited for another change of the same
    task would set an earlier time than that change.
    """
    microsecond = sa.literal_column("interval '1 microsecond'", sa.Interval)
    # The sum is made without a time zone, because `timestamptz + interval` depends on the setting TimeZone.
    return sa.func.greatest(now, _at_utc(_at_utc(TASKS.c.updated_at) + microsecond))


def _with_purge(result: sa.Select[*Columns], counter: sa.CTE) -> sa.Select[*Columns]:
    """Add to a write that the user's tasks that were deleted long ago are removed."""
    is_old = col(Task.deleted_at) < _days_ago(KEPT_DAYS + 1)  # the day is for clocks that differ
    purged = sa.delete(Task).where(IS_OWNER, is_old, counter.c.revision.is_not(None))
    return result.add_cte(purged.cte("purged"))


def _days_ago(days: int) -> sa.ColumnElement[Any]:
    # Calculated without a time zone, because `timestamptz - interval` depends on the setting TimeZone.
    interval = sa.literal_column(f"interval '{days} days'", sa.Interval)
    return _at_utc(_at_utc(sa.func.now()) - interval)


# ---- Many tasks -----------------------------------------------------------------------------

MAX_PAGE_SIZE = 2 * 1024 * 1024  # bytes of JSON
SHORT_PAGE = 101  # tasks, of at most 26 KB each: these never exceed MAX_PAGE_SIZE by much


def list_tasks(
    user_id: str,
    *,
    tasks_url: str,
    sort: str,
    filters: dict[str, Any],
    limit: int,
    after: tuple[Any, UUID] | None = None,
    total: bool = False,
) -> Query[bytes | None, int | None]:
    """List at most `limit` tasks that match the filters, sorted by `sort`: the JSON of each.

    With `after`, a value of the sorted column and an id, the list starts after that position. With `total`
    the second column is the number of tasks that match, and an empty list is one row with this number and
    no JSON. The rows of a long page end two tasks after MAX_PAGE_SIZE: one exceeds it, one shows that there is
    a next page.
    """
    values = _filter_parameters(filters)
    names = frozenset(values)
    if after:
        values["after_value"], values["after_id"] = after
    statement = _list_tasks(sort, names, after=after is not None, total=total, limit_size=limit > SHORT_PAGE)
    return statement.bind(user_id=user_id, tasks_url=tasks_url, limit=limit, **values)


@lru_cache(maxsize=512)
def _list_tasks(
    sort: str, filter_names: frozenset[str], *, after: bool, total: bool, limit_size: bool
) -> Statement[bytes | None, int | None]:
    name, descending = sort.removeprefix("-"), sort.startswith("-")
    sort_keys = (_sort_key(name, TASKS.c[name]), TASKS.c.id)
    tasks = sa.select(*_response_fields(TASKS.c)).where(_matches(filter_names))
    if after:
        value = sa.bindparam("after_value", type_=TASKS.c[name].type)
        position = sa.tuple_(_sort_key(name, value), sa.bindparam("after_id", type_=sa.Uuid))
        tasks = tasks.where(sa.tuple_(*sort_keys) < position if descending else sa.tuple_(*sort_keys) > position)
    tasks = tasks.order_by(*(key.desc() if descending else key for key in sort_keys))
    tasks = tasks.limit(sa.bindparam("limit", type_=sa.BigInteger))
    page = _limit_size(_select_json(tasks)) if limit_size else _select_json(tasks).subquery("page")
    if not total:
        is_frequent = filter_names <= {"filter_completed"} and not limit_size
        return _compile(sa.select(page.c.json, sa.null()), prepare=is_frequent)
    counted = sa.select(sa.func.count().label("total")).where(_matches(filter_names)).subquery("counted")
    return _compile(
        sa.select(page.c.json, counted.c.total).select_from(counted.outerjoin(page, sa.true())), prepare=False
    )


def _sort_key(name: str, value: Any) -> Any:
    """Return the expression that the sort `name` compares, for a column or for the value of a cursor."""
    if name == "title":
        return sa.func.lower(value).collate("C")  # by code point: the same order on every server
    # NULL sorts as a value above all others, so that a cursor can be compared with it.
    if name == "due_date":
        return sa.func.coalesce(value, sa.literal_column("timestamptz 'infinity'"))
    if name == "order":
        return sa.func.coalesce(value, sa.literal_column(str(2**31)))
    return value


def _limit_size(tasks: sa.Select[bytes, *tuple[Any, ...]]) -> sa.Subquery:
    """Return as many of the rows as fit into MAX_PAGE_SIZE with their JSON, and two more."""
    # OFFSET 0 makes PostgreSQL build each JSON once. The window has no ORDER BY: it takes the rows as they come.
    task = tasks.offset(0).subquery("task_json")
    size_before = sa.func.coalesce(sa.func.sum(sa.func.octet_length(task.c.json)).over(rows=(None, -2)), 0)
    measured = sa.select(task, size_before.label("size_before")).subquery("measured")
    columns = (measured.c[name] for name in task.c.keys())  # noqa: SIM118  # the columns of a subquery are no dict
    return sa.select(*columns).where(measured.c.size_before <= MAX_PAGE_SIZE).subquery("page")


def update_tasks(user_id: str, *, fields: dict[str, Any], filters: dict[str, Any]) -> Query[int]:
    """Set some fields of all tasks that match the filters: how many."""
    parameters = _filter_parameters(filters)
    statement = _update_tasks(frozenset(fields), frozenset(parameters))
    return statement.bind(user_id=user_id, **_clock(), **_columns(fields), **parameters)


@lru_cache(maxsize=512)
def _update_tasks(field_names: frozenset[str], filter_names: frozenset[str]) -> Statement[int]:
    return _write_tasks(_set_fields(field_names), filter_names)


def delete_tasks(user_id: str, *, filters: dict[str, Any]) -> Query[int]:
    """Delete all tasks that match the filters: how many. Tasks that were deleted 30 days ago are removed."""
    parameters = _filter_parameters(filters)
    return _delete_tasks(frozenset(parameters)).bind(user_id=user_id, **_clock(), **parameters)


@lru_cache(maxsize=512)
def _delete_tasks(filter_names: frozenset[str]) -> Statement[int]:
    return _write_tasks({"deleted_at": sa.func.now()}, filter_names, purge=True)


def _write_tasks(values: dict[str, Any], filter_names: frozenset[str], *, purge: bool = False) -> Statement[int]:
    """Compile an UPDATE of all tasks that match the filters, which returns their number."""
    counter = _count_change()
    write = sa.update(Task).values(values | _change(counter)).where(_matches(filter_names))
    written = write.returning(TASKS.c.id).cte("written")
    result = sa.select(sa.func.count()).select_from(written)
    return _compile(_with_purge(result, counter) if purge else result, prepare=False)


# ---- Filters --------------------------------------------------------------------------------


def _filter_parameters(filters: dict[str, Any]) -> dict[str, Any]:
    """Return the parameters of the filters: one for each, and one for each word of `q`."""
    parameters = {f"filter_{name}": value for name, value in filters.items() if name != "q"}
    words = dict.fromkeys(filters.get("q", "").split())
    return parameters | {f"filter_word_{number}": word for number, word in enumerate(words)}


def _matches(filter_names: frozenset[str]) -> sa.ColumnElement[bool]:
    """Return the condition that a task is the user's and matches the filters whose parameters are named."""
    return sa.and_(IS_OWNER, IS_LIVING, *(CONDITIONS[name] for name in sorted(filter_names)))


def _parameter(name: str, kind: Any) -> sa.BindParameter[Any]:
    return sa.bindparam(f"filter_{name}", type_=kind)  # prefixed: an UPDATE may set and filter the same column


def _contains_word(number: int) -> sa.ColumnElement[bool]:
    # strpos(), because LIKE is quadratic: a word of 200 letters took 16 s over 3,000 long descriptions.
    text = sa.func.lower(
        col(Task.title) + sa.literal_column(r"E'\n'", sa.Text) + sa.func.coalesce(col(Task.description), "")
    )
    return sa.func.strpos(text, sa.func.lower(_parameter(f"word_{number}", sa.Text))) > 0


CONDITIONS: dict[str, sa.ColumnElement[bool]] = {
    "filter_completed": col(Task.completed) == _parameter("completed", sa.Boolean),
    "filter_priority": col(Task.priority) == sa.any_(_parameter("priority", ARRAY(TASKS.c.priority.type))),
    "filter_tag": TASKS.c.tags.contains(_parameter("tag", ARRAY(sa.Text))),
    "filter_due_before": col(Task.due_date) < _parameter("due_before", TIMESTAMP),
    "filter_due_after": col(Task.due_date) > _parameter("due_after", TIMESTAMP),
    "filter_completed_before": col(Task.completed_at) < _parameter("completed_before", TIMESTAMP),
    "filter_completed_after": col(Task.completed_at) > _parameter("completed_after", TIMESTAMP),
    "filter_id": col(Task.id) == sa.any_(_parameter("id", ARRAY(sa.Uuid))),
    "filter_updated_after": col(Task.updated_at) > _parameter("updated_after", TIMESTAMP),
} | {f"filter_word_{number}": _contains_word(number) for number in range(MAX_SEARCH_WORDS)}


# ---- The user and the database --------------------------------------------------------------


def read_summary(user_id: str) -> Query[bytes]:
    """Count the user's tasks: a JSON object."""
    return _read_summary().bind(user_id=user_id)


@cache
def _read_summary() -> Statement[bytes]:
    def count(condition: sa.ColumnElement[bool]) -> sa.ColumnElement[int]:
        return sa.func.count().filter(condition)

    tag = sa.func.unnest(TASKS.c.tags).label("tag")
    counted = sa.select(tag, sa.func.count().label("n")).where(IS_OWNER, IS_LIVING).group_by(tag).subquery("counted")
    most_used = sa.select(counted).order_by(counted.c.n.desc(), counted.c.tag.collate("C")).limit(1000).subquery("tags")
    by_name = aggregate_order_by(most_used.c.n, most_used.c.tag.collate("C"))
    tags = sa.select(sa.func.coalesce(sa.func.json_object_agg(most_used.c.tag, by_name), sa.literal_column("'{}'")))
    priorities = [part for kind in Priority for part in (kind.value, count(TASKS.c.priority == kind.value))]
    summary = sa.func.json_build_object(
        *("user_id", USER_ID, "total", sa.func.count()),
        *("completed", count(TASKS.c.completed), "pending", count(~TASKS.c.completed)),
        *("overdue", count(~TASKS.c.completed & (TASKS.c.due_date < sa.func.now()))),
        *("priorities", sa.func.json_build_object(*priorities), "tags", tags.scalar_subquery()),
    )
    return _compile(sa.select(_as_text(summary)).where(IS_OWNER, IS_LIVING))


def list_changes(
    user_id: str, *, tasks_url: str, after: tuple[int, UUID], limit: int
) -> Query[datetime, int | None, int | None, bytes | None, int | None, UUID | None]:
    """List at most `limit` tasks that were changed after a position, a version and a task's id, in this order.

    Each row has the time, the epoch and revision of the user, and the JSON, revision and id of a task. Before
    the first write the revision is NULL, and the epoch is NULL too, or 0 when there are tasks of version 1.0.0.
    The JSON of a deleted task has `deleted_at`. When no task was changed, there is one row without a task, and
    after the last position (LAST_ID) only the row of the user has been read. The rows end two tasks after
    MAX_PAGE_SIZE.
    """
    version, task_id = after
    return _list_changes().bind(
        user_id=user_id, tasks_url=tasks_url, after_version=version, after_id=str(task_id), limit=limit
    )


@cache
def _list_changes() -> Statement[datetime, int | None, int | None, bytes | None, int | None, UUID | None]:
    position = sa.tuple_(sa.bindparam("after_version", type_=sa.BigInteger), sa.bindparam("after_id", type_=sa.Uuid))
    user = sa.select(col(User.epoch), col(User.revision)).where(col(User.user_id) == USER_ID).cte("counter")
    # The last possible position. A user of version 1.0.0 has tasks and perhaps no counter.
    newest = sa.func.coalesce(sa.select(user.c.revision).scalar_subquery(), sa.literal_column(str(2**62)))
    end = sa.tuple_(newest, sa.literal_column(f"CAST('{LAST_ID}' AS uuid)"))
    changed_at = (TASKS.c.revision, TASKS.c.id)
    tasks = sa.select(TASKS).where(IS_OWNER, end > position, sa.tuple_(*changed_at) > position)
    changed = tasks.order_by(*changed_at).limit(sa.bindparam("limit", type_=sa.BigInteger)).subquery("changed")
    task = sa.select(*_response_fields(changed.c), _rfc3339(changed.c.deleted_at)).correlate(changed).lateral("task")
    page = _limit_size(
        sa.select(_to_json(task), changed.c.revision, changed.c.id).select_from(changed.join(task, sa.true()))
    )
    clock = sa.select(sa.func.now().label("now")).subquery("clock")
    rows = clock.outerjoin(user, sa.true()).outerjoin(page, sa.true())
    has_tasks = sa.exists(sa.select(col(Task.id)).where(IS_OWNER))
    epoch = sa.func.coalesce(user.c.epoch, sa.case((has_tasks, sa.literal_column("0"))))
    return _compile(
        sa.select(clock.c.now, epoch, user.c.revision, page.c.json, page.c.revision, page.c.id).select_from(rows)
    )


def erase_user(user_id: str) -> Query[int]:
    """Remove the user's counter and all tasks: how many were not deleted before."""
    return _erase_user().bind(user_id=user_id, **_clock())


@cache
def _erase_user() -> Statement[int]:
    # Two statements in one message. The first waits for the user's other writes, so that the second sees them.
    counter = _count_change()
    locked = _compile(sa.select(counter.c.revision))
    removed = sa.delete(User).where(col(User.user_id) == USER_ID).cte("removed")
    erased = sa.delete(Task).where(IS_OWNER).returning(col(Task.deleted_at)).cte("erased")
    count = sa.select(sa.func.count()).select_from(erased).where(erased.c.deleted_at.is_(None))
    return Statement(f"{locked.sql}; {_compile(count.add_cte(removed)).sql}")


# ---- The JSON of a task ---------------------------------------------------------------------


def _select_json_and_version(rows: sa.FromClause) -> sa.Select[bytes, int]:
    """Select the JSON and the version of each row. `rows` is the table, or a CTE with its columns."""
    task = sa.select(*_response_fields(rows.c)).correlate(rows).lateral("task")
    return sa.select(_to_json(task), rows.c.version).select_from(rows.join(task, sa.true()))


def _select_json(tasks: sa.Select[*tuple[Any, ...]], *names: str) -> sa.Select[bytes, *tuple[Any, ...]]:
    """Select the JSON of each of the rows, which have the fields of a response, and the fields of these names."""
    task = tasks.subquery("task")
    return sa.select(_to_json(task), *(task.c[name] for name in names))


def _to_json(task: Any) -> sa.ColumnElement[bytes]:
    return _as_text(sa.func.row_to_json(task.table_valued())).label("json")


def _as_text(value: sa.ColumnElement[Any]) -> sa.ColumnElement[bytes]:
    text: sa.ColumnElement[Any] = sa.cast(value, sa.Text)  # text arrives as bytes, see `Database.fetch`
    return text


def _response_fields(row: Any) -> list[sa.ColumnElement[Any]]:
    """Return the fields of a task in a response, from the columns of the table."""
    url = (TASKS_URL + sa.cast(row.id, sa.Text)).label("url")
    return [
        *(row.id, row.user_id, url, row.title, row.description, row.completed, _rfc3339(row.completed_at)),
        *(row.priority, row.tags, _rfc3339(row.due_date), row.order, row.extra, row.version),
        *(_rfc3339(row.created_at), _rfc3339(row.updated_at)),
    ]


def _rfc3339(column: sa.ColumnElement[Any]) -> sa.ColumnElement[str]:
    """Return a timestamp as RFC 3339 text in UTC, under the name of its column."""
    return sa.func.to_char(_at_utc(column), 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"').label(column.key)


def _at_utc(timestamp: Any) -> sa.ColumnElement[Any]:
    """Return a `timestamptz` as a `timestamp` in UTC, or a `timestamp` in UTC as a `timestamptz`."""
    return sa.func.timezone("UTC", timestamp)


# ---- Compiling ------------------------------------------------------------------------------

DIALECT = PGDialect_psycopg2()  # type: ignore[no-untyped-call]


def _compile(select: sa.Select[*Columns], *, prepare: bool = True) -> Statement[*Columns]:
    """Compile a statement with a placeholder for each parameter. `prepare` adds PREPARE and EXECUTE."""
    compiled = select.compile(dialect=DIALECT)
    sql, types, placeholders = compiled.string, [], []
    for bind, parameter in compiled.bind_names.items():
        if bind.required:
            types.append(bind.type.compile(dialect=DIALECT))
            placeholders.append(f"%({parameter})s")
        else:  # a constant: PostgreSQL plans with its value
            sql = sql.replace(f"%({parameter})s", compiled.render_literal_value(bind.value, bind.type))
    if not prepare:
        return Statement(sql)
    # A digest of the SQL: a prepared statement of this name is always this SQL.
    name = f"tasks_{blake2b(sql.encode(), digest_size=8).hexdigest()}"
    numbered = sql
    for number, placeholder in enumerate(placeholders, 1):
        numbered = numbered.replace(placeholder, f"${number}")
    return Statement(
        sql,
        name,
        prepare=f"PREPARE {name}{_parenthesize(types)} AS {numbered}",
        execute=f"EXECUTE {name}{_parenthesize(placeholders)}",
    )


def _parenthesize(parts: list[str]) -> str:
    return f" ({', '.join(parts)})" if parts else ""


READY: Statement[int] = _compile(sa.select(sa.literal_column("1", sa.Integer)))  # whether the database responds
