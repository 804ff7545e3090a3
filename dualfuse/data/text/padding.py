"""Texts of several lengths as one batch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from dualfuse.data.text.tokenizer import pad_arrays


def pad_texts(texts: Sequence[np.ndarray]) -> tuple[Tensor, Tensor]:
    """Return tokens, each (T,), as ids (B, longest T), and where there is one: (B, longest T)."""
    lengths = torch.tensor([len(text) for text in texts])
    ids = torch.from_numpy(pad_arrays(texts, 0))
    return ids, torch.arange(ids.shape[1]) < lengths[:, None]
