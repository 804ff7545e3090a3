"""Image-text contrastive loss over the global batch, in softmax (CLIP) and sigmoid (SigLIP, arXiv 2303.15343) form."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from dualfuse import distributed as dist
from dualfuse.losses.grad_cache import grad_cache

COUNT_CHUNK = 256  # examples of a (B, N) matrix that are counted at a time


@dataclass(frozen=True)
class Positives:
    """Ids (B,) of the images and texts of this process's B pairs, and ids (N,) of those of all N pairs.

    A text and an image are a positive pair if any of the N pairs has both.
    """

    image_id: Tensor
    text_id: Tensor
    all_images: Tensor
    all_texts: Tensor

    def take(self, index: Tensor) -> Positives:
        """Return the positives of the local pairs ``index`` (K,)."""
        return replace(self, image_id=self.image_id[index], text_id=self.text_id[index])

    @property
    def texts_of_images(self) -> Tensor:
        """Whether each of all texts is positive for each local image: (B, N)."""
        return self._are_pairs(self.image_id[:, None], self.all_texts)

    @property
    def images_of_texts(self) -> Tensor:
        """Whether each of all images is positive for each local text: (B, N)."""
        return self._are_pairs(self.all_images, self.text_id[:, None])

    @property
    def avoided(self) -> Tensor:
        """Number of off-diagonal positives in both directions: false negatives of a loss without ids."""
        chunks = torch.arange(len(self.image_id), device=self.image_id.device).split(COUNT_CHUNK)
        parts = [self.take(index) for index in chunks]
        counts = torch.stack([part.texts_of_images.sum() + part.images_of_texts.sum() for part in parts])
        return counts.sum() - 2 * len(self.image_id)

    def _are_pairs(self, images: Tensor, texts: Tensor) -> Tensor:
        pairs, queries = _pair_id(self.all_images, self.all_texts).sort().values, _pair_id(images, texts)
        nearest = torch.searchsorted(pairs, queries).clamp(max=len(pairs) - 1)
        return pairs[nearest] == queries


def _pair_id(images: Tensor, texts: Tensor) -> Tensor:
    """Return ids of pairs. Sums wrap around: two pairs of 63-bit ids collide once in 2^64."""
    return images * 0x5851F42D4C957F2D + texts


def find_positives(image_id: Tensor, text_id: Tensor) -> Positives:
    """Gather the ids (B,) of all processes; equal ids mark pairs that share an image or a text."""
    return Positives(image_id, text_id, dist.all_gather(image_id), dist.all_gather(text_id))


@dataclass(frozen=True)
class Similarities:
    """Normalized features of this process's B pairs (B, D) and of all N pairs (N, D), and the logit scale and bias.

    The (B, N) logits are computed on access, so that chunks of them need little memory.
    """

    image: Tensor
    text: Tensor
    all_images: Tensor
    all_texts: Tensor
    scale: Tensor
    bias: Tensor | None = None
    """Added to the logits of the sigmoid form."""

    def take(self, index: Tensor) -> Similarities:
        """Return the similarities of the local pairs ``index`` (K,)."""
        return replace(self, image=self.image[index], text=self.text[index])

    @property
    def image_to_text(self) -> Tensor:
        """Scaled similarities (B, N) of each local image with all texts."""
        return self.scale * self.image @ self.all_texts.T

    @property
    def text_to_image(self) -> Tensor:
        """Scaled similarities (B, N) of each local text with all images."""
        return self.scale * self.text @ self.all_images.T


def gather_similarities(
    image: Tensor, text: Tensor, scale: Tensor, bias: Tensor | None = None, encoder_grad: float = 1.0
) -> Similarities:
    """Compare normalized features (B, D) of this process with those of all processes.

    ``encoder_grad`` multiplies the gradient of the features: 1 is that of one process holding the global batch;
    1 / world size is that of the official code, whose gathered features carry no gradient.
    """
    if encoder_grad != 1:
        image, text = (x * encoder_grad + x.detach() * (1 - encoder_grad) for x in (image, text))
    return Similarities(image, text, dist.all_gather(image), dist.all_gather(text), scale, bias)


def itc_loss(similarities: Similarities, positives: Positives, chunk: int = 0) -> Tensor:
    """Return the contrastive loss of this process; the mean over processes is the loss of the global batch.

    Without a bias: symmetric softmax cross-entropy, whose target is uniform over the positives of an image or text.
    With a bias: binary cross-entropy of every image-text pair, summed over texts (SigLIP, equation 1). Logits of
    ``chunk`` examples are held at a time (0: of all).
    """
    losses = _softmax_losses if similarities.bias is None else _sigmoid_losses
    index = torch.arange(len(similarities.image), device=similarities.image.device)
    parts = grad_cache(lambda some: losses(similarities.take(some), positives.take(some)), chunk, index)
    return torch.stack([part.mean() for part in parts]).mean()


def itc_loss_with_fused(
    text_to_image: Tensor, text_to_pair: Tensor, image_to_pair: Tensor, positives: Positives
) -> Tensor:
    """Return the loss of Hugging Face's BridgeTower: texts retrieve images and fused pairs, images retrieve pairs.

    All logits are (B, N); those to pairs compare with the fused features of all positive pairs.
    """
    images_of_texts, texts_of_images = positives.images_of_texts, positives.texts_of_images
    return (
        soft_cross_entropy(text_to_image, images_of_texts).mean()
        + soft_cross_entropy(text_to_pair, images_of_texts).mean()
        + soft_cross_entropy(image_to_pair, texts_of_images).mean()
    ) / 3


def _softmax_losses(similarities: Similarities, positives: Positives) -> tuple[Tensor, Tensor]:
    image_losses = soft_cross_entropy(similarities.image_to_text, positives.texts_of_images)
    return image_losses, soft_cross_entropy(similarities.text_to_image, positives.images_of_texts)


def _sigmoid_losses(similarities: Similarities, positives: Positives) -> tuple[Tensor]:
    assert similarities.bias is not None  # by itc_loss
    logits = (similarities.image_to_text + similarities.bias).float()
    labels = positives.texts_of_images.float()
    return (F.binary_cross_entropy_with_logits(logits, labels, reduction="none").sum(1),)


def soft_cross_entropy(logits: Tensor, positive: Tensor) -> Tensor:
    """Return the cross-entropy (B,) of logits (B, N), whose target is uniform over the positives (B, N)."""
    target = positive / positive.sum(1, keepdim=True)
    return -(target * logits.float().log_softmax(1)).sum(1)
