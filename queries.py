"""Every SQL statement of the service, by name.

They are built from `models` and compiled once. Each names the owner, each is whole by itself (it
needs no other statement before or after it), and each that answers with a task has PostgreSQL
write the JSON.

They keep to what a distributed table takes as well (Citus): `now()` stands alone, never inside
CASE or coalesce, and JSON is made outside of the INSERT, UPDATE or DELETE.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Generic, TypeVarTuple

from sqlalchemy import (
    CTE,
    Boolean,
    ColumnElement,
    DateTime,
    FromClause,
    Integer,
    Select,
    Text,
    Uuid,
    bindparam,
    case,
    cast,
    delete,
    func,
    insert,
    literal,
    literal_column,
    not_,
    select,
    tuple_,
    update,
)
from sqlalchemy.dialects.postgresql.psycopg2 import PGDialect_psycopg2
from sqlmodel import col

from models import Task

Columns = TypeVarTuple("Columns")


@dataclass(frozen=True)
class Statement(Generic[*Columns]):
    """A compiled statement, whose rows have the types `Columns`.

    `sql` holds a `%(name)s` for each value; `constants` are the values that it was built with.
    """

    sql: str
    constants: dict[str, Any]


def _compiled(statement: Select[*Columns]) -> Statement[*Columns]:
    compiled = statement.compile(dialect=PGDialect_psycopg2())  # type: ignore[no-untyped-call]
    constants = {name: bind.value for name, bind in compiled.binds.items() if not bind.required}
    return Statement(compiled.string, constants)


# ---- Parts ----------------------------------------------------------------------------------

# The values that a request brings. One that is forgotten is a KeyError, not a NULL.
USER_ID = bindparam("user_id", type_=Text)
TASK_ID = bindparam("task_id", type_=Uuid)
NOW = bindparam("now", type_=DateTime(timezone=True))
TASKS_URL = bindparam("tasks_url", type_=Text)  # of the collection, with a slash at its end

MINE = col(Task.user_id) == USER_ID
MINE_AND_THIS = MINE & (col(Task.id) == TASK_ID)


def _rfc3339(moment: ColumnElement[Any]) -> ColumnElement[str]:
    in_utc = func.timezone(literal_column("'UTC'", Text), moment)
    return func.to_char(in_utc, literal_column("""'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'""", Text))


def _fields(source: FromClause) -> list[ColumnElement[Any]]:
    """The fields of a task as the client sees them, in that order."""
    row = source.c
    return [
        row.id,
        row.user_id,
        (TASKS_URL + cast(row.id, Text)).label("url"),
        row.title,
        row.description,
        row.completed,
        _rfc3339(row.completed_at).label("completed_at"),
        row.priority,
        row.tags,
        _rfc3339(row.due_date).label("due_date"),
        row.order,
        _rfc3339(row.created_at).label("created_at"),
        _rfc3339(row.updated_at).label("updated_at"),
    ]


def _as_json(rows: Select[*tuple[Any, ...]]) -> Statement[str]:
    """One JSON object, as text, for each of the rows."""
    task = rows.subquery("task")
    return _compiled(select(cast(func.row_to_json(task.table_valued()), Text)))


def _written(rows: CTE) -> Statement[str]:
    """One JSON object for each row that an INSERT, UPDATE or DELETE returns."""
    return _as_json(select(*_fields(rows)))


def _completion(completed: ColumnElement[bool]) -> dict[str, Any]:
    """What to set for a new value of `completed`. A time that is there already is kept."""
    since = func.coalesce(col(Task.completed_at), NOW)
    return {"completed": completed, "completed_at": case((completed, since))}


# ---- Statements -----------------------------------------------------------------------------

TABLE = Task.__table__  # type: ignore[attr-defined]  # SQLModel adds it to a class with table=True
WRITABLE = ("title", "description", "completed", "priority", "tags", "due_date", "order")

READY = _compiled(select(literal_column("1", Integer)))

READ_TASK = _as_json(select(*_fields(TABLE)).where(MINE_AND_THIS))


@lru_cache
def list_tasks(*, after: bool) -> Statement[str]:
    """A page of the user's tasks, newest first. With `after`: only those behind that place."""
    place = tuple_(col(Task.created_at), col(Task.id))
    page = select(*_fields(TABLE)).where(MINE).limit(bindparam("limit"))
    if after:
        page = page.where(place < tuple_(bindparam("after_created_at"), bindparam("after_id")))
    return _as_json(page.order_by(col(Task.created_at).desc(), col(Task.id).desc()))


@lru_cache
def create_task(*, completed: bool) -> Statement[str]:
    """A new task. It has been completed now, or not yet."""
    values: dict[str, Any] = {name: bindparam(name) for name in WRITABLE}
    values |= {"completed": literal(completed), "completed_at": func.now() if completed else None}
    created = insert(Task).values(user_id=USER_ID, id=TASK_ID, **values, created_at=func.now(), updated_at=func.now())
    return _written(created.returning(TABLE).cte("created"))


@lru_cache(maxsize=128)  # as many as there are sets of fields
def update_task(names: frozenset[str]) -> Statement[str]:
    """One task, with new values for the fields of these names."""
    values: dict[str, Any] = {name: bindparam(name) for name in names}
    if "completed" in names:
        values |= _completion(bindparam("completed", type_=Boolean))
    changed = update(Task).where(MINE_AND_THIS).values(**values, updated_at=func.now())
    return _written(changed.returning(TABLE).cte("changed"))


def _toggle_task() -> Statement[str]:
    changed = update(Task).where(MINE_AND_THIS).values(**_completion(not_(col(Task.completed))), updated_at=func.now())
    return _written(changed.returning(TABLE).cte("changed"))


TOGGLE_TASK = _toggle_task()

DELETE_TASK = _written(delete(Task).where(MINE_AND_THIS).returning(TABLE).cte("deleted"))
