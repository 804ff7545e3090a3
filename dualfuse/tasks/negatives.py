"""What matching tells apart: right pairs, and wrong ones whose halves are drawn from the batch of all processes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from dualfuse import dist
from dualfuse.models.base import Tokens, VisionLanguageModel
from dualfuse.tasks.contrast import Positives, Similarities, draw_negatives, own_columns
from dualfuse.tasks.pair_rows import PairBatch

Place = Literal["all", "own", "source"]
"""Of all processes, of this one, or of all processes but from the same training set."""


@dataclass(frozen=True)
class Chosen:
    """(text, image) batches, the right pairs first, and which of the wrong rows could be drawn."""

    pairs: tuple[tuple[Tokens, Tokens], ...] = ()
    drawn: Tensor = field(default_factory=lambda: torch.ones(0, dtype=torch.bool))

    @property
    def right(self) -> tuple[Tokens, Tokens]:
        """The right pairs."""
        return self.pairs[0]

    @property
    def wrong(self) -> tuple[tuple[Tokens, Tokens], ...]:
        """The wrong ones."""
        return self.pairs[1:]

    def __len__(self) -> int:
        """The number of rows."""
        return sum(len(text) for text, _ in self.pairs)


@dataclass(frozen=True)
class Everyone:
    """The images and texts of all processes, by number; this process holds B of each as tokens."""

    model: VisionLanguageModel
    batch: PairBatch
    image: Tokens
    text: Tokens
    ids: Literal["ids", "masked_ids"]
    """Which word pieces ``text`` was made of."""
    place: Place

    def images(self, numbers: Tensor) -> Tokens:
        """Gives images (K,); one that another process holds is embedded again, from its pixels."""
        if self._has_all:
            return self.image.take(numbers - dist.rank() * len(self.image))
        return self.model.embed_image(dist.fetch(self.batch["image"], numbers))  # only what was drawn travels

    def texts(self, numbers: Tensor) -> Tokens:
        """Gives texts (K,); one that another process holds is embedded again, from its word pieces."""
        if self._has_all:
            return self.text.take(numbers - dist.rank() * len(self.text))
        parts = (self.batch[self.ids], self.batch["mask"])
        return self.model.embed_text(*(dist.fetch(part, numbers) for part in parts))

    def allowed(self, positives: Positives) -> tuple[Tensor, Tensor]:
        """Tells which images may be drawn for each text, and which texts for each image: (B, N)."""
        images, texts = ~positives.images_of_texts, ~positives.texts_of_images
        if self.place == "all":
            return images, texts
        if self.place == "own":
            near = own_columns(len(images), images.device)
        else:
            near = self.batch["source"][:, None] == dist.gather(self.batch["source"])
        return images & near, texts & near

    @property
    def _has_all(self) -> bool:
        return dist.world() == 1 or self.place == "own"


def choose(
    everyone: Everyone, similar: Similarities, positives: Positives, *, per_pair: Literal[0, 1, 2], hardness: float
) -> Chosen:
    """Gives each text a wrong image and each image a wrong text, by similarity; see ``PairsConfig`` for fewer."""
    image, text = everyone.image, everyone.text
    kept = texts = images = torch.arange(len(image), device=image.mask.device)
    if per_pair == 1:
        texts, images = kept.tensor_split([(len(image) + 1) // 2])
    if per_pair == 0:
        (kept, texts), images = kept.tensor_split([len(image) // 2]), kept[:0]
    images_allowed, texts_allowed = everyone.allowed(positives)
    wrong_image, has_image = draw_negatives(hardness * similar.text_to_image[texts], images_allowed[texts])
    wrong_text, has_text = draw_negatives(hardness * similar.image_to_text[images], texts_allowed[images])
    right = (text, image) if per_pair else (text.take(kept), image.take(kept))
    wrong = [(text.take(texts), everyone.images(wrong_image))]
    if len(images):
        wrong.append((everyone.texts(wrong_text), image.take(images)))
    return Chosen((right, *wrong), torch.cat([has_image, has_text]))
