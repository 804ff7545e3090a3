"""Match logits of pairs of image and text, of different users in one batch."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from dualfuse.data.text.padding import pad_texts
from dualfuse.hub import LoadedModel
from dualfuse.models.base import Tokens
from dualfuse.search.server.compute.cache import LRUCache

Result = TypeVar("Result")


@dataclass(frozen=True)
class Pair:
    """An image, which ``read`` returns and ``key`` stands for in the cache, and a text."""

    key: Hashable
    read: Callable[[], bytes]
    text: str
    deadline: float = float("inf")
    """Time of ``time.perf_counter`` after which the pair is not scored any more."""


class PairScorer:
    """Fuses pairs, and keeps the unimodal states of their images in half precision."""

    def __init__(self, loaded: LoadedModel, readers: Executor, cached_bytes: int) -> None:
        """``readers`` decode images; ``cached_bytes`` bounds the states that are kept, 0 keeps none."""
        self._loaded, self._readers = loaded, readers
        self.states = LRUCache[Hashable, Tokens](cached_bytes, _size)

    @torch.inference_mode()
    def score(self, pairs: Sequence[Pair]) -> list[float | Exception]:
        """Return the match logit of each pair, or the exception of its image or text.

        TimeoutError stands for a pair whose deadline is over.
        """
        now = time.perf_counter()
        results: list[float | Exception] = [TimeoutError("the time budget is over")] * len(pairs)
        alive = [number for number, pair in enumerate(pairs) if now < pair.deadline]
        images = self._images({pairs[number].key: pairs[number] for number in alive})
        texts = self._encode(dict.fromkeys(pairs[number].text for number in alive))
        by_grid: dict[tuple[int, ...], list[tuple[int, Tokens, np.ndarray]]] = {}
        for number in alive:
            image, ids = images[pairs[number].key], texts[pairs[number].text]
            if isinstance(image, Exception):
                results[number] = image
            elif isinstance(ids, Exception):
                results[number] = ids
            else:
                by_grid.setdefault(image.grid, []).append((number, image, ids))
        for group in by_grid.values():
            logits = self._fuse(Tokens.join([image for _, image, _ in group]), [ids for _, _, ids in group])
            for (number, _, _), logit in zip(group, logits, strict=True):
                results[number] = logit
        return results

    def _fuse(self, images: Tokens, ids: Sequence[np.ndarray]) -> list[float]:
        """Return the logits of B images and B texts; equal texts are embedded once."""
        unique = {id(each): each for each in ids}
        position = {key: number for number, key in enumerate(unique)}
        tokens = embed_texts(self._loaded, list(unique.values()))
        index = torch.tensor([position[id(each)] for each in ids], device=tokens.device)
        return self._loaded.task.match_logit(images, tokens.take(index)).float().tolist()

    def _encode(self, texts: dict[str, None]) -> dict[str, np.ndarray | Exception]:
        return {text: result_of(lambda text=text: self._loaded.processor.text.encode(text).ids) for text in texts}

    def _images(self, pairs: dict[Hashable, Pair]) -> dict[Hashable, Tokens | Exception]:
        """Return the states of images by key: cached ones, and the others embedded together."""
        dtype = next(self._loaded.task.parameters()).dtype
        found: dict[Hashable, Tokens | Exception] = {
            key: _cast(cached, dtype) for key in pairs if (cached := self.states.get(key)) is not None
        }
        missing = [pair for key, pair in pairs.items() if key not in found]
        by_shape: dict[torch.Size, list[tuple[Hashable, Tensor]]] = {}
        for pair, pixels in zip(missing, self._readers.map(self._pixels, missing), strict=True):
            if isinstance(pixels, Exception):
                found[pair.key] = pixels
            else:
                by_shape.setdefault(pixels.shape, []).append((pair.key, pixels))
        for group in by_shape.values():
            stacked = torch.stack([pixels for _, pixels in group]).to(self._loaded.task.device)
            tokens = self._loaded.task.model.embed_image(stacked)
            for number, (key, _) in enumerate(group):
                found[key] = self._keep(key, tokens.take(torch.tensor([number], device=tokens.device)))
        return found

    def _keep(self, key: Hashable, tokens: Tokens) -> Tokens:
        """Cache states, and return them as the cache will: an answer does not depend on what is cached."""
        half = _cast(tokens, torch.float16)
        if not all(bool(state.isfinite().all()) for state in half.states):
            return tokens  # beyond 65504
        self.states.put(key, half)
        return _cast(half, tokens.states[0].dtype)

    def _pixels(self, pair: Pair) -> Tensor | Exception:
        # nothing is drawn without augmentation
        return result_of(lambda: self._loaded.processor.image(pair.read(), np.random.default_rng(0)))


def embed_texts(loaded: LoadedModel, ids: Sequence[np.ndarray]) -> Tokens:
    """Embed token ids of B texts, padded to the longest."""
    padded, mask = pad_texts(ids)
    return loaded.task.model.embed_text(padded.to(loaded.task.device), mask.to(loaded.task.device))


def result_of(compute: Callable[[], Result]) -> Result | Exception:
    """Return the result of a call, or the exception of a user's input as a value: it is one of a batch."""
    try:
        return compute()
    except (OSError, ValueError) as error:  # DualfuseError is a ValueError
        return error


def _cast(tokens: Tokens, dtype: torch.dtype) -> Tokens:
    return replace(tokens, states=tuple(state.to(dtype) for state in tokens.states))


def _size(tokens: Tokens) -> int:
    return sum(state.nbytes for state in tokens.states) + tokens.mask.nbytes
