"""The ASGI application of a service: its endpoints, its page, and how errors are answered."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.staticfiles import StaticFiles

import dualfuse
from dualfuse.errors import DualfuseError
from dualfuse.search.server.endpoints import embedding, images, operations, queries
from dualfuse.search.server.http.guard import Guard
from dualfuse.search.server.http.problems import Problem
from dualfuse.search.server.service import Service

logger = logging.getLogger(__name__)
PAGE = Path(__file__).parent / "page"


def create_app(service: Service) -> FastAPI:
    """Return the application of a service; it warms up when the server starts, and drains when it stops."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await service.warm_up()
        yield
        await service.drain()

    app = FastAPI(
        title="dualfuse",
        version=dualfuse.__version__,
        description="Search, match, explain and embed images by text, by image, or by both.",
        docs_url=None,  # its page loads scripts from a CDN; /docs is a file of our own
        redoc_url=None,
        lifespan=lifespan,
    )
    app.state.service = service
    for router in (queries.router, embedding.router, images.router, operations.router):
        app.include_router(router)
    for error, handler in HANDLERS:
        app.add_exception_handler(error, handler)
    app.middleware("http")(_observe)
    app.mount("/page", StaticFiles(directory=PAGE), name="page")
    app.add_middleware(Guard, token=service.options.token, body_bytes=service.options.limits.body_bytes)  # type: ignore[arg-type]
    return app


async def _observe(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
    """Count and log a request by its endpoint, never by what it asked for."""
    service: Service = request.app.state.service
    started = time.perf_counter()
    response = await call_next(request)
    seconds = time.perf_counter() - started
    route = request.scope.get("route")
    endpoint = getattr(route, "path", "other")
    service.metrics.requests.labels(endpoint, response.status_code).inc()
    service.metrics.seconds.labels(endpoint).observe(seconds)
    if response.status_code >= 400:
        service.metrics.refused.labels(str(response.status_code)).inc()
    logger.info("%s %s %d %.1f ms", request.method, endpoint, response.status_code, 1000 * seconds)
    return response


def _answer(problem: Problem) -> JSONResponse:
    headers = {"Retry-After": str(max(1, round(problem.retry_after)))} if problem.retry_after else None
    return JSONResponse(problem.body(), problem.status, headers)


async def _problem(request: Request, error: Exception) -> Response:
    assert isinstance(error, Problem)
    return _answer(error)


async def _user_error(request: Request, error: Exception) -> Response:
    """A model or a tokenizer refused the input; the message was written for its user."""
    return _answer(Problem(422, str(error)))


async def _invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"] if part != "body")
    return _answer(Problem(422, f"{where}: {first['msg']}" if where else str(first["msg"]), param=where))


async def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return _answer(Problem(error.status_code, f"{error.detail}; the endpoints are listed at /docs"))


HANDLERS = (
    (Problem, _problem),
    (DualfuseError, _user_error),
    (RequestValidationError, _invalid),
    (HTTPException, _http),
)
