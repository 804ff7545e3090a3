"""Endpoints that answer about images and texts: search, match, explain, predict."""

from __future__ import annotations

import io
from functools import partial
from typing import Any

import torch
from fastapi import APIRouter, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.datastructures import UploadFile

from dualfuse.inference.explain import Explanation, explain, heat_map_grid
from dualfuse.inference.predict import predict
from dualfuse.inference.zero_shot import zero_shot_model
from dualfuse.search.server import schemas
from dualfuse.search.server.compute.engine import Engine, check_upload
from dualfuse.search.server.endpoints.common import PROBLEMS, ServiceDep
from dualfuse.search.server.endpoints.inputs import check_text, one_image
from dualfuse.search.server.http.problems import Problem
from dualfuse.search.server.options import Limits
from dualfuse.search.server.searching import search

router = APIRouter(prefix="/v1", tags=["queries"], responses=PROBLEMS)

SEARCH_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {"schema": schemas.SearchRequest.model_json_schema(by_alias=True)},
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "properties": {
                        "request": {"type": "string", "description": "the JSON request; empty: {}"},
                        "image": {"type": "string", "format": "binary", "description": "an image file"},
                    },
                }
            },
        },
    }
}


@router.post("/search", response_model=schemas.SearchAnswer, openapi_extra=SEARCH_BODY)
async def search_images(request: Request, service: ServiceDep) -> schemas.SearchAnswer:
    """Search the collection by text, by image, or by both.

    An image is the id of one of the collection, base64 in JSON, or a file in multipart/form-data beside the JSON in the
    field `request`.
    """
    snapshot = service.check_ready()
    body, upload = await _read_search(request, service.options.limits)
    return await search(service.engine, snapshot, service.copies, body, upload)


@router.post("/match")
async def match(body: schemas.MatchRequest, service: ServiceDep) -> schemas.MatchAnswer:
    """Return cosine, match logit and match probability of pairs of image and text, in one batch."""
    snapshot, limits = service.check_ready(), service.options.limits
    pairs = [
        (one_image(snapshot, pair.id, pair.image, limits), check_text(pair.text, limits, "pairs"))
        for pair in body.pairs
    ]
    scores = await service.engine.pairs.submit_many(pairs)
    return schemas.MatchAnswer(
        pairs=[
            schemas.PairScore(cosine=cosine, match=logit, probability=_probability(service.engine, cosine, logit))
            for cosine, logit in scores
        ],
        model=service.engine.name,
    )


@router.post("/explain", response_model=schemas.ExplainAnswer, responses={200: {"content": {"image/png": {}}}})
async def explain_pair(body: schemas.ExplainRequest, service: ServiceDep) -> schemas.ExplainAnswer | Response:
    """Return a map of patches for each word, and the match probability without each word; or all maps as PNG."""
    snapshot, limits, engine = service.check_ready(), service.options.limits, service.engine
    if not engine.loaded.task.can_match:
        raise Problem(501, "this model has no fusion encoder, so there is nothing to explain")
    image, text = one_image(snapshot, body.id, body.image, limits), check_text(body.text.strip(), limits)
    (explanation,) = await engine.run(explain, engine.loaded, image, text)
    if body.format == "png":
        return Response(await engine.run(_png, explanation), media_type="image/png")
    texts = [text, *(_without(text, word) for word in explanation.words[1:])] if body.deletions else [text]
    scores = await engine.pairs.submit_many([(image, each) for each in texts if each])
    probabilities = dict(zip([each for each in texts if each], scores, strict=True))
    words = [
        schemas.WordMap(
            word=word,
            map=_scaled(heat),
            probability_without=_of_text(engine, probabilities.get(_without(text, word))) if number else None,
        )
        for number, (word, heat) in enumerate(zip(explanation.words, explanation.heat, strict=True))
    ]
    return schemas.ExplainAnswer(
        answer=explanation.answer, probability=_of_text(engine, probabilities[text]), words=words, model=engine.name
    )


@router.post("/predict")
async def predict_answer(body: schemas.PredictRequest, service: ServiceDep) -> dict[str, Any]:
    """Return what the head of the model answers: an answer, a label, a caption, or the best of zero-shot classes."""
    snapshot, limits, engine = service.check_ready(), service.options.limits, service.engine
    text = check_text(body.text, limits)
    image = one_image(snapshot, body.id, body.image, limits) if body.id or body.image else None
    model = engine.loaded
    if body.classes:
        model = await engine.run(zero_shot_model, model, [check_text(each, limits, "classes") for each in body.classes])
    prediction = await engine.run(partial(predict, model, image, text, top=body.top))
    return {
        "answers": [{"answer": each.answer, "probability": each.probability} for each in prediction.answers],
        "match": prediction.match,
        "cosine": prediction.cosine,
        "truncated": prediction.is_cut,
        "model": engine.name,
    }


async def _read_search(request: Request, limits: Limits) -> tuple[schemas.SearchRequest, bytes]:
    """Return the search of a JSON body or of a form, and the file of a form."""
    upload, kind = b"", request.headers.get("content-type", "")
    if kind.startswith("multipart/form-data"):
        async with request.form(max_files=1, max_fields=4, max_part_size=limits.upload_bytes) as form:
            content, file = form.get("request") or "{}", form.get("image")
            if isinstance(file, UploadFile):
                upload = check_upload(await file.read(limits.upload_bytes + 1), limits)
        if not isinstance(content, str):
            raise Problem(422, "the field request is a file; send the JSON as text", param="request")
    else:
        content = await request.body()
    try:
        return schemas.SearchRequest.model_validate_json(content), upload
    except ValidationError as error:
        raise RequestValidationError(error.errors(include_context=False)) from error


def _probability(engine: Engine, cosine: float, logit: float | None) -> float | None:
    from dualfuse.search.index import Hit

    return None if logit is None else engine.probability(Hit("", cosine, cosine, logit))


def _of_text(engine: Engine, scores: tuple[float, float | None] | None) -> float | None:
    return None if scores is None else _probability(engine, *scores)


def _without(text: str, word: str) -> str:
    """Return a text without the first occurrence of a word, ignoring case; empty if nothing else is left."""
    position = text.lower().find(word.lower())
    return " ".join((text[:position] + text[position + len(word) :]).split()) if position >= 0 else text


def _scaled(heat: torch.Tensor) -> list[list[float]]:
    low, high = float(heat.min()), float(heat.max())
    return [[round(value, 4) for value in row] for row in ((heat - low) / max(high - low, 1e-12)).tolist()]


def _png(explanation: Explanation) -> bytes:
    buffer = io.BytesIO()
    heat_map_grid([explanation]).save(buffer, "PNG")
    return buffer.getvalue()
