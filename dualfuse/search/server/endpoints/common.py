"""What endpoints ask of a request: its service, and a JSON body that is checked by a schema."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Depends, Request

from dualfuse.search.server import schemas
from dualfuse.search.server.service import Service


async def service_of(request: Request) -> Service:
    """Return the service of the application; async, because FastAPI calls other functions in a thread."""
    return request.app.state.service


ServiceDep = Annotated[Service, Depends(service_of)]
PROBLEMS: dict[int | str, dict[str, Any]] = {
    status: {"model": schemas.Problem, "description": text}
    for status, text in (
        (400, "The body is not what its content type says, or a form has too many fields"),
        (401, "The token is missing or wrong"),
        (404, "No such image, job or endpoint"),
        (408, "The body did not arrive in time"),
        (413, "The request, a text or an image is too large"),
        (415, "The upload is not an image"),
        (422, "The request is invalid; the message says what to change"),
        (429, "Too many requests wait; see Retry-After"),
        (501, "The model cannot do this"),
        (503, "The service is warming up"),
    )
}
"""The errors of every endpoint, for the OpenAPI document."""
