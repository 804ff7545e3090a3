"""Endpoints that send images of the collection, by id alone."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Header, Path, Query, Response

from dualfuse.search.server.compute.thumbnails import ImageFile, parse_range
from dualfuse.search.server.endpoints.common import PROBLEMS, ServiceDep
from dualfuse.search.server.snapshot import Snapshot

FILE: dict[int | str, dict[str, Any]] = {
    200: {"content": {"image/*": {"schema": {"type": "string", "format": "binary"}}}, "description": "The image"},
    206: {"content": {"image/*": {"schema": {"type": "string", "format": "binary"}}}, "description": "A range of it"},
    304: {"description": "The image has not changed"},
    416: {"description": "The range lies outside of the image"},
}
router = APIRouter(prefix="/v1/images", tags=["images"], responses=PROBLEMS | FILE)
FOR_GOOD = "private, max-age=31536000, immutable"
CHECK = "private, no-cache"  # ask by the ETag whether it has changed
Identifier = Annotated[str, Path(max_length=64, description="id of an image, from the hits of a search")]
Revision = Annotated[str, Query(max_length=64, description="`revision` of the hit: the answer is cached for good")]


@router.get("/{identifier}", response_class=Response)
async def image(
    identifier: Identifier,
    service: ServiceDep,
    v: Revision = "",
    if_none_match: Annotated[str, Header()] = "",
    range_header: Annotated[str, Header(alias="range")] = "",
) -> Response:
    """Return an image as it is in the collection; answers ETags and ranges."""
    snapshot = service.check_ready()
    file = await service.engine.read(service.thumbnails.original, snapshot, identifier)
    return _respond(file, _caching(snapshot, identifier, v), if_none_match, range_header)


@router.get("/{identifier}/thumbnail", response_class=Response)
async def thumbnail(
    identifier: Identifier,
    service: ServiceDep,
    w: Annotated[int, Query(ge=1, le=1024, description="pixels of the longer side")] = 256,
    v: Revision = "",
    if_none_match: Annotated[str, Header()] = "",
    range_header: Annotated[str, Header(alias="range")] = "",
) -> Response:
    """Return a small JPEG of an image; answers ETags and ranges."""
    snapshot = service.check_ready()
    file = await service.engine.read(service.thumbnails.get, snapshot, identifier, w)
    return _respond(file, _caching(snapshot, identifier, v), if_none_match, range_header)


def _caching(snapshot: Snapshot, identifier: str, revision: str) -> str:
    return FOR_GOOD if revision == snapshot.revision(snapshot.name(identifier)) else CHECK


def _respond(file: ImageFile, caching: str, if_none_match: str, range_header: str) -> Response:
    headers = {"ETag": file.etag, "Cache-Control": caching, "Accept-Ranges": "bytes"}
    if file.etag in [each.strip().removeprefix("W/") for each in if_none_match.split(",")]:
        return Response(status_code=304, headers=headers)
    if span := parse_range(range_header, len(file.data)) if range_header else None:
        start, end = span
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{len(file.data)}"
        return Response(file.data[start:end], 206, headers, file.media_type)
    return Response(file.data, 200, headers, file.media_type)
