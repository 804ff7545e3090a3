"""Browse a collection without a query: newest images first, under the filters of a search."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter

from dualfuse.search.server import schemas
from dualfuse.search.server.describing import condition, described
from dualfuse.search.server.endpoints.common import PROBLEMS, ServiceDep
from dualfuse.search.server.paging import Page, continued, digest
from dualfuse.search.server.snapshot import Snapshot
from dualfuse.search.stores.filters import Condition, predicate

router = APIRouter(prefix="/v1", tags=["queries"], responses=PROBLEMS)


@router.post("/browse")
async def browse(body: schemas.BrowseRequest, service: ServiceDep) -> schemas.BrowseAnswer:
    """Return images of the collection without a query, newest first; `where` filters them."""
    snapshot, limits = service.check_ready(), service.options.limits
    where = condition(body.where, snapshot)
    page = continued(body.cursor, Page(0, snapshot.version, digest(repr(where).encode())), limits)
    names = await asyncio.to_thread(_names, snapshot, where)
    end = page.offset + body.top
    shown = names[page.offset : end]
    await snapshot.read_captions(shown, service.engine.read)
    return schemas.BrowseAnswer(
        hits=[schemas.CollectionImage.model_validate(described(snapshot, name)) for name in shown],
        cursor=page.at(end).encode() if len(names) > end and end < limits.depth else "",
        total=len(names),
        index=schemas.IndexInfo(count=len(snapshot.index), version=snapshot.version),
    )


def _names(snapshot: Snapshot, where: Condition | None) -> tuple[str, ...]:
    if where is None:
        return snapshot.newest
    passes = predicate(where)
    return tuple(name for name in snapshot.newest if passes(snapshot.entries[name]))
