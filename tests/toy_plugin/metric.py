"""The share of images whose own text is the most similar one."""

from __future__ import annotations

import torch
from torch import Tensor


def own_text_first(similarities: Tensor) -> float:
    own = torch.arange(len(similarities), device=similarities.device)
    return (similarities.argmax(1) == own).float().mean().item()
