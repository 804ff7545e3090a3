"""Image-text contrast over all processes, and hard negatives drawn from its similarities (VLMo, section 3.3)."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dualfuse import distributed as dist
from dualfuse.losses.grad_cache import grad_cache


@dataclass(frozen=True)
class Positives:
    """What belongs together: the numbers of images and texts of this process's B pairs, and of the N pairs of all.

    A text is right for an image if any pair has both, and so is an image for a text.
    """

    image_id: Tensor
    text_id: Tensor
    images: Tensor
    texts: Tensor

    def take(self, rows: Tensor) -> Positives:
        """Return those of some of this process's pairs (K,)."""
        return replace(self, image_id=self.image_id[rows], text_id=self.text_id[rows])

    @property
    def texts_of_images(self) -> Tensor:
        """Return which of all texts are right for each image: (B, N)."""
        return self._are_pairs(self.image_id[:, None], self.texts)

    @property
    def images_of_texts(self) -> Tensor:
        """Return which of all images are right for each text: (B, N)."""
        return self._are_pairs(self.images, self.text_id[:, None])

    @property
    def avoided(self) -> Tensor:
        """Number of places, in both directions, that would have been wrong negatives."""
        some = [self.take(rows) for rows in torch.arange(len(self.image_id), device=self.images.device).split(ROWS)]
        right = torch.stack([part.texts_of_images.sum() + part.images_of_texts.sum() for part in some])
        return right.sum() - 2 * len(self.image_id)

    def _are_pairs(self, images: Tensor, texts: Tensor) -> Tensor:
        known, asked = _number(self.images, self.texts).sort().values, _number(images, texts)
        place = torch.searchsorted(known, asked).clamp(max=len(known) - 1)
        return known[place] == asked


ROWS = 256
"""Rows of (B, N) that counting holds at a time."""


def _number(images: Tensor, texts: Tensor) -> Tensor:
    """Number pairs; sums wrap around, so that two pairs of 63-bit hashes are alike once in 2^64."""
    return images * 0x5851F42D4C957F2D + texts


@dataclass(frozen=True)
class Similarities:
    """Unit vectors of this process's B pairs and of the N pairs of all, (B, D) and (N, D), and what scales them.

    The (B, N) logits are computed where they are read, so that a few rows of them need little memory.
    """

    image: Tensor
    text: Tensor
    images: Tensor
    texts: Tensor
    scale: Tensor

    def take(self, rows: Tensor) -> Similarities:
        """Return those of some of this process's pairs (K,)."""
        return replace(self, image=self.image[rows], text=self.text[rows])

    @property
    def image_to_text(self) -> Tensor:
        """Logits (B, N) of each image with all texts, temperature included."""
        return self.scale * self.image @ self.texts.T

    @property
    def text_to_image(self) -> Tensor:
        """Logits (B, N) of each text with all images, temperature included."""
        return self.scale * self.text @ self.images.T

    def loss(self, positives: Positives, grad_cache_chunk: int = 0) -> Tensor:
        """Return this process's share of the symmetric contrastive loss; the mean over processes is the global one.

        Where a row has several positives the target is uniform over them. Logits are held for ``grad_cache_chunk`` rows
        (0: for all).
        """

        def losses(rows: Tensor) -> tuple[Tensor, Tensor]:
            some, right = self.take(rows), positives.take(rows)
            of_images = _cross_entropy(some.image_to_text, right.texts_of_images)
            return of_images, _cross_entropy(some.text_to_image, right.images_of_texts)

        of_images, of_texts = grad_cache(
            losses, grad_cache_chunk, torch.arange(len(self.image), device=self.image.device)
        )
        return (of_images.mean() + of_texts.mean()) / 2

    def loss_with_fused(self, text_to_pair: Tensor, image_to_pair: Tensor, positives: Positives) -> Tensor:
        """Return the loss of Hugging Face's BridgeTower: texts find images and pairs, images find pairs.

        ``text_to_pair`` and ``image_to_pair`` (B, N) are logits with the fused vectors of all right pairs.
        """
        of_texts, of_images = positives.images_of_texts, positives.texts_of_images
        return (
            _cross_entropy(self.text_to_image, of_texts).mean()
            + _cross_entropy(text_to_pair, of_texts).mean()
            + _cross_entropy(image_to_pair, of_images).mean()
        ) / 3


def _cross_entropy(logits: Tensor, positive: Tensor) -> Tensor:
    target = positive / positive.sum(1, keepdim=True)
    return -(target * logits.float().log_softmax(1)).sum(1)


def gather_similarities(image: Tensor, text: Tensor, scale: Tensor, share: float = 1.0) -> Similarities:
    """Compare unit vectors (B, D) of this process with those of all.

    ``share`` is the part of the encoders' gradient that is kept: 1 is the gradient of one process that holds the
    whole batch; 1 / world is that of the official code, whose gathered features carry none.
    """
    if share != 1:
        image, text = (x * share + x.detach() * (1 - share) for x in (image, text))
    return Similarities(image, text, dist.all_gather(image), dist.all_gather(text), scale)


def find_positives(image_id: Tensor, text_id: Tensor) -> Positives:
    """Return what belongs together in a batch whose pairs may share images (B,) and texts (B,)."""
    return Positives(image_id, text_id, dist.all_gather(image_id), dist.all_gather(text_id))


def sample_negatives(logits: Tensor, allowed: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Draw one hard negative per row of (B, N): its column (B,), and whether the row had any (B,).

    The probability of a column is its softmax among the allowed ones. Adding Gumbel ``noise`` (B, N) and taking the
    largest draws exactly that, and never fails: no sum of weights can be zero, and no row is too long.
    """
    noisy = (logits.detach().float() + noise).masked_fill(~allowed, float("-inf"))
    return noisy.argmax(1), allowed.any(1)


def gumbel(key: int, rows: Tensor, columns: int) -> Tensor:
    """Return Gumbel noise (K, N) for some ``rows`` (K,) of the batch of all processes.

    It is a function of key, row and column, so that a row is drawn alike by whichever process holds it.
    """
    column = torch.arange(columns, device=rows.device)
    words = _scrambled(_scrambled(rows ^ key)[:, None] ^ _scrambled(column + (1 << 31)))
    uniform = ((words >> 9).float() + 0.5) / (1 << 23)  # neither 0 nor 1: 24 bits are what a float holds
    return -(-uniform.log()).log()


def _scrambled(words: Tensor) -> Tensor:
    """Return 32 bits for each 32 bits, every one depending on all (a hash by Chris Wellons, in its 16-15-15 form)."""
    words = (words ^ (words >> 16)) * 0x21F0AAAD & 0xFFFFFFFF
    words = (words ^ (words >> 15)) * 0x735A2D97 & 0xFFFFFFFF
    return words ^ (words >> 15)


def local_columns(rows: int, device: torch.device) -> Tensor:
    """Return which of all N columns are this process's own: (N,)."""
    column = torch.arange(rows * dist.world_size(), device=device)
    return column // rows == dist.rank()
