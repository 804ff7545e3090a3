"""Image-text contrast over all processes, and hard negatives drawn from its similarities (VLMo, section 3.3)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dualfuse import dist


@dataclass(frozen=True)
class Similarities:
    """What this process's B pairs are to the N pairs of all processes, temperature included.

    ``image_to_text`` and ``text_to_image`` are (B, N) logits; ``positive`` (B, N) is True where the pairs show the
    same image or carry the same text, so that neither is a negative of the other.
    """

    image_to_text: Tensor
    text_to_image: Tensor
    positive: Tensor

    @property
    def avoided(self) -> Tensor:
        """Number of pairs that are no pair of the data but would have been wrong negatives."""
        return self.positive.sum() - len(self.positive)

    def loss(self) -> Tensor:
        """Gives this process's share of the symmetric contrastive loss; the mean over processes is the global one.

        Where a pair has several positives the target is uniform over them.
        """
        directions = (self.image_to_text, self.text_to_image)
        return sum((_cross_entropy(logits, self.positive) for logits in directions), torch.zeros(())) / 2


def _cross_entropy(logits: Tensor, positive: Tensor) -> Tensor:
    target = positive / positive.sum(1, keepdim=True)
    return -(target * logits.float().log_softmax(1)).sum(1).mean()


def similarities(image: Tensor, text: Tensor, scale: Tensor, positive: Tensor, share: float = 1.0) -> Similarities:
    """Compares unit vectors (B, D) of this process with those of all.

    ``share`` is the part of the encoders' gradient that is kept: 1 is the gradient of one process that holds the
    whole batch; 1 / world is that of the released code, whose gathered features carry none.
    """
    if share != 1:
        image, text = (x * share + x.detach() * (1 - share) for x in (image, text))
    return Similarities(scale * image @ dist.gather(text).T, scale * text @ dist.gather(image).T, positive)


def positives(image_id: Tensor, text_id: Tensor) -> Tensor:
    """Tells which of all pairs (B, N) show the same image or carry the same text as this process's B."""
    same_image = image_id[:, None] == dist.gather(image_id)[None]
    same_text = text_id[:, None] == dist.gather(text_id)[None]
    return same_image | same_text


def draw_negatives(logits: Tensor, allowed: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Draws one hard negative per row of (B, N): its column (B,), and whether the row had any (B,).

    The probability of a column is its softmax among the allowed ones. Adding Gumbel noise and taking the largest
    draws exactly that, and never fails: no sum of weights can be zero, and no row is too long. ``noise`` (B, N)
    replaces the random one.
    """
    if noise is None:
        noise = -torch.empty_like(logits, dtype=torch.float32).exponential_().log()
    noisy = (logits.detach().float() + noise).masked_fill(~allowed, float("-inf"))
    return noisy.argmax(1), allowed.any(1)


def own_columns(rows: int, device: torch.device) -> Tensor:
    """Tells which of all N columns are this process's own: (N,)."""
    column = torch.arange(rows * dist.world(), device=device)
    return column // rows == dist.rank()
