"""A codebook of normalized embeddings, updated by moving averages (van den Oord et al. 2017, appendix A.1).

Each code embedding is the moving mean direction of the encoder outputs assigned to it; a code that is hardly ever
assigned is dead, and replaced by an encoder output of the batch. No gradient is needed; all processes hold the same
codebook.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dualfuse import distributed as dist

DECAY = 0.9  # an unused code is dead after about 20 steps; with 0.99 few codes were revived
DEAD = 0.1  # fraction of the uniform share below which a code is dead
CHUNK = 8192  # encoder outputs compared at a time, so that memory does not grow with their number


class Codebook(nn.Module):
    """``embeddings`` (K, D) of length one, and moving averages of assignments: ``share`` (K,) and ``sums`` (K, D)."""

    embeddings: Tensor
    share: Tensor
    sums: Tensor

    def __init__(self, codes: int, width: int) -> None:
        """All codes are initially dead, and replaced by outputs of the first batch."""
        super().__init__()
        self.register_buffer("embeddings", F.normalize(torch.randn(codes, width), dim=1))
        self.register_buffer("share", torch.zeros(codes))
        self.register_buffer("sums", torch.zeros(codes, width))

    def forward(self, x: Tensor) -> Tensor:
        """Return the codes (M,) nearest to normalized ``x`` (M, D); in training, also update the codebook."""
        x = x.detach()
        if self.training:
            self._revive(x)
        codes = torch.cat([(part @ self.embeddings.T).argmax(1) for part in x.split(CHUNK)])
        if self.training:
            self._update(x, codes)
        return codes

    @torch.no_grad()
    def _revive(self, x: Tensor) -> None:
        """Replace dead codes by rows of ``x`` (M, D), drawn in every process."""
        drawn = torch.randperm(len(x), device=x.device)[: len(self.embeddings)]
        candidates = dist.all_gather(x[drawn])
        dead = self.share < DEAD / len(self.share)
        replacement = candidates[(dead.cumsum(0) - 1) % len(candidates)]
        self.embeddings.copy_(torch.where(dead[:, None], replacement, self.embeddings))
        self.sums.copy_(torch.where(dead[:, None], replacement / len(self.share), self.sums))
        self.share.masked_fill_(dead, 1 / len(self.share))

    @torch.no_grad()
    def _update(self, x: Tensor, codes: Tensor) -> None:
        """Move each embedding towards the mean of the ``x`` (M, D) of all processes assigned to its code."""
        counts = dist.all_reduce_mean(count(codes, len(self.share)))
        sums = dist.all_reduce_mean(torch.zeros_like(self.sums).index_add_(0, codes, x))
        self.share.lerp_(counts / counts.sum(), 1 - DECAY)
        self.sums.lerp_(sums / counts.sum(), 1 - DECAY)
        self.embeddings.copy_(F.normalize(self.sums, dim=1))


def count(codes: Tensor, number: int) -> Tensor:
    """Return how often (K,) each of ``number`` codes occurs in ``codes``."""
    return torch.bincount(codes.flatten(), minlength=number).float()


def perplexity(counts: Tensor) -> Tensor:
    """Return the perplexity of the code distribution given by counts (K,): the effective number of codes in use."""
    share = counts / counts.sum()
    return torch.special.entr(share).sum().exp()
