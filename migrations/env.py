"""The environment of Alembic, for `create_tables` and for the `alembic` command.

All migrations run in one transaction, and only one process migrates at a time.
"""

from typing import Any

from alembic import context
from sqlalchemy import JSON, Column, Connection, func, select, text
from sqlmodel import SQLModel

import models  # noqa: F401  # fills SQLModel.metadata
from database import VERSION_TABLE, migration_engine
from settings import EMBEDDED_DATA, load_settings

# The key of the advisory lock; any number that no other application uses. The lock belongs to the
# transaction and not to the session, so it also works behind a pooler in transaction mode.
LOCK = 7_461_736_115
LOCK_TIMEOUT = 1  # seconds

# Version 1.0.0 used Alembic's default name for the version table. Such a table is ours if `tasks` is in
# the same schema and has our check constraint.
OLD_VERSION_TABLE = "alembic_version"
OLD_VERSIONS = (["0001"], ["0002"])
FIND_OLD = text("""
    SELECT CAST(CAST(versions.oid AS regclass) AS text)
    FROM pg_constraint
    JOIN pg_class AS tasks ON tasks.oid = pg_constraint.conrelid
    JOIN pg_class AS versions ON versions.relnamespace = tasks.relnamespace AND versions.relname = :name
    WHERE tasks.oid = to_regclass('tasks') AND conname = 'tasks_completed_at_when_completed'
""")
FIND_OWN = text("SELECT CAST(to_regclass(:name) AS text)")


def rename_old_version_table(transaction: Connection) -> None:
    """Rename the version table of 1.0.0, if there is one and it is ours."""
    if transaction.scalar(FIND_OWN, {"name": VERSION_TABLE}):
        return
    old = transaction.scalar(FIND_OLD, {"name": OLD_VERSION_TABLE})
    if old and _versions(transaction, old) in OLD_VERSIONS:
        _rename(transaction, old, OLD_VERSION_TABLE, VERSION_TABLE)


def restore_old_version_table(transaction: Connection) -> None:
    """Rename the version table back after a downgrade to a schema of 1.0.0.

    It keeps its name if another application uses the old one. After a downgrade to `base` it is
    dropped.
    """
    own = transaction.scalar(FIND_OWN, {"name": VERSION_TABLE})
    if not own:
        return
    versions = _versions(transaction, own)
    if not versions:
        transaction.execute(text(f"DROP TABLE {own}"))
    elif versions in OLD_VERSIONS and not transaction.scalar(FIND_OLD, {"name": OLD_VERSION_TABLE}):
        _rename(transaction, own, VERSION_TABLE, OLD_VERSION_TABLE)


def _versions(transaction: Connection, table: str) -> list[str]:
    return list(transaction.scalars(text(f"SELECT version_num FROM {table}")))  # noqa: S608  # quoted by PostgreSQL


def _rename(transaction: Connection, table: str, name: str, new_name: str) -> None:
    transaction.execute(text(f"ALTER TABLE {table} RENAME CONSTRAINT {name}_pkc TO {new_name}_pkc"))
    transaction.execute(text(f"ALTER TABLE {table} RENAME TO {new_name}"))


def _compare_default(_context: object, _found: object, column: Column[Any], *_defaults: object) -> bool | None:
    """Let Alembic compare the default of a column, unless it is JSON, whose values PostgreSQL cannot compare."""
    return False if isinstance(column.type, JSON) else None


def is_ours(name: str | None, kind: str, _parents: object) -> bool:
    """Return whether Alembic compares this object. Tables of other applications are ignored."""
    return kind != "table" or name in SQLModel.metadata.tables


dsn = context.config.attributes.get("dsn") or load_settings().database_url.get_secret_value()
if not dsn:
    import embedded

    dsn = embedded.start(EMBEDDED_DATA)

with migration_engine(dsn).begin() as transaction:
    transaction.execute(select(func.pg_advisory_xact_lock(LOCK)))
    # While a migration waits for the lock of a table, all later statements on the table wait too.
    # create_tables tries again later.
    transaction.execute(text(f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT}s'"))
    rename_old_version_table(transaction)
    # A migration may have to know whether a process of an older version may be running.
    context.config.attributes["is_new"] = transaction.scalar(FIND_OWN, {"name": VERSION_TABLE}) is None
    context.configure(
        connection=transaction,
        target_metadata=SQLModel.metadata,
        version_table=VERSION_TABLE,
        include_name=is_ours,
        compare_server_default=_compare_default,
    )
    with context.begin_transaction():
        context.run_migrations()
    restore_old_version_table(transaction)
