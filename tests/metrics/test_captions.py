"""BLEU, ROUGE-L and CIDEr-D: numbers of pycocoevalcap 1.2, worked examples, and words as Stanford cuts them.

The constants were made by giving ``CAPTIONS`` and ``REFERENCES``, whose words need no cutting, to Bleu(4), Rouge() and
Cider() of pycocoevalcap 1.2; WORDS by its PTBTokenizer (Stanford CoreNLP 3.4.1 on Java).
"""

from __future__ import annotations

import math

import pytest

from dualfuse.metrics.captions import caption_metrics, caption_words

CAPTIONS = (
    "cat sleeps dog dog red tree a blue sleeps",
    "dog a small",
    "dog sleeps sleeps green dog",
    "big runs fish big cat runs",
    "big dog cat",
    "runs red small",
    "green the",
    "small dog sleeps dog big the big",
    "a sleeps cat dog cat cat the",
    "big house sleeps green big red fish",
    "red red the",
    "house house big red fish green",
)
REFERENCES = (
    ("small a fish the", "a cat a big a the small", "cat sleeps dog dog a dog a blue cat"),
    ("small cat cat cat tree", "dog dog small"),
    (
        "a a red tree small green dog big",
        "blue red house the green",
        "runs house green sleeps the small",
        "green sleeps small sleeps the cat fish fish green",
        "dog dog big fish sleeps",
    ),
    (
        "tree a tree tree sleeps fish blue small",
        "green sleeps green dog big blue green house",
        "small runs the big cat runs",
        "big cat tree sleeps tree small blue the red",
    ),
    ("big dog blue", "red cat dog"),
    ("tree cat dog tree", "big runs sleeps", "fish small small the dog a a red"),
    ("green a a", "cat sleeps dog a"),
    ("small dog sleeps dog big the big", "big green red house house big"),
    ("a sleeps cat red cat a cat", "runs tree blue small red house cat house"),
    (
        "blue fish sleeps fish fish fish house blue",
        "big house sleeps fish big red dog",
        "big sleeps sleeps sleeps small",
    ),
    ("blue red red", "sleeps dog a runs green tree fish"),
    ("house house big red fish green",),
)
WANTED = {
    "BLEU-1": 0.8224713135409247,
    "BLEU-2": 0.6424991436825533,
    "BLEU-3": 0.5356123867489629,
    "BLEU-4": 0.46439466661859885,
    "ROUGE-L": 0.6620504319871409,
    "CIDEr-D": 2.3389031502747364,
}
WORDS = {
    "A woman's hand holds a cell-phone, which isn't on.": "a woman 's hand holds a cell-phone which is n't on",
    "Two dogs -- one black, one white -- play with a frisbee!": "two dogs one black one white play with a frisbee",
    'A "stop" sign at the corner of 5th St. and Main Ave.': "a stop sign at the corner of 5th st. and main ave.",
    "They're cooking; he'll eat. I'd say we can't?": "they 're cooking he 'll eat i 'd say we ca n't",
    "Mr. Smith cannot swim": "mr. smith can not swim",
    "A t-shirt with the number 1,000 at 10:30": "a t-shirt with the number 1,000 at 10:30",
    "red,white & blue kite at 5 p.m. today": "red white & blue kite at 5 p.m. today",
    "50% off sign, $5.00 each...": "50 % off sign $ 5.00 each",
    "a cat/dog, gonna jump at 5 o'clock": "a cat/dog gon na jump at 5 o'clock",
    "a café with a crème brûlée": "a café with a crème brûlée",
    "the elephants' ears": "the elephants ears",
}


def test_metrics_equal_those_of_pycocoevalcap() -> None:
    found = caption_metrics(CAPTIONS, REFERENCES)
    assert {name: found[name] for name in WANTED} == pytest.approx(WANTED, abs=1e-9, rel=0)
    assert found["exact"] == 2 / 12


@pytest.mark.parametrize("text", WORDS)
def test_words_equal_those_of_ptb_tokenizer(text: str) -> None:
    assert " ".join(caption_words(text)) == WORDS[text]


def test_bleu_by_hand() -> None:
    """4 of 5 unigrams and 2 of 4 bigrams match; the caption is one word shorter than the closest reference."""
    found = caption_metrics(["the cat sat on mats"], [["the cat is on the mats", "a dog that sits by the door of it"]])
    brevity = math.exp(1 - 6 / 5)
    assert found["BLEU-1"] == pytest.approx(brevity * 4 / 5, rel=1e-8)
    assert found["BLEU-2"] == pytest.approx(brevity * math.sqrt(4 / 5 * 1 / 4), rel=1e-8)


def test_bleu_clips_counts_at_the_references() -> None:
    found = caption_metrics(["the the the the the the the"], [["the cat is on the mat", "there is a cat on the mat"]])
    assert found["BLEU-1"] == pytest.approx(2 / 7, rel=1e-8)  # Papineni's example


def test_rouge_by_hand() -> None:
    """Precision 3/4 comes from one reference, recall 1 from the other."""
    found = caption_metrics(["a red cat sleeps"], [["a red big cat runs on", "red cat"]])
    assert found["ROUGE-L"] == pytest.approx((1 + 1.44) * 0.75 * 1 / (1 + 1.44 * 0.75))


def test_cider_of_a_perfect_caption_is_10() -> None:
    texts = ["a b c d e", "f g h i j"]
    assert caption_metrics(texts, [[text] for text in texts])["CIDEr-D"] == pytest.approx(10)
    assert caption_metrics(texts, [[text] for text in reversed(texts)])["CIDEr-D"] == 0


def test_cider_ignores_words_of_all_references() -> None:
    found = caption_metrics(["a cat", "a dog"], [["a bird"], ["a fish"]])
    assert found["CIDEr-D"] == 0 and found["BLEU-1"] == pytest.approx(0.5)


def test_punctuation_and_case_are_ignored() -> None:
    assert caption_metrics(["A cat, on a mat."], [["a CAT on a mat"]])["exact"] == 1.0


def test_empty_and_missing_captions() -> None:
    assert caption_metrics([], []) == {}
    empty = caption_metrics(["", "a cat"], [["a dog"], ["a cat"]])
    assert all(math.isfinite(value) for value in empty.values()) and empty["exact"] == 0.5
    with pytest.raises(ValueError, match="2 captions cannot be compared with references for 1"):
        caption_metrics(["a", "b"], [["a"], []])
