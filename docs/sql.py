"""Write docs/sql.md: every SQL statement of the service with example values (`make sql`)."""

import re
import textwrap
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg2.extras
from psycopg2.extensions import adapt

import queries
from schemas import EXAMPLE_ID, EXAMPLE_TIME

psycopg2.extras.register_uuid()  # type: ignore[no-untyped-call]  # psycopg2 has no type for it

INTRODUCTION = """# The SQL statements

For readers of `queries.py`, and for operators who read PostgreSQL's log. Each statement is shown with example
values, and with line breaks of this page. `make sql` writes this page.

- Through a pooler in transaction mode, PostgreSQL receives the statements in this form.
- On a connection without a pooler, a frequent statement is prepared once: the first message is
  `PREPARE tasks_… AS …; EXECUTE tasks_…(…)`, later ones are `EXECUTE` alone. The name is a digest of the statement.
- `SET … statement_timeout` precedes a statement in the same message when the timeout has changed, and always
  through a pooler.
- Each filter, sort and option adds the part that is shown here. `LIMIT 21` is for a page of 20: one more row shows
  whether there is a next page.
"""
USER: Any = "alice"
TASK = UUID(EXAMPLE_ID)
SUBQUERY = r"\s*\((?:SELECT|INSERT|UPDATE|DELETE)\b"
CLAUSE = r"\s+(?=FROM |WHERE |RETURNING |ORDER BY |SET |VALUES |ON CONFLICT |LIMIT |FOR |SELECT )|\s*\n\s*"
TASKS_URL = "http://127.0.0.1:8000/api/alice/tasks/"
ONE: Any = {"user_id": USER, "task_id": TASK, "tasks_url": TASKS_URL}
LIST: Any = {"user_id": USER, "tasks_url": TASKS_URL, "limit": 21}
NEW: dict[str, Any] = {"title": "Buy milk", "description": None, "completed": False, "priority": "medium"}
NEW |= {"tags": ["home"], "due_date": EXAMPLE_TIME, "order": None, "extra": {}}
ALL_FILTERS: dict[str, Any] = {"completed": False, "priority": ["high"], "tag": ["home"], "q": "milk"}
ALL_FILTERS |= {"due_before": EXAMPLE_TIME, "due_after": EXAMPLE_TIME, "updated_after": EXAMPLE_TIME}

EXAMPLES: dict[str, queries.Query[*tuple[Any, ...]]] = {
    "Read a task": queries.read_task(**ONE),
    "Create a task": queries.create_task(**ONE, fields=NEW, fingerprint=None),
    "Create a task, with an Idempotency-Key": queries.create_task(**ONE, fields=NEW, fingerprint=TASK),
    "Update a task": queries.update_task(**ONE, fields={"title": "Buy milk"}),
    "Update a task, with If-Match": queries.update_task(**ONE, fields={"title": "Buy milk"}, versions=[42]),
    "Toggle a task": queries.toggle_task(**ONE),
    "Delete a task": queries.delete_task(**ONE),
    "Restore a task": queries.restore_task(**ONE),
    "List tasks": queries.list_tasks(**LIST, sort="-created_at", filters={}),
    "List tasks, with all filters": queries.list_tasks(**LIST, sort="-created_at", filters=ALL_FILTERS),
    "List tasks: second page, sorted by due date, with total": queries.list_tasks(
        **LIST, sort="due_date", filters={}, after=(EXAMPLE_TIME, TASK), total=True
    ),
    "List tasks, with a limit over 100": queries.list_tasks(**LIST | {"limit": 1001}, sort="title", filters={}),
    "Update all tasks that match": queries.update_tasks(USER, fields={"completed": True}, filters={"completed": False}),
    "Delete all tasks that match": queries.delete_tasks(USER, filters={"completed": True}),
    "Read the summary": queries.read_summary(USER),
    "List changes": queries.list_changes(USER, tasks_url=TASKS_URL, after=(42, TASK), limit=1001),
    "Erase a user": queries.erase_user(USER),
    "Check that the database responds": queries.READY.bind(),
}


def page() -> str:
    """Return the text of docs/sql.md."""
    return INTRODUCTION + "".join(f"\n## {name}\n\n```sql\n{_sql(query)}\n```\n" for name, query in EXAMPLES.items())


def _sql(query: queries.Query[*tuple[Any, ...]]) -> str:
    values = query.values | ({"now": EXAMPLE_TIME, "new_epoch": 42} if "now" in query.values else {})
    return _indent(query.statement.sql % {name: adapt(value).getquoted().decode() for name, value in values.items()})


def _indent(sql: str) -> str:
    """Put each clause on a line, and each subquery on lines of its own."""
    lines: list[str] = [""]
    subqueries: list[bool] = []  # for each open parenthesis, whether it encloses a subquery
    for part in re.split(rf"({SUBQUERY}|[()]|{CLAUSE})", sql):
        if re.fullmatch(SUBQUERY, part):
            subqueries.append(True)
            lines[-1] = f"{lines[-1].rstrip()} ("
            lines.append("  " * sum(subqueries) + part.strip()[1:])
        elif part == ")" and subqueries.pop():
            lines.append("  " * sum(subqueries) + ")")
        elif part.isspace() and all(subqueries):
            lines.append("  " * sum(subqueries))
        else:
            subqueries += [False] * (part == "(")
            lines[-1] += part
    return "\n".join(map(_wrap, filter(str.strip, lines)))


def _wrap(line: str) -> str:
    """Break a long line where a space is, but not inside a literal."""
    text = re.sub("'[^']*'", lambda literal: literal[0].replace(" ", "\0"), line.strip())
    indent = " " * (len(line) - len(line.lstrip()))
    options: Any = {"break_long_words": False, "break_on_hyphens": False}
    wrapped = textwrap.wrap(text, 110, initial_indent=indent, subsequent_indent=f"{indent}    ", **options)
    return "\n".join(wrapped).replace("\0", " ")


if __name__ == "__main__":
    (Path(__file__).parent / "sql.md").write_text(page())
