"""What Alembic runs: on the connection that `create_tables` hands over, or on one of its own."""

from alembic import context
from sqlalchemy import Connection
from sqlmodel import SQLModel

import models  # noqa: F401  # fills SQLModel.metadata
from database import engine
from settings import load_settings


def migrate(connection: Connection) -> None:
    context.configure(connection=connection, target_metadata=SQLModel.metadata, compare_server_default=True)
    with context.begin_transaction():
        context.run_migrations()


if given := context.config.attributes.get("connection"):
    migrate(given)
else:  # the `alembic` command
    with engine(load_settings().database_url.get_secret_value()).begin() as transaction:
        migrate(transaction)
