"""What Alembic runs, for `create_tables` and for the `alembic` command: one transaction, one at a time."""

from alembic import context
from sqlalchemy import Connection, func, select, text
from sqlmodel import SQLModel

import models  # noqa: F401  # fills SQLModel.metadata
from database import VERSION_TABLE, migration_engine
from settings import EMBEDDED_DATA, load_settings

# Any number that no other program on this database takes. The lock ends with the transaction,
# which a pooler keeps on one connection.
LOCK = 7_461_736_115
LOCK_TIMEOUT = 1  # seconds

# The version table of 1.0.0 had the name that every application's has which uses Alembic. It is ours if it
# stands beside our table, and nobody else's table has this check.
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


def carry_over(transaction: Connection) -> None:
    """Give the version table of 1.0.0 its new name, where there is one and it is ours."""
    if transaction.scalar(FIND_OWN, {"name": VERSION_TABLE}):
        return
    old = transaction.scalar(FIND_OLD, {"name": OLD_VERSION_TABLE})
    if old and _versions(transaction, old) in OLD_VERSIONS:
        _rename(transaction, old, OLD_VERSION_TABLE, VERSION_TABLE)


def hand_back(transaction: Connection) -> None:
    """Leave a schema that 1.0.0 knows as it knows it, unless another application has the name by now.

    Where there is no schema any more, no version table is left either.
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
    return list(transaction.scalars(text(f"SELECT version_num FROM {table}")))  # noqa: S608  # as the catalog says it


def _rename(transaction: Connection, table: str, name: str, new_name: str) -> None:
    transaction.execute(text(f"ALTER TABLE {table} RENAME CONSTRAINT {name}_pkc TO {new_name}_pkc"))
    transaction.execute(text(f"ALTER TABLE {table} RENAME TO {new_name}"))


def is_ours(name: str | None, kind: str, _parents: object) -> bool:
    """Whether Alembic may look at it: the tables of others must never be in a migration."""
    return kind != "table" or name in SQLModel.metadata.tables


dsn = context.config.attributes.get("dsn") or load_settings().database_url.get_secret_value()
if not dsn:
    import embedded

    dsn = embedded.start(EMBEDDED_DATA)

with migration_engine(dsn).begin() as transaction:
    transaction.execute(select(func.pg_advisory_xact_lock(LOCK)))
    # Who waits for a table stops everybody behind it. Better to give up, and to try again later.
    transaction.execute(text(f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT}s'"))
    carry_over(transaction)
    context.configure(
        connection=transaction,
        target_metadata=SQLModel.metadata,
        version_table=VERSION_TABLE,
        include_name=is_ours,
        compare_server_default=True,
    )
    with context.begin_transaction():
        context.run_migrations()
    hand_back(transaction)
