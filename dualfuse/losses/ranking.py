"""Ranking loss: an image's text against negative texts (METER, arXiv 2111.02387)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def sample_texts(allowed: Tensor, number: int, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Draw ``number`` distinct negative texts per image, uniformly: columns (B, K), and which of them are valid (B, K).

    ``allowed`` (B, N) marks the candidates; those with the largest ``noise`` (B, N) are drawn. K is at most N. An image
    with fewer than K candidates is filled up with invalid columns.
    """
    best = noise.masked_fill(~allowed, float("-inf")).topk(min(number, allowed.shape[1]), dim=1)
    return best.indices, best.values.isfinite()


def rank_loss(scores: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean cross-entropy of scores (B, 1 + K) against the first column, and the accuracy.

    ``valid`` (B, K) marks the negatives that count.
    """
    scores = torch.cat([scores[:, :1], scores[:, 1:].masked_fill(~valid, float("-inf"))], dim=1)
    target = torch.zeros(len(scores), dtype=torch.long, device=scores.device)
    return F.cross_entropy(scores, target), (scores.argmax(1) == 0).float().mean()
