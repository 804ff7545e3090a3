"""Masked words of text alone, judged."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch

from dualfuse.data.loader import Samples, evaluation_batches
from dualfuse.data.sample import Sample
from dualfuse.engine.ahead import to_device
from dualfuse.engine.evaluate import Plan
from dualfuse.engine.progress import following
from dualfuse.tasks.base import Prep
from dualfuse.tasks.masked_text import MaskedText, MaskedTextConfig, TextRow


@torch.inference_mode()
def word_accuracy(task: MaskedText, prep: Prep, texts: Samples, plan: Plan) -> dict[str, float]:
    """Gives "words", the share of masked words that are found, and "words/loss", the mean loss of one.

    Masks are drawn the same way every time. Every process judges all texts by itself. A line that cannot be read
    raises ``BrokenSample``, or is left out with ``plan.exclude_broken``.
    """
    deliveries = evaluation_batches(
        texts,
        partial(_read, task.cfg, prep),
        task.cfg.collate,
        batch=plan.batch,
        workers=plan.workers,
        exclude_broken=plan.exclude_broken,
    )
    device = next(task.parameters()).device
    right, loss, number = 0.0, 0.0, 0
    for delivery in following(deliveries, total=-(-len(texts) // plan.batch), what="texts"):
        batch = to_device(delivery.batch, device)
        words = int((batch["targets"] != -100).sum())
        output = task(batch)
        right += float(output.log["accuracy/words"]) * words
        loss += float(output.loss) * words
        number += words
    return {"words": right / max(1, number), "words/loss": loss / max(1, number)}


def _read(cfg: MaskedTextConfig, prep: Prep, sample: Sample, rng: np.random.Generator) -> TextRow:
    return cfg.read(sample, prep, rng)
