"""Masked words on text alone: stage two of VLMo (paper, section 3.4)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypedDict

import numpy as np
from torch import Tensor

from dualfuse.data.padding import pad_texts
from dualfuse.data.sample import BrokenSample, Sample
from dualfuse.data.text import mask_words
from dualfuse.models.base import VisionLanguageModel
from dualfuse.tasks.base import Output, Prep, Task
from dualfuse.tasks.heads import WordHead
from dualfuse.tasks.pair_rows import masked_rows


class TextRow(TypedDict):
    """One text: its word pieces with some masked (T,), and their labels (T,), -100 at all others."""

    ids: np.ndarray
    labels: np.ndarray


class TextBatch(TypedDict):
    """B texts: ids, mask (B, T); ``rows`` (B, R) are the positions of masked words, ``targets`` what stood there.

    Where a text has fewer than R, targets are -100.
    """

    ids: Tensor
    mask: Tensor
    rows: Tensor
    targets: Tensor


@dataclass(frozen=True)
class MaskedTextConfig:
    """How many words are masked, always whole ones."""

    mask_share: float = 0.15
    """Share of the words that is masked."""
    initial_std: float = 0.02
    """Standard deviation of the head's first weights; see ``Initial.std`` of the model."""

    def read(self, sample: Sample, prep: Prep, rng: np.random.Generator) -> TextRow:
        """Masks words of the text; a picture beside it is not looked at."""
        if not sample.texts:
            raise BrokenSample(sample.key, "it has no text")
        words = prep.text.encode(sample.texts[0])
        ids, labels = mask_words(words, prep.text.vocabulary, prep.text.mask, rng, self.mask_share)
        return {"ids": ids, "labels": labels}

    def collate(self, rows: Sequence[TextRow]) -> TextBatch:
        """Pads the texts to the longest of them."""
        ids, mask = pad_texts([row["ids"] for row in rows])
        places, targets = masked_rows([row["labels"] for row in rows])
        return {"ids": ids, "mask": mask, "rows": places, "targets": targets}

    def build(self, model: VisionLanguageModel) -> MaskedText:
        """Gives the task with a fresh head."""
        return MaskedText(self, model)


class MaskedText(Task):
    """Predicts masked words from the words around them; parts of the model for pictures never run."""

    def __init__(self, cfg: MaskedTextConfig, model: VisionLanguageModel) -> None:
        """The word head is the one that pre-training on pairs goes on with."""
        super().__init__()
        self.cfg, self.model = cfg, model
        self.word_head = WordHead(model.width, model.vocabulary, epsilon=model.head_epsilon, std=cfg.initial_std)

    def forward(self, batch: TextBatch) -> Output:
        """Gives the mean loss over all masked words of all processes."""
        text = self.model.embed_text(batch["ids"], batch["mask"])
        loss, accuracy = self.word_head.loss(self.model.states(text, batch["rows"]), batch["targets"])
        return Output(loss, {"loss": loss.detach(), "accuracy/words": accuracy})
