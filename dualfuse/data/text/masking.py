"""Masking for MLM: which tokens are hidden, and what is shown in their place."""

from __future__ import annotations

import numpy as np

from dualfuse.data.text.tokenizer import EncodedText

BERT_UNKNOWN = 100
IGNORE = -100  # the label that cross-entropy ignores


def mask_words(
    text: EncodedText, vocab_size: int, mask_id: int, rng: np.random.Generator, mlm_probability: float = 0.15
) -> tuple[np.ndarray, np.ndarray]:
    """Mask about ``mlm_probability`` of the real tokens, whole words at a time; return (ids, labels), both (T,).

    Shuffled words are taken while they fit into max(1, round(mlm_probability * real tokens)); the first is always
    taken, so that every text with a word has a target. Labels are -100 where nothing is predicted.
    """
    groups = word_positions(text)
    budget = max(1, round(mlm_probability * sum(map(len, groups))))
    positions: list[int] = []
    for number in rng.permutation(len(groups)).tolist():
        if not positions or len(positions) + len(groups[number]) <= budget:
            positions += groups[number]
    return apply_mask(text.ids, positions, vocab_size, mask_id, rng)


def mask_words_official(
    text: EncodedText,
    vocab_size: int,
    mask_id: int,
    rng: np.random.Generator,
    mlm_probability: float = 0.15,
    length: int = 40,
) -> tuple[np.ndarray, np.ndarray]:
    """Mask by the rule of VLMo's official code; return (ids, labels), both (T,), at times without any target.

    The budget is ``mlm_probability`` of the padded ``length``, and [PAD] tokens compete for it; those and [UNK] are
    dropped afterwards (the whole-word collator of transformers 4.8.1). For BERT's tokens only.
    """
    groups = word_positions(text) + [[position] for position in range(len(text.ids), length)]
    budget = max(1, round(mlm_probability * length))
    positions: list[int] = []
    for number in rng.permutation(len(groups)).tolist():
        if len(positions) + len(groups[number]) <= budget:
            positions += groups[number]
    real = [position for position in positions if position < len(text.ids) and text.ids[position] != BERT_UNKNOWN]
    return apply_mask(text.ids, real, vocab_size, mask_id, rng)


def mask_tokens(
    text: EncodedText, vocab_size: int, mask_id: int, rng: np.random.Generator, mlm_probability: float = 0.15
) -> tuple[np.ndarray, np.ndarray]:
    """Mask each token but the special ones with probability ``mlm_probability``; return (ids, labels), both (T,).

    Tokens are drawn independently, so words may be masked in part, and texts without a target are common: the rule of
    Hugging Face's DataCollatorForLanguageModeling, with which BridgeTower and METER were pre-trained.
    """
    is_masked = (text.word_ids >= 0) & (rng.random(len(text.ids)) < mlm_probability)
    return apply_mask(text.ids, np.flatnonzero(is_masked).tolist(), vocab_size, mask_id, rng)


MASKING_RULES = {"whole_word": mask_words, "token": mask_tokens, "official": mask_words_official}
"""Whole words, single tokens (RoBERTa), or the rule of VLMo's official code."""


def word_positions(text: EncodedText) -> list[list[int]]:
    """Return the positions of the tokens of each word; special tokens belong to no word."""
    groups: dict[int, list[int]] = {}
    for position, word in enumerate(text.word_ids.tolist()):
        if word >= 0:
            groups.setdefault(word, []).append(position)
    return list(groups.values())


def apply_mask(
    ids: np.ndarray, positions: list[int], vocab_size: int, mask_id: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Return (ids, labels): each token at ``positions`` becomes the mask (80%), a random id (10%) or stays (10%)."""
    masked, labels = ids.copy(), np.full_like(ids, IGNORE)
    labels[positions] = ids[positions]
    draw = rng.random(len(positions))
    random_ids = rng.integers(vocab_size, size=len(positions))
    masked[positions] = np.where(draw < 0.8, mask_id, np.where(draw < 0.9, random_ids, ids[positions]))
    return masked, labels
