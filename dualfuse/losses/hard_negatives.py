"""What matching tells apart: right pairs, and wrong ones whose halves are drawn from the batch of all processes."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from dualfuse import distributed as dist
from dualfuse.losses.grad_cache import Embeddings, LazyEmbedder, grad_cache
from dualfuse.losses.itc import Positives, Similarities, gumbel, local_columns, sample_negatives
from dualfuse.models.base import VisionLanguageModel
from dualfuse.tasks.pretrain.pair_batch import PairBatch

NegativeSource = Literal["global", "local", "source"]
"""Of all processes, of this one, or of all processes but from the same training set."""


@dataclass(frozen=True)
class ITMBatch:
    """(text, image) batches, the right pairs first, and which of the wrong rows could be drawn."""

    pairs: tuple[tuple[Embeddings, Embeddings], ...] = ()
    drawn: Tensor = field(default_factory=lambda: torch.ones(0, dtype=torch.bool))

    @property
    def positives(self) -> tuple[Embeddings, Embeddings]:
        """The right pairs."""
        return self.pairs[0]

    @property
    def negatives(self) -> tuple[tuple[Embeddings, Embeddings], ...]:
        """The wrong ones."""
        return self.pairs[1:]

    def __len__(self) -> int:
        """The number of rows."""
        return sum(len(text) for text, _ in self.pairs)


@dataclass(frozen=True)
class GlobalBatch:
    """The images and texts of all processes, by number; this process holds B of each."""

    model: VisionLanguageModel | LazyEmbedder
    batch: PairBatch
    image: Embeddings
    text: Embeddings
    ids: Literal["ids", "masked_ids"]
    """Which tokens ``text`` was made of."""
    place: NegativeSource

    def images(self, numbers: Tensor) -> Embeddings:
        """Return images (K,); one that another process holds is embedded again, from its pixels."""
        if self._has_all:
            return self.image.take(numbers - dist.rank() * len(self.image))
        return self.model.embed_image(dist.fetch_examples(self.batch["image"], numbers))  # only what was drawn travels

    def texts(self, numbers: Tensor) -> Embeddings:
        """Return texts (K,); one that another process holds is embedded again, from its tokens."""
        if self._has_all:
            return self.text.take(numbers - dist.rank() * len(self.text))
        parts = (self.batch[self.ids], self.batch["mask"])
        return self.model.embed_text(*(dist.fetch_examples(part, numbers) for part in parts))

    def candidates(self, rows: Tensor) -> Tensor:
        """Return which of all N pairs may lend a half to some ``rows`` (K,) of this process: (K, N)."""
        if self.place == "source":
            return self.batch["source"][rows, None] == dist.all_gather(self.batch["source"])
        own = local_columns(len(self.image), rows.device)
        return (own if self.place == "local" else torch.ones_like(own)).expand(len(rows), -1)

    @property
    def _has_all(self) -> bool:
        return dist.world_size() == 1 or self.place == "local"


@dataclass(frozen=True)
class NegativeSampling:
    """How wrong halves are drawn."""

    per_pair: Literal[0, 1, 2]
    negative_hardness: float
    chunk: int
    """Rows of (B, N) that are held at a time; 0: all."""


def sample_itm_batch(
    everyone: GlobalBatch, similar: Similarities, positives: Positives, how: NegativeSampling
) -> ITMBatch:
    """Return each text a wrong image and each image a wrong text, by similarity; see ``PairsConfig`` for fewer."""
    image, text = everyone.image, everyone.text
    kept = texts = images = torch.arange(len(image), device=image.device)
    if how.per_pair == 1:
        texts, images = kept[::2], kept[1::2]  # the same ones for any number of processes
    if how.per_pair == 0:
        kept, texts, images = kept[1::2], kept[::2], kept[:0]
    own = dist.rank() * len(image)

    def draw(logits: Tensor, right: Tensor, rows: Tensor, key: int) -> tuple[Tensor, Tensor]:
        noise = gumbel(key, rows + own, logits.shape[1])  # as any other process that held these rows would draw
        return sample_negatives(how.negative_hardness * logits, everyone.candidates(rows) & ~right, noise)

    def draw_images(rows: Tensor, key: int) -> tuple[Tensor, Tensor]:
        return draw(similar.take(rows).text_to_image, positives.take(rows).images_of_texts, rows, key)

    def draw_texts(rows: Tensor, key: int) -> tuple[Tensor, Tensor]:
        return draw(similar.take(rows).image_to_text, positives.take(rows).texts_of_images, rows, key)

    with torch.no_grad():
        negative_image, has_image = grad_cache(partial(draw_images, key=dist.draw_shared()), how.chunk, texts)
        negative_text, has_text = grad_cache(partial(draw_texts, key=dist.draw_shared()), how.chunk, images)
    right = (text, image) if how.per_pair else (text.take(kept), image.take(kept))
    wrong = [(text.take(texts), everyone.images(negative_image))]
    if len(images):
        wrong.append((everyone.texts(negative_text), image.take(images)))
    return ITMBatch((right, *wrong), torch.cat([has_image, has_text]))
