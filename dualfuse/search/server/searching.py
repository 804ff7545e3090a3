"""One search: embed the parts of the query, find the nearest images, re-rank, filter, fold, and cut a page."""

from __future__ import annotations

import base64
import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b

import torch
from torch import Tensor

from dualfuse.errors import DualfuseError
from dualfuse.search.index import Hit
from dualfuse.search.server import schemas
from dualfuse.search.server.copies import Copies
from dualfuse.search.server.engine import Engine, Nearest, Rerank
from dualfuse.search.server.inputs import check_text, decode_image
from dualfuse.search.server.problems import Problem
from dualfuse.search.server.snapshot import Snapshot, image_id
from dualfuse.search.stores.filters import Condition, Metadata, fields, parse

NEGATIVE_WEIGHT = 0.5  # of "not": subtracting a whole unit embedding leaves little of the query
OVERSAMPLED = 4  # hits per wanted one when near copies are folded or improbable ones are omitted


@dataclass(frozen=True)
class Page:
    """Where a page of hits starts, and of which query and index version."""

    offset: int
    version: str
    query: str

    def at(self, offset: int) -> Page:
        """Return another page of the same query."""
        return replace(self, offset=offset)

    def encode(self) -> str:
        """Return the cursor."""
        return base64.urlsafe_b64encode(json.dumps([self.offset, self.version, self.query]).encode()).decode()

    @staticmethod
    def decode(cursor: str) -> Page:
        """Return the page of a cursor; ``Problem`` 422 for anything else."""
        try:
            offset, version, query = json.loads(base64.urlsafe_b64decode(cursor))
            if type(offset) is not int or not 0 <= offset <= 1_000_000:
                raise ValueError
            return Page(offset, str(version), str(query))
        except (ValueError, TypeError, RecursionError) as error:
            raise Problem(422, "this cursor was not given by an earlier answer", param="cursor") from error


async def search(
    engine: Engine, snapshot: Snapshot, copies: Copies, request: schemas.SearchRequest, upload: bytes = b""
) -> schemas.SearchAnswer:
    """Answer a search request; ``upload`` is an image that came as a file instead of base64."""
    started = time.perf_counter()
    page = _page(request, upload, snapshot)
    text = check_text(request.text.strip(), engine.options.limits)
    embedding = await query_embedding(engine, snapshot, request, upload)
    embedded = time.perf_counter()
    rerank = _rerank(request, engine, text)
    wanted = page.offset + request.top
    if request.min_probability:
        rerank = max(rerank, min(wanted, engine.options.limits.rerank))
    k = max(wanted, rerank) * (OVERSAMPLED if request.collapse else 1) + 1
    hits = await engine.nearest.submit(Nearest(snapshot, embedding, k, condition(request.where, snapshot)))
    found = time.perf_counter()
    before = {hit.name: rank for rank, hit in enumerate(hits)}
    fused = 0
    if rerank:
        deadline = started + engine.options.budget_ms / 1000
        reranked = await engine.rerank.submit(Rerank(snapshot, text, hits[:rerank], deadline))
        hits, fused = (*reranked.hits, *hits[rerank:]), reranked.fused
    ranked, omitted = _probable(engine, hits, request.min_probability)
    group_of = await copies.groups(
        snapshot, [hit.name for hit in ranked[: wanted * (OVERSAMPLED if request.collapse else 1)]]
    )
    shown, folded = _fold(ranked, group_of) if request.collapse else (ranked, {})
    ended = time.perf_counter()
    hits_of_page = shown[page.offset : wanted]
    more = len(shown) > wanted
    return schemas.SearchAnswer(
        hits=[_hit(engine, snapshot, hit, before, group_of, folded) for hit in hits_of_page],
        cursor=page.at(wanted).encode() if more and hits_of_page else "",
        reranked=fused,
        budget_exceeded=fused < min(rerank, len(before)),
        omitted=omitted,
        truncated=bool(text) and engine.loaded.processor.text.encode(text).truncated,
        exact=True,
        timing=schemas.Timing(
            embed_ms=_ms(embedded - started),
            search_ms=_ms(found - embedded),
            rerank_ms=_ms(ended - found),
            total_ms=_ms(ended - started),
        ),
        index=schemas.IndexInfo(count=len(snapshot.index), version=snapshot.version),
        model=engine.name,
    )


async def query_embedding(
    engine: Engine, snapshot: Snapshot, request: schemas.SearchRequest, upload: bytes = b""
) -> Tensor:
    """Return the unit embedding (D,) of a query: the weighted sum of its parts, minus what it should not resemble."""
    limits, weights = engine.options.limits, request.weights
    parts: list[tuple[float, Tensor]] = []
    if request.text.strip():
        parts.append((weights.get("text", 1.0), await engine.embed_text(request.text.strip())))
    if request.id:
        parts.append((weights.get("id", 1.0), await engine.embed_image(snapshot.read(request.id))))
    if upload or request.image:
        image = upload or decode_image(request.image, limits)
        parts.append((weights.get("image", 1.0), await engine.embed_image(image)))
    if not parts:
        raise Problem(422, "the query is empty: give a text, an image, or the id of an image", param="text")
    for part in request.without:
        parts.append((-NEGATIVE_WEIGHT * part.weight, await _part(engine, snapshot, part)))
    total = torch.stack([weight * embedding for weight, embedding in parts]).sum(0)
    if not total.norm() > 1e-6:
        raise Problem(422, "the parts of the query cancel each other; change their weights", param="weights")
    return total / total.norm()


async def _part(engine: Engine, snapshot: Snapshot, part: schemas.Part) -> Tensor:
    if sum(map(bool, (part.text.strip(), part.id, part.image))) != 1:
        raise Problem(422, "each entry of not has one of text, id and image", param="not")
    if part.text.strip():
        return await engine.embed_text(check_text(part.text.strip(), engine.options.limits, "not"))
    image = snapshot.read(part.id) if part.id else decode_image(part.image, engine.options.limits, "not")
    return await engine.embed_image(image)


def _page(request: schemas.SearchRequest, upload: bytes, snapshot: Snapshot) -> Page:
    """Return the page that a request asks for; ``Problem`` 409 if the index has changed since the page before."""
    described = request.model_dump_json(exclude={"cursor", "top"}, by_alias=True)
    query = blake2b(described.encode("utf-8", "surrogatepass") + upload, digest_size=6).hexdigest()
    return continued(request.cursor, query, snapshot)


def continued(cursor: str, query: str, snapshot: Snapshot) -> Page:
    """Return the page that a cursor continues with, the first without one; ``Problem`` if it belongs elsewhere."""
    if not cursor:
        return Page(0, snapshot.version, query)
    page = Page.decode(cursor)
    if page.query != query:
        raise Problem(422, "this cursor belongs to another query; send the query unchanged", param="cursor")
    if page.version != snapshot.version:
        raise Problem(409, "the index has changed since the page before; search again without cursor", param="cursor")
    return page


def _rerank(request: schemas.SearchRequest, engine: Engine, text: str) -> int:
    can_match = engine.loaded.task.can_match
    rerank = engine.options.rerank if request.rerank is None else request.rerank
    if request.rerank is None and not (text and can_match):
        rerank = 0
    if (rerank or request.min_probability) and not can_match:
        raise Problem(
            501, "this model has no fusion encoder: it cannot re-rank, and has no probability", param="rerank"
        )
    if (rerank or request.min_probability) and not text:
        raise Problem(422, "only a text can be matched with images; add a text, or leave out rerank", param="rerank")
    return rerank


def condition(where: schemas.Where, snapshot: Snapshot) -> Condition | None:
    """Return the filter of a request, None for an empty one; ``Problem`` 422 for an unknown field or operator."""
    known = {str(each["name"]) for each in snapshot.fields}
    try:
        parsed = parse(where)
    except DualfuseError as error:
        raise Problem(422, str(error), param="where") from error
    if unknown := sorted(fields(parsed) - known):
        raise Problem(
            422,
            f"no image has the field {unknown[0][:80]!r}; the fields are {', '.join(sorted(known))[:500]}",
            param="where",
        )
    return parsed if where else None


def _probable(engine: Engine, hits: Sequence[Hit], minimum: float) -> tuple[list[Hit], int]:
    if not minimum:
        return list(hits), 0
    matched = [hit for hit in hits if hit.match is not None]
    kept = [hit for hit in matched if engine.probability(hit) >= minimum]
    return kept, len(matched) - len(kept)


def _fold(hits: Sequence[Hit], group_of: dict[str, int]) -> tuple[list[Hit], dict[str, list[Hit]]]:
    """Return the best hit of each group of near copies, and the folded ones by its name."""
    best: dict[int, str] = {}
    kept, folded = [], dict[str, list[Hit]]()
    for hit in hits:
        group = group_of.get(hit.name)
        if group is not None and group in best:
            folded.setdefault(best[group], []).append(hit)
            continue
        if group is not None:
            best[group] = hit.name
        kept.append(hit)
    return kept, folded


def _hit(
    engine: Engine,
    snapshot: Snapshot,
    hit: Hit,
    before: dict[str, int],
    group_of: dict[str, int],
    folded: dict[str, list[Hit]],
) -> schemas.Hit:
    copies = folded.get(hit.name, [])
    before = before if hit.match is not None else {}
    return schemas.Hit(
        **described(snapshot, hit.name, hit.fields).model_dump(),
        score=hit.score,
        cosine=hit.cosine,
        match=hit.match,
        probability=None if hit.match is None else engine.probability(hit),
        rank_before=before.get(hit.name),
        group=group_of.get(hit.name),
        copies=len(copies),
        folded=[_hit(engine, snapshot, each, before, group_of, {}) for each in copies],
    )


def described(snapshot: Snapshot, name: str, kept: Metadata) -> schemas.CollectionImage:
    """Return what an answer says about an image; ``kept`` are the fields of its owner."""
    size, changed = snapshot.size_and_time(name)
    return schemas.CollectionImage(
        id=image_id(name),
        name=name.encode("utf-8", "replace").decode(),
        size=size,
        time=changed,
        caption=str(kept.get("caption") or ""),
        fields={
            field: value
            for field, value in kept.items()
            if field != "caption" and not (isinstance(value, float) and not math.isfinite(value))
        },
    )


def _ms(seconds: float) -> float:
    return round(1000 * seconds, 3)
