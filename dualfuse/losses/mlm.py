"""Masked language modeling loss over the global batch."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor
from torch.nn import functional as F

from dualfuse import distributed as dist
from dualfuse.losses.grad_cache import grad_cache


def mlm_loss(
    head: Callable[[Tensor], Tensor], states: Tensor, targets: Tensor, chunk: int = 0
) -> tuple[Tensor, Tensor]:
    """Return the mean cross-entropy over the masked tokens of all processes, and the accuracy.

    ``head`` turns states (M, D) into logits (M, V). ``states`` are (B, R, D), ``targets`` (B, R), -100 where a text
    has fewer masked tokens; such positions are not predicted. Logits of ``chunk`` texts are held at a time (0: of all).
    """

    def sums(states: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        is_masked = targets != -100
        logits, labels = head(states[is_masked]), targets[is_masked]
        loss = F.cross_entropy(logits.float(), labels, reduction="sum")
        return loss[None], (logits.argmax(1) == labels).sum()[None]

    number = dist.all_reduce_mean((targets != -100).sum().float()).clamp(min=1)
    losses, correct = grad_cache(sums, chunk, states, targets)
    return losses.sum() / number, correct.sum() / number
