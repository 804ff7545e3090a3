"""Low-rank adaptation of linear layers (LoRA, arXiv 2106.09685)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dualfuse.errors import DualfuseError
from dualfuse.io import listing


class LoRALinear(nn.Linear):
    """W x + b + (alpha / rank) B A x with frozen W and b; B starts at zero, so that nothing changes at first."""

    def __init__(self, linear: nn.Linear, rank: int, alpha: float) -> None:
        """Take over the parameters of ``linear`` under their names; A is (rank, in), B is (out, rank)."""
        super().__init__(linear.in_features, linear.out_features, bias=linear.bias is not None, device="meta")
        self.weight, self.bias = linear.weight, linear.bias
        self.scale = alpha / rank
        self.lora_a = nn.Parameter(linear.weight.new_empty(rank, self.in_features))
        self.lora_b = nn.Parameter(linear.weight.new_zeros(self.out_features, rank))
        nn.init.kaiming_uniform_(self.lora_a, a=math.sqrt(5))
        self.requires_grad_(False)
        self.lora_a.requires_grad_(True)
        self.lora_b.requires_grad_(True)

    def forward(self, input: Tensor) -> Tensor:
        """Return (..., out) for inputs (..., in)."""
        return super().forward(input) + self.scale * F.linear(F.linear(input, self.lora_a), self.lora_b)


def add_lora(blocks: Sequence[nn.Module], rank: int, alpha: float, targets: Sequence[str] = ()) -> int:
    """Replace the linear layers of ``blocks`` whose names match one of ``targets`` (empty: all); return their number.

    Raises DualfuseError for a pattern that matches no linear layer.
    """
    linears = [(block, name) for block in blocks for name, part in block.named_modules() if type(part) is nn.Linear]
    names = sorted({name for _, name in linears})
    for pattern in targets or ("*",):
        if not any(fnmatchcase(name, pattern) for name in names):
            raise DualfuseError(f"LoRA target {pattern!r} matches no linear layer; the layers are {listing(names)}")
    chosen = [item for item in linears if not targets or any(fnmatchcase(item[1], pattern) for pattern in targets)]
    for block, name in chosen:
        parent, _, last = name.rpartition(".")
        linear = block.get_submodule(name)
        assert isinstance(linear, nn.Linear)
        setattr(block.get_submodule(parent), last, LoRALinear(linear, rank, alpha))
    return len(chosen)


@torch.no_grad()
def merge_lora(module: nn.Module, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the ``weights`` of ``module`` without A and B, whose product is added to the weights that they adapt."""
    merged = dict(weights)
    for name, part in module.named_modules():
        if isinstance(part, LoRALinear):
            a, b = merged.pop(f"{name}.lora_a"), merged.pop(f"{name}.lora_b")
            merged[f"{name}.weight"] = merged[f"{name}.weight"] + part.scale * (b @ a)
    return merged
