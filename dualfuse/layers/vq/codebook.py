"""A codebook of unit vectors that follows what it has to stand for (van den Oord et al. 2017, appendix A.1).

Each vector is the mean direction of what was nearest to it lately; one that hardly anything is nearest to is dead and
becomes a vector of the batch. No gradient is needed, and all processes keep the same book.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dualfuse import distributed as dist

DECAY = 0.9  # an unused code is dead after some twenty steps; with 0.99 few codes came alive again
DEAD = 0.1  # of the share that a code would have if all were used alike
ROWS = 8192  # compared at a time, so that memory does not grow with rows x codes


class Codebook(nn.Module):
    """``vectors`` (K, D) of length one, the ``share`` (K,) of what was nearest to each, and its ``sums`` (K, D)."""

    embeddings: Tensor
    share: Tensor
    sums: Tensor

    def __init__(self, codes: int, width: int) -> None:
        """All codes begin dead: those of the first batch take their places."""
        super().__init__()
        self.register_buffer("embeddings", F.normalize(torch.randn(codes, width), dim=1))
        self.register_buffer("share", torch.zeros(codes))
        self.register_buffer("sums", torch.zeros(codes, width))

    def forward(self, x: Tensor) -> Tensor:
        """Return the numbers (M,) of the vectors nearest to unit vectors ``x`` (M, D); while training it also learns."""
        seen = x.detach()
        if self.training:
            self._revive(seen)
        codes = torch.cat([(part @ self.embeddings.T).argmax(1) for part in seen.split(ROWS)])
        if self.training:
            self._follow(seen, codes)
        return codes

    @torch.no_grad()
    def _revive(self, x: Tensor) -> None:
        """Put rows of ``x`` (M, D), drawn in every process, into the places of dead codes."""
        drawn = torch.randperm(len(x), device=x.device)[: len(self.embeddings)]
        candidates = dist.all_gather(x[drawn])
        dead = self.share < DEAD / len(self.share)
        instead = candidates[(dead.cumsum(0) - 1) % len(candidates)]
        self.embeddings.copy_(torch.where(dead[:, None], instead, self.embeddings))
        self.sums.copy_(torch.where(dead[:, None], instead / len(self.share), self.sums))
        self.share.masked_fill_(dead, 1 / len(self.share))

    @torch.no_grad()
    def _follow(self, x: Tensor, codes: Tensor) -> None:
        """Move each vector towards the mean of the rows of ``x`` (M, D), of all processes, that got its number."""
        counts = dist.all_reduce_mean(count(codes, len(self.share)))
        sums = dist.all_reduce_mean(torch.zeros_like(self.sums).index_add_(0, codes, x))
        self.share.lerp_(counts / counts.sum(), 1 - DECAY)
        self.sums.lerp_(sums / counts.sum(), 1 - DECAY)
        self.embeddings.copy_(F.normalize(self.sums, dim=1))


def count(codes: Tensor, number: int) -> Tensor:
    """Return how often (K,) each of ``number`` codes occurs in ``codes``."""
    return torch.bincount(codes.flatten(), minlength=number).float()


def perplexity(counts: Tensor) -> Tensor:
    """Return the number of codes that would be used if those in use were used alike, for how often (K,) each was."""
    share = counts / counts.sum()
    return torch.special.entr(share).sum().exp()
