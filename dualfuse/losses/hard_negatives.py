"""Hard negatives for image-text matching, drawn by similarity from the global batch (VLMo, section 3.3)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from dualfuse import distributed as dist
from dualfuse.losses.grad_cache import grad_cache
from dualfuse.losses.itc import Positives, Similarities

NegativeSource = Literal["global", "local", "source"]


def negative_groups(negatives: NegativeSource, source: Tensor) -> tuple[Tensor, Tensor]:
    """Return the groups of the local pairs (B,) and of all pairs (N,); negatives are drawn within a group.

    ``"global"``: a single group; ``"local"``: one per process; ``"source"``: one per training set ``source`` (B,).
    """
    local = source if negatives == "source" else torch.full_like(source, dist.rank() * (negatives == "local"))
    return local, dist.all_gather(local)


def split_pairs(pairs: Tensor, negatives_per_pair: Literal[0, 1, 2]) -> tuple[Tensor, Tensor, Tensor]:
    """Return the positive pairs, the texts that get a negative image, and the images that get a negative text.

    With 2 these are all ``pairs`` (B,); with 1 all, every other text, and the other images; with 0 every other pair,
    and the other texts. The split by parity does not depend on the number of processes.
    """
    even, odd = pairs[::2], pairs[1::2]
    return {2: (pairs, pairs, pairs), 1: (pairs, even, odd), 0: (odd, even, pairs[:0])}[negatives_per_pair]


@torch.no_grad()
def sample_hard_negatives(
    similarities: Similarities,
    positives: Positives,
    groups: tuple[Tensor, Tensor],
    texts: Tensor,
    images: Tensor,
    *,
    hardness: float,
    chunk: int = 0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Draw an image for each of some local ``texts`` (K,), and a text for each of some local ``images`` (L,).

    Returns global numbers (K,) and (L,), and which draws are negatives (K + L,): a text or image without a candidate in
    its group has none. The draw is softmax(``hardness`` * logits), and the same whichever process holds a text or
    image. (B, N) matrices are computed for ``chunk`` examples at a time (0: all).
    """
    local, everyone = groups
    first = dist.rank() * len(local)

    def sample(examples: Tensor, texts_of_images: bool) -> tuple[Tensor, ...]:
        key = dist.draw_shared()

        def sample_chunk(index: Tensor) -> tuple[Tensor, Tensor]:
            some, positive = similarities.take(index), positives.take(index)
            logits = some.image_to_text if texts_of_images else some.text_to_image
            excluded = positive.texts_of_images if texts_of_images else positive.images_of_texts
            noise = gumbel(key, index + first, len(everyone))
            return sample_negatives(hardness * logits, (local[index, None] == everyone) & ~excluded, noise)

        return grad_cache(sample_chunk, chunk, examples)

    negative_images, has_image = sample(texts, texts_of_images=False)
    negative_texts, has_text = sample(images, texts_of_images=True)
    return negative_images, negative_texts, torch.cat([has_image, has_text])


def sample_negatives(logits: Tensor, allowed: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Draw one column (B,) per row of ``logits`` (B, N), and return whether the row had any allowed column (B,).

    With Gumbel ``noise`` (B, N) the probability of a column is its softmax among the ``allowed`` (B, N) ones. Unlike
    drawing from normalized weights this never fails when all weights underflow.
    """
    noisy = (logits.detach().float() + noise).masked_fill(~allowed, float("-inf"))
    return noisy.argmax(1), allowed.any(1)


def gumbel(key: int, rows: Tensor, columns: int) -> Tensor:
    """Return Gumbel noise (K, N) for ``rows`` (K,) of the global batch.

    The noise is a function of key, row and column: every process draws the same noise for a row.
    """
    column = torch.arange(columns, device=rows.device)
    bits = _hash(_hash(rows ^ key)[:, None] ^ _hash(column + (1 << 31)))
    uniform = ((bits >> 9).float() + 0.5) / (1 << 23)  # 24 bits, as many as a float holds: neither 0 nor 1
    return -(-uniform.log()).log()


def _hash(bits: Tensor) -> Tensor:
    """Return a 32-bit hash of 32-bit integers (by Chris Wellons, in its 16-15-15 form)."""
    bits = (bits ^ (bits >> 16)) * 0x21F0AAAD & 0xFFFFFFFF
    bits = (bits ^ (bits >> 15)) * 0x735A2D97 & 0xFFFFFFFF
    return bits ^ (bits >> 15)
