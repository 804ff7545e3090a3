"""Texts with masks: as tokens, and with the words that a model puts there."""

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
from dualfuse.inference.prediction import Prediction, ScoredAnswer

MASK = re.compile(r"\s*(?:\[MASK\]|<mask>)", re.IGNORECASE)
"""Either tokenizer's name; the space before it belongs to the word that is to be found, as in RoBERTa."""


@dataclass(frozen=True, eq=False)
class MaskedQuery:
    """Tokens (T,) of a text, the positions of its masks, and whether the text was cut."""

    ids: np.ndarray
    places: np.ndarray
    is_cut: bool


def read_masked(text: str, by: TextTransform) -> MaskedQuery:
    """Return a text in which every [MASK] or <mask> is one mask token; ``DualfuseError`` if a mask would be cut off."""
    loaded = load_tokenizer(by.tokenizer)
    ids: list[int] = []
    for number, part in enumerate(MASK.split(text)):
        ids += [loaded.mask_id] * (number > 0) + loaded.tokenizer.encode(part, add_special_tokens=False).ids
    masks = np.flatnonzero(np.array(ids, dtype=np.int64) == loaded.mask_id)
    kept = by.length - 2
    if len(masks) and masks[-1] >= kept:
        raise DualfuseError(
            f"a mask is token {masks[-1] + 1} of the text, and this model reads {kept}; shorten the text before it"
        )
    return MaskedQuery(np.array((loaded.start, *ids[:kept], loaded.end), dtype=np.int64), 1 + masks, len(ids) > kept)


@dataclass(frozen=True, eq=False)
class MaskedQueryBatch:
    """B texts: ids, mask (B, T), and the positions (B, R) of masks, 0 where a text has fewer."""

    ids: Tensor
    mask: Tensor
    places: Tensor

    @staticmethod
    def of(texts: Sequence[MaskedQuery], device: torch.device) -> MaskedQueryBatch:
        """Pad texts to the longest."""
        ids, mask = pad_texts([text.ids for text in texts])
        places = torch.from_numpy(pad_arrays([text.places for text in texts], 0))
        return MaskedQueryBatch(ids.to(device), mask.to(device), places.to(device))


def fill_masks(texts: Sequence[MaskedQuery], logits: Tensor, by: TextTransform, top: int) -> list[Prediction]:
    """Return the likeliest tokens of every mask, from logits (B, R, V); special tokens are none."""
    loaded = load_tokenizer(by.tokenizer)
    logits = logits[..., : loaded.vocab_size].float().cpu()  # published tables have rows that stand for no word
    logits[..., [loaded.start, loaded.end, loaded.pad_id, loaded.mask_id]] = float("-inf")
    best = logits.softmax(-1).topk(min(top, loaded.vocab_size - 4), dim=-1)
    return [
        _filled(text, values[: len(text.places)], numbers[: len(text.places)], by)
        for text, values, numbers in zip(texts, best.values, best.indices, strict=True)
    ]


def _filled(text: MaskedQuery, probabilities: Tensor, numbers: Tensor, by: TextTransform) -> Prediction:
    decode = load_tokenizer(by.tokenizer).tokenizer.decode
    words = tuple(
        tuple(
            ScoredAnswer(decode([number], skip_special_tokens=False).strip(), value)
            for value, number in zip(*guesses, strict=True)
        )
        for guesses in zip(probabilities.tolist(), numbers.tolist(), strict=True)
    )
    ids = text.ids.copy()
    ids[text.places] = numbers[:, 0].numpy()
    return Prediction(words=words, filled=by.decode(ids[1:-1]), is_cut=text.is_cut)
