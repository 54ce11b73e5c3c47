"""The user's summary."""

from fastapi import Request, Response

import queries
from routes import API_ROUTER_OPTIONS, fetch
from routing import DirectRouter, JSONBytes
from schemas import Summary, UserId

TAG = {"name": "users", "description": "A user as a whole."}
router = DirectRouter(prefix="/api/{user_id}", tags=[TAG["name"]], **API_ROUTER_OPTIONS)


@router.get("", response_model=Summary)
async def read_summary(request: Request, user_id: UserId) -> Response:
    """Count the user's tasks, for a sidebar. Without tasks all numbers are 0."""
    [(summary,)] = await fetch(request, queries.read_summary(user_id))
    return JSONBytes(summary)
