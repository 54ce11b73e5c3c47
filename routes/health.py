"""The health checks, and the redirect from `/` to the documentation."""

from fastapi import Request, Response
from fastapi.responses import RedirectResponse

import queries
from errors import problem_responses
from routes import ROUTER_OPTIONS, fetch
from routing import DirectRouter, JSONBytes
from schemas import Health

TAG = {"name": "health", "description": "Whether the service and its database are up."}
router = DirectRouter(tags=[TAG["name"]], **ROUTER_OPTIONS)


@router.get("/", include_in_schema=False)
async def root(request: Request) -> Response:
    """Redirect to the documentation. The URL is relative, so that a forged Host header has no effect."""
    return RedirectResponse(request.scope.get("root_path", "").rstrip("/") + "/docs")


@router.get("/health", response_model=Health)
async def health() -> Response:
    """Report that the process is up.

    It does not query the database, so a health check does not wake a suspended one.
    """
    return JSONBytes(b'{"status": "ok"}')


@router.get("/health/ready", response_model=Health, responses=problem_responses(500, 503))
async def ready(request: Request) -> Response:
    """Report that the database responds."""
    await fetch(request, queries.READY.bind())
    return JSONBytes(b'{"status": "ready"}')
