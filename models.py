"""The tables, as SQLModel classes."""

from datetime import datetime
from enum import StrEnum
from uuid import UUID

from sqlalchemy import BigInteger, CheckConstraint, DateTime, Enum, Index, PrimaryKeyConstraint, Text, func, text
from sqlalchemy.dialects.postgresql import ARRAY
from sqlmodel import Column, Field, SQLModel


class Priority(StrEnum):
    """The priority of a task, lowest first: PostgreSQL sorts an enum in this order."""

    low = "low"
    medium = "medium"
    high = "high"


def _timestamp(*, nullable: bool = False) -> Column[datetime]:
    """Return a timestamp column. Unless it is nullable, its default is the current time."""
    return Column(DateTime(timezone=True), nullable=nullable, server_default=None if nullable else func.now())


class Task(SQLModel, table=True):
    """One task of one user.

    The primary key is (`user_id`, `id`): one index finds a task and checks its owner, a statement without the
    owner finds nothing, and the table can be distributed by `user_id`.

    The check constraints repeat what `schemas` validates, for programs that write to the table directly.
    """

    __tablename__ = "tasks"
    __table_args__ = (
        PrimaryKeyConstraint("user_id", "id", name="tasks_pkey"),
        CheckConstraint("char_length(user_id) BETWEEN 1 AND 128", name="tasks_user_id_length"),
        CheckConstraint("char_length(title) BETWEEN 1 AND 200", name="tasks_title_length"),
        CheckConstraint("char_length(description) <= 2000", name="tasks_description_length"),
        CheckConstraint("cardinality(tags) <= 20", name="tasks_tags_count"),
        CheckConstraint("completed = (completed_at IS NOT NULL)", name="tasks_completed_at_when_completed"),
        # The default order of a list. PostgreSQL reads an index in both directions.
        Index("tasks_user_id_created_at_id_idx", "user_id", "created_at", "id"),
    )

    user_id: str = Field(sa_type=Text)
    id: UUID
    title: str = Field(sa_type=Text)
    description: str | None = Field(sa_type=Text)
    completed: bool = Field(sa_column_kwargs={"server_default": text("false")})
    completed_at: datetime | None = Field(sa_column=_timestamp(nullable=True))
    priority: Priority = Field(
        sa_column=Column(
            Enum(Priority, name="task_priority", values_callable=lambda kind: [member.value for member in kind]),
            nullable=False,
            server_default=Priority.medium.value,
        ),
    )
    tags: list[str] = Field(sa_column=Column(ARRAY(Text), nullable=False, server_default=text("'{}'")))
    due_date: datetime | None = Field(sa_column=_timestamp(nullable=True))
    order: int | None
    created_at: datetime = Field(sa_column=_timestamp())
    updated_at: datetime = Field(sa_column=_timestamp())
    # The ETag: every change adds 1. It starts at a random number, so that a task that is created again under
    # the id of a deleted one (by a repeated Idempotency-Key) never has an ETag of that one.
    version: int = Field(sa_type=BigInteger, sa_column_kwargs={"server_default": text("1")})
    # A digest of the body that was sent with an Idempotency-Key: a repeated request must have the same.
    fingerprint: UUID | None
