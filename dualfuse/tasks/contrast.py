"""Image-text contrast over all processes, and hard negatives drawn from its similarities (VLMo, section 3.3)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dualfuse import dist


@dataclass(frozen=True)
class Positives:
    """What belongs to this process's B pairs among the N of all: (B, N), True where it does.

    A text is right for an image if any pair has both, and so is an image for a text.
    """

    texts_of_images: Tensor
    images_of_texts: Tensor

    @property
    def avoided(self) -> Tensor:
        """Number of places, in both directions, that would have been wrong negatives."""
        return self.texts_of_images.sum() + self.images_of_texts.sum() - 2 * len(self.texts_of_images)


@dataclass(frozen=True)
class Similarities:
    """What this process's B pairs are to the N pairs of all: logits (B, N), temperature included."""

    image_to_text: Tensor
    text_to_image: Tensor

    def loss(self, positives: Positives) -> Tensor:
        """Gives this process's share of the symmetric contrastive loss; the mean over processes is the global one.

        Where a row has several positives the target is uniform over them.
        """
        of_images = _cross_entropy(self.image_to_text, positives.texts_of_images)
        of_texts = _cross_entropy(self.text_to_image, positives.images_of_texts)
        return (of_images + of_texts) / 2

    def loss_with_pairs(self, text_to_pair: Tensor, image_to_pair: Tensor, positives: Positives) -> Tensor:
        """Gives the loss of Hugging Face's BridgeTower: texts find images and pairs, images find pairs.

        ``text_to_pair`` and ``image_to_pair`` (B, N) are logits with the fused vectors of all right pairs.
        """
        return (
            _cross_entropy(self.text_to_image, positives.images_of_texts)
            + _cross_entropy(text_to_pair, positives.images_of_texts)
            + _cross_entropy(image_to_pair, positives.texts_of_images)
        ) / 3


def _cross_entropy(logits: Tensor, positive: Tensor) -> Tensor:
    target = positive / positive.sum(1, keepdim=True)
    return -(target * logits.float().log_softmax(1)).sum(1).mean()


def similarities(image: Tensor, text: Tensor, scale: Tensor, share: float = 1.0) -> Similarities:
    """Compares unit vectors (B, D) of this process with those of all.

    ``share`` is the part of the encoders' gradient that is kept: 1 is the gradient of one process that holds the
    whole batch; 1 / world is that of the released code, whose gathered features carry none.
    """
    if share != 1:
        image, text = (x * share + x.detach() * (1 - share) for x in (image, text))
    return Similarities(scale * image @ dist.gather(text).T, scale * text @ dist.gather(image).T)


def find_positives(image_id: Tensor, text_id: Tensor) -> Positives:
    """Tells what belongs together in a batch whose pairs may share images (B,) and texts (B,)."""
    images, texts = dist.gather(image_id), dist.gather(text_id)
    same_image, same_text = images[:, None] == images, texts[:, None] == texts
    own = slice(dist.rank() * len(image_id), (dist.rank() + 1) * len(image_id))
    # some pair k shows the image and carries the text
    texts_of_images = (same_image[own].float() @ same_text.float()) > 0
    images_of_texts = (same_text[own].float() @ same_image.float()) > 0
    return Positives(texts_of_images, images_of_texts)


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
