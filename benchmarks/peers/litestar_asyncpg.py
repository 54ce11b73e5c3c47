"""Litestar and asyncpg, with the pool in the state and responses as msgspec structs. Reads only."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any
from uuid import UUID

import asyncpg
from litestar import Litestar, Request, get
from litestar.datastructures import State
from litestar.exceptions import NotFoundException
from msgspec import Struct, json

LIST = """SELECT id, user_id, title, description, completed, completed_at, priority, tags, due_date,
  "order", extra, version, created_at, updated_at FROM tasks WHERE user_id = $1 AND deleted_at IS NULL
  ORDER BY created_at DESC, id DESC LIMIT $2"""
READ = """SELECT id, user_id, title, description, completed, completed_at, priority, tags, due_date,
  "order", extra, version, created_at, updated_at FROM tasks WHERE user_id = $1 AND id = $2"""


class Task(Struct):
    id: UUID
    user_id: str
    url: str
    title: str
    description: str | None
    completed: bool
    completed_at: datetime | None
    priority: str
    tags: list[str]
    due_date: datetime | None
    order: int | None
    extra: dict[str, Any]
    version: int
    created_at: datetime
    updated_at: datetime


async def set_json_codec(connection: asyncpg.Connection) -> None:
    await connection.set_type_codec("json", encoder=json.encode, decoder=json.decode, schema="pg_catalog")


@asynccontextmanager
async def lifespan(app: Litestar) -> AsyncIterator[None]:
    async with asyncpg.create_pool(os.environ["DATABASE_URL"], max_size=20, init=set_json_codec) as pool:
        app.state.pool = pool
        yield


def public(request: Request, row: asyncpg.Record) -> Task:
    return Task(**row, url=f"{request.base_url}api/{row['user_id']}/tasks/{row['id']}")


@get("/api/{user_id:str}/tasks")
async def read_tasks(request: Request, state: State, user_id: str, limit: int = 1000) -> list[Task]:
    rows = await state.pool.fetch(LIST, user_id, limit)
    return [public(request, row) for row in rows]


@get("/api/{user_id:str}/tasks/{task_id:uuid}")
async def read_task(request: Request, state: State, user_id: str, task_id: UUID) -> Task:
    row = await state.pool.fetchrow(READ, user_id, task_id)
    if row is None:
        raise NotFoundException("Task not found")
    return public(request, row)


app = Litestar([read_tasks, read_task], lifespan=[lifespan])
