"""Create the table of tasks."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision: str = "0001"
down_revision: str | None = None

priority = postgresql.ENUM("low", "medium", "high", name="task_priority", create_type=False)


def upgrade() -> None:
    priority.create(op.get_bind())
    op.create_table(
        "tasks",
        sa.Column("user_id", sa.Text, nullable=False),
        sa.Column("id", sa.Uuid, nullable=False),
        sa.Column("title", sa.Text, nullable=False),
        sa.Column("description", sa.Text),
        sa.Column("completed", sa.Boolean, nullable=False, server_default=sa.text("false")),
        sa.Column("completed_at", sa.DateTime(timezone=True)),
        sa.Column("priority", priority, nullable=False, server_default="medium"),
        sa.Column("tags", sa.ARRAY(sa.Text), nullable=False, server_default=sa.text("'{}'")),
        sa.Column("due_date", sa.DateTime(timezone=True)),
        sa.Column("order", sa.Integer),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False, server_default=sa.func.now()),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False, server_default=sa.func.now()),
        sa.PrimaryKeyConstraint("user_id", "id", name="tasks_pkey"),
        sa.CheckConstraint("char_length(user_id) BETWEEN 1 AND 128", name="tasks_user_id_length"),
        sa.CheckConstraint("char_length(title) BETWEEN 1 AND 200", name="tasks_title_length"),
        sa.CheckConstraint("char_length(description) <= 2000", name="tasks_description_length"),
        sa.CheckConstraint("cardinality(tags) <= 20", name="tasks_tags_count"),
        sa.CheckConstraint("completed = (completed_at IS NOT NULL)", name="tasks_completed_at_when_completed"),
    )
    op.create_index("tasks_user_id_created_at_id_idx", "tasks", ["user_id", "created_at", "id"])


def downgrade() -> None:
    op.drop_table("tasks")
    priority.drop(op.get_bind())
