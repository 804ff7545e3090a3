"""Masking rules: their statistics, and equality with transformers' collator."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from dualfuse.data.text.masking import mask_tokens, mask_words, mask_words_official
from dualfuse.data.text.tokenizer import EncodedText, TextTransform

CLS, SEP, UNK, MASK, VOCABULARY = 101, 102, 100, 103, 30_522


def sentence(rng: np.random.Generator, length: int, continued: float = 0.0) -> EncodedText:
    """Return ``length`` real tokens, of which the share ``continued`` belongs to the word before."""
    starts = np.concatenate(([1], rng.random(length - 1) >= continued))
    numbers = (starts.cumsum() - 1).astype(np.int64)
    ids = np.array([CLS, *(2000 + np.arange(length)), SEP], dtype=np.int64)
    return EncodedText(ids, np.array([-1, *numbers, -1], dtype=np.int64), truncated=False)


def count_official(length: int, continued: float, times: int = 6000) -> tuple[float, float]:
    """Return the mean number of masked tokens, and the share of sentences without any."""
    rng = np.random.default_rng(length)
    counts = []
    for _ in range(times):
        _, labels = mask_words_official(sentence(rng, length, continued), VOCABULARY, MASK, rng)
        counts.append((labels != -100).sum())
    return float(np.mean(counts)), float(np.mean(np.array(counts) == 0))


@pytest.mark.parametrize("length", [8, 14, 20])
def test_official_rule_draws_six_of_38_positions_including_padding(length: int) -> None:
    average, none = count_official(length, continued=0)
    assert average == pytest.approx(6 * length / 38, abs=0.06)
    assert none == pytest.approx(math.comb(38 - length, 6) / math.comb(38, 6), abs=0.02)


@pytest.mark.parametrize(("length", "average", "none"), [(8, 1.16, 0.30), (14, 2.1, 0.09), (20, 3.0, 0.02)])
def test_official_rule_equals_measurements_of_its_reference(length: int, average: float, none: float) -> None:
    """Numbers measured with transformers 4.8.1; a fifth of the tokens continued a word."""
    mean, none_share = count_official(length, continued=0.2)
    assert mean == pytest.approx(average, abs=0.12)
    assert none_share == pytest.approx(none, abs=0.02)


def test_official_rule_drops_unknown_tokens_and_keeps_words_whole() -> None:
    rng = np.random.default_rng(0)
    ids = np.array([CLS, UNK, 2001, 2002, UNK, 2003, SEP])
    words = EncodedText(ids, np.array([-1, 0, 1, 1, 2, 3, -1]), truncated=False)
    counts_by_position = np.zeros(7, dtype=int)
    for _ in range(400):
        _, labels = mask_words_official(words, VOCABULARY, MASK, rng, length=10)
        drawn = labels != -100
        counts_by_position += drawn
        assert drawn[2] == drawn[3]
    assert counts_by_position[[0, 1, 4, 6]].sum() == 0 and (counts_by_position[[2, 5]] > 0).all()


@pytest.mark.parametrize(("length", "budget"), [(1, 1), (3, 1), (8, 1), (14, 2), (20, 3), (38, 6)])
def test_whole_word_rule_fills_its_budget(length: int, budget: int) -> None:
    rng = np.random.default_rng(0)
    counts_by_position = np.zeros(length + 2)
    for _ in range(300):
        _, labels = mask_words(sentence(rng, length), VOCABULARY, MASK, rng)
        assert (labels != -100).sum() == budget
        counts_by_position += labels != -100
    assert counts_by_position[0] == counts_by_position[-1] == 0 and (counts_by_position[1:-1] > 0).all()


def test_whole_word_rule_masks_15_percent_of_tokens() -> None:
    rng = np.random.default_rng(0)
    masked = real = 0
    for _ in range(1500):
        words = sentence(rng, int(rng.integers(12, 38)), continued=0.3)
        _, labels = mask_words(words, VOCABULARY, MASK, rng)
        drawn = labels != -100
        touched = np.isin(words.word_ids, words.word_ids[drawn])
        np.testing.assert_array_equal(drawn, touched)
        assert drawn.any() and not drawn[0] and not drawn[-1]
        masked, real = masked + drawn.sum(), real + len(drawn) - 2
    assert masked / real == pytest.approx(0.15, abs=0.01)


def test_a_first_word_longer_than_the_budget_is_masked() -> None:
    words = EncodedText(np.array([CLS, 5, 6, 7, 8, SEP]), np.array([-1, 0, 0, 0, 0, -1]), truncated=False)
    _, labels = mask_words(words, VOCABULARY, MASK, np.random.default_rng(0))
    assert labels.tolist() == [-100, 5, 6, 7, 8, -100]


@pytest.mark.parametrize(("length", "share"), [(4, 0.15), (12, 0.15), (6, 0.4)])
def test_token_rule_draws_tokens_independently(length: int, share: float) -> None:
    """Counts are binomial, all positions are equally likely, and tokens of a word are independent."""
    rng = np.random.default_rng(length)
    words = sentence(rng, length, continued=0.5)
    drawn = np.array([mask_tokens(words, VOCABULARY, MASK, rng, share)[1] != -100 for _ in range(6000)])
    assert not drawn[:, [0, -1]].any()
    counts = np.bincount(drawn.sum(1), minlength=length + 1) / len(drawn)
    binomial = [math.comb(length, k) * share**k * (1 - share) ** (length - k) for k in range(length + 1)]
    np.testing.assert_allclose(counts, binomial, atol=0.025)
    real = drawn[:, 1:-1]
    np.testing.assert_allclose(real.mean(0), share, atol=0.025)
    together = (real.T.astype(float) @ real) / len(real)
    np.testing.assert_allclose(together[~np.eye(length, dtype=bool)], share**2, atol=0.025)


def test_token_rule_equals_transformers_collator(hub_files: Path) -> None:
    from transformers import DataCollatorForLanguageModeling, RobertaTokenizerFast

    tokenizer = RobertaTokenizerFast.from_pretrained(str(hub_files))
    collate = DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.15, seed=0)
    row = tokenizer("the dog and the cat don't it's a café")
    ids = np.array(row["input_ids"])
    words = EncodedText(ids, np.array([-1 if number is None else number for number in row.word_ids()]), truncated=False)
    batch = collate([{"input_ids": row["input_ids"]}] * 5000)
    rng, vocabulary = np.random.default_rng(0), len(tokenizer)
    ours = [mask_tokens(words, vocabulary, tokenizer.mask_token_id, rng) for _ in range(5000)]
    shares = []
    for masked, labels in (np.moveaxis(ours, 1, 0), (batch["input_ids"].numpy(), batch["labels"].numpy())):
        is_drawn = labels != -100
        np.testing.assert_array_equal(labels[is_drawn], np.broadcast_to(ids, labels.shape)[is_drawn])
        is_mask = masked == tokenizer.mask_token_id
        is_other = (masked != ids) & ~is_mask
        shares.append([part.mean(0) for part in (is_drawn, is_mask, is_other)] + [(~is_drawn).all(1).mean()])
    for ours_share, theirs_share in zip(*shares, strict=True):
        np.testing.assert_allclose(ours_share, theirs_share, atol=0.03)


def test_texts_without_words_are_unchanged() -> None:
    empty = TextTransform().encode("")
    for rule in (mask_words, mask_words_official, mask_tokens):
        ids, labels = rule(empty, VOCABULARY, MASK, np.random.default_rng(0))
        assert ids.tolist() == [CLS, SEP] and labels.tolist() == [-100, -100]


@pytest.mark.parametrize("rule", [mask_words, mask_words_official, mask_tokens])
def test_drawn_tokens_are_masked_replaced_or_kept_8_1_1(rule: Callable) -> None:
    rng = np.random.default_rng(0)
    outcomes = {"masked": 0, "replaced": 0, "kept": 0}
    replacements = []
    for _ in range(3000):
        words = sentence(rng, 20)
        before = words.ids.copy()
        ids, labels = rule(words, VOCABULARY, MASK, rng)
        np.testing.assert_array_equal(words.ids, before)
        drawn = labels != -100
        np.testing.assert_array_equal(ids[~drawn], before[~drawn])
        np.testing.assert_array_equal(labels[drawn], before[drawn])
        for new, old in zip(ids[drawn].tolist(), before[drawn].tolist(), strict=True):
            outcome = "masked" if new == MASK else "kept" if new == old else "replaced"
            outcomes[outcome] += 1
            if outcome == "replaced":
                replacements.append(new)
    total = sum(outcomes.values())
    assert outcomes["masked"] / total == pytest.approx(0.8, abs=0.02)
    assert outcomes["replaced"] / total == pytest.approx(0.1, abs=0.015)
    assert min(replacements) < 1500 and max(replacements) > VOCABULARY - 1500
    assert np.mean(replacements) == pytest.approx(VOCABULARY / 2, rel=0.06)


def test_masking_depends_on_the_generator_only() -> None:
    words = sentence(np.random.default_rng(0), 20, continued=0.2)
    for rule in (mask_words, mask_words_official, mask_tokens):
        first = rule(words, VOCABULARY, MASK, np.random.default_rng(7))
        np.random.seed(0)
        again = rule(words, VOCABULARY, MASK, np.random.default_rng(7))
        np.testing.assert_array_equal(first, again)
