"""A user as a whole."""

from fastapi import APIRouter, Request, Response

import queries
from routes import API_ROUTER
from schemas import Summary, UserId

TAG = {"name": "users", "description": "A user as a whole."}
router = APIRouter(prefix="/api/{user_id}", tags=[TAG["name"]], **API_ROUTER)


@router.get("", response_model=Summary)
async def read_summary(request: Request, user_id: UserId) -> Response:
    """The user's tasks in numbers, for a sidebar. A user with no task gets zeros."""
    await request.body()  # one that is too large is refused here too
    [(summary,)] = await request.app.state.database.fetch(queries.SUMMARY, user_id=user_id)
    return Response(summary, media_type="application/json")
