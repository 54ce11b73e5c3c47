"""FastAPI with SQLAlchemy's asyncio extension and asyncpg, as their documentation teaches them."""

import os
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated
from uuid import UUID, uuid4

from fastapi import Depends, FastAPI, HTTPException, Query, Request
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import BigInteger, DateTime, Enum, Text, select
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class Priority(StrEnum):
    low = "low"
    medium = "medium"
    high = "high"


def now() -> datetime:
    return datetime.now(UTC)


class Base(DeclarativeBase):
    type_annotation_map = {  # noqa: RUF012
        str: Text,
        datetime: DateTime(timezone=True),
        list[str]: ARRAY(Text),
        Priority: Enum(Priority, name="task_priority"),
    }


class Task(Base):
    __tablename__ = "tasks"

    user_id: Mapped[str] = mapped_column(primary_key=True)
    id: Mapped[UUID] = mapped_column(primary_key=True, default=uuid4)
    title: Mapped[str]
    description: Mapped[str | None]
    completed: Mapped[bool]
    completed_at: Mapped[datetime | None]
    priority: Mapped[Priority]
    tags: Mapped[list[str]]
    due_date: Mapped[datetime | None]
    order: Mapped[int | None]
    created_at: Mapped[datetime] = mapped_column(default=now)
    updated_at: Mapped[datetime] = mapped_column(default=now)
    version: Mapped[int] = mapped_column(BigInteger, default=1)


class TaskCreate(BaseModel):
    title: str = Field(min_length=1, max_length=200)
    description: str | None = Field(default=None, max_length=2000)
    completed: bool = False
    priority: Priority = Priority.medium
    tags: list[str] = []
    due_date: datetime | None = None
    order: int | None = None


class TaskPublic(TaskCreate):
    model_config = ConfigDict(from_attributes=True)

    id: UUID
    user_id: str
    url: str
    completed_at: datetime | None
    created_at: datetime
    updated_at: datetime


engine = create_async_engine(
    os.environ["DATABASE_URL"].replace("postgresql://", "postgresql+asyncpg://"), pool_size=20, max_overflow=0
)
async_session = async_sessionmaker(engine, expire_on_commit=False)


async def get_session() -> AsyncIterator[AsyncSession]:
    async with async_session() as session:
        yield session


SessionDep = Annotated[AsyncSession, Depends(get_session)]
app = FastAPI()


def with_url(request: Request, task: Task) -> Task:
    task.url = str(request.url_for("read_task", user_id=task.user_id, task_id=task.id))
    return task


@app.get("/api/{user_id}/tasks", response_model=list[TaskPublic])
async def read_tasks(
    request: Request, session: SessionDep, user_id: str, limit: Annotated[int, Query(ge=1, le=1000)] = 1000
) -> list[Task]:
    newest_first = (Task.created_at.desc(), Task.id.desc())
    tasks = await session.scalars(select(Task).where(Task.user_id == user_id).order_by(*newest_first).limit(limit))
    return [with_url(request, task) for task in tasks]


@app.post("/api/{user_id}/tasks", response_model=TaskPublic, status_code=201)
async def create_task(request: Request, session: SessionDep, user_id: str, task: TaskCreate) -> Task:
    created = Task(user_id=user_id, completed_at=now() if task.completed else None, **task.model_dump())
    session.add(created)
    await session.commit()
    return with_url(request, created)


@app.get("/api/{user_id}/tasks/{task_id}", response_model=TaskPublic)
async def read_task(request: Request, session: SessionDep, user_id: str, task_id: UUID) -> Task:
    task = await session.get(Task, (user_id, task_id))
    if task is None:
        raise HTTPException(status_code=404, detail="Task not found")
    return with_url(request, task)


@app.patch("/api/{user_id}/tasks/{task_id}/complete", response_model=TaskPublic)
async def complete_task(request: Request, session: SessionDep, user_id: str, task_id: UUID) -> Task:
    task = await session.get(Task, (user_id, task_id))
    if task is None:
        raise HTTPException(status_code=404, detail="Task not found")
    task.completed = not task.completed
    task.updated_at = now()
    task.completed_at = task.updated_at if task.completed else None
    task.version += 1
    await session.commit()
    return with_url(request, task)
