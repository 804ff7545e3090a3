"""Captions compared with those of people: BLEU, ROUGE-L and CIDEr-D, as COCO's evaluation defines them.

Papineni et al. 2002, Lin 2004, Vedantam et al. 2015 (arXiv 1411.5726). Given the same words, the numbers are those of
pycocoevalcap 1.2. That cuts texts into words with Stanford's PTBTokenizer 3.4.1, a program in Java;
:func:`caption_words` follows its rules for plain English.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import chain, pairwise

from dualfuse.errors import DualfuseError

Words = Sequence[str]
LONGEST = 4  # words of an n-gram
SMALL, TINY = 1e-9, 1e-15  # what COCO's BLEU adds to counts below and above the line
BETA = 1.2  # what recall weighs in ROUGE-L
SIGMA = 6.0  # of the Gaussian by which CIDEr-D compares lengths

ABBREVIATIONS = r"(?:mr|mrs|ms|dr|st|jr|sr|vs|etc|inc|ltd|co|mt|ave|blvd|rd|no)\.|(?:[a-z]\.){2,}"
WORD = re.compile(
    rf"(?:{ABBREVIATIONS})(?!\w)"
    r"|\d+(?:[.,:/]\d+)+"
    r"|can(?=not\b)|(?:gon|wan)(?=na\b)|got(?=ta\b)|o'clock\b|'n'"
    r"|\w+(?=n't\b)|n't\b|'(?:s|m|d|re|ve|ll)\b"
    r"|\w+(?:[-@_./]+\w+)*"
    r"|[?!]{2,}|[^\w\s]"
)
DROPPED = frozenset("'`\".?!,:;-\u2018\u2019\u201c\u201d\u2013\u2014\u2026")


def caption_words(text: str) -> tuple[str, ...]:
    """Return the words of a caption in lower case, without punctuation; "don't" is do n't, "dog's" is dog 's."""
    plain = text.lower().replace("\u2019", "'")
    return tuple(word for word in WORD.findall(plain) if word not in DROPPED)


def caption_metrics(captions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """Compare each caption with those that people gave its image; nothing for no captions.

    "BLEU-1" to "BLEU-4" and "CIDEr-D" (whose scale ends at 10) speak of all captions together, "ROUGE-L" is their mean,
    "exact" the share whose words are those of a reference. ``DualfuseError`` where a caption has no reference.
    """
    if len(captions) != len(references) or not all(references):
        raise DualfuseError(
            f"{len(captions)} captions cannot be compared with references for {sum(map(bool, references))}"
        )
    if not captions:
        return {}
    said = [caption_words(caption) for caption in captions]
    wanted = [[caption_words(text) for text in texts] for texts in references]
    return {
        **{f"BLEU-{n}": value for n, value in enumerate(bleu(said, wanted), start=1)},
        "ROUGE-L": sum(map(rouge_l, said, wanted)) / len(said),
        "CIDEr-D": sum(cider_d(said, wanted)) / len(said),
        "exact": sum(one in texts for one, texts in zip(said, wanted, strict=True)) / len(said),
    }


def bleu(captions: Sequence[Words], references: Sequence[Sequence[Words]]) -> tuple[float, ...]:
    """Return BLEU of 1 to 4 words of a corpus; the length of a caption is compared with the closest reference's."""
    right, guessed, length, wanted = [0] * LONGEST, [0] * LONGEST, 0, 0
    for caption, texts in zip(captions, references, strict=True):
        length += len(caption)
        wanted += min((abs(len(text) - len(caption)), len(text)) for text in texts)[1]
        for n in range(LONGEST):
            counts = _grams(caption, n + 1)
            most = Counter[tuple[str, ...]]()
            for text in texts:
                most |= _grams(text, n + 1)
            right[n] += (counts & most).total()
            guessed[n] += counts.total()
    ratio = (length + TINY) / (wanted + SMALL)
    brevity, product, scores = math.exp(min(0.0, 1 - 1 / ratio)), 1.0, list[float]()
    for n in range(LONGEST):
        product *= (right[n] + TINY) / (guessed[n] + SMALL)
        scores.append(brevity * product ** (1 / (n + 1)))
    return tuple(scores)


def rouge_l(caption: Words, references: Sequence[Words]) -> float:
    """Return the F-measure of the longest common subsequence; each part is the best of any reference."""
    common = [_longest_common(caption, text) for text in references]
    precision = max(common) / max(1, len(caption))
    recall = max(same / max(1, len(text)) for same, text in zip(common, references, strict=True))
    if not precision or not recall:
        return 0.0
    return (1 + BETA**2) * precision * recall / (recall + BETA**2 * precision)


def cider_d(captions: Sequence[Words], references: Sequence[Sequence[Words]]) -> list[float]:
    """Return CIDEr-D of each caption, from 0 to 10; how rare an n-gram is, is counted over the references."""
    known = [[_all_grams(text) for text in texts] for texts in references]
    documents = Counter(chain.from_iterable(set(chain.from_iterable(texts)) for texts in known))
    logarithm = math.log(len(captions))
    rarity = {gram: logarithm - math.log(count) for gram, count in documents.items()}
    scores: list[float] = []
    for caption, texts in zip(captions, known, strict=True):
        said = _Weighed(_all_grams(caption), rarity, logarithm)
        each = [said.likeness(_Weighed(text, rarity, logarithm)) for text in texts]
        scores.append(10 * sum(each) / len(each))
    return scores


class _Weighed:
    """The n-grams of a text, weighed with how often they occur and how rare they are."""

    def __init__(self, counts: Counter[tuple[str, ...]], rarity: Mapping[tuple[str, ...], float], unknown: float):
        self.pairs = sum(count for gram, count in counts.items() if len(gram) == 2)
        self.weights = {gram: count * rarity.get(gram, unknown) for gram, count in counts.items()}
        self.norms = [
            math.sqrt(sum(weight**2 for gram, weight in self.weights.items() if len(gram) == n + 1))
            for n in range(LONGEST)
        ]

    def likeness(self, reference: _Weighed) -> float:
        """Return the mean over n of the clipped cosine, less the more the lengths differ (in pairs of words)."""
        products = [0.0] * LONGEST
        for gram, weight in self.weights.items():
            other = reference.weights.get(gram, 0.0)
            products[len(gram) - 1] += min(weight, other) * other
        cosines = (
            product / (one * other) if one and other else 0.0
            for product, one, other in zip(products, self.norms, reference.norms, strict=True)
        )
        return sum(cosines) / LONGEST * math.exp(-((self.pairs - reference.pairs) ** 2) / (2 * SIGMA**2))


def _grams(words: Words, n: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(words[first : first + n]) for first in range(len(words) - n + 1))


def _all_grams(words: Words) -> Counter[tuple[str, ...]]:
    return Counter(chain.from_iterable(_grams(words, n + 1).elements() for n in range(LONGEST)))


def _longest_common(one: Words, other: Words) -> int:
    row = [0] * (len(other) + 1)
    for word in one:
        found = [0]
        for column, (before, above) in enumerate(pairwise(row)):
            found.append(before + 1 if word == other[column] else max(found[-1], above))
        row = found
    return row[-1]
