"""Every SQL statement of the service, by name.

They are built from `models` and compiled once. Each names the owner, each is whole by itself (it
needs no other statement before or after it), and each that answers with a task has PostgreSQL
write the JSON. A statement with options is built for each combination that is asked for, so that
PostgreSQL never plans a condition that was not given.

They keep to what a distributed table takes as well (Citus): `now()` is never inside CASE or
coalesce, no function that depends on a setting is given a column, and JSON is made outside of the
INSERT, UPDATE or DELETE.
"""

import re
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any, Generic, TypeVarTuple

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY, aggregate_order_by, insert
from sqlalchemy.dialects.postgresql.psycopg2 import PGDialect_psycopg2
from sqlmodel import col

from models import Priority, Task

Columns = TypeVarTuple("Columns")


@dataclass(frozen=True)
class Statement(Generic[*Columns]):
    """A compiled statement, whose rows have the types `Columns`.

    `sql` holds a `%(name)s` for each value; `constants` are the values that it was built with.
    """

    sql: str
    constants: dict[str, Any]


def _compiled(statement: sa.Select[*Columns]) -> Statement[*Columns]:
    compiled = statement.compile(dialect=PGDialect_psycopg2())  # type: ignore[no-untyped-call]
    constants = {name: bind.value for bind, name in compiled.bind_names.items() if not bind.required}
    return Statement(compiled.string, constants)


# ---- Parts ----------------------------------------------------------------------------------

TASKS: sa.Table = Task.__table__  # type: ignore[attr-defined]  # SQLModel adds it to a table's class
SHOWN = [column.name for column in TASKS.c if column.name not in ("user_id", "id", "version", "fingerprint")]

# The values that a request brings. One that is forgotten is a KeyError, not a NULL.
USER_ID = sa.bindparam("user_id", type_=sa.Text)
TASK_ID = sa.bindparam("task_id", type_=sa.Uuid)
NOW = sa.bindparam("now", type_=sa.DateTime(timezone=True))  # by the service's clock, where now() may not stand
TASKS_URL = sa.bindparam("tasks_url", type_=sa.Text)  # of the collection, with a slash at its end

MINE = col(Task.user_id) == USER_ID
MINE_AND_THIS = MINE & (col(Task.id) == TASK_ID)
OF_THIS_VERSION = col(Task.version) == sa.any_(sa.bindparam("versions", type_=ARRAY(sa.BigInteger)))


def _rfc3339(moment: sa.ColumnElement[Any]) -> sa.ColumnElement[str]:
    """A moment as text, under the same name."""
    in_utc = sa.func.timezone(sa.literal_column("'UTC'", sa.Text), moment)
    return sa.func.to_char(in_utc, sa.literal_column("""'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'""", sa.Text)).label(moment.key)


def _fields(row: Any) -> list[sa.ColumnElement[Any]]:
    """The fields of a task as the client sees them, in that order, from columns of these names."""
    url = (TASKS_URL + sa.cast(row.id, sa.Text)).label("url")
    shown = (row[name] for name in SHOWN)
    return [row.id, row.user_id, url, *(_rfc3339(one) if isinstance(one.type, sa.DateTime) else one for one in shown)]


def _json(task: Any) -> sa.ColumnElement[str]:
    return sa.cast(sa.func.row_to_json(task.table_valued()), sa.Text)


def _tasks(rows: sa.FromClause) -> sa.Select[str, int]:
    """The JSON and the version of each of the rows, which have the columns of the table."""
    task = sa.select(*_fields(rows.c)).correlate(rows).lateral("task")
    return sa.select(_json(task), rows.c.version).select_from(rows.join(task, sa.true()))


def _later() -> sa.ColumnElement[Any]:
    """Now, and in any case later than the last change.

    now() is when the statement began. One that had to wait for another's change of the same task
    would otherwise say that it came before it.
    """
    tick = sa.literal_column("interval '1 microsecond'", sa.Interval)
    # Without the time zone and back, because `timestamptz + interval` depends on a setting.
    return sa.func.greatest(sa.func.now(), sa.func.timezone("UTC", sa.func.timezone("UTC", TASKS.c.updated_at) + tick))


def _completion(completed: sa.ColumnElement[bool]) -> dict[str, Any]:
    """What to set for a new value of `completed`. A time that is there already is kept."""
    since = sa.func.coalesce(col(Task.completed_at), sa.func.greatest(NOW, col(Task.created_at)))
    return {"completed": completed, "completed_at": sa.case((completed, since))}


def _new_values(names: frozenset[str]) -> dict[str, Any]:
    """What an UPDATE sets for new values of the fields of these names."""
    values: dict[str, Any] = {name: sa.bindparam(name) for name in names}
    if "completed" in names:
        values |= _completion(sa.bindparam("completed", type_=sa.Boolean))
    return values | {"updated_at": _later(), "version": col(Task.version) + 1}


# ---- One task -------------------------------------------------------------------------------

READY = _compiled(sa.select(sa.literal_column("1", sa.Integer)))

READ_TASK = _compiled(_tasks(TASKS).where(MINE_AND_THIS))


@cache
def create_task(*, completed: bool, keyed: bool) -> Statement[str, int, Any]:
    """A new task, completed now or not yet; its JSON, version and fingerprint.

    With `keyed` one that has this id already is left as it is and returned instead; the version
    tells which of the two it was, as a new task has the one that was handed in.
    """
    now = sa.func.now()
    values: dict[str, Any] = {column.name: sa.bindparam(column.name) for column in TASKS.c}
    values |= {"user_id": USER_ID, "id": TASK_ID, "created_at": now, "updated_at": now}
    values |= {"completed": sa.literal(completed), "completed_at": now if completed else None}
    create = insert(Task).values(values)
    if keyed:
        # DO NOTHING returns no row, and a SELECT beside it would not see one that has just been
        # committed elsewhere. Setting a column to itself locks the row and returns it.
        create = create.on_conflict_do_update(index_elements=["user_id", "id"], set_={"version": col(Task.version)})
    created = create.returning(TASKS).cte("created")
    return _compiled(_tasks(created).add_columns(created.c.fingerprint))


@cache
def update_task(names: frozenset[str], *, guarded: bool) -> Statement[str | None, int | None]:
    """One task with new values for the fields of these names."""
    return _written(sa.update(Task).values(_new_values(names)), guarded=guarded)


@cache
def toggle_task(*, guarded: bool) -> Statement[str | None, int | None]:
    """One task, completed if it was not, and the other way round."""
    values = _new_values(frozenset()) | _completion(sa.not_(col(Task.completed)))
    return _written(sa.update(Task).values(values), guarded=guarded)


@cache
def delete_task(*, guarded: bool) -> Statement[str | None, int | None]:
    """One task, deleted."""
    return _written(sa.delete(Task), guarded=guarded)


def _written(write: sa.Update | sa.Delete, *, guarded: bool) -> Statement[str | None, int | None]:
    """Write to this task; its JSON and version, and no row when it does not exist.

    With `guarded` only when it has one of the `versions`, and else a row of NULLs.
    """
    condition = MINE_AND_THIS & OF_THIS_VERSION if guarded else MINE_AND_THIS
    written = _tasks(write.where(condition).returning(TASKS).cte("written"))
    if not guarded:
        return _compiled(written)
    answer = written.subquery("answer")
    # Locked first: a task that is just being deleted is gone then, and not of another version.
    exists = sa.select(col(Task.id)).where(MINE_AND_THIS).with_for_update(key_share=True).subquery("existing")
    return _compiled(sa.select(*answer.c).select_from(exists.outerjoin(answer, sa.true())))


# ---- Many tasks -----------------------------------------------------------------------------

TEXT = col(Task.title) + "\n" + sa.func.coalesce(col(Task.description), "")


def _given(name: str, kind: Any) -> sa.BindParameter[Any]:
    return sa.bindparam(f"filter_{name}", type_=kind)  # an UPDATE has a value of the plain name too


FILTERS: dict[str, sa.ColumnElement[bool]] = {
    "completed": col(Task.completed) == _given("completed", sa.Boolean),
    "priority": col(Task.priority) == sa.any_(_given("priority", ARRAY(TASKS.c.priority.type))),
    "tag": TASKS.c.tags.contains(_given("tag", ARRAY(sa.Text))),
    "q": sa.func.lower(TEXT).op("LIKE", is_comparison=True)(
        sa.all_(sa.func.string_to_array(sa.func.lower(_given("q", sa.Text)), sa.literal_column("' '", sa.Text)))
    ),
    "due_before": col(Task.due_date) < _given("due_before", TASKS.c.due_date.type),
    "due_after": col(Task.due_date) > _given("due_after", TASKS.c.due_date.type),
    "updated_after": col(Task.updated_at) > _given("updated_after", TASKS.c.updated_at.type),
}


def filter_values(given: dict[str, Any]) -> dict[str, Any]:
    """What the filters take, from what is given by their names."""
    values = {f"filter_{name}": value for name, value in given.items()}
    if "q" in given:  # as patterns for LIKE, in which these three are special
        words = dict.fromkeys(re.sub(r"([%_\\])", r"\\\1", given["q"]).split())
        values["filter_q"] = " ".join(f"%{word}%" for word in words)
    return values


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


def _selected(filters: frozenset[str]) -> sa.ColumnElement[bool]:
    return sa.and_(MINE, *(FILTERS[name] for name in sorted(filters)))


MAX_PAGE_SIZE = 2 * 1024 * 1024  # bytes of JSON


def _fitting(task: sa.FromClause) -> sa.FromClause:
    """The JSON of as many of these tasks as fit into a page, and of two more."""
    # OFFSET 0 keeps PostgreSQL from making the JSON twice. The window needs no order of its own: it takes the
    # rows as they come.
    each = sa.select(_json(task).label("json")).offset(sa.literal_column("0")).subquery("each")
    before = sa.func.sum(sa.func.octet_length(each.c.json)).over(rows=(None, -2))  # without the last
    so_far = sa.select(each.c.json, sa.func.coalesce(before, 0).label("size")).subquery("so_far")
    return sa.select(so_far.c.json).where(so_far.c.size <= MAX_PAGE_SIZE).subquery("fitting")


@lru_cache(maxsize=512)
def list_tasks(
    sort: str, filters: frozenset[str], *, after: bool, total: bool, long: bool = False
) -> Statement[str | None, int | None]:
    """A page of the tasks that the filters select, in the order `sort`; the JSON of each.

    With `after` only those behind a place in that order. With `total` the second column is the
    number that the filters select, and an empty page is one row of that number alone. With `long`
    little more comes back than fits into MAX_PAGE_SIZE, which takes a tenth of the time.
    """
    name, descending = sort.removeprefix("-"), sort.startswith("-")
    order = (_sort_key(name, TASKS.c[name]), TASKS.c.id)
    page = sa.select(*_fields(TASKS.c)).where(_selected(filters)).limit(sa.bindparam("limit"))
    if after:
        value = sa.bindparam("after_value", type_=TASKS.c[name].type)
        here, place = sa.tuple_(*order), sa.tuple_(_sort_key(name, value), sa.bindparam("after_id", type_=sa.Uuid))
        page = page.where(here < place if descending else here > place)
    task = page.order_by(*(key.desc() if descending else key for key in order)).subquery("task")
    shown, made = (fitting := _fitting(task), fitting.c.json) if long else (task, _json(task))
    if not total:
        return _compiled(sa.select(made, sa.null()))
    counted = sa.select(sa.func.count().label("total")).where(_selected(filters)).subquery("counted")
    return _compiled(sa.select(made, counted.c.total).select_from(counted.outerjoin(shown, sa.true())))


@lru_cache(maxsize=512)
def update_tasks(names: frozenset[str], filters: frozenset[str]) -> Statement[int]:
    """All tasks that the filters select, with new values for these fields; how many."""
    return _counted(sa.update(Task).values(_new_values(names)), filters)


@cache
def delete_tasks(filters: frozenset[str]) -> Statement[int]:
    """All tasks that the filters select, deleted; how many."""
    return _counted(sa.delete(Task), filters)


def _counted(write: sa.Update | sa.Delete, filters: frozenset[str]) -> Statement[int]:
    # One at a time for each user: two that lock the same tasks in different orders would deadlock.
    wait = sa.func.pg_advisory_xact_lock(sa.func.hashtextextended(USER_ID, 0)).label("waited")
    turn = sa.select(wait).cte("turn")
    selected = write.where(_selected(filters), sa.exists(sa.select(turn.c.waited)))
    return _compiled(sa.select(sa.func.count()).select_from(selected.returning(TASKS.c.id).cte("written")))


def _summary() -> Statement[str]:
    """The user's numbers, as a JSON object."""

    def number(condition: sa.ColumnElement[bool]) -> sa.ColumnElement[int]:
        return sa.func.count().filter(condition)

    tag = sa.func.unnest(TASKS.c.tags).label("tag")
    used = sa.select(tag, sa.func.count().label("n")).where(MINE).group_by(tag).subquery("all_tags")
    most_used = sa.select(used.c.tag, used.c.n).order_by(used.c.n.desc(), used.c.tag.collate("C"))
    tags = most_used.limit(sa.literal_column("1000")).subquery("tags")
    in_order = aggregate_order_by(tags.c.n, tags.c.tag.collate("C"))
    by_tag = sa.select(sa.func.coalesce(sa.func.json_object_agg(tags.c.tag, in_order), sa.literal_column("'{}'")))
    by_priority = [part for kind in Priority for part in (kind.value, number(TASKS.c.priority == kind))]
    numbers = sa.func.json_build_object(
        *("user_id", USER_ID, "total", sa.func.count()),
        *("completed", number(TASKS.c.completed), "pending", number(~TASKS.c.completed)),
        *("overdue", number(~TASKS.c.completed & (TASKS.c.due_date < sa.func.now()))),
        *("priorities", sa.func.json_build_object(*by_priority), "tags", by_tag.scalar_subquery()),
    )
    return _compiled(sa.select(sa.cast(numbers, sa.Text)).where(MINE))


SUMMARY = _summary()
