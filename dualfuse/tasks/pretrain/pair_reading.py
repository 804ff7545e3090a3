"""From a sample to a pair: which of its captions, with which tags, and which words are masked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from dualfuse.data.sample import BrokenSample, Sample
from dualfuse.data.text.tokenizer import MASKING_RULES
from dualfuse.tasks.base import Processor
from dualfuse.tasks.pretrain.pair_batch import PairExample, content_id

Masking = Literal["whole_word", "token", "official"]


@dataclass(frozen=True)
class PairReader:
    """How pairs are drawn; :class:`dualfuse.tasks.pretrain.pairs.PairsConfig` says what the values mean."""

    masking: Masking
    mlm_probability: float
    tags: str

    def read(self, sample: Sample, processor: Processor, rng: np.random.Generator) -> PairExample:
        """Draw one of the captions, masks words, and transforms the image."""
        if not sample.texts:
            raise BrokenSample(sample.key, "it has no text")
        caption = sample.texts[rng.integers(len(sample.texts))]
        words = processor.text.encode(self._tagged(caption, sample, rng))
        hide = MASKING_RULES[self.masking]
        masked_ids, labels = hide(words, processor.text.vocab_size, processor.text.mask_id, rng, self.mlm_probability)
        return {
            "image": processor.image(sample.image, rng),
            "ids": words.ids,
            "masked_ids": masked_ids,
            "labels": labels,
            "image_id": content_id(sample.image),
            "text_id": content_id(caption.casefold().encode()),  # tags make no other text of it
            "source": sample.source,
        }

    def _tagged(self, caption: str, sample: Sample, rng: np.random.Generator) -> str:
        tags = sample.meta.get(self.tags)
        if not (isinstance(tags, list) and tags) or rng.random() < 0.5:
            return caption
        some = " ".join(map(str, rng.permutation(tags)[: rng.integers(1, 5)]))
        return some if rng.random() < 1 / 3 else f"{caption} {some}"
