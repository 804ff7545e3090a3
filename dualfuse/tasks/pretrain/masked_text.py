"""Masked words on text alone: stage two of VLMo (paper, section 3.4)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypedDict

import numpy as np
from torch import Tensor

from dualfuse.data.sample import BrokenSample, Sample
from dualfuse.data.text.masking import mask_words
from dualfuse.data.text.padding import pad_texts
from dualfuse.layers.heads import MLMHead
from dualfuse.losses.mlm import mlm_loss
from dualfuse.models.base import VisionLanguageModel
from dualfuse.tasks.base import Processor, Task, TaskOutput
from dualfuse.tasks.pretrain.pair_batch import mlm_positions


class TextExample(TypedDict):
    """One text: its tokens with some masked (T,), and their labels (T,), -100 at all others."""

    ids: np.ndarray
    labels: np.ndarray


class MaskedTextBatch(TypedDict):
    """B texts: ids, mask (B, T); ``positions`` (B, R) are the positions of masked words, ``targets`` what stood there.

    Where a text has fewer than R, targets are -100.
    """

    ids: Tensor
    mask: Tensor
    positions: Tensor
    targets: Tensor


@dataclass(frozen=True)
class MaskedTextConfig:
    """How many words are masked, always whole ones."""

    mlm_probability: float = 0.15
    """Share of the words that is masked."""
    init_std: float = 0.02
    """Standard deviation of the head's first weights; see ``Initial.std`` of the model."""

    def read(self, sample: Sample, processor: Processor, rng: np.random.Generator) -> TextExample:
        """Mask words of the text; an image beside it is not looked at."""
        if not sample.texts:
            raise BrokenSample(sample.key, "it has no text")
        words = processor.text.encode(sample.texts[0])
        ids, labels = mask_words(words, processor.text.vocab_size, processor.text.mask_id, rng, self.mlm_probability)
        return {"ids": ids, "labels": labels}

    def collate(self, rows: Sequence[TextExample]) -> MaskedTextBatch:
        """Pad the texts to the longest of them."""
        ids, mask = pad_texts([row["ids"] for row in rows])
        places, targets = mlm_positions([row["labels"] for row in rows])
        return {"ids": ids, "mask": mask, "positions": places, "targets": targets}

    def build(self, model: VisionLanguageModel) -> MaskedText:
        """Return the task with a fresh head."""
        return MaskedText(self, model)


class MaskedText(Task):
    """Predicts masked words from the words around them; parts of the model for images never run."""

    def __init__(self, cfg: MaskedTextConfig, model: VisionLanguageModel) -> None:
        """The word head is the one that pre-training on pairs goes on with."""
        super().__init__()
        self.cfg, self.model = cfg, model
        self.mlm_head = MLMHead(model.width, model.vocab_size, epsilon=model.mlm_head_eps, std=cfg.init_std)

    def forward(self, batch: MaskedTextBatch) -> TaskOutput:
        """Return the mean loss over all masked words of all processes."""
        text = self.model.embed_text(batch["ids"], batch["mask"])
        states = self.model.token_states(text, batch["positions"])
        loss, accuracy = mlm_loss(self.mlm_head, states, batch["targets"])
        return TaskOutput(loss, {"loss": loss.detach(), "accuracy/mlm": accuracy})
