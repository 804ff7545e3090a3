"""Attention probabilities of a forward pass, which the fused kernel does not keep, of any model and unchanged."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from dualfuse.errors import DualfuseError

Recorded = Mapping[nn.Module, Sequence[Tensor]]
"""The probabilities (B, H, R, N) of each attention module, one for each time that it ran."""


@contextmanager
def record_attention(model: nn.Module) -> Iterator[Recorded]:
    """Return what fills with the attention probabilities of everything that ``model`` does inside the ``with``.

    The fused kernel is replaced by its definition, softmax(Q K^T / sqrt(D) + mask) V, so the model's answers depend on
    these tensors: ``torch.autograd.grad`` of any of them is the gradient of attention. Each belongs to the innermost
    module that was running.
    """
    found: defaultdict[nn.Module, list[Tensor]] = defaultdict(list)
    running: list[nn.Module] = []
    with ExitStack() as stack:
        for module in model.modules():
            stack.callback(module.register_forward_pre_hook(lambda module, _: running.append(module)).remove)
            stack.callback(module.register_forward_hook(lambda *_: _forget(running)).remove)
        stack.enter_context(_Plain(lambda probabilities: found[running[-1]].append(probabilities)))
        yield found


def _forget(running: list[nn.Module]) -> None:
    running.pop()


class _Plain(TorchFunctionMode):
    """Computes attention by its definition, and hands on the probabilities."""

    def __init__(self, keep: Callable[[Tensor], None]) -> None:
        super().__init__()
        self.keep = keep

    def __torch_function__(self, func, types, args=(), kwargs=None):  # torch's own signature
        if func is not F.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        probabilities, value = attention_weights(*args, **(kwargs or {}))
        self.keep(probabilities)
        return probabilities @ value


def attention_weights(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Return the probabilities (B, H, R, N), and ``value`` as it came; the parameters are those of torch's kernel.

    ``DualfuseError`` for a model in training mode, whose attention is dropped by chance.
    """
    if dropout_p:
        raise DualfuseError("the model is in training mode; call eval() on it before its attention is looked at")
    scores = query @ key.transpose(-2, -1) / math.sqrt(query.shape[-1])
    if attn_mask is not None:
        unseen = attn_mask.dtype == torch.bool
        scores = scores.masked_fill(~attn_mask, float("-inf")) if unseen else scores + attn_mask
    return scores.softmax(-1), value
