"""The endpoints, one short function each."""

from typing import Any

from fastapi import Request

import errors
from queries import Columns, Query

# The operationId is the name of the function, so that a generated client has a method `create_task`.
ROUTER_OPTIONS: dict[str, Any] = {"generate_unique_id_function": lambda route: route.name}
API_ROUTER_OPTIONS = ROUTER_OPTIONS | {"responses": errors.problem_responses(401, 404, 413, 422, 500, 503)}


async def fetch(request: Request, query: Query[*Columns]) -> list[tuple[*Columns]]:
    """Run a query for a request and return its rows.

    Raises DatabaseUnavailable, and ClientDisconnect when the client has disconnected in the queue.
    """
    rows: list[tuple[*Columns]] = await request.app.state.database.fetch(query, request.is_disconnected)
    return rows
