"""FastAPI and SQLModel with a session per request, as in the tutorial of SQLModel.

The endpoints are plain functions, which FastAPI runs in threads, because psycopg2 blocks.
"""

import os
from collections.abc import Iterator
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Any
from uuid import UUID, uuid4

from fastapi import Depends, FastAPI, HTTPException, Query, Request
from sqlalchemy import JSON, BigInteger, DateTime, Enum, Text
from sqlalchemy.dialects.postgresql import ARRAY
from sqlmodel import Field, Session, SQLModel, col, create_engine, select


class Priority(StrEnum):
    low = "low"
    medium = "medium"
    high = "high"


def now() -> datetime:
    return datetime.now(UTC)


class TaskBase(SQLModel):
    title: str = Field(min_length=1, max_length=200, sa_type=Text)
    description: str | None = Field(default=None, max_length=2000, sa_type=Text)
    completed: bool = False
    priority: Priority = Field(default=Priority.medium, sa_type=Enum(Priority, name="task_priority"))
    tags: list[str] = Field(default=[], sa_type=ARRAY(Text))
    due_date: datetime | None = Field(default=None, sa_type=DateTime(timezone=True))
    order: int | None = None
    extra: dict[str, Any] = Field(default={}, sa_type=JSON)


class Task(TaskBase, table=True):
    __tablename__ = "tasks"

    user_id: str = Field(primary_key=True, sa_type=Text)
    id: UUID = Field(default_factory=uuid4, primary_key=True)
    completed_at: datetime | None = Field(default=None, sa_type=DateTime(timezone=True))
    created_at: datetime = Field(default_factory=now, sa_type=DateTime(timezone=True))
    updated_at: datetime = Field(default_factory=now, sa_type=DateTime(timezone=True))
    version: int = Field(default=1, sa_type=BigInteger)
    deleted_at: datetime | None = Field(default=None, sa_type=DateTime(timezone=True))


class TaskCreate(TaskBase):
    pass


class TaskPublic(TaskBase):
    id: UUID
    user_id: str
    url: str
    completed_at: datetime | None
    version: int
    created_at: datetime
    updated_at: datetime


engine = create_engine(
    os.environ["DATABASE_URL"].replace("postgresql://", "postgresql+psycopg2://"), pool_size=20, max_overflow=20
)


def get_session() -> Iterator[Session]:
    with Session(engine) as session:
        yield session


SessionDep = Annotated[Session, Depends(get_session)]
app = FastAPI()


def public(request: Request, task: Task) -> TaskPublic:
    url = str(request.url_for("read_task", user_id=task.user_id, task_id=task.id))
    return TaskPublic.model_validate(task, update={"url": url})


@app.get("/api/{user_id}/tasks", response_model=list[TaskPublic])
def read_tasks(
    request: Request, session: SessionDep, user_id: str, limit: Annotated[int, Query(ge=1, le=1000)] = 1000
) -> list[TaskPublic]:
    newest_first = (col(Task.created_at).desc(), col(Task.id).desc())
    living = select(Task).where(Task.user_id == user_id, col(Task.deleted_at).is_(None))
    tasks = session.exec(living.order_by(*newest_first).limit(limit)).all()
    return [public(request, task) for task in tasks]


@app.post("/api/{user_id}/tasks", response_model=TaskPublic, status_code=201)
def create_task(request: Request, session: SessionDep, user_id: str, task: TaskCreate) -> TaskPublic:
    created = Task.model_validate(task, update={"user_id": user_id, "completed_at": now() if task.completed else None})
    session.add(created)
    session.commit()
    session.refresh(created)
    return public(request, created)


@app.get("/api/{user_id}/tasks/{task_id}", response_model=TaskPublic)
def read_task(request: Request, session: SessionDep, user_id: str, task_id: UUID) -> TaskPublic:
    task = session.get(Task, (user_id, task_id))
    if not task:
        raise HTTPException(status_code=404, detail="Task not found")
    return public(request, task)


@app.patch("/api/{user_id}/tasks/{task_id}/complete", response_model=TaskPublic)
def complete_task(request: Request, session: SessionDep, user_id: str, task_id: UUID) -> TaskPublic:
    task = session.get(Task, (user_id, task_id))
    if not task:
        raise HTTPException(status_code=404, detail="Task not found")
    task.completed = not task.completed
    task.updated_at = now()
    task.completed_at = task.updated_at if task.completed else None
    task.version += 1
    session.add(task)
    session.commit()
    session.refresh(task)
    return public(request, task)
