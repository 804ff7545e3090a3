"""Masked words of text alone, judged."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch

from dualfuse.data.loader import Samples, evaluation_batches
from dualfuse.data.sample import Sample
from dualfuse.evaluation.retrieval import Plan
from dualfuse.progress import track
from dualfuse.tasks.base import Processor
from dualfuse.tasks.pretrain.masked_text import MaskedText, MaskedTextConfig, TextExample
from dualfuse.training.prefetch import to_device


@torch.inference_mode()
def evaluate_masked_text(task: MaskedText, processor: Processor, texts: Samples, plan: Plan) -> dict[str, float]:
    """Return "mlm/accuracy", the share of masked words that are found, and "mlm/loss", the mean loss of one.

    Masks are drawn the same way every time. Every process judges all texts by itself. A line that cannot be read
    raises ``BrokenSample``, or is left out with ``plan.exclude_broken``.
    """
    loaded_batches = evaluation_batches(
        texts,
        partial(_read, task.cfg, processor),
        task.cfg.collate,
        batch_size=plan.batch_size,
        num_workers=plan.num_workers,
        exclude_broken=plan.exclude_broken,
    )
    device = next(task.parameters()).device
    right, loss, number = 0.0, 0.0, 0
    for loaded_batch in track(loaded_batches, total=-(-len(texts) // plan.batch_size), what="texts"):
        batch = to_device(loaded_batch.batch, device)
        words = int((batch["targets"] != -100).sum())
        output = task(batch)
        right += float(output.log["accuracy/mlm"]) * words
        loss += float(output.loss) * words
        number += words
    return {"mlm/accuracy": right / max(1, number), "mlm/loss": loss / max(1, number)}


def _read(cfg: MaskedTextConfig, processor: Processor, sample: Sample, rng: np.random.Generator) -> TextExample:
    return cfg.read(sample, processor, rng)
