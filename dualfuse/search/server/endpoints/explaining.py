"""The endpoint that explains a match: which patches each word draws on, and what each word changes."""

from __future__ import annotations

import asyncio
import io
import re
from collections.abc import Sequence
from typing import Any

import torch
from fastapi import APIRouter, Response

from dualfuse.errors import DualfuseError
from dualfuse.hub import LoadedModel
from dualfuse.inference.explain import Explanation, explain, heat_map_grid
from dualfuse.search.server import schemas
from dualfuse.search.server.endpoints.common import PROBLEMS, ServiceDep
from dualfuse.search.server.endpoints.inputs import check_text, read_image
from dualfuse.search.server.endpoints.queries import match_logits
from dualfuse.search.server.http.problems import Problem

router = APIRouter(prefix="/v1", tags=["queries"], responses=PROBLEMS)
PNG: dict[int | str, dict[str, Any]] = {
    200: {"content": {"image/png": {"schema": {"type": "string", "format": "binary"}}}}
}
STOP_WORDS = frozenset(
    {"a", "an", "the", "of", "in", "on", "at", "to", "and", "or", "with", "is", "are", "was", "were", "be", "by", "for"}
    | {"from", "as", "it", "its", "this", "that"}
)


@router.post("/explain", response_model=schemas.ExplainAnswer, responses=PNG)
async def explain_pair(body: schemas.ExplainRequest, service: ServiceDep) -> schemas.ExplainAnswer | Response:
    """Return a map of patches for each word, and the match probability without each content word; or maps as PNG."""
    snapshot, engine = service.check_ready(), service.engine
    if not engine.loaded.task.can_match:
        raise Problem(501, "this model has no fusion encoder, so there is nothing to explain")
    text = check_text(body.text.strip(), engine.options.limits)
    image = await read_image(engine, snapshot, body.id, body.image)
    explanation = await engine.run(_explanation, engine.loaded, image.data, text)
    if body.format == "png":
        return Response(await engine.read(_png, explanation), media_type="image/png")
    without = without_words(text, explanation.words[1:]) if body.deletions else []
    texts = [text, *(each for each in without if each)]
    logits = await match_logits(engine, [(image, each) for each in texts])
    embedding = await engine.embed_image(image.data)
    cosines = [float(embedding @ each) for each in await asyncio.gather(*map(engine.embed_text, texts))]
    probabilities = {
        each: engine.loaded.probability(cosine, logit)
        for each, cosine, logit in zip(texts, cosines, logits, strict=True)
    }
    words = [
        schemas.WordMap(word=word, map=_scaled(heat), probability_without=probabilities.get(shorter))
        for word, heat, shorter in zip(
            explanation.words, explanation.heat, ["", *(without or [""] * len(explanation.words[1:]))], strict=True
        )
    ]
    return schemas.ExplainAnswer(
        answer=explanation.answer, probability=probabilities[text], words=words, model=engine.name
    )


def _explanation(loaded: LoadedModel, image: bytes, text: str) -> Explanation:
    """Explain by attention; by occlusion, which takes seconds, a model whose attention cannot be followed."""
    try:
        (explanation,) = explain(loaded, image, text)
    except DualfuseError:
        (explanation,) = explain(loaded, image, text, method="occlusion")  # an invalid input raises the same error
    return explanation


def without_words(text: str, words: Sequence[str]) -> list[str]:
    """Return ``text`` without each of its ``words``, which are in order; "" for stop words and words not found."""
    shorter, end = list[str](), 0
    for word in words:
        found = re.compile(rf"(?<!\w){re.escape(word)}(?!\w)", re.IGNORECASE).search(text, end)
        if not found:
            shorter.append("")
            continue
        end = found.end()
        rest = " ".join(f"{text[: found.start()]} {text[end:]}".split())
        shorter.append("" if word.lower() in STOP_WORDS or not re.search(r"\w", word) else rest)
    return shorter


def _scaled(heat: torch.Tensor) -> list[list[float]]:
    low, high = float(heat.min()), float(heat.max())
    return [[round(value, 4) for value in row] for row in ((heat - low) / max(high - low, 1e-12)).tolist()]


def _png(explanation: Explanation) -> bytes:
    buffer = io.BytesIO()
    heat_map_grid([explanation]).save(buffer, "PNG")
    return buffer.getvalue()
