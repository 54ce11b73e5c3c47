"""The endpoints: a short function for each, and who may call them."""

from typing import Any

from fastapi import Request
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Receive, Scope, Send

import errors

# The name is what a generated client calls the operation.
ROUTER: dict[str, Any] = {"generate_unique_id_function": lambda route: route.name}
API_ROUTER = ROUTER | {
    "responses": errors.declared(401, 404, 413, 422, 500, 503),
    "max_body_size": errors.MAX_BODY_SIZE,
}


class OwnerMiddleware:
    """Lets a request under /api pass whose token belongs to the user in its path.

    It stands before all routes, so that none can be without it, and nothing of a request is looked
    at before it is known whose it is. Answers 401 without a good token. To everybody else the user
    does not exist: 404.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and (path := errors.routed_path(scope)).startswith("/api/"):
            request = Request(scope)
            try:
                user = scope["app"].state.tokens.user(request.headers.getlist("authorization"))
                if user != path.split("/")[2]:
                    raise errors.not_found()
            except HTTPException as error:
                answer = await errors.handle_http_exception(request, error)
                await answer(scope, receive, send)
                return
        await self.app(scope, receive, send)
