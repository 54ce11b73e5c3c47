"""Is the service up, and does its database answer? And the way to its documentation."""

from fastapi import Request, Response
from fastapi.responses import RedirectResponse

import queries
from errors import problem_responses
from routes import ROUTER, fetch
from routing import DirectRouter, JSONBytes
from schemas import Health

TAG = {"name": "health", "description": "Whether the service and its database are up."}
router = DirectRouter(tags=[TAG["name"]], **ROUTER)


@router.get("/", include_in_schema=False)
async def root(request: Request) -> Response:
    """The documentation. Relative, so that no Host header can send a browser elsewhere."""
    return RedirectResponse(request.scope.get("root_path", "").rstrip("/") + "/docs")


@router.get("/health", response_model=Health)
async def health() -> Response:
    """The process is up.

    This touches no database, so a probe never keeps a serverless one awake.
    """
    return JSONBytes(b'{"status": "ok"}')


@router.get("/health/ready", response_model=Health, responses=problem_responses(500, 503))
async def ready(request: Request) -> Response:
    """The database answers."""
    await fetch(request, queries.READY.bind())
    return JSONBytes(b'{"status": "ready"}')
