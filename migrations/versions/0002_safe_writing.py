"""Add the columns for ETag and Idempotency-Key."""

import sqlalchemy as sa
from alembic import op

revision: str = "0002"
down_revision: str | None = "0001"


def upgrade() -> None:
    # PostgreSQL does not rewrite the table for a nullable column or a constant default.
    op.add_column("tasks", sa.Column("version", sa.BigInteger, nullable=False, server_default=sa.text("1")))
    op.add_column("tasks", sa.Column("fingerprint", sa.Uuid))


def downgrade() -> None:
    op.drop_column("tasks", "fingerprint")
    op.drop_column("tasks", "version")
