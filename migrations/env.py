"""What Alembic runs, for `create_tables` and for the `alembic` command: one transaction, one at a time."""

from alembic import context
from sqlalchemy import func, select, text
from sqlmodel import SQLModel

import models  # noqa: F401  # fills SQLModel.metadata
from database import engine
from settings import EMBEDDED, load_settings

# Any number that no other program on this database takes. The lock ends with the transaction,
# which a pooler keeps on one connection.
LOCK = 7_461_736_115
LOCK_TIMEOUT = 1  # seconds

dsn = context.config.attributes.get("dsn") or load_settings().database_url.get_secret_value()
if not dsn:
    import embedded

    dsn = embedded.start(EMBEDDED)

with engine(dsn).begin() as transaction:
    transaction.execute(select(func.pg_advisory_xact_lock(LOCK)))
    # Who waits for a table stops everybody behind it. Better to give up, and to try again later.
    transaction.execute(text(f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT}s'"))
    context.configure(connection=transaction, target_metadata=SQLModel.metadata, compare_server_default=True)
    with context.begin_transaction():
        context.run_migrations()
