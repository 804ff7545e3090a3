"""Texts with masks: their tokens, and the most probable tokens of each mask."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dualfuse.data.text.padding import pad_arrays, pad_texts
from dualfuse.data.text.tokenizer import TextTransform, load_tokenizer
from dualfuse.errors import DualfuseError
from dualfuse.tasks.prediction import Prediction, ScoredAnswer

MASK = re.compile(r"\s*(?:\[MASK\]|<mask>)", re.IGNORECASE)
"""The mask of either tokenizer; the space before it belongs to the masked word, as in RoBERTa."""


@dataclass(frozen=True, eq=False)
class MaskedQuery:
    """Tokens (T,) of a text, the positions of its masks, and whether the text was truncated."""

    ids: np.ndarray
    positions: np.ndarray
    is_cut: bool


def has_masks(text: str) -> bool:
    """Return whether a text has a [MASK] or <mask>."""
    return MASK.search(text) is not None


def read_masked(text: str, transform: TextTransform) -> MaskedQuery:
    """Tokenize a text in which every [MASK] or <mask> is a mask token; DualfuseError if a mask would be truncated."""
    loaded = load_tokenizer(transform.tokenizer)
    ids: list[int] = []
    for number, part in enumerate(MASK.split(text)):
        ids += ([transform.mask_id] if number else []) + loaded.encode(part).ids
    masks = np.flatnonzero(np.array(ids, dtype=np.int64) == loaded.mask_id)
    longest = transform.length - loaded.num_special
    if len(masks) and masks[-1] >= longest:
        raise DualfuseError(
            f"a mask is token {masks[-1] + 1} of the text, but this model reads {longest}; shorten the text before it"
        )
    return MaskedQuery(loaded.with_ends(ids[:longest]), loaded.num_special - 1 + masks, len(ids) > longest)


def collate_queries(texts: Sequence[MaskedQuery], device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Return ids and mask (B, T) of texts, and the positions (B, R) of masks, 0 where a text has fewer."""
    ids, mask = pad_texts([text.ids for text in texts])
    positions = torch.from_numpy(pad_arrays([text.positions for text in texts], 0))
    return ids.to(device), mask.to(device), positions.to(device)


def fill_masks(texts: Sequence[MaskedQuery], logits: Tensor, transform: TextTransform, top: int) -> list[Prediction]:
    """Return the ``top`` tokens of every mask, from logits (B, R, V); special tokens are excluded."""
    loaded = load_tokenizer(transform.tokenizer)
    logits = logits[..., : loaded.vocab_size].float().cpu()  # published embedding tables have unused rows at the end
    logits[..., loaded.special_ids] = float("-inf")
    best = logits.softmax(-1).topk(min(top, loaded.vocab_size - 4), dim=-1)
    return [
        _filled(text, values[: len(text.positions)], tokens[: len(text.positions)], transform)
        for text, values, tokens in zip(texts, best.values, best.indices, strict=True)
    ]


def _filled(text: MaskedQuery, probabilities: Tensor, tokens: Tensor, transform: TextTransform) -> Prediction:
    decode = load_tokenizer(transform.tokenizer).decode
    words = tuple(
        tuple(
            ScoredAnswer(decode([token], skip_special_tokens=False).strip(), value)
            for value, token in zip(*of_mask, strict=True)
        )
        for of_mask in zip(probabilities.tolist(), tokens.tolist(), strict=True)
    )
    ids = text.ids.copy()
    ids[text.positions] = tokens[:, 0].numpy()
    return Prediction(
        words=words,
        filled=transform.decode(ids[load_tokenizer(transform.tokenizer).num_special - 1 : -1]),
        is_cut=text.is_cut,
    )
