"""Endpoints that return embeddings: our own, and one in the shape of the OpenAI API."""

from __future__ import annotations

import asyncio
import base64

import numpy as np
import torch
from fastapi import APIRouter
from torch import Tensor

from dualfuse.search.server import schemas
from dualfuse.search.server.endpoints.common import PROBLEMS, ServiceDep
from dualfuse.search.server.endpoints.inputs import check_text, decode_image, read_image
from dualfuse.search.server.http.problems import Problem
from dualfuse.search.server.service import Service

router = APIRouter(prefix="/v1", tags=["embeddings"], responses=PROBLEMS)


@router.post("/embed")
async def embed(body: schemas.EmbedRequest, service: ServiceDep) -> schemas.EmbedAnswer:
    """Return unit embeddings of texts, of images, and of images of the collection, in this order."""
    snapshot, limits, engine = service.check_ready(), service.options.limits, service.engine
    if not (count := len(body.texts) + len(body.images) + len(body.ids)):
        raise Problem(422, "there is nothing to embed: give texts, images or ids", param="texts")
    if count > limits.inputs:
        raise Problem(413, f"{count} inputs; send at most {limits.inputs} at a time", param="texts")
    texts = [check_text(text, limits, "texts") for text in body.texts]
    images = await asyncio.gather(
        *(read_image(engine, snapshot, "", image, "images") for image in body.images),
        *(read_image(engine, snapshot, each, "", "ids") for each in body.ids),
    )
    embeddings = await asyncio.gather(
        *map(engine.embed_text, texts), *(engine.embed_image(image.data) for image in images)
    )
    return _packed(torch.stack(embeddings), body.dtype, engine.name)


@router.post("/embeddings")
async def openai_embeddings(body: schemas.OpenAIEmbeddingRequest, service: ServiceDep) -> schemas.OpenAIEmbeddingAnswer:
    """Return embeddings as the OpenAI API does; an input that is a data URL of an image is embedded as an image."""
    service.check_ready()
    inputs = [body.input] if isinstance(body.input, str) else body.input
    limits = service.options.limits
    if not 1 <= len(inputs) <= limits.inputs:
        raise Problem(422, f"{len(inputs)} inputs; send 1 to {limits.inputs}", param="input")
    embeddings = await asyncio.gather(*(_embed(service, each) for each in inputs))
    width = len(embeddings[0])
    if body.dimensions and body.dimensions > width:
        raise Problem(422, f"dimensions is {body.dimensions}; this model has {width}", param="dimensions")
    cut = [_cut(each, body.dimensions or width) for each in embeddings]
    data = [
        schemas.OpenAIEmbedding(index=number, embedding=_encoded(each, body.encoding_format))
        for number, each in enumerate(cut)
    ]
    texts = [each for each in inputs if not _is_image(each)]
    tokens = sum(len(service.engine.loaded.processor.text.encode(each).ids) for each in texts)
    usage = schemas.OpenAIUsage(prompt_tokens=tokens, total_tokens=tokens)
    return schemas.OpenAIEmbeddingAnswer(data=data, model=service.engine.name, usage=usage)


async def _embed(service: Service, value: str) -> Tensor:
    limits = service.options.limits
    if _is_image(value):
        return await service.engine.embed_image(await service.engine.read(decode_image, value, limits, "input"))
    if not value.strip():
        raise Problem(422, "an input is empty", param="input")
    return await service.engine.embed_text(check_text(value, limits, "input"))


def _is_image(value: str) -> bool:
    return value.startswith("data:image/")


def _cut(embedding: Tensor, dimensions: int) -> Tensor:
    """Return the first dimensions, of unit length again."""
    cut = embedding[:dimensions]
    return cut / cut.norm().clamp(min=1e-12) if dimensions < len(embedding) else cut


def _encoded(embedding: Tensor, encoding: str) -> str | list[float]:
    if encoding == "float":
        return embedding.tolist()
    return base64.b64encode(embedding.numpy().astype("<f4").tobytes()).decode()


def _packed(embeddings: Tensor, dtype: str, model: str) -> schemas.EmbedAnswer:
    width = embeddings.shape[1]
    if dtype == "float32":
        return schemas.EmbedAnswer(embeddings=embeddings.tolist(), dimensions=width, model=model)
    if dtype == "bits":
        bits = np.packbits(embeddings.numpy() > 0, axis=1)
        return schemas.EmbedAnswer(embeddings=bits.tolist(), dimensions=width, model=model)
    scales = embeddings.abs().amax(1).clamp(min=1e-12) / 127
    integers = (embeddings / scales[:, None]).round().to(torch.int8)
    return schemas.EmbedAnswer(embeddings=integers.tolist(), scales=scales.tolist(), dimensions=width, model=model)
