"""The upper bound for FastAPI: a constant from an `async def`, as on the first page of its tutorial."""

from typing import Any

from fastapi import FastAPI

app = FastAPI()


@app.get("/api/{user_id}/tasks/{task_id}")
async def read_task(user_id: str, task_id: str) -> Any:  # noqa: ARG001
    return {"message": "Hello World"}
