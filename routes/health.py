"""Is the service up, and does its database answer? And the way to its documentation."""

from fastapi import APIRouter, Request, Response
from fastapi.responses import RedirectResponse

import queries
from errors import declared
from routes import ROUTER
from schemas import Health

TAG = {"name": "health", "description": "Whether the service and its database are up."}
router = APIRouter(tags=[TAG["name"]], **ROUTER)


@router.get("/", include_in_schema=False)
async def root(request: Request) -> Response:
    """The documentation. Relative, so that no Host header can send a browser elsewhere."""
    return RedirectResponse(request.scope.get("root_path", "").rstrip("/") + "/docs")


@router.get("/health", response_model=Health)
async def health() -> Response:
    """The process is up.

    This touches no database, so a probe never keeps a serverless one awake.
    """
    return Response('{"status": "ok"}', media_type="application/json")


@router.get("/health/ready", response_model=Health, responses=declared(500, 503))
async def ready(request: Request) -> Response:
    """The database answers."""
    await request.app.state.database.fetch(queries.READY)
    return Response('{"status": "ready"}', media_type="application/json")
