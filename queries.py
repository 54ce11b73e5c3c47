"""Every SQL statement of the service, by name.

They are built from `models` and compiled once. Each names the owner, each is whole by itself (it
needs no other statement before or after it), and each that answers with a task has PostgreSQL
write the JSON. A statement with options is built for each combination that is asked for, so that
PostgreSQL never plans a condition that was not given.

They keep to what a distributed table takes as well (Citus): `now()` is never inside CASE or
coalesce, no function that depends on a setting is given a column, and JSON is made outside of the
INSERT, UPDATE or DELETE.
"""

from collections.abc import Set
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache, lru_cache
from hashlib import blake2b
from typing import Any, Generic, TypeVarTuple
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY, aggregate_order_by, insert
from sqlalchemy.dialects.postgresql.psycopg2 import PGDialect_psycopg2
from sqlmodel import col

from models import Priority, Task
from schemas import MAX_SEARCH_WORDS

Columns = TypeVarTuple("Columns")

DIALECT = PGDialect_psycopg2()  # type: ignore[no-untyped-call]


@dataclass(frozen=True)
class Statement(Generic[*Columns]):
    """A compiled statement, whose rows have the types `Columns`.

    `sql` holds a `%(name)s` for each value. `prepare` and `execute` are the same statement in SQL's own
    way of preparing it, for those that are worth it; they are empty for the others.
    """

    sql: str
    name: str = ""
    prepare: str = ""
    execute: str = ""

    def bind(self, **values: object) -> "Query[*Columns]":
        """Return the statement with its values."""
        return Query(self, values)


@dataclass(slots=True)
class Query(Generic[*Columns]):
    """A statement with its values, ready to be run."""

    statement: Statement[*Columns]
    values: dict[str, Any]


def _compiled(statement: sa.Select[*Columns], *, prepare: bool = True) -> Statement[*Columns]:
    compiled = statement.compile(dialect=DIALECT)
    sql, types, values = compiled.string, [], []
    for bind, parameter in compiled.bind_names.items():
        if bind.required:
            types.append(bind.type.compile(dialect=DIALECT))
            values.append(f"%({parameter})s")
        else:  # a constant of ours
            sql = sql.replace(f"%({parameter})s", compiled.render_literal_value(bind.value, bind.type))
    if not prepare:
        return Statement(sql)
    # The name says which statement it is, so that one which a session knows already is this one.
    name = f"tasks_{blake2b(sql.encode(), digest_size=8).hexdigest()}"
    numbered = sql
    for number, value in enumerate(values, 1):
        numbered = numbered.replace(value, f"${number}")
    return Statement(
        sql,
        name,
        prepare=f"PREPARE {name}{_in_brackets(types)} AS {numbered}",
        execute=f"EXECUTE {name}{_in_brackets(values)}",
    )


def _in_brackets(parts: list[str]) -> str:
    return f" ({', '.join(parts)})" if parts else ""


# ---- Parts that several statements share ----------------------------------------------------

TASKS: sa.Table = Task.__table__  # type: ignore[attr-defined]  # SQLModel adds it to a table's class
PUBLIC_COLUMNS = [column.name for column in TASKS.c if column.name not in ("user_id", "id", "version", "fingerprint")]
TIMESTAMP = sa.DateTime(timezone=True)

# Parameters. One without a value is a KeyError, not a NULL.
USER_ID = sa.bindparam("user_id", type_=sa.Text)
TASK_ID = sa.bindparam("task_id", type_=sa.Uuid)
TASKS_URL = sa.bindparam("tasks_url", type_=sa.Text)  # of the collection, with a slash at its end
NOW = sa.bindparam("now", type_=TIMESTAMP)  # by the service's clock, where now() may not stand

IS_OWNER = col(Task.user_id) == USER_ID
IS_TASK = IS_OWNER & (col(Task.id) == TASK_ID)
HAS_VERSION = col(Task.version) == sa.any_(sa.bindparam("versions", type_=ARRAY(sa.BigInteger)))


def _in_utc(timestamp: Any) -> sa.ColumnElement[Any]:
    """A timestamp with time zone as one without, and the other way round."""
    return sa.func.timezone("UTC", timestamp)


def _rfc3339(column: sa.ColumnElement[Any]) -> sa.ColumnElement[str]:
    """A timestamp as text, under the name of its column."""
    return sa.func.to_char(_in_utc(column), 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"').label(column.key)


def _task_fields(row: Any) -> list[sa.ColumnElement[Any]]:
    """The fields of a task as a client sees them, in that order, from the columns of the table."""
    url = (TASKS_URL + sa.cast(row.id, sa.Text)).label("url")
    columns = (row[name] for name in PUBLIC_COLUMNS)
    return [row.id, row.user_id, url, *(_rfc3339(c) if isinstance(c.type, sa.DateTime) else c for c in columns)]


def _json(task: Any) -> sa.ColumnElement[bytes]:
    return _as_text(sa.func.row_to_json(task.table_valued()))


def _as_text(value: sa.ColumnElement[Any]) -> sa.ColumnElement[bytes]:
    """The text of a value, which the pool hands on as bytes."""
    text: sa.ColumnElement[Any] = sa.cast(value, sa.Text)
    return text


def _tasks(rows: sa.FromClause) -> sa.Select[bytes, int]:
    """The JSON and the version of each of the rows, which have the columns of the table."""
    task = sa.select(*_task_fields(rows.c)).correlate(rows).lateral("task")
    return sa.select(_json(task), rows.c.version).select_from(rows.join(task, sa.true()))


def _next_updated_at() -> sa.ColumnElement[Any]:
    """Now, and in any case later than the last change.

    now() is when the statement began. One that had to wait for another's change of the same task
    would otherwise say that it came before it.
    """
    tick = sa.literal_column("interval '1 microsecond'", sa.Interval)
    # Without the time zone and back, because `timestamptz + interval` depends on a setting.
    return sa.func.greatest(sa.func.now(), _in_utc(_in_utc(TASKS.c.updated_at) + tick))


def _completion(completed: sa.ColumnElement[bool]) -> dict[str, Any]:
    """What to set for a new value of `completed`. A time that is there already is kept."""
    since = sa.func.coalesce(col(Task.completed_at), sa.func.greatest(NOW, col(Task.created_at)))
    return {"completed": completed, "completed_at": sa.case((completed, since))}


def _changes(names: Set[str]) -> dict[str, Any]:
    """What an UPDATE sets for new values of the fields of these names."""
    values: dict[str, Any] = {name: sa.bindparam(name) for name in sorted(names)}
    if "completed" in names:
        values |= _completion(sa.bindparam("completed", type_=sa.Boolean))
    return values | {"updated_at": _next_updated_at(), "version": col(Task.version) + 1}


# ---- One task -------------------------------------------------------------------------------

READY = _compiled(sa.select(sa.literal_column("1", sa.Integer)))
READ_TASK = _compiled(_tasks(TASKS).where(IS_TASK))


def read_task(user_id: str, task_id: UUID, *, tasks_url: str) -> Query[bytes, int]:
    """One task: its JSON and its version."""
    return READ_TASK.bind(user_id=user_id, task_id=str(task_id), tasks_url=tasks_url)


def create_task(
    user_id: str, task_id: UUID, *, tasks_url: str, fields: dict[str, Any], version: int, fingerprint: UUID | None
) -> Query[bytes, int, UUID | None]:
    """A new task: its JSON, version and fingerprint.

    With a fingerprint, one that has this id already is left as it is and returned instead; the
    version tells which of the two it was, as a new task has the one that was handed in.
    """
    statement = _create_task(completed=fields["completed"], idempotent=fingerprint is not None)
    return statement.bind(
        user_id=user_id, task_id=str(task_id), tasks_url=tasks_url, version=version, fingerprint=fingerprint, **fields
    )


@cache
def _create_task(*, completed: bool, idempotent: bool) -> Statement[bytes, int, UUID | None]:
    now = sa.func.now()
    values: dict[str, Any] = {column.name: sa.bindparam(column.name) for column in TASKS.c}
    values |= {"user_id": USER_ID, "id": TASK_ID, "created_at": now, "updated_at": now}
    values |= (
        {"completed": sa.true(), "completed_at": now}
        if completed
        else {"completed": sa.false(), "completed_at": sa.null()}
    )
    create = insert(Task).values(values)
    if idempotent:
        # DO NOTHING returns no row, and a SELECT beside it would not see one that has just been
        # committed elsewhere. Setting a column to itself locks the row and returns it.
        create = create.on_conflict_do_update(index_elements=["user_id", "id"], set_={"version": col(Task.version)})
    created = create.returning(TASKS).cte("created")
    return _compiled(_tasks(created).add_columns(created.c.fingerprint))


WRITABLE = {"title", "description", "completed", "priority", "tags", "due_date", "order"}


def update_task(
    user_id: str, task_id: UUID, *, tasks_url: str, fields: dict[str, Any], versions: list[int] | None = None
) -> Query[bytes | None, int | None]:
    """One task with new values for some fields: its JSON and its version.

    No row when it does not exist. With `versions` it is written only when it has one of these, and
    is else a row of NULLs. So are all that write to one task.
    """
    statement = _update_task(frozenset(fields), if_match=versions is not None)
    return statement.bind(
        user_id=user_id,
        task_id=str(task_id),
        tasks_url=tasks_url,
        versions=versions,
        now=datetime.now(UTC).isoformat(),
        **fields,
    )


@cache
def _update_task(names: frozenset[str], *, if_match: bool) -> Statement[bytes | None, int | None]:
    common = len(names) <= 1 or names == WRITABLE  # of the many sets of fields those that are worth preparing
    return _write_one(sa.update(Task).values(_changes(names)), if_match=if_match, prepare=common)


def toggle_task(
    user_id: str, task_id: UUID, *, tasks_url: str, versions: list[int] | None = None
) -> Query[bytes | None, int | None]:
    """One task, completed if it was not, and the other way round."""
    return _toggle_task(if_match=versions is not None).bind(
        user_id=user_id, task_id=str(task_id), tasks_url=tasks_url, versions=versions, now=datetime.now(UTC).isoformat()
    )


@cache
def _toggle_task(*, if_match: bool) -> Statement[bytes | None, int | None]:
    return _write_one(
        sa.update(Task).values(_changes(frozenset()) | _completion(sa.not_(col(Task.completed)))), if_match=if_match
    )


def delete_task(
    user_id: str, task_id: UUID, *, tasks_url: str, versions: list[int] | None = None
) -> Query[bytes | None, int | None]:
    """One task, deleted."""
    return _delete_task(if_match=versions is not None).bind(
        user_id=user_id, task_id=str(task_id), tasks_url=tasks_url, versions=versions
    )


@cache
def _delete_task(*, if_match: bool) -> Statement[bytes | None, int | None]:
    return _write_one(sa.delete(Task), if_match=if_match)


def _write_one(
    write: sa.Update | sa.Delete, *, if_match: bool, prepare: bool = True
) -> Statement[bytes | None, int | None]:
    condition = IS_TASK & HAS_VERSION if if_match else IS_TASK
    written = _tasks(write.where(condition).returning(TASKS).cte("written"))
    if not if_match:
        return _compiled(written, prepare=prepare)
    result = written.subquery("result")
    # Locked first: a task that is just being deleted is gone then, and not of another version.
    existing = sa.select(col(Task.id)).where(IS_TASK).with_for_update(key_share=True).subquery("existing")
    return _compiled(sa.select(*result.c).select_from(existing.outerjoin(result, sa.true())), prepare=prepare)


# ---- Many tasks -----------------------------------------------------------------------------

SEARCHED = col(Task.title) + "\n" + sa.func.coalesce(col(Task.description), "")


def _filter(name: str, kind: Any) -> sa.BindParameter[Any]:
    return sa.bindparam(f"filter_{name}", type_=kind)  # an UPDATE has a value of the plain name too


FILTERS: dict[str, sa.ColumnElement[bool]] = {
    "completed": col(Task.completed) == _filter("completed", sa.Boolean),
    "priority": col(Task.priority) == sa.any_(_filter("priority", ARRAY(TASKS.c.priority.type))),
    "tag": TASKS.c.tags.contains(_filter("tag", ARRAY(sa.Text))),
    "due_before": col(Task.due_date) < _filter("due_before", TIMESTAMP),
    "due_after": col(Task.due_date) > _filter("due_after", TIMESTAMP),
    "updated_after": col(Task.updated_at) > _filter("updated_after", TIMESTAMP),
}


# strpos() and not LIKE, which is quadratic: a word of 200 letters over 3,000 long descriptions took 16 s.
for number in range(MAX_SEARCH_WORDS):
    word = sa.func.lower(_filter(f"word_{number}", sa.Text))
    FILTERS[f"word_{number}"] = sa.func.strpos(sa.func.lower(SEARCHED), word) > 0


def _with_words(filters: dict[str, Any]) -> dict[str, Any]:
    """Return the filters with a search as its words."""
    words = dict.fromkeys(filters.get("q", "").split())
    return {name: value for name, value in filters.items() if name != "q"} | {
        f"word_{number}": word for number, word in enumerate(words)
    }


def _filter_values(filters: dict[str, Any]) -> dict[str, Any]:
    return {f"filter_{name}": value for name, value in filters.items()}


def _selected(filters: frozenset[str]) -> sa.ColumnElement[bool]:
    return sa.and_(IS_OWNER, *(FILTERS[name] for name in sorted(filters)))


# Nulls come last, or first when descending: as a value above all others.
NULL_KEYS: dict[str, Any] = {
    "due_date": sa.literal_column("timestamptz 'infinity'"),
    "order": sa.literal_column(str(2**31)),
}


def _sort_key(name: str, value: Any) -> Any:
    """What is compared for the sort `name`, of a column or of a place in the list."""
    if name == "title":
        # By code point, so that the order is the same on every server, whatever its language.
        return sa.func.lower(value).collate("C")
    return sa.func.coalesce(value, NULL_KEYS[name]) if TASKS.c[name].nullable else value


MAX_PAGE_SIZE = 2 * 1024 * 1024  # bytes of JSON
SHORT_PAGE = 101  # so many tasks are never much more than that: none has more than 22 KB


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
    """At most `limit` of the tasks that the filters select, in the order `sort`: the JSON of each.

    With `after`, a value of what is sorted by and an id, only those behind that place. With `total`
    the second column is the number that the filters select, and an empty page is one row of that
    number alone. Of a long page hardly more comes back than fits into MAX_PAGE_SIZE.
    """
    filters = _with_words(filters)
    values = _filter_values(filters)
    if after:
        values["after_value"], values["after_id"] = after
    names, long = frozenset(filters), limit > SHORT_PAGE
    statement = _list_tasks(sort, names, after=after is not None, total=total, long=long)
    return statement.bind(user_id=user_id, tasks_url=tasks_url, limit=limit, **values)


@lru_cache(maxsize=512)
def _list_tasks(
    sort: str, filters: frozenset[str], *, after: bool, total: bool, long: bool
) -> Statement[bytes | None, int | None]:
    name, descending = sort.removeprefix("-"), sort.startswith("-")
    order = (_sort_key(name, TASKS.c[name]), TASKS.c.id)
    limit = sa.bindparam("limit", type_=sa.BigInteger)
    selected = sa.select(*_task_fields(TASKS.c)).where(_selected(filters)).limit(limit)
    if after:
        value = sa.bindparam("after_value", type_=TASKS.c[name].type)
        here, place = sa.tuple_(*order), sa.tuple_(_sort_key(name, value), sa.bindparam("after_id", type_=sa.Uuid))
        selected = selected.where(here < place if descending else here > place)
    task = selected.order_by(*(key.desc() if descending else key for key in order)).subquery("task")
    page = sa.select(_json(task).label("json")).subquery("page")
    if long:
        page = _fitting(task)
    if not total:
        return _compiled(sa.select(page.c.json, sa.null()), prepare=filters <= {"completed"} and not long)
    counted = sa.select(sa.func.count().label("total")).where(_selected(filters)).subquery("counted")
    return _compiled(
        sa.select(page.c.json, counted.c.total).select_from(counted.outerjoin(page, sa.true())), prepare=False
    )


def _fitting(task: sa.FromClause) -> sa.Subquery:
    """The JSON of as many of these tasks as fit into a page, and of two more."""
    # OFFSET 0 keeps PostgreSQL from making the JSON twice. The window needs no order of its own: it takes the
    # rows as they come.
    each = sa.select(_json(task).label("json")).offset(0).subquery("each")
    before = sa.func.sum(sa.func.octet_length(each.c.json)).over(rows=(None, -2))  # without the last
    size = sa.func.coalesce(before, 0)
    sized = sa.select(each.c.json, size.label("size")).subquery("sized")
    return sa.select(sized.c.json).where(sized.c.size <= MAX_PAGE_SIZE).subquery("page")


def update_tasks(user_id: str, *, fields: dict[str, Any], filters: dict[str, Any]) -> Query[int]:
    """All tasks that the filters select, with new values for some fields: how many."""
    filters = _with_words(filters)
    statement = _update_tasks(frozenset(fields), frozenset(filters))
    return statement.bind(user_id=user_id, now=datetime.now(UTC).isoformat(), **fields, **_filter_values(filters))


@lru_cache(maxsize=512)
def _update_tasks(names: frozenset[str], filters: frozenset[str]) -> Statement[int]:
    return _write_many(sa.update(Task).values(_changes(names)), filters)


def delete_tasks(user_id: str, *, filters: dict[str, Any]) -> Query[int]:
    """All tasks that the filters select, deleted: how many."""
    filters = _with_words(filters)
    return _delete_tasks(frozenset(filters)).bind(user_id=user_id, **_filter_values(filters))


@lru_cache(maxsize=512)
def _delete_tasks(filters: frozenset[str]) -> Statement[int]:
    return _write_many(sa.delete(Task), filters)


def _write_many(write: sa.Update | sa.Delete, filters: frozenset[str]) -> Statement[int]:
    # One at a time for each user: two that lock the same tasks in different orders would deadlock.
    lock = sa.func.pg_advisory_xact_lock(sa.func.hashtextextended(USER_ID, 0))
    locked = sa.select(lock.label("acquired")).cte("locked")
    selected = write.where(_selected(filters), sa.exists(sa.select(locked.c.acquired)))
    written = selected.returning(TASKS.c.id).cte("written")
    return _compiled(sa.select(sa.func.count()).select_from(written), prepare=False)


def _summary() -> Statement[bytes]:
    def number(condition: sa.ColumnElement[bool]) -> sa.ColumnElement[int]:
        return sa.func.count().filter(condition)

    tag = sa.func.unnest(TASKS.c.tags).label("tag")
    used = sa.select(tag, sa.func.count().label("n")).where(IS_OWNER).group_by(tag).subquery("used")
    most_used = sa.select(used.c.tag, used.c.n).order_by(used.c.n.desc(), used.c.tag.collate("C"))
    tags = most_used.limit(1000).subquery("tags")
    in_order = aggregate_order_by(tags.c.n, tags.c.tag.collate("C"))
    by_tag = sa.select(sa.func.coalesce(sa.func.json_object_agg(tags.c.tag, in_order), sa.literal_column("'{}'")))
    by_priority = [part for kind in Priority for part in (kind.value, number(TASKS.c.priority == kind.value))]
    numbers = sa.func.json_build_object(
        *("user_id", USER_ID, "total", sa.func.count()),
        *("completed", number(TASKS.c.completed), "pending", number(~TASKS.c.completed)),
        *("overdue", number(~TASKS.c.completed & (TASKS.c.due_date < sa.func.now()))),
        *("priorities", sa.func.json_build_object(*by_priority), "tags", by_tag.scalar_subquery()),
    )
    return _compiled(sa.select(_as_text(numbers)).where(IS_OWNER))


SUMMARY = _summary()


def read_summary(user_id: str) -> Query[bytes]:
    """The user's tasks in numbers, as a JSON object."""
    return SUMMARY.bind(user_id=user_id)
