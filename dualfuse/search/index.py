"""An index of images: embeds a collection once, answers by the dual encoder, re-ranks with the fusion path."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dualfuse.errors import DualfuseError
from dualfuse.evaluation.gallery import Retriever, retriever
from dualfuse.hub import LoadedModel
from dualfuse.inference.encode import SkippedImage, embed, embed_images, pixels
from dualfuse.metrics.recall import nearest
from dualfuse.models.base import Tokens
from dualfuse.progress import track
from dualfuse.search.collection import Collection
from dualfuse.search.growing import IndexBuilder
from dualfuse.search.stores.exact import EmbeddingFile, fingerprint

PAIRS = 32  # fused at a time


@dataclass(frozen=True)
class Hit:
    """An image that was found: ``score`` is what it was ranked by.

    That is the ``cosine`` of both vectors, or, where the fusion path has looked too, both scores together; ``match``
    is then its log-odds that image and text belong together, else None.
    """

    name: str
    score: float
    cosine: float
    match: float | None = None


@dataclass(frozen=True, eq=False)
class Index:
    """The images of a collection, ready to be searched."""

    loaded: LoadedModel
    collection: Collection
    numbers: tuple[int, ...]
    """The places in the collection of the N images that could be read, ascending."""
    embeddings: Tensor
    """(N, D), of length one."""
    skipped: tuple[SkippedImage, ...]
    """The images that could not be read."""
    embedded: int
    """How many of the N images were new or had changed; the others' vectors had been kept."""
    place: Path | None
    """The file with the vectors; None if they could not be written anywhere."""

    @classmethod
    def build(cls, loaded: LoadedModel, images: Path | str, *, batch: int = 64, workers: int = 0) -> Index:
        """Return the index of all images at ``images``: a folder, a tar file, a folder of tars, or a pattern.

        Vectors are kept beside the images, and only what is new or has changed is embedded, ``batch`` images at a
        time. A build that was interrupted resumes where it stopped. ``workers`` threads read; 0: one for each processor.
        Raises ``DualfuseError`` if there is no image, or none that can be read.
        """
        if batch < 1:
            raise DualfuseError(f"batch is {batch}; embed at least 1 image at a time")
        task, collection = retriever(loaded.task), Collection.open(images)
        growing = IndexBuilder(collection, EmbeddingFile.of(collection, fingerprint(loaded)))
        missing, skipped = growing.missing(), []
        pieces = embed(task, loaded.processor.image, collection, missing, batch=batch, workers=workers)
        try:
            for piece in track(pieces, total=-(-len(missing) // batch), what="embedding"):
                skipped += piece.skipped
                growing.add(piece.numbers, piece.embeddings)
        finally:  # also when it is interrupted
            growing.save()
        if not len(growing):
            reasons = "; ".join(f"{each.name}: {each.reason}" for each in skipped[:3])
            raise DualfuseError(f"none of the {len(collection)} images at {images} can be read; the first: {reasons}")
        embedded = len(missing) - len(skipped)
        return cls(loaded, collection, *growing.sorted(), tuple(skipped), embedded, growing.place)

    def __len__(self) -> int:
        """The number of images that can be found."""
        return len(self.numbers)

    @torch.inference_mode()
    def search(self, query: str | Path | bytes, *, top: int = 10, rerank: int = 0) -> tuple[Hit, ...]:
        """Return the ``top`` images for a text (str), or those that look like an image (a file, or its bytes).

        The first ``rerank`` candidates of the dual encoder are put in a new order by the fusion path; 0: none. Behind
        them stand those it has not seen. Raises ``DualfuseError`` for an empty text, a broken image, and for re-ranking
        with an image as the query.
        """
        if top < 1 or rerank < 0:
            raise DualfuseError(f"top is {top} and rerank {rerank}; give at least 1 and 0")
        if not isinstance(query, str):
            if rerank:
                raise DualfuseError(
                    "only a text can be matched with images; leave out rerank for an image as the query"
                )
            return self._nearest(self._image_vector(query), top)
        text = self._text(query)
        hits = self._nearest(self._task.text_features(text).float().cpu(), max(top, rerank))
        return (*self._reranked(hits[:rerank], text), *hits[rerank:])[:top]

    def image(self, name: str) -> bytes:
        """Return the file of a hit, as it lies on the disk or in its tar."""
        return self.collection.read(self._number_of[name])

    @property
    def _task(self) -> Retriever:
        return retriever(self.loaded.task)

    @cached_property
    def _number_of(self) -> dict[str, int]:
        return {self.collection.names[number]: number for number in self.numbers}

    def _nearest(self, vector: Tensor, top: int) -> tuple[Hit, ...]:
        cosines, rows = (found[0].tolist() for found in nearest(vector, self.embeddings, top))
        names = (self.collection.names[self.numbers[row]] for row in rows)
        return tuple(Hit(name, score=cosine, cosine=cosine) for name, cosine in zip(names, cosines, strict=True))

    def _text(self, query: str) -> Tokens:
        """Embed one text: B is 1."""
        if not query.strip():
            raise DualfuseError("the query is empty; write what the image should show")
        model = self.loaded.task.model
        ids = torch.from_numpy(self.loaded.processor.text.encode(query).ids)[None].to(next(model.parameters()).device)
        return model.embed_text(ids, torch.ones_like(ids, dtype=torch.bool))

    def _image_vector(self, query: Path | bytes) -> Tensor:
        data = query if isinstance(query, bytes) else query.read_bytes()
        try:
            image = self.loaded.processor.image(data, np.random.default_rng(0))  # nothing is drawn from it
        except ValueError as error:
            raise DualfuseError(f"{'the query' if isinstance(query, bytes) else query}: {error}") from error
        return embed_images(self._task, image[None])

    def _reranked(self, hits: Sequence[Hit], text: Tokens) -> tuple[Hit, ...]:
        """Put hits in the order of both scores; one that can no longer be read comes last, as it is."""
        by_number = {self._number_of[hit.name]: hit for hit in hits}
        done, unread = [], []
        for chunk in pixels(self.loaded.processor.image, self.collection, tuple(by_number), batch=PAIRS, workers=0):
            readable = [(by_number[number], image) for number, image in chunk if isinstance(image, Tensor)]
            unread += [by_number[number] for number, image in chunk if isinstance(image, SkippedImage)]
            done += self._matched(readable, text) if readable else ()
        return (*sorted(done, key=lambda hit: -hit.score), *unread)

    def _matched(self, candidates: Sequence[tuple[Hit, Tensor]], text: Tokens) -> list[Hit]:
        """Return hits with both scores; a candidate is a hit and its image (3, H, W)."""
        task, device = self._task, text.mask.device
        image = task.model.embed_image(torch.stack([pil_image for _, pil_image in candidates]).to(device))
        match = task.match_logit(image, text.take(torch.zeros(len(image), dtype=torch.long, device=device)))
        cosine = torch.tensor([hit.cosine for hit, _ in candidates], device=device)
        scores = zip(task.rerank_score(cosine, match).tolist(), match.tolist(), strict=True)
        return [replace(hit, score=both, match=odds) for (hit, _), (both, odds) in zip(candidates, scores, strict=True)]
