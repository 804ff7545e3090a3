"""The model of a service: batches of queries are embedded, searched and re-ranked together."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from hashlib import blake2b
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from dualfuse.data.image.image_file import header
from dualfuse.errors import DualfuseError
from dualfuse.hub import LoadedModel
from dualfuse.inference.encode import embed_images
from dualfuse.models.base import Tokens
from dualfuse.search.index import Hit
from dualfuse.search.server.batching import Batcher, BatchingPolicy
from dualfuse.search.server.cache import LRUCache
from dualfuse.search.server.metrics import Metrics
from dualfuse.search.server.options import Limits, ServerOptions
from dualfuse.search.server.problems import Problem
from dualfuse.search.server.snapshot import Snapshot
from dualfuse.search.stores.filters import Condition

Result = TypeVar("Result")
FUSED_AT_A_TIME = 32  # pairs; the time budget is looked at between


@dataclass(frozen=True)
class Nearest:
    """A query of the store: a unit embedding (D,), and how many hits it wants under which filter."""

    snapshot: Snapshot
    embedding: Tensor
    k: int
    where: Condition | None = None


@dataclass(frozen=True)
class Rerank:
    """Hits to re-rank for a text until ``deadline`` (of time.perf_counter)."""

    snapshot: Snapshot
    text: str
    hits: tuple[Hit, ...]
    deadline: float


@dataclass(frozen=True)
class Reranked:
    """Hits in their new order, and how many of them were fused before the time was over."""

    hits: tuple[Hit, ...]
    fused: int


class Engine:
    """Runs a model in one thread, so that requests never compete for it, and batches what waits meanwhile."""

    def __init__(self, loaded: LoadedModel, options: ServerOptions, metrics: Metrics, name: str) -> None:
        """``loaded`` needs trained embeddings (``DualfuseError`` otherwise); ``name`` is the model's in answers."""
        loaded.task.check_search()
        self.loaded, self.options, self.metrics, self.name = loaded, options, metrics, name
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="model")
        self._readers = ThreadPoolExecutor(4, thread_name_prefix="reader")
        self._embeddings = LRUCache[tuple[str, str | bytes], Tensor](options.cached_queries)
        self._states = LRUCache[tuple[str, str], Tokens](options.cached_states)
        policy = BatchingPolicy(options.window_ms / 1000, options.max_batch, options.max_queue)

        def batcher(stage: str, run):
            return Batcher(run, self._executor, policy, partial(metrics.observe_batch, stage))

        self.texts: Batcher[str, Tensor] = batcher("text", self._embed_texts)
        self.images: Batcher[bytes, Tensor] = batcher("image", self._embed_images)
        self.nearest: Batcher[Nearest, tuple[Hit, ...]] = batcher("search", self._search)
        self.rerank: Batcher[Rerank, Reranked] = batcher("rerank", self._rerank)
        self.pairs: Batcher[tuple[bytes, str], tuple[float, float | None]] = batcher("match", self._match)

    async def embed_text(self, text: str) -> Tensor:
        """Return the unit embedding (D,) of a text; cached."""
        return await self._cached("text", text, self.texts)

    async def embed_image(self, data: bytes) -> Tensor:
        """Return the unit embedding (D,) of an image file; cached."""
        return await self._cached("image", data, self.images)

    async def run(self, function: Callable[..., Result], *arguments: Any) -> Result:  # Any: of the function
        """Run a function in the thread of the model."""
        return await asyncio.get_running_loop().run_in_executor(self._executor, partial(function, *arguments))

    def probability(self, hit: Hit) -> float:
        """Return the probability that the match logit of a re-ranked hit stands for."""
        assert hit.match is not None
        return 1 / (1 + math.exp(-max(-60.0, min(60.0, hit.match))))

    async def drain(self) -> None:
        """Wait for all requests, then stop the threads."""
        for each in (self.texts, self.images, self.nearest, self.rerank, self.pairs):
            await each.drain()
        self._executor.shutdown()
        self._readers.shutdown()

    async def _cached(self, kind: str, value: str | bytes, batcher: Batcher[Any, Tensor]) -> Tensor:
        key = (kind, value if isinstance(value, str) else blake2b(value, digest_size=16).digest())
        if (cached := self._embeddings.get(key)) is not None:
            self.metrics.cache_hits.inc()
            return cached
        embedding = await batcher.submit(value)
        self._embeddings.put(key, embedding)
        return embedding

    @torch.inference_mode()
    def _embed_texts(self, texts: Sequence[str]) -> list[Tensor | Exception]:
        """Embed texts of equal length together: padding costs time, and moves the last bits of an embedding."""
        encoded = [_result(partial(self._token_ids, text)) for text in texts]

        def embed(ids: list[Tensor]) -> Tensor:
            return self.loaded.task.text_features(self._text_tokens(torch.stack(ids))).float().cpu()

        return _by_shape(encoded, embed)

    def _token_ids(self, text: str) -> Tensor:
        return torch.from_numpy(self.loaded.processor.text.encode(text).ids)

    def _text_tokens(self, ids: Tensor) -> Tokens:
        """Embed token ids (B, T) without padding."""
        ids = ids.to(self.loaded.task.device)
        return self.loaded.task.model.embed_text(ids, torch.ones_like(ids, dtype=torch.bool))

    def _pixels(self, data: bytes) -> Tensor:
        return self.loaded.processor.image(data, np.random.default_rng(0))  # nothing is drawn without augmentation

    def _embed_images(self, files: Sequence[bytes]) -> list[Tensor | Exception]:
        pixels = self._readers.map(lambda data: _result(partial(self._pixels, data)), files)
        return _by_shape(list(pixels), lambda images: embed_images(self.loaded.task, torch.stack(images)))

    @torch.inference_mode()
    def _search(self, queries: Sequence[Nearest]) -> list[tuple[Hit, ...]]:
        """Answer queries of one snapshot and filter by one matrix product."""
        groups: dict[tuple[int, object], list[int]] = {}
        for number, query in enumerate(queries):
            groups.setdefault((id(query.snapshot), query.where), []).append(number)
        results: list[tuple[Hit, ...]] = [()] * len(queries)
        for numbers in groups.values():
            some = [queries[number] for number in numbers]
            index, where = some[0].snapshot.index, some[0].where
            hits = index.nearest(torch.stack([each.embedding for each in some]), max(each.k for each in some), where)
            for number, query, each in zip(numbers, some, hits, strict=True):
                results[number] = each[: query.k]
        return results

    @torch.inference_mode()
    def _rerank(self, requests: Sequence[Rerank]) -> list[Reranked | Exception]:
        return [_result(partial(self._rerank_one, request)) for request in requests]

    def _rerank_one(self, request: Rerank) -> Reranked:
        task = self.loaded.task
        text = self._text_tokens(self._token_ids(request.text)[None])
        fused: list[Hit] = []
        rest = list(request.hits)
        while rest and (not fused or time.perf_counter() < request.deadline):
            chunk, rest = rest[:FUSED_AT_A_TIME], rest[FUSED_AT_A_TIME:]
            states = [(hit, state) for hit in chunk if (state := self._image_states(request.snapshot, hit.name))]
            for grid in {state.grid for _, state in states}:
                some = [(hit, state) for hit, state in states if state.grid == grid]
                image = Tokens.join([state for _, state in some])
                logits = task.match_logit(
                    image, text.take(torch.zeros(len(some), dtype=torch.long, device=task.device))
                )
                cosine = torch.tensor([hit.cosine for hit, _ in some], dtype=torch.float32, device=task.device)
                scores = task.rerank_score(cosine, logits)
                for (hit, _), score, logit in zip(some, scores.tolist(), logits.tolist(), strict=True):
                    fused.append(replace(hit, score=score, match=logit))
        ranked = sorted(fused, key=lambda hit: -hit.score)
        others = [hit for hit in request.hits if hit.name not in {each.name for each in fused}]
        return Reranked((*ranked, *others), len(fused))

    def _image_states(self, snapshot: Snapshot, name: str) -> Tokens | None:
        """Return the unimodal states of an image of the collection; None if it can no longer be read."""
        key = (snapshot.version, name)
        dtype = next(self.loaded.task.parameters()).dtype
        if (cached := self._states.get(key)) is not None:
            return replace(cached, states=tuple(state.to(dtype) for state in cached.states))
        try:
            pixels = self._pixels(snapshot.index.image(name))
        except (OSError, ValueError, KeyError):
            return None
        tokens = self.loaded.task.model.embed_image(pixels[None].to(self.loaded.task.device))
        self._states.put(key, replace(tokens, states=tuple(state.half() for state in tokens.states)))
        return tokens

    @torch.inference_mode()
    def _match(self, pairs: Sequence[tuple[bytes, str]]) -> list[tuple[float, float | None] | Exception]:
        """Return the cosine and the match logit (None if the model cannot match) of pairs of image file and text."""
        return [_result(partial(self._match_one, *pair)) for pair in pairs]

    def _match_one(self, data: bytes, text: str) -> tuple[float, float | None]:
        task = self.loaded.task
        image = task.model.embed_image(self._pixels(data)[None].to(task.device))
        tokens = self._text_tokens(self._token_ids(text)[None])
        cosine = float((task.image_features(image) * task.text_features(tokens)).sum())
        return cosine, float(task.match_logit(image, tokens)) if task.can_match else None


def check_upload(data: bytes, limits: Limits, param: str = "image") -> bytes:
    """Return the bytes of an uploaded image; ``Problem`` 413 if it is too large, 415 if it is not an image."""
    if len(data) > limits.upload_bytes:
        raise Problem(413, f"the image has {len(data):,} bytes; send at most {limits.upload_bytes:,}", param=param)
    try:
        size = header(data)
    except DualfuseError as error:
        raise Problem(415, f"this file is not a usable image: {error}", param=param) from error
    if size.width * size.height > limits.upload_pixels:
        raise Problem(
            413,
            f"the image has {size.width} x {size.height} pixels; send at most {limits.upload_pixels:,}",
            param=param,
        )
    return data


def _by_shape(inputs: Sequence[Tensor | Exception], run: Callable[[list[Tensor]], Tensor]) -> list[Tensor | Exception]:
    """Run inputs of equal shape together, and return the results in the order of the inputs; exceptions stay."""
    results: list[Tensor | Exception] = list(inputs)
    numbers_of: dict[torch.Size, list[int]] = {}
    for number, each in enumerate(inputs):
        if isinstance(each, Tensor):
            numbers_of.setdefault(each.shape, []).append(number)
    for numbers in numbers_of.values():
        together = run([each for number in numbers if isinstance(each := inputs[number], Tensor)])
        for number, result in zip(numbers, together, strict=True):
            results[number] = result
    return results


def _result(compute: Callable[[], Result]) -> Result | Exception:
    """Return the result of a call, or the exception of a user's input as a value: it is one of a batch."""
    try:
        return compute()
    except (DualfuseError, OSError) as error:
        return error
