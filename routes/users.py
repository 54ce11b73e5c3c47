"""A user as a whole."""

from fastapi import Request, Response

import queries
from routes import API_ROUTER, fetch
from routing import DirectRouter, JSONBytes
from schemas import Summary, UserId

TAG = {"name": "users", "description": "A user as a whole."}
router = DirectRouter(prefix="/api/{user_id}", tags=[TAG["name"]], **API_ROUTER)


@router.get("", response_model=Summary)
async def read_summary(request: Request, user_id: UserId) -> Response:
    """The user's tasks in numbers, for a sidebar. A user with no task gets zeros."""
    [(summary,)] = await fetch(request, queries.read_summary(user_id))
    return JSONBytes(summary)
