"""The endpoints: a short function for each, and who may call it."""

from fastapi import Request

import errors


async def only_the_owner(request: Request) -> None:
    """Let a request pass whose token belongs to the user in its path.

    Raises 401 without a good token. To everybody else the user does not exist: 404.
    """
    user = request.app.state.tokens.user(request.headers.getlist("authorization"))
    if user != request.path_params["user_id"]:
        raise errors.not_found()
