"""Texts with masks: as word pieces, and with the words that a model puts there."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dualfuse.data.padding import pad_texts
from dualfuse.data.text import Text, load, pad
from dualfuse.use.prediction import Guess, Prediction

MASK = re.compile(r"\s*(?:\[MASK\]|<mask>)", re.IGNORECASE)
"""Either tokenizer's name; the space before it belongs to the word that is to be found, as in RoBERTa."""


@dataclass(frozen=True, eq=False)
class Blanks:
    """Word pieces (T,) of a text, the positions of its masks, and whether the text was cut."""

    ids: np.ndarray
    places: np.ndarray
    is_cut: bool


def read_blanks(text: str, by: Text) -> Blanks:
    """Gives a text in which every [MASK] or <mask> is one mask token; ``ValueError`` if a mask would be cut off."""
    loaded = load(by.tokenizer)
    ids: list[int] = []
    for number, part in enumerate(MASK.split(text)):
        ids += [loaded.mask] * (number > 0) + loaded.tokenizer.encode(part, add_special_tokens=False).ids
    masks = np.flatnonzero(np.array(ids, dtype=np.int64) == loaded.mask)
    kept = by.length - 2
    if len(masks) and masks[-1] >= kept:
        raise ValueError(
            f"a mask is word piece {masks[-1] + 1} of the text, and this model reads {kept}; shorten the text before it"
        )
    return Blanks(np.array((loaded.start, *ids[:kept], loaded.end), dtype=np.int64), 1 + masks, len(ids) > kept)


@dataclass(frozen=True, eq=False)
class BlankBatch:
    """B texts: ids, mask (B, T), and the positions (B, R) of masks, 0 where a text has fewer."""

    ids: Tensor
    mask: Tensor
    places: Tensor

    @staticmethod
    def of(texts: Sequence[Blanks], device: torch.device) -> BlankBatch:
        """Pads texts to the longest."""
        ids, mask = pad_texts([text.ids for text in texts])
        places = torch.from_numpy(pad([text.places for text in texts], 0))
        return BlankBatch(ids.to(device), mask.to(device), places.to(device))


def fill(texts: Sequence[Blanks], logits: Tensor, by: Text, top: int) -> list[Prediction]:
    """Gives the likeliest word pieces of every mask, from logits (B, R, V); special tokens are none."""
    loaded = load(by.tokenizer)
    logits = logits[..., : loaded.vocabulary].float().cpu()  # published tables have rows that stand for no word
    logits[..., [loaded.start, loaded.end, loaded.pad, loaded.mask]] = float("-inf")
    best = logits.softmax(-1).topk(min(top, loaded.vocabulary - 4), dim=-1)
    return [
        _filled(text, values[: len(text.places)], numbers[: len(text.places)], by)
        for text, values, numbers in zip(texts, best.values, best.indices, strict=True)
    ]


def _filled(text: Blanks, probabilities: Tensor, numbers: Tensor, by: Text) -> Prediction:
    decode = load(by.tokenizer).tokenizer.decode
    words = tuple(
        tuple(
            Guess(decode([number], skip_special_tokens=False).strip(), value)
            for value, number in zip(*guesses, strict=True)
        )
        for guesses in zip(probabilities.tolist(), numbers.tolist(), strict=True)
    )
    ids = text.ids.copy()
    ids[text.places] = numbers[:, 0].numpy()
    return Prediction(words=words, filled=by.decode(ids[1:-1]), is_cut=text.is_cut)
