"""From a sample to a pair: which of its captions, with which tags, and which words are masked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from dualfuse.data.sample import BrokenSample, Sample
from dualfuse.data.text import MASKING_RULES
from dualfuse.tasks.base import Prep
from dualfuse.tasks.pair_rows import PairRow, identity

Masking = Literal["words", "tokens", "released"]


@dataclass(frozen=True)
class Reading:
    """How pairs are drawn; :class:`dualfuse.tasks.pairs.PairsConfig` says what the values mean."""

    masking: Masking
    mask_share: float
    tags: str

    def read(self, sample: Sample, prep: Prep, rng: np.random.Generator) -> PairRow:
        """Draws one of the captions, masks words, and transforms the picture."""
        if not sample.texts:
            raise BrokenSample(sample.key, "it has no text")
        caption = sample.texts[rng.integers(len(sample.texts))]
        words = prep.text.encode(self._tagged(caption, sample, rng))
        hide = MASKING_RULES[self.masking]
        masked_ids, labels = hide(words, prep.text.vocabulary, prep.text.mask, rng, self.mask_share)
        return {
            "image": prep.image(sample.image, rng),
            "ids": words.ids,
            "masked_ids": masked_ids,
            "labels": labels,
            "image_id": identity(sample.image),
            "text_id": identity(caption.casefold().encode()),  # tags make no other text of it
            "source": sample.source,
        }

    def _tagged(self, caption: str, sample: Sample, rng: np.random.Generator) -> str:
        tags = sample.meta.get(self.tags)
        if not (isinstance(tags, list) and tags) or rng.random() < 0.5:
            return caption
        some = " ".join(map(str, rng.permutation(tags)[: rng.integers(1, 5)]))
        return some if rng.random() < 1 / 3 else f"{caption} {some}"
