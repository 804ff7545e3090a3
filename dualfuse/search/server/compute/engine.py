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

from dualfuse.hub import LoadedModel
from dualfuse.inference.encode import embed_images
from dualfuse.search.index import Hit
from dualfuse.search.server.compute.batching import Batcher, BatchingPolicy
from dualfuse.search.server.compute.cache import LRUCache
from dualfuse.search.server.compute.pairs import Pair, PairScorer, embed_texts, result_of
from dualfuse.search.server.metrics import Metrics
from dualfuse.search.server.options import ServerOptions
from dualfuse.search.server.snapshot import Snapshot
from dualfuse.search.stores.filters import Condition

Result = TypeVar("Result")
PAIRS = 32  # fused in one batch: text queries wait at most that long for the thread of the model
READERS = 4  # threads that decode images


@dataclass(frozen=True)
class Nearest:
    """A query of the store: a unit embedding (D,), and how many hits it wants under which filter."""

    snapshot: Snapshot
    embedding: Tensor
    k: int
    where: Condition | None = None


@dataclass(frozen=True)
class Found:
    """The nearest images, best first, and whether none can be missing."""

    hits: tuple[Hit, ...]
    exact: bool


@dataclass(frozen=True)
class Reranked:
    """Hits in their new order, and how far re-ranking came."""

    hits: tuple[Hit, ...]
    fused: int
    """Hits that have a match logit."""
    done: int
    """Hits that were fused or cannot be read any more: the others follow them in their old order."""
    is_late: bool
    """Whether the time was over before all were fused."""


class Engine:
    """Runs a model in one thread, so that requests never compete for it, and batches what waits meanwhile."""

    def __init__(self, loaded: LoadedModel, options: ServerOptions, metrics: Metrics, name: str) -> None:
        """``loaded`` needs trained embeddings (``DualfuseError`` otherwise); ``name`` is the model's in answers."""
        loaded.task.check_search()
        self.loaded, self.options, self.metrics, self.name = loaded, options, metrics, name
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="model")
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="reader")
        self._embeddings = LRUCache[tuple[str, str | bytes], Tensor](
            options.query_cache_mb << 20, lambda each: each.nbytes
        )
        self._scorer = PairScorer(loaded, self._readers, options.state_cache_mb << 20)
        self._seconds_per_pair = 0.0
        window, size = options.window_ms / 1000, options.max_batch
        self.texts = self._batcher("text", self._embed_texts, window, size)
        self.images = self._batcher("image", self._embed_images, window, size)
        self.nearest = self._batcher("search", self._search, 0.0, size)  # arrives in the batches of the text tower
        self.pairs = self._batcher("match", self._scorer.score, 0.0, PAIRS if size > 1 else 1)
        metrics.watch_cache("queries", self._embeddings)
        metrics.watch_cache("states", self._scorer.states)

    def _batcher(self, stage: str, run: Callable[[Sequence[Any]], Sequence[Any]], window: float, size: int):
        batcher = Batcher(run, self._executor, BatchingPolicy(window, size), partial(self._observe, stage))
        self.metrics.watch_queue(stage, batcher)
        return batcher

    def _observe(self, stage: str, size: int, seconds: float) -> None:
        self.metrics.observe_batch(stage, size, seconds)
        if stage == "match":
            self._seconds_per_pair = 0.7 * self._seconds_per_pair + 0.3 * seconds / size

    async def embed_text(self, text: str) -> Tensor:
        """Return the unit embedding (D,) of a text; cached."""
        return await self._cached("text", text, self.texts)

    async def embed_image(self, data: bytes) -> Tensor:
        """Return the unit embedding (D,) of an image file; cached."""
        return await self._cached("image", data, self.images)

    async def run(self, function: Callable[..., Result], *arguments: Any) -> Result:  # Any: of the function
        """Run a function in the thread of the model."""
        return await asyncio.get_running_loop().run_in_executor(self._executor, partial(function, *arguments))

    async def read(self, function: Callable[..., Result], *arguments: Any) -> Result:  # Any: of the function
        """Run a function that reads files in another thread."""
        return await asyncio.get_running_loop().run_in_executor(self._readers, partial(function, *arguments))

    def is_truncated(self, text: str) -> bool:
        """Whether a text is longer than the model reads."""
        transform = self.loaded.processor.text
        return len(text.encode()) >= transform.length - 2 and transform.encode(text).truncated  # a token takes a byte

    @torch.inference_mode()
    def hit_probabilities(self, hits: Sequence[Hit], *, is_text: bool) -> list[float | None]:
        """Return the probability of each hit of showing what the query describes.

        A calibrated model knows it for a query that is a text alone (``is_text``), also of hits that were not fused.
        Otherwise it is the sigmoid of the match logit of a fused hit, as ITM trained it, and None for others.
        """
        task = self.loaded.task
        if not is_text or task.calibration is None:
            return [None if hit.match is None else _sigmoid(hit.match) for hit in hits]
        cosine = torch.tensor([hit.cosine for hit in hits], dtype=torch.float32, device=task.device)
        probabilities: list[float | None] = [None] * len(hits)
        for fused in (False, True):
            rows = [row for row, hit in enumerate(hits) if (hit.match is not None) == fused]
            if not rows:
                continue
            logits = torch.tensor([hits[row].match for row in rows], device=task.device) if fused else None
            found = task.hit_probability(cosine[rows], logits)
            assert found is not None  # the model is calibrated
            for row, probability in zip(rows, found.tolist(), strict=True):
                probabilities[row] = probability
        return probabilities

    async def rerank(self, snapshot: Snapshot, text: str, hits: Sequence[Hit], deadline: float) -> Reranked:
        """Order hits by fusion until ``deadline`` (of time.perf_counter); those that were not fused come after."""
        scores: list[float | Exception] = []
        while len(scores) < len(hits) and time.perf_counter() < deadline:
            chunk = hits[len(scores) : len(scores) + self._affordable(deadline)]
            pairs = [
                Pair(snapshot.key(hit.name), partial(snapshot.read_name, hit.name), text, deadline) for hit in chunk
            ]
            some = await self.pairs.submit_many(pairs)
            in_time = [score for score in some if not isinstance(score, TimeoutError)]
            scores += in_time
            if len(in_time) < len(some):
                break
        for each in scores:
            if isinstance(each, Exception) and not isinstance(each, OSError | ValueError):
                raise each
        matches = {hit.name: score for hit, score in zip(hits, scores, strict=False) if isinstance(score, float)}
        fused = [hit for hit in hits if hit.name in matches]  # an unreadable image comes after those
        if fused:
            cosine = torch.tensor([hit.cosine for hit in fused], dtype=torch.float32)
            match = torch.tensor([matches[hit.name] for hit in fused], dtype=torch.float32)
            totals = await self.run(_combined, self.loaded.task, cosine, match)
            fused = [
                replace(hit, score=total, match=matches[hit.name]) for hit, total in zip(fused, totals, strict=True)
            ]
        others = [hit for hit in hits if hit.name not in matches]
        ordered = (*sorted(fused, key=lambda hit: -hit.score), *others)
        return Reranked(ordered, len(fused), len(scores), is_late=len(scores) < len(hits))

    def _affordable(self, deadline: float) -> int:
        """Return how many pairs probably fit before the deadline: 1 to ``PAIRS``."""
        if not self._seconds_per_pair:
            return PAIRS
        return max(1, min(PAIRS, int((deadline - time.perf_counter()) / self._seconds_per_pair)))

    async def warm_up(self) -> None:
        """Embed batches of all sizes up to the largest once: kernels and buffers are made at their first use."""
        size = 1
        while size <= self.options.max_batch:
            await self.run(self._embed_texts, [f"warm-up {number}" for number in range(size)])
            size *= 4

    async def drain(self) -> None:
        """Wait for all requests, then stop the threads."""
        for each in (self.texts, self.images, self.nearest, self.pairs):
            await each.drain()
        self._executor.shutdown()
        self._readers.shutdown()

    async def _cached(self, kind: str, value: str | bytes, batcher: Batcher[Any, Tensor]) -> Tensor:
        key = (kind, value if isinstance(value, str) else blake2b(value, digest_size=16).digest())
        if (cached := self._embeddings.get(key)) is not None:
            self.metrics.cache_hits.inc()
            return cached
        embedding = (await batcher.submit(value)).clone()  # not a view that keeps the whole batch
        self._embeddings.put(key, embedding)
        return embedding

    @torch.inference_mode()
    def _embed_texts(self, texts: Sequence[str]) -> list[Tensor | Exception]:
        """Embed texts together; padding moves the last bits of an embedding at most."""
        encoded = [result_of(partial(self._token_ids, text)) for text in texts]
        valid = [ids for ids in encoded if not isinstance(ids, Exception)]
        embeddings = iter(())
        if valid:
            embeddings = iter(self.loaded.task.text_features(embed_texts(self.loaded, valid)).float().cpu())
        return [ids if isinstance(ids, Exception) else next(embeddings) for ids in encoded]

    def _token_ids(self, text: str) -> np.ndarray:
        return self.loaded.processor.text.encode(text).ids

    def _pixels(self, data: bytes) -> Tensor:
        return self.loaded.processor.image(data, np.random.default_rng(0))  # nothing is drawn without augmentation

    def _embed_images(self, files: Sequence[bytes]) -> list[Tensor | Exception]:
        pixels = list(self._readers.map(lambda data: result_of(partial(self._pixels, data)), files))
        results: list[Tensor | Exception] = list(pixels)
        by_shape: dict[torch.Size, list[tuple[int, Tensor]]] = {}
        for number, each in enumerate(pixels):
            if not isinstance(each, Exception):
                by_shape.setdefault(each.shape, []).append((number, each))
        for group in by_shape.values():
            embeddings = embed_images(self.loaded.task, torch.stack([each for _, each in group]))
            for (number, _), embedding in zip(group, embeddings, strict=True):
                results[number] = embedding
        return results

    @torch.inference_mode()
    def _search(self, queries: Sequence[Nearest]) -> list[Found]:
        """Answer queries of one snapshot, filter and order of magnitude of k by one matrix product."""
        groups: dict[tuple[int, object, int], list[int]] = {}
        for number, query in enumerate(queries):
            groups.setdefault((id(query.snapshot), query.where, query.k.bit_length()), []).append(number)
        results = [Found((), exact=True)] * len(queries)
        for numbers in groups.values():
            some = [queries[number] for number in numbers]
            embeddings = torch.stack([each.embedding for each in some])
            hits, exact = some[0].snapshot.nearest(embeddings, max(each.k for each in some), some[0].where)
            for number, query, each in zip(numbers, some, hits, strict=True):
                results[number] = Found(tuple(each[: query.k]), exact)
        return results


@torch.inference_mode()
def _combined(task: Any, cosine: Tensor, match: Tensor) -> list[float]:  # Any: a task that can match
    return task.rerank_score(cosine.to(task.device), match.to(task.device)).tolist()


def _sigmoid(logit: float) -> float:
    return 1 / (1 + math.exp(-max(-60.0, min(60.0, logit))))
