"""Record the attention probabilities of a forward pass of any model, which the fused kernel does not keep."""

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
"""The probabilities (B, H, R, N) of each attention module, one entry per run of the module."""


@contextmanager
def record_attention(model: nn.Module) -> Iterator[Recorded]:
    """Yield a mapping that fills with the attention probabilities of all forward passes of ``model`` in the context.

    The fused kernel is replaced by its definition, softmax(Q K^T / sqrt(D) + mask) V, so the model's output depends on
    these tensors and ``torch.autograd.grad`` gives the gradient of attention. Probabilities are listed under the
    innermost module that was running.
    """
    recorded: defaultdict[nn.Module, list[Tensor]] = defaultdict(list)
    running: list[nn.Module] = []
    with ExitStack() as stack:
        for module in model.modules():
            stack.callback(module.register_forward_pre_hook(lambda module, _: running.append(module)).remove)
            stack.callback(module.register_forward_hook(lambda *_: _pop(running)).remove)
        stack.enter_context(_UnfusedAttention(lambda probabilities: recorded[running[-1]].append(probabilities)))
        yield recorded


def _pop(running: list[nn.Module]) -> None:
    running.pop()


class _UnfusedAttention(TorchFunctionMode):
    """Compute attention by its definition, and pass the probabilities to a callback."""

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
    """Return the probabilities (B, H, R, N), and ``value`` unchanged; the parameters are those of torch's kernel.

    Raises DualfuseError for attention dropout, that is for a model in training mode.
    """
    if dropout_p:
        raise DualfuseError("the model is in training mode; call eval() on it before its attention is recorded")
    scores = query @ key.transpose(-2, -1) / math.sqrt(query.shape[-1])
    if attn_mask is not None:
        is_boolean = attn_mask.dtype == torch.bool
        scores = scores.masked_fill(~attn_mask, float("-inf")) if is_boolean else scores + attn_mask
    return scores.softmax(-1), value
