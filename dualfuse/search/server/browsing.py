"""Browse a collection without a query: newest images first, under the filters of a search."""

from __future__ import annotations

import asyncio
from hashlib import blake2b

from fastapi import APIRouter

from dualfuse.search.server import schemas
from dualfuse.search.server.common import PROBLEMS, ServiceDep
from dualfuse.search.server.searching import condition, continued, described
from dualfuse.search.server.snapshot import Snapshot
from dualfuse.search.stores.filters import Condition, predicate

router = APIRouter(prefix="/v1", tags=["queries"], responses=PROBLEMS)


@router.post("/browse")
async def browse(body: schemas.BrowseRequest, service: ServiceDep) -> schemas.BrowseAnswer:
    """Return images of the collection without a query, newest first; `where` filters them."""
    snapshot = service.check_ready()
    where = condition(body.where, snapshot)
    page = continued(body.cursor, blake2b(repr(where).encode(), digest_size=6).hexdigest(), snapshot)
    names = await asyncio.to_thread(_names, snapshot, where)
    end = page.offset + body.top
    return schemas.BrowseAnswer(
        hits=[described(snapshot, name, snapshot.index.fields(name)) for name in names[page.offset : end]],
        cursor=page.at(end).encode() if len(names) > end else "",
        total=len(names),
        index=schemas.IndexInfo(count=len(snapshot.index), version=snapshot.version),
    )


def _names(snapshot: Snapshot, where: Condition | None) -> tuple[str, ...]:
    if where is None:
        return snapshot.newest
    passes = predicate(where)
    return tuple(name for name in snapshot.newest if passes(snapshot.entries[name]))
