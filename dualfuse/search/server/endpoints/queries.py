"""Endpoints that answer about images and texts: search, match and predict."""

from __future__ import annotations

import asyncio
from functools import partial

from fastapi import APIRouter, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from pydantic_core import to_json
from starlette.datastructures import UploadFile

from dualfuse.inference.predict import predict
from dualfuse.inference.zero_shot import zero_shot_model
from dualfuse.search.server import schemas
from dualfuse.search.server.compute.engine import Engine
from dualfuse.search.server.compute.pairs import Pair
from dualfuse.search.server.endpoints.common import PROBLEMS, ServiceDep
from dualfuse.search.server.endpoints.inputs import ImageInput, check_text, check_upload, read_image
from dualfuse.search.server.http.problems import Problem
from dualfuse.search.server.options import Limits
from dualfuse.search.server.searching import Search

router = APIRouter(prefix="/v1", tags=["queries"], responses=PROBLEMS)
REFERENCE = {"$ref": "#/components/schemas/SearchRequest"}
SEARCH_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {"schema": REFERENCE},
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "properties": {
                        "request": REFERENCE,
                        "image": {"type": "string", "format": "binary", "description": "an image file"},
                    },
                },
                "encoding": {"request": {"contentType": "application/json"}, "image": {"contentType": "image/*"}},
            },
        },
    }
}


@router.post("/search", response_model=schemas.SearchAnswer, openapi_extra=SEARCH_BODY)
async def search_images(request: Request, service: ServiceDep) -> Response:
    """Search the collection by text, by image, or by both.

    An image is the id of one of the collection, base64 in JSON, or a file in multipart/form-data beside the JSON in the
    field `request`.
    """
    snapshot = service.check_ready()
    body, upload = await _read_search(request, service.options.limits)
    answer = await Search(service.engine, snapshot, service.copies, body, upload).answer()
    return Response(to_json(answer), media_type="application/json")  # FastAPI would validate every hit


@router.post("/match")
async def match(body: schemas.MatchRequest, service: ServiceDep) -> schemas.MatchAnswer:
    """Return cosine, match logit and match probability of pairs of image and text, in one batch."""
    snapshot, engine = service.check_ready(), service.engine
    texts = [check_text(pair.text, engine.options.limits, "pairs") for pair in body.pairs]
    reads = (read_image(engine, snapshot, pair.id, pair.image, "pairs") for pair in body.pairs)
    images = await asyncio.gather(*reads)
    logits = await match_logits(engine, list(zip(images, texts, strict=True)))
    text_embeddings = await asyncio.gather(*map(engine.embed_text, texts))
    image_embeddings = await asyncio.gather(*(engine.embed_image(image.data) for image in images))
    cosines = [float(image @ text) for image, text in zip(image_embeddings, text_embeddings, strict=True)]
    return schemas.MatchAnswer(
        pairs=[
            schemas.PairScore(cosine=cosine, match=logit, probability=engine.loaded.probability(cosine, logit))
            for cosine, logit in zip(cosines, logits, strict=True)
        ],
        model=engine.name,
    )


@router.post("/predict")
async def predict_answer(body: schemas.PredictRequest, service: ServiceDep) -> schemas.PredictAnswer:
    """Return what the head of the model answers: an answer, a label, a caption, or the best of zero-shot classes."""
    snapshot, engine = service.check_ready(), service.engine
    text = check_text(body.text, engine.options.limits)
    image = (await read_image(engine, snapshot, body.id, body.image)).data if body.id or body.image else None
    model = engine.loaded
    if body.classes:
        classes = [check_text(each, engine.options.limits, "classes") for each in body.classes]
        model = await engine.run(zero_shot_model, model, classes)
    prediction = await engine.run(partial(predict, model, image, text, top=body.top))
    return schemas.PredictAnswer(
        answers=[schemas.Answer(answer=each.answer, probability=each.probability) for each in prediction.answers],
        match=prediction.match,
        cosine=prediction.cosine,
        truncated=prediction.is_cut,
        model=engine.name,
    )


async def match_logits(engine: Engine, pairs: list[tuple[ImageInput, str]]) -> list[float | None]:
    """Return the match logits of pairs; None for a model that cannot match. Raises what is wrong with an input."""
    if not engine.loaded.task.can_match:
        return [None] * len(pairs)
    scores = await engine.pairs.submit_many([Pair(image.key, partial(_data, image), text) for image, text in pairs])
    logits = list[float | None]()
    for score in scores:
        if isinstance(score, Exception):
            raise score
        logits.append(score)
    return logits


def _data(image: ImageInput) -> bytes:
    return image.data


async def _read_search(request: Request, limits: Limits) -> tuple[schemas.SearchRequest, bytes]:
    """Return the search of a JSON body or of a form, and the file of a form."""
    upload, kind = b"", request.headers.get("content-type", "")
    if kind.startswith("multipart/form-data"):
        async with request.form(max_files=2, max_fields=4, max_part_size=limits.body_bytes) as form:
            content, file = form.get("request") or "{}", form.get("image")
            if isinstance(content, UploadFile):  # a part with a content type and a file name
                content = await content.read()
            if isinstance(file, UploadFile):
                upload = check_upload(await file.read(limits.upload_bytes + 1), limits)
            elif file:
                raise Problem(422, "the field image is a text; send the image as a file", param="image")
    elif kind.partition(";")[0].strip() in ("application/json", ""):
        content = await request.body()
    else:
        raise Problem(415, f"the content type is {kind[:80]!r}; send application/json or multipart/form-data")
    try:
        return schemas.SearchRequest.model_validate_json(content), upload
    except ValidationError as error:
        raise RequestValidationError(error.errors(include_context=False)) from error
    except (ValueError, RecursionError) as error:
        raise Problem(422, f"the request is not valid JSON: {type(error).__name__}", param="request") from error
