"""Count each user's changes, and keep deleted tasks."""

import sqlalchemy as sa
from alembic import op

from database import VERSION_TABLE

revision: str = "0004"
down_revision: str | None = "0003"

IS_INVALID = sa.text("SELECT EXISTS (SELECT FROM pg_index WHERE indexrelid = to_regclass(:name) AND NOT indisvalid)")


def upgrade() -> None:
    op.create_table(
        "task_users",
        sa.Column("user_id", sa.Text, nullable=False),
        sa.Column("epoch", sa.BigInteger, nullable=False),
        sa.Column("revision", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("user_id", name="task_users_pkey"),
        sa.CheckConstraint("char_length(user_id) BETWEEN 1 AND 128", name="task_users_user_id_length"),
        postgresql_with={"fillfactor": 50},
    )
    # Whoever has tasks has a counter, so that a copy of these tasks has an epoch.
    op.execute("""
        INSERT INTO task_users (user_id, epoch, revision)
        SELECT user_id, extract(epoch FROM now()) * 1000000, extract(epoch FROM now()) * 1000000
        FROM (SELECT DISTINCT user_id FROM tasks) AS users
    """)
    # The time of the upgrade from an older version, whose processes may still write: see `routes/users.py`. NULL
    # in a new database.
    op.add_column(VERSION_TABLE, sa.Column("upgraded_at", sa.DateTime(timezone=True)))
    if not op.get_context().config.attributes["is_new"]:
        op.execute(f"UPDATE {VERSION_TABLE} SET upgraded_at = now()")  # noqa: S608  # a constant
    # From here until the commit, all other statements wait for the table. PostgreSQL does not rewrite it for a
    # nullable column or a constant default.
    op.execute("ALTER TABLE tasks ADD COLUMN IF NOT EXISTS deleted_at timestamp with time zone")
    op.execute("ALTER TABLE tasks ADD COLUMN IF NOT EXISTS revision bigint NOT NULL DEFAULT 0")
    op.add_column("tasks", sa.Column("extra", sa.JSON, nullable=False, server_default=sa.text("'{}'")))
    # On a large table these take long. docs/operations.md says how to create them beforehand.
    _create_index("tasks_list_idx", ["user_id", "created_at", "id"], "deleted_at IS NULL")
    _create_index("tasks_changes_idx", ["user_id", "revision", "id"])
    _create_index("tasks_deleted_idx", ["user_id", "deleted_at"], "deleted_at IS NOT NULL")
    op.drop_index("tasks_user_id_created_at_id_idx", "tasks")


def downgrade() -> None:
    # Of all steps only this one takes long. While it runs, the table can be read.
    _create_index("tasks_user_id_created_at_id_idx", ["user_id", "created_at", "id"])
    op.execute("DELETE FROM tasks WHERE deleted_at IS NOT NULL")
    op.drop_index("tasks_deleted_idx", "tasks")
    op.drop_index("tasks_changes_idx", "tasks")
    op.drop_index("tasks_list_idx", "tasks")
    op.drop_column("tasks", "revision")
    op.drop_column("tasks", "extra")
    op.drop_column("tasks", "deleted_at")
    op.drop_column(VERSION_TABLE, "upgraded_at")
    op.drop_table("task_users")


def _create_index(name: str, columns: list[str], condition: str | None = None) -> None:
    """Create an index, unless it exists and is valid."""
    # A CREATE INDEX CONCURRENTLY that failed leaves an invalid index, which no query uses.
    if op.get_bind().scalar(IS_INVALID, {"name": name}):
        op.drop_index(name, "tasks")
    op.create_index(name, "tasks", columns, postgresql_where=condition and sa.text(condition), if_not_exists=True)
