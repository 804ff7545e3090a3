"""What matching tells apart: right pairs, and wrong ones whose halves are drawn from the batch of all processes."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from dualfuse import dist
from dualfuse.models.base import VisionLanguageModel
from dualfuse.tasks.chunks import Later, Rows, in_chunks
from dualfuse.tasks.contrast import Positives, Similarities, draw_negatives, gumbel, own_columns
from dualfuse.tasks.pair_rows import PairBatch

Place = Literal["all", "own", "source"]
"""Of all processes, of this one, or of all processes but from the same training set."""


@dataclass(frozen=True)
class Chosen:
    """(text, image) batches, the right pairs first, and which of the wrong rows could be drawn."""

    pairs: tuple[tuple[Rows, Rows], ...] = ()
    drawn: Tensor = field(default_factory=lambda: torch.ones(0, dtype=torch.bool))

    @property
    def right(self) -> tuple[Rows, Rows]:
        """The right pairs."""
        return self.pairs[0]

    @property
    def wrong(self) -> tuple[tuple[Rows, Rows], ...]:
        """The wrong ones."""
        return self.pairs[1:]

    def __len__(self) -> int:
        """The number of rows."""
        return sum(len(text) for text, _ in self.pairs)


@dataclass(frozen=True)
class Everyone:
    """The images and texts of all processes, by number; this process holds B of each."""

    model: VisionLanguageModel | Later
    batch: PairBatch
    image: Rows
    text: Rows
    ids: Literal["ids", "masked_ids"]
    """Which word pieces ``text`` was made of."""
    place: Place

    def images(self, numbers: Tensor) -> Rows:
        """Gives images (K,); one that another process holds is embedded again, from its pixels."""
        if self._has_all:
            return self.image.take(numbers - dist.rank() * len(self.image))
        return self.model.embed_image(dist.fetch(self.batch["image"], numbers))  # only what was drawn travels

    def texts(self, numbers: Tensor) -> Rows:
        """Gives texts (K,); one that another process holds is embedded again, from its word pieces."""
        if self._has_all:
            return self.text.take(numbers - dist.rank() * len(self.text))
        parts = (self.batch[self.ids], self.batch["mask"])
        return self.model.embed_text(*(dist.fetch(part, numbers) for part in parts))

    def near(self, rows: Tensor) -> Tensor:
        """Tells which of all N pairs may lend a half to some ``rows`` (K,) of this process: (K, N)."""
        if self.place == "source":
            return self.batch["source"][rows, None] == dist.gather(self.batch["source"])
        own = own_columns(len(self.image), rows.device)
        return (own if self.place == "own" else torch.ones_like(own)).expand(len(rows), -1)

    @property
    def _has_all(self) -> bool:
        return dist.world() == 1 or self.place == "own"


@dataclass(frozen=True)
class Draw:
    """How wrong halves are drawn."""

    per_pair: Literal[0, 1, 2]
    hardness: float
    rows_at_once: int
    """Rows of (B, N) that are held at a time; 0: all."""


def choose(everyone: Everyone, similar: Similarities, positives: Positives, how: Draw) -> Chosen:
    """Gives each text a wrong image and each image a wrong text, by similarity; see ``PairsConfig`` for fewer."""
    image, text = everyone.image, everyone.text
    kept = texts = images = torch.arange(len(image), device=image.device)
    if how.per_pair == 1:
        texts, images = kept[::2], kept[1::2]  # the same ones for any number of processes
    if how.per_pair == 0:
        kept, texts, images = kept[1::2], kept[::2], kept[:0]
    own = dist.rank() * len(image)

    def draw(logits: Tensor, right: Tensor, rows: Tensor, key: int) -> tuple[Tensor, Tensor]:
        noise = gumbel(key, rows + own, logits.shape[1])  # as any other process that held these rows would draw
        return draw_negatives(how.hardness * logits, everyone.near(rows) & ~right, noise)

    def draw_images(rows: Tensor, key: int) -> tuple[Tensor, Tensor]:
        return draw(similar.take(rows).text_to_image, positives.take(rows).images_of_texts, rows, key)

    def draw_texts(rows: Tensor, key: int) -> tuple[Tensor, Tensor]:
        return draw(similar.take(rows).image_to_text, positives.take(rows).texts_of_images, rows, key)

    with torch.no_grad():
        wrong_image, has_image = in_chunks(partial(draw_images, key=dist.draw_alike()), how.rows_at_once, texts)
        wrong_text, has_text = in_chunks(partial(draw_texts, key=dist.draw_alike()), how.rows_at_once, images)
    right = (text, image) if how.per_pair else (text.take(kept), image.take(kept))
    wrong = [(text.take(texts), everyone.images(wrong_image))]
    if len(images):
        wrong.append((everyone.texts(wrong_text), image.take(images)))
    return Chosen((right, *wrong), torch.cat([has_image, has_text]))
