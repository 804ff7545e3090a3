"""The ASGI application of a service: its endpoints, its page, and how errors are answered."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.staticfiles import StaticFiles

import dualfuse
from dualfuse.errors import DualfuseError
from dualfuse.search.server import schemas
from dualfuse.search.server.endpoints import browsing, embedding, explaining, images, operations, queries
from dualfuse.search.server.http.guard import Guard
from dualfuse.search.server.http.messages import Message
from dualfuse.search.server.http.observer import Observer
from dualfuse.search.server.http.problems import Problem
from dualfuse.search.server.service import Service

TAGS = [
    {"name": "queries", "description": "Search, match, explain, predict"},
    {"name": "embeddings", "description": "Embeddings of texts and images"},
    {"name": "images", "description": "Images of the collection, by id"},
    {"name": "operations", "description": "Health, metrics, refresh"},
]
PAGE = Path(__file__).parent / "page"


def create_app(service: Service) -> FastAPI:
    """Return the application of a service; it warms up when the server starts, and drains when it stops."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await service.warm_up()
        await _rehearse(app, service)
        yield
        await service.drain()

    app = FastAPI(
        openapi_tags=TAGS,
        title="dualfuse",
        version=dualfuse.__version__,
        description="Search, match, explain and embed images by text, by image, or by both.",
        docs_url=None,  # its page loads scripts from a CDN; /docs is a file of our own
        redoc_url=None,
        lifespan=lifespan,
    )
    app.state.service = service
    for router in (
        queries.router,
        explaining.router,
        browsing.router,
        embedding.router,
        images.router,
        operations.router,
    ):
        app.include_router(router)
    for error, handler in HANDLERS:
        app.add_exception_handler(error, handler)
    app.mount("/page", StaticFiles(directory=PAGE), name="page")
    app.add_middleware(Guard, options=service.options, metrics=service.metrics)  # type: ignore[arg-type]
    app.add_middleware(Observer, metrics=service.metrics)  # type: ignore[arg-type]  # the last one is outermost
    app.openapi = partial(_openapi, app, app.openapi)  # type: ignore[method-assign]
    return app


async def _rehearse(app: FastAPI, service: Service) -> None:
    """Send searches through the whole application, whose routes and schemas are prepared at their first use."""
    token = f"Bearer {service.options.token}".encode()
    for text in (b"rehearsal", b"a second rehearsal"):
        body = b'{"text": "' + text + b'"}'
        headers = [(b"host", b"localhost"), (b"content-type", b"application/json"), (b"authorization", token)]
        scope = {
            "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST", "scheme": "http",
            "path": "/v1/search", "raw_path": b"/v1/search", "root_path": "", "query_string": b"", "headers": headers,
            "client": None, "server": None,
        }  # fmt: skip

        async def receive(body: bytes = body) -> Message:
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message: Message) -> None:
            pass

        await app(scope, receive, send)


def _openapi(app: FastAPI, generate: Callable[[], dict[str, Any]]) -> dict[str, Any]:  # Any: JSON
    """Return the OpenAPI document, with the schema of searches, whose body FastAPI does not read."""
    if app.openapi_schema is None:
        document = generate()
        schema = schemas.SearchRequest.model_json_schema(by_alias=True, ref_template="#/components/schemas/{model}")
        document["components"]["schemas"] |= {**schema.pop("$defs", {}), "SearchRequest": schema}
        document["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        document["security"] = [{}, {"token": []}]
    assert app.openapi_schema is not None
    return app.openapi_schema


def _answer(problem: Problem) -> JSONResponse:
    return JSONResponse(problem.body(), problem.status, problem.headers_to_send)


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
    problem = Problem(error.status_code, f"{error.detail}; the endpoints are listed at /docs")
    return JSONResponse(problem.body(), problem.status, error.headers)


async def _disconnected(request: Request, error: Exception) -> Response:
    """The client went away while it sent its request: nobody reads this answer."""
    return _answer(Problem(400, "the request ended before its body was complete"))


HANDLERS = (
    (ClientDisconnect, _disconnected),
    (Problem, _problem),
    (DualfuseError, _user_error),
    (RequestValidationError, _invalid),
    (HTTPException, _http),
)
