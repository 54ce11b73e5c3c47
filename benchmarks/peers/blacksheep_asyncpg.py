"""BlackSheep and asyncpg, with bound parameters and orjson, as in its documentation. Reads only."""

import os
from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID

import asyncpg
import orjson
from blacksheep import Application, Request, Response, get, json
from blacksheep.messages import get_absolute_url_to_path
from blacksheep.server.bindings import FromQuery
from blacksheep.server.responses import not_found
from blacksheep.settings.json import json_settings

LIST = """SELECT id, user_id, title, description, completed, completed_at, priority, tags, due_date,
  "order", extra, version, created_at, updated_at FROM tasks WHERE user_id = $1 AND deleted_at IS NULL
  ORDER BY created_at DESC, id DESC LIMIT $2"""
READ = """SELECT id, user_id, title, description, completed, completed_at, priority, tags, due_date,
  "order", extra, version, created_at, updated_at FROM tasks WHERE user_id = $1 AND id = $2"""


def dumps(value: Any) -> str:
    # asyncpg returns a subclass of UUID, which orjson passes to `default`.
    return orjson.dumps(value, default=str, option=orjson.OPT_UTC_Z).decode("utf8")


json_settings.use(loads=orjson.loads, dumps=dumps)
app = Application()


async def set_json_codec(connection: asyncpg.Connection) -> None:
    await connection.set_type_codec("json", encoder=dumps, decoder=orjson.loads, schema="pg_catalog")


@app.lifespan
async def open_pool() -> AsyncIterator[None]:
    async with asyncpg.create_pool(os.environ["DATABASE_URL"], max_size=20, init=set_json_codec) as pool:
        app.services.register(asyncpg.Pool, instance=pool)
        yield


def public(request: Request, row: asyncpg.Record) -> dict[str, Any]:
    path = f"/api/{row['user_id']}/tasks/{row['id']}"
    return {**row, "url": str(get_absolute_url_to_path(request, path))}


@get("/api/{user_id}/tasks")
async def read_tasks(
    request: Request,
    pool: asyncpg.Pool,
    user_id: str,
    limit: FromQuery[int] = FromQuery(1000),  # noqa: B008
) -> Response:
    rows = await pool.fetch(LIST, user_id, limit.value)
    return json([public(request, row) for row in rows])


@get("/api/{user_id}/tasks/{task_id}")
async def read_task(request: Request, pool: asyncpg.Pool, user_id: str, task_id: UUID) -> Response:
    row = await pool.fetchrow(READ, user_id, task_id)
    return json(public(request, row)) if row else not_found("Task not found")
