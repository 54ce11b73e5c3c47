"""Count each user's changes, and keep deleted tasks."""

import sqlalchemy as sa
from alembic import op

from database import VERSION_TABLE

revision: str = "0004"
down_revision: str | None = "0003"


def upgrade() -> None:
    op.create_table(
        "task_users",
        sa.Column("user_id", sa.Text, nullable=False),
        sa.Column("epoch", sa.BigInteger, nullable=False),
        sa.Column("revision", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("user_id", name="task_users_pkey"),
        sa.CheckConstraint("char_length(user_id) BETWEEN 1 AND 128", name="task_users_user_id_length"),
    )
    # When the last process of an older version may have written: see `routes/users.py`. NULL where none ever did.
    op.add_column(VERSION_TABLE, sa.Column("upgraded_at", sa.DateTime(timezone=True)))
    op.execute(f"UPDATE {VERSION_TABLE} SET upgraded_at = now() WHERE EXISTS (SELECT FROM tasks)")  # noqa: S608
    # Constant defaults: PostgreSQL keeps them beside the table and does not rewrite it.
    op.execute("ALTER TABLE tasks ADD COLUMN IF NOT EXISTS deleted_at timestamp with time zone")
    op.add_column("tasks", sa.Column("extra", sa.JSON, nullable=False, server_default=sa.text("'{}'")))
    op.add_column("tasks", sa.Column("revision", sa.BigInteger, nullable=False, server_default=sa.text("0")))
    # On a large table these take long and block writes. docs/operations.md says how to create them beforehand.
    op.create_index(
        "tasks_list_idx",
        "tasks",
        ["user_id", "created_at", "id"],
        postgresql_where=sa.text("deleted_at IS NULL"),
        if_not_exists=True,
    )
    op.create_index("tasks_changes_idx", "tasks", ["user_id", "revision", "id"], if_not_exists=True)
    op.create_index(
        "tasks_deleted_idx",
        "tasks",
        ["user_id", "deleted_at"],
        postgresql_where=sa.text("deleted_at IS NOT NULL"),
        if_not_exists=True,
    )
    op.drop_index("tasks_user_id_created_at_id_idx", "tasks")


def downgrade() -> None:
    op.create_index("tasks_user_id_created_at_id_idx", "tasks", ["user_id", "created_at", "id"])
    op.execute("DELETE FROM tasks WHERE deleted_at IS NOT NULL")
    op.drop_index("tasks_deleted_idx", "tasks")
    op.drop_index("tasks_changes_idx", "tasks")
    op.drop_index("tasks_list_idx", "tasks")
    op.drop_column("tasks", "revision")
    op.drop_column("tasks", "extra")
    op.drop_column("tasks", "deleted_at")
    op.drop_column(VERSION_TABLE, "upgraded_at")
    op.drop_table("task_users")
