"""Residual list-wise matching: the right candidate among K + 1, scored by the dual encoder plus the fusion encoder."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from dualfuse import distributed as dist
from dualfuse.losses.grad_cache import grad_cache
from dualfuse.losses.hard_negatives import gumbel
from dualfuse.losses.itc import Positives, Similarities


@dataclass(frozen=True)
class Candidates:
    """K wrong candidates for each of B queries, in one direction."""

    numbers: Tensor
    """Their numbers (B, K) in the global batch."""
    valid: Tensor
    """Whether each (B, K) is a negative: a query with fewer than K negatives has invalid ones."""
    logits: Tensor
    """ITC logits (B, 1 + K) of the right candidate, then of the wrong ones, without gradient."""
    columns: Tensor
    """Numbers (B, 1 + K) of the right candidate, then of the wrong ones, in the global batch."""


@torch.no_grad()
def sample_candidates(
    similarities: Similarities,
    positives: Positives,
    groups: tuple[Tensor, Tensor],
    number: int,
    *,
    hardness: float,
    chunk: int = 0,
) -> tuple[Candidates, Candidates]:
    """Draw ``number`` wrong images for each local text, and as many wrong texts for each local image.

    Candidates are drawn without replacement from softmax(``hardness`` * logits) over the pairs of the query's group
    (Gumbel top-k); pairs that share the image or the text of the query are not candidates. The draw is the same
    whichever process holds the query. (B, N) matrices are computed for ``chunk`` queries at a time (0: all).
    """
    local, everyone = groups
    first, size = dist.rank() * len(local), min(number, len(everyone))

    def sample(texts_of_images: bool) -> Candidates:
        key = dist.draw_shared()

        def sample_chunk(index: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
            some, positive = similarities.take(index), positives.take(index)
            logits = (some.image_to_text if texts_of_images else some.text_to_image).float()
            excluded = positive.texts_of_images if texts_of_images else positive.images_of_texts
            allowed = (local[index, None] == everyone) & ~excluded
            noisy = (hardness * logits + gumbel(key, index + first, len(everyone))).masked_fill(~allowed, -torch.inf)
            best = noisy.topk(size, dim=1)
            columns = torch.cat([(index + first)[:, None], best.indices], dim=1)
            return best.indices, best.values > -torch.inf, logits.gather(1, columns), columns

        return Candidates(*grad_cache(sample_chunk, chunk, torch.arange(len(local), device=local.device)))

    return sample(texts_of_images=False), sample(texts_of_images=True)


def candidate_logits(queries: Tensor, candidates: Tensor, columns: Tensor, scale: Tensor) -> Tensor:
    """Return the ITC logits (B, L), with gradient, of unit ``queries`` (B, D) with the candidates (N, D) in columns."""
    return scale * (queries[:, None] * candidates[columns]).sum(2)


def distillation_loss(student: Tensor, teacher: Tensor, valid: Tensor) -> Tensor:
    """Return the divergence of the student's order of the candidates from the teacher's, KL(teacher || student).

    Both are scores (B, 1 + K); wrong candidates count where ``valid`` (B, K) is True. Only the student has a gradient.
    The softmax over few hard candidates keeps what the teacher knows about their order; over a whole batch the scores
    of a fusion encoder are too concentrated.
    """
    kept = F.pad(valid, (1, 0), value=True)
    target = teacher.detach().float().masked_fill(~kept, -torch.inf).log_softmax(1)
    own = student.float().masked_fill(~kept, -torch.inf).log_softmax(1)
    terms = target.exp() * (target - own)
    return terms.where(kept, 0).sum(1).mean()


def listwise_loss(scores: Tensor, valid: Tensor) -> Tensor:
    """Return the mean cross-entropy of the first of the candidates of each query.

    ``scores`` (B, 1 + K) are those of the right candidate, then of K wrong ones, of which those count where ``valid``
    (B, K) is True. A query without negatives has the loss 0.
    """
    masked = scores.float().masked_fill(~F.pad(valid, (1, 0), value=True), -torch.inf)
    return F.cross_entropy(masked, masked.new_zeros(len(masked), dtype=torch.long))


def threshold_loss(scores: Tensor, valid: Tensor, threshold: Tensor, scale: Tensor) -> Tensor:
    """Return the binary cross-entropy of single pairs, which trains the cosine ``threshold`` of a match alone.

    A match has the probability sigmoid(score - ``scale`` * ``threshold``); positive and negative pairs weigh the same.
    Divided by ``scale``, so that the gradient of the threshold is at most 1, whatever the scale is.
    """
    logits = (scores.detach() - scale.detach() * threshold).float()
    right, wrong = F.softplus(-logits[:, 0]).mean(), F.softplus(logits[:, 1:])[valid]
    return (right + (wrong.mean() if len(wrong) else 0)) / (2 * scale.detach().squeeze())


@torch.no_grad()
def listwise_accuracy(scores: Tensor, valid: Tensor) -> Tensor:
    """Return the share of queries whose right candidate has the highest score."""
    wrong = scores[:, 1:].masked_fill(~valid, -torch.inf)
    return (scores[:, :1] > wrong).all(1).float().mean()
