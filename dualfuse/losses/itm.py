"""Image-text matching loss over the global batch (VLMo, section 3.3)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from dualfuse import distributed as dist


def itm_loss(logits: Tensor, has_negative: Tensor) -> Tensor:
    """Return the mean cross-entropy over the pairs of all processes.

    ``logits`` (M, 2) are those of the positive pairs, then those of K negative pairs; a negative pair counts where
    ``has_negative`` (K,) is True.
    """
    is_positive, counts = _labels(logits, has_negative)
    losses = F.cross_entropy(logits, is_positive.long(), reduction="none") * counts
    return losses.sum() / dist.all_reduce_mean(counts.sum().float()).clamp(min=1)


def itm_accuracy(logits: Tensor, has_negative: Tensor) -> dict[str, Tensor]:
    """Return the accuracies on this process's positive and negative pairs; arguments as of :func:`itm_loss`."""
    is_positive, counts = _labels(logits, has_negative)
    positives = len(logits) - len(has_negative)
    correct = (logits.argmax(1) == is_positive.long()) & counts
    return {
        "accuracy/itm_positive": correct[:positives].sum() / max(1, positives),
        "accuracy/itm_negative": correct[positives:].sum() / has_negative.sum().clamp(min=1),
    }


def _labels(logits: Tensor, has_negative: Tensor) -> tuple[Tensor, Tensor]:
    """Return whether each pair (M,) is positive, and whether it counts."""
    positives = len(logits) - len(has_negative)
    is_positive = torch.arange(len(logits), device=logits.device) < positives
    return is_positive, torch.cat([has_negative.new_ones(positives), has_negative])
