"""Endpoints that send images of the collection, by id alone."""

from __future__ import annotations

import asyncio
from typing import Annotated

from fastapi import APIRouter, Header, Query, Response

from dualfuse.search.server.compute.thumbnails import ImageFile, original, parse_range
from dualfuse.search.server.endpoints.common import PROBLEMS, ServiceDep

router = APIRouter(prefix="/v1/images", tags=["images"], responses=PROBLEMS)
CACHE = "private, max-age=31536000, immutable"


@router.get("/{identifier}", response_class=Response)
async def image(
    identifier: str,
    service: ServiceDep,
    if_none_match: Annotated[str, Header()] = "",
    range_header: Annotated[str, Header(alias="range")] = "",
) -> Response:
    """Return an image as it is in the collection; answers ETags and ranges."""
    snapshot = service.check_ready()
    return _respond(await asyncio.to_thread(original, snapshot, identifier), if_none_match, range_header)


@router.get("/{identifier}/thumbnail", response_class=Response)
async def thumbnail(
    identifier: str,
    service: ServiceDep,
    w: Annotated[int, Query(ge=1, le=1024, description="pixels of the longer side")] = 256,
    if_none_match: Annotated[str, Header()] = "",
) -> Response:
    """Return a small JPEG of an image."""
    snapshot = service.check_ready()
    made = await asyncio.to_thread(service.thumbnails.get, snapshot, identifier, w)
    return _respond(made, if_none_match, "")


def _respond(file: ImageFile, if_none_match: str, range_header: str) -> Response:
    headers = {"ETag": file.etag, "Cache-Control": CACHE, "Accept-Ranges": "bytes"}
    if file.etag in [each.strip() for each in if_none_match.split(",")]:
        return Response(status_code=304, headers=headers)
    if span := parse_range(range_header, len(file.data)) if range_header else None:
        start, end = span
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{len(file.data)}"
        return Response(file.data[start:end], 206, headers, file.media_type)
    return Response(file.data, 200, headers, file.media_type)
