"""The tables, as SQLModel classes."""

from datetime import datetime
from enum import StrEnum
from typing import Any
from uuid import UUID

from sqlalchemy import (
    JSON,
    BigInteger,
    CheckConstraint,
    DateTime,
    Enum,
    Index,
    PrimaryKeyConstraint,
    Text,
    func,
    text,
)
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


class User(SQLModel, table=True):
    """The counter of one user's changes.

    Every write takes the next number from it, before all other locks, and holds the row until it commits.
    Whoever sees number n therefore sees all changes up to n, which makes the numbers a cursor for clients
    that keep a copy (`queries.list_changes`).
    """

    __tablename__ = "task_users"  # another application in the same database may have a table `users`
    __table_args__ = (
        PrimaryKeyConstraint("user_id", name="task_users_pkey"),
        CheckConstraint("char_length(user_id) BETWEEN 1 AND 128", name="task_users_user_id_length"),
        # Room in each page, so that a new number does not touch the index (a HOT update).
        {"postgresql_with": {"fillfactor": 50}},
    )

    user_id: str = Field(sa_type=Text)
    # Which sequence of numbers this is: a cursor of another epoch is of no use. It is the time at which the
    # row was created, in microseconds since 1970.
    epoch: int = Field(sa_type=BigInteger)
    # The number of the last change. It starts at the epoch, so that a user who was erased and comes back never
    # gets a number again, and stays below 2^53 until the year 2255.
    revision: int = Field(sa_type=BigInteger)


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
        # The default order of a list. PostgreSQL reads an index in both directions. Deleted tasks are not in it.
        Index("tasks_list_idx", "user_id", "created_at", "id", postgresql_where=text("deleted_at IS NULL")),
        # The order of the changes. Without it, a client that polls would read all tasks of the user. Because of it,
        # no update of a task is HOT, which takes PostgreSQL a sixth more time.
        Index("tasks_changes_idx", "user_id", "revision", "id"),
        # The tasks to purge. Only deleted tasks are in it.
        Index("tasks_deleted_idx", "user_id", "deleted_at", postgresql_where=text("deleted_at IS NOT NULL")),
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
    # Grows with every change, also with those of processes of version 1.0.0, which may run beside this one during an
    # upgrade and know no `revision`. For a task that this version created, both are the same.
    version: int = Field(sa_type=BigInteger, sa_column_kwargs={"server_default": text("1")})
    # A digest of the body that created the task: a repeated create must have the same.
    fingerprint: UUID | None
    extra: dict[str, Any] = Field(sa_column=Column(JSON, nullable=False, server_default=text("'{}'")))
    # The number of the last change (see User), which is the task's position in the changes. 0 for a task that has
    # not changed since version 1.0.0.
    revision: int = Field(sa_type=BigInteger, sa_column_kwargs={"server_default": text("0")})
    # A deleted task is kept for 30 days, to be restored and to tell other devices.
    deleted_at: datetime | None = Field(sa_column=_timestamp(nullable=True))
