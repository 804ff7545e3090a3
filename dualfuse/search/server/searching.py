"""One search: embed the parts of the query, find the nearest images, re-rank, cut, fold, and return a page."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from dualfuse.search.index import Hit
from dualfuse.search.server import schemas
from dualfuse.search.server.compute.copies import Copies
from dualfuse.search.server.compute.engine import Engine, Nearest, Reranked
from dualfuse.search.server.describing import condition, described
from dualfuse.search.server.endpoints.inputs import ImageInput, check_text, read_image
from dualfuse.search.server.http.problems import Problem
from dualfuse.search.server.paging import Page, continued, digest
from dualfuse.search.server.snapshot import Snapshot

logger = logging.getLogger(__name__)
NEGATIVE_WEIGHT = 0.5  # of "not": subtracting a whole unit embedding leaves little of the query
MORE = 4  # hits are asked for in steps of this factor until a page is full
PATIENCE = 4.0  # time budgets that a later page may take to re-rank as many hits as the first one


@dataclass(frozen=True)
class Folded:
    """Hits of which near copies follow the best one: the hits that stay, and by their names the copies."""

    hits: Sequence[Hit]
    copies: Mapping[str, Sequence[Hit]]
    groups: Mapping[str, int]
    """The number of the group by the name of each hit that has a near copy."""


@dataclass
class Search:
    """A search under way, and what it costs."""

    engine: Engine
    snapshot: Snapshot
    copies: Copies
    request: schemas.SearchRequest
    upload: bytes = b""
    """An image that came as a file instead of base64."""

    async def answer(self) -> dict[str, Any]:  # Any: JSON
        """Return a page of hits, as ``schemas.SearchAnswer``; ``Problem`` for a request that cannot be answered."""
        engine, request, started = self.engine, self.request, time.perf_counter()
        text = check_text(request.text.strip(), engine.options.limits)
        page = self._page(_rerank(request, engine, text))
        where = condition(request.where, self.snapshot)
        embedding = await query_embedding(engine, self.snapshot, request, self.upload)
        embedded = time.perf_counter()
        if engine.options.log_queries:
            logger.info("search", extra={"query": text, "where": request.where})
        wanted = page.offset + request.top
        k = max(wanted + 1, page.rerank)
        nearest = await engine.nearest.submit(Nearest(self.snapshot, embedding, k, where))
        hits = nearest.hits
        found, before = time.perf_counter(), {hit.name: rank for rank, hit in enumerate(hits)}
        deadline = started + engine.options.budget_ms / 1000 * (PATIENCE if request.cursor else 1)
        reranked = Reranked((), 0, 0, is_late=False)
        if page.rerank:
            reranked = await engine.rerank(self.snapshot, text, hits[: page.rerank], deadline)
        if reranked.is_late:
            engine.metrics.budget_exceeded.inc()
        ordered, omitted = self._probable((*reranked.hits, *hits[page.rerank :]))
        folded = await self._fold(ordered, compute=request.collapse)
        while len(folded.hits) <= wanted and len(hits) == k and request.collapse and not request.min_probability:
            k *= MORE
            hits = (await engine.nearest.submit(Nearest(self.snapshot, embedding, k, where))).hits
            folded = await self._fold((*reranked.hits, *hits[page.rerank :]), compute=True)
        ended = time.perf_counter()
        shown = folded.hits[page.offset : wanted]
        is_end = len(folded.hits) <= wanted or not shown or wanted >= engine.options.limits.depth
        return {
            "hits": await self._described(shown, before, folded),
            "cursor": "" if is_end else replace(page, offset=wanted, rerank=reranked.done).encode(),
            "reranked": reranked.fused,
            "budget_exceeded": reranked.is_late,
            "omitted": omitted,
            "truncated": bool(text) and engine.is_truncated(text),
            "exact": nearest.exact,
            "timing": _timing(started, embedded, found, ended),
            "index": {"count": len(self.snapshot.index), "version": self.snapshot.version},
            "model": engine.name,
        }

    def _page(self, rerank: int) -> Page:
        """Return the page of the request: the first one re-ranks ``rerank`` hits, later ones as many as that did."""
        described = self.request.model_dump_json(exclude={"cursor", "top"}, by_alias=True)
        query = digest(described.encode("utf-8", "surrogatepass") + self.upload)
        return continued(self.request.cursor, Page(0, self.snapshot.version, query, rerank), self.engine.options.limits)

    def _probabilities(self, hits: Sequence[Hit]) -> list[float | None]:
        request = self.request
        others = (request.id, request.image, self.upload, request.without)
        return self.engine.hit_probabilities(hits, is_text=bool(request.text.strip()) and not any(others))

    def _probable(self, hits: Sequence[Hit]) -> tuple[Sequence[Hit], int]:
        """Return the hits that are probable enough, and the number of those that are not."""
        if not (minimum := self.request.min_probability):
            return hits, 0
        known = [(hit, each) for hit, each in zip(hits, self._probabilities(hits), strict=True) if each is not None]
        kept = [hit for hit, probability in known if probability >= minimum]
        return kept, len(known) - len(kept)

    async def _fold(self, hits: Sequence[Hit], *, compute: bool) -> Folded:
        """Find near copies among hits, and fold them if ``compute``; otherwise only what is known is reported."""
        first_of = await self.copies.representatives(self.snapshot, [hit.name for hit in hits], compute=compute)
        groups = {hits[first].name: first for first in first_of.values()} | dict(first_of)
        if not compute:
            return Folded(hits, {}, groups)
        copies: dict[str, list[Hit]] = {}
        for hit in hits:
            if hit.name in first_of:
                copies.setdefault(hits[first_of[hit.name]].name, []).append(hit)
        return Folded([hit for hit in hits if hit.name not in first_of], copies, groups)

    async def _described(self, hits: Sequence[Hit], before: Mapping[str, int], folded: Folded) -> list[dict[str, Any]]:
        await self.snapshot.read_captions([hit.name for hit in hits], self.engine.read)

        every = [*hits, *(copy for hit in hits for copy in folded.copies.get(hit.name, ()))]
        probability = dict(zip((hit.name for hit in every), self._probabilities(every), strict=True))

        def described_hit(hit: Hit, copies: Sequence[Hit]) -> dict[str, Any]:
            image = described(self.snapshot, hit.name)
            return image | {
                "score": hit.score,
                "cosine": hit.cosine,
                "match": hit.match,
                "probability": probability[hit.name],
                "rank_before": None if hit.match is None else before.get(hit.name),
                "group": folded.groups.get(hit.name),
                "copies": len(copies),
                "folded": [described_hit(each, ()) for each in copies],
            }

        return [described_hit(hit, folded.copies.get(hit.name, ())) for hit in hits]


async def query_embedding(
    engine: Engine, snapshot: Snapshot, request: schemas.SearchRequest, upload: bytes = b""
) -> Tensor:
    """Return the unit embedding (D,) of a query: the weighted sum of its parts, minus what it should not resemble."""
    weights, parts = request.weights, list[tuple[float, schemas.Part, str]]()
    if request.text.strip():
        parts.append((weights.get("text", 1.0), schemas.Part(text=request.text.strip()), "text"))
    if request.id:
        parts.append((weights.get("id", 1.0), schemas.Part(id=request.id), "id"))
    if request.image and not upload:
        parts.append((weights.get("image", 1.0), schemas.Part(image=request.image), "image"))
    if not parts and not upload:
        raise Problem(422, "the query is empty: give a text, an image, or the id of an image", param="text")
    for each in request.without:
        part = schemas.Part(text=each) if isinstance(each, str) else each
        parts.append((-NEGATIVE_WEIGHT * part.weight, part, "not"))
    embeddings = await asyncio.gather(*(_embedded(engine, snapshot, part, param) for _, part, param in parts))
    terms = [weight * embedding for (weight, _, _), embedding in zip(parts, embeddings, strict=True)]
    if upload:
        terms.append(weights.get("image", 1.0) * await engine.embed_image(upload))
    total = torch.stack(terms).sum(0)
    if not total.norm() > 1e-6:
        raise Problem(422, "the parts of the query cancel each other; change their weights", param="weights")
    return total / total.norm()


async def _embedded(engine: Engine, snapshot: Snapshot, part: schemas.Part, param: str) -> Tensor:
    if sum(map(bool, (part.text.strip(), part.id, part.image))) != 1:
        raise Problem(422, "each entry of not has one of text, id and image", param=param)
    if part.text.strip():
        return await engine.embed_text(check_text(part.text.strip(), engine.options.limits, param))
    image: ImageInput = await read_image(engine, snapshot, part.id, part.image, param)
    return await engine.embed_image(image.data)


def _rerank(request: schemas.SearchRequest, engine: Engine, text: str) -> int:
    """Return how many hits the first page re-ranks."""
    can_match, limit = engine.loaded.task.can_match, engine.options.limits.rerank
    rerank = (engine.options.rerank or 0) if request.rerank is None else request.rerank
    if request.rerank is None and not (text and can_match):
        rerank = 0
    is_calibrated = engine.loaded.task.calibration is not None
    if rerank and not can_match:
        raise Problem(501, "this model has no fusion encoder, so it cannot re-rank", param="rerank")
    if request.min_probability and not (can_match or is_calibrated):
        raise Problem(501, "this model has no match probability: it is not calibrated", param="min_probability")
    if (rerank or request.min_probability) and not text:
        raise Problem(422, "only a text can be matched with images; add a text, or leave out rerank", param="rerank")
    if request.min_probability and not is_calibrated:  # only fused hits have one
        return max(rerank, min(request.top, limit))
    return rerank


def _timing(started: float, embedded: float, found: float, ended: float) -> dict[str, float]:
    spans = (embedded - started, found - embedded, ended - found, ended - started)
    names = ("embed_ms", "search_ms", "rerank_ms", "total_ms")
    return {name: round(1000 * seconds, 3) for name, seconds in zip(names, spans, strict=True)}
