"""The app: its routes, middlewares and lifespan."""

import asyncio
import gc
import logging
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.telemetry import TelemetryConfig
from psycopg2.extensions import parse_dsn
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

import errors
from database import Database, DatabaseUnavailable, create_tables
from middleware import ProblemCORSMiddleware, ServiceMiddleware
from routes import health, tasks, users
from routing import DirectMiddleware, check_routes
from settings import EMBEDDED_DATA, Settings, load_settings, telemetry_is_requested

VERSION = "2.0.0"  # of the API, as in CHANGELOG.md

GC_THRESHOLD = (
    50_000  # objects between two collections; the default is far lower, but a request creates few reference cycles
)

# Without this, FastAPI looks for OpenTelemetry in every request, which takes 6 % of a read.
NO_TELEMETRY: TelemetryConfig = {"tracing": False, "metrics": False, "logs": False}

logger = logging.getLogger("tasks")


def create_app(settings: Settings) -> FastAPI:
    """Configure logging and return the app. It opens no connection before its lifespan starts."""
    logging.basicConfig(format="%(levelname)s: %(message)s")
    logger.setLevel(settings.log_level.upper())
    telemetry_config, pool_class = NO_TELEMETRY, Database
    if with_telemetry := telemetry_is_requested():
        import telemetry  # imported only here: it costs start-up time

        telemetry_config, pool_class = telemetry.fastapi_config(), telemetry.MeasuredDatabase
    app = FastAPI(
        title="Tasks",
        version=VERSION,
        description="To-do lists for front ends: one request is one round trip to PostgreSQL.",
        servers=[{"url": "/", "description": "The server of this document."}],
        openapi_tags=[health.TAG, tasks.TAG, users.TAG],
        telemetry=telemetry_config,
        redirect_slashes=False,  # its redirect would copy a forged Host header
        exception_handlers={
            HTTPException: errors.handle_http_exception,
            RequestValidationError: errors.handle_validation_error,
            DatabaseUnavailable: errors.handle_database_unavailable,
            ClientDisconnect: errors.handle_disconnect,
        },
        lifespan=lambda app: _lifespan(app, settings, pool_class),
    )
    routers = [tasks.router, users.router, health.router]  # the most frequent first
    for router in routers:
        app.include_router(router)
    check_routes(app)  # raises TypeError for what DirectRouter would ignore
    # The last one added is the outermost, so that the errors of the others have CORS headers too.
    app.add_middleware(DirectMiddleware, routers=routers, handlers=app.exception_handlers)
    if settings.requires_tokens:
        from auth import OwnerMiddleware  # imported only here: its cryptography takes 20 MB

        app.add_middleware(OwnerMiddleware)
    app.add_middleware(ServiceMiddleware)
    app.add_middleware(
        ProblemCORSMiddleware,
        allow_origins=settings.cors_origins,
        allow_methods=["GET", "POST", "PUT", "PATCH", "DELETE"],
        allow_headers=[
            "Authorization",
            "Content-Type",
            "If-Match",
            "If-None-Match",
            "Idempotency-Key",
            "X-Request-Id",
            "traceparent",
        ],
        expose_headers=["ETag", "Link", "Location", "X-Total-Count", "Idempotent-Replayed", "Retry-After"],
    )
    if with_telemetry:
        app.add_middleware(telemetry.TelemetryMiddleware)
    errors.customize_openapi(app)
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI, settings: Settings, pool_class: type[Database]) -> AsyncIterator[None]:
    """Migrate the database, and keep a pool of connections to it while the app runs."""
    async with AsyncExitStack() as stack:
        if dsn := settings.database_url.get_secret_value():
            target = parse_dsn(dsn)
            logger.info("Database: %s on %s", target.get("dbname", "default"), target.get("host", "this machine"))
        else:
            dsn = await _start_embedded(stack)
        if settings.requires_tokens:
            import auth

            app.state.verifier = await stack.enter_async_context(auth.open_verifier(settings))
        else:
            logger.warning("Neither AUTH_JWKS_URL nor AUTH_SECRET is set: the user_id in the path is trusted")
        info = await asyncio.to_thread(create_tables, dsn)
        database = pool_class(
            dsn, size=settings.database_pool_size, timeout=settings.database_timeout, can_prepare=info.can_prepare
        )
        stack.push_async_callback(database.close)
        app.state.database, app.state.upgraded_at = database, info.upgraded_at
        gc.set_threshold(GC_THRESHOLD)
        gc.collect()  # frees what the imports have left
        gc.freeze()  # what exists now stays until the end, so later collections skip it
        yield


async def _start_embedded(stack: AsyncExitStack) -> str:
    """Start a PostgreSQL that stops with the app. Return its URL. Raises SystemExit when it is not installed."""
    try:
        import embedded
    except ModuleNotFoundError:  # in the production image
        raise SystemExit("DATABASE_URL must be set: the PostgreSQL for development is not installed here.") from None

    dsn = await asyncio.to_thread(embedded.start, EMBEDDED_DATA)
    stack.push_async_callback(asyncio.to_thread, embedded.stop, EMBEDDED_DATA)
    logger.info("Database: embedded PostgreSQL, with its data in %s", EMBEDDED_DATA)
    return dsn


app = create_app(load_settings())
