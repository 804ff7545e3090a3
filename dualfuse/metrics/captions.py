"""Caption metrics: BLEU, ROUGE-L and CIDEr-D, as COCO's evaluation defines them.

Papineni et al. 2002, Lin 2004, Vedantam et al. 2015 (arXiv 1411.5726). For the same words, the numbers are those of
pycocoevalcap 1.2. That splits texts into words with Stanford's PTBTokenizer 3.4.1, a Java program;
:func:`caption_words` follows its rules for plain English.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import chain, pairwise

from dualfuse.errors import DualfuseError
from dualfuse.metrics.base import MetricInfo, shares

Words = Sequence[str]
LONGEST = 4  # words of an n-gram
SMALL, TINY = 1e-9, 1e-15  # added to denominators and numerators by COCO's BLEU
BETA = 1.2  # weight of recall in ROUGE-L
SIGMA = 6.0  # of the Gaussian of length differences in CIDEr-D

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


CAPTION_METRICS = (
    *shares("BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", whole_set=True),
    *shares("ROUGE-L", "exact"),
    MetricInfo("CIDEr-D", whole_set=True),
)


def caption_metrics(captions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """Compare each caption with the references of its image; empty for no captions.

    "BLEU-1" to "BLEU-4" and "CIDEr-D" (from 0 to 10) are computed over the corpus, "ROUGE-L" is the mean over captions,
    "exact" the share of captions with the words of a reference. Raises DualfuseError for a caption without references.
    """
    if len(captions) != len(references) or not all(references):
        raise DualfuseError(
            f"{len(captions)} captions cannot be compared with references for {sum(map(bool, references))}"
        )
    if not captions:
        return {}
    words = [caption_words(caption) for caption in captions]
    targets = [[caption_words(text) for text in texts] for texts in references]
    return {
        **{f"BLEU-{n}": value for n, value in enumerate(bleu(words, targets), start=1)},
        "ROUGE-L": sum(map(rouge_l, words, targets)) / len(words),
        "CIDEr-D": sum(cider_d(words, targets)) / len(words),
        "exact": sum(one in texts for one, texts in zip(words, targets, strict=True)) / len(words),
    }


def bleu(captions: Sequence[Words], references: Sequence[Sequence[Words]]) -> tuple[float, ...]:
    """Return BLEU-1 to BLEU-4 of a corpus, with the closest reference length."""
    correct, total, length, target_length = [0] * LONGEST, [0] * LONGEST, 0, 0
    for caption, texts in zip(captions, references, strict=True):
        length += len(caption)
        target_length += min((abs(len(text) - len(caption)), len(text)) for text in texts)[1]
        for n in range(LONGEST):
            counts = _grams(caption, n + 1)
            clip = Counter[tuple[str, ...]]()
            for text in texts:
                clip |= _grams(text, n + 1)
            correct[n] += (counts & clip).total()
            total[n] += counts.total()
    ratio = (length + TINY) / (target_length + SMALL)
    brevity, product, scores = math.exp(min(0.0, 1 - 1 / ratio)), 1.0, list[float]()
    for n in range(LONGEST):
        product *= (correct[n] + TINY) / (total[n] + SMALL)
        scores.append(brevity * product ** (1 / (n + 1)))
    return tuple(scores)


def rouge_l(caption: Words, references: Sequence[Words]) -> float:
    """Return the F-measure of the longest common subsequence, with the best precision and recall of any reference."""
    common = [_longest_common(caption, text) for text in references]
    precision = max(common) / max(1, len(caption))
    recall = max(length / max(1, len(text)) for length, text in zip(common, references, strict=True))
    if not precision or not recall:
        return 0.0
    return (1 + BETA**2) * precision * recall / (recall + BETA**2 * precision)


def cider_d(captions: Sequence[Words], references: Sequence[Sequence[Words]]) -> list[float]:
    """Return CIDEr-D of each caption, from 0 to 10; document frequencies are those of the references."""
    grams = [[_all_grams(text) for text in texts] for texts in references]
    documents = Counter(chain.from_iterable(set(chain.from_iterable(texts)) for texts in grams))
    logarithm = math.log(len(captions))
    idf = {gram: logarithm - math.log(count) for gram, count in documents.items()}
    scores: list[float] = []
    for caption, texts in zip(captions, grams, strict=True):
        weighted = _TfIdf(_all_grams(caption), idf, logarithm)
        each = [weighted.similarity(_TfIdf(text, idf, logarithm)) for text in texts]
        scores.append(10 * sum(each) / len(each))
    return scores


class _TfIdf:
    """The TF-IDF weights of the n-grams of a text."""

    def __init__(self, counts: Counter[tuple[str, ...]], idf: Mapping[tuple[str, ...], float], unseen: float):
        self.pairs = sum(count for gram, count in counts.items() if len(gram) == 2)
        self.weights = {gram: count * idf.get(gram, unseen) for gram, count in counts.items()}
        self.norms = [
            math.sqrt(sum(weight**2 for gram, weight in self.weights.items() if len(gram) == n + 1))
            for n in range(LONGEST)
        ]

    def similarity(self, reference: _TfIdf) -> float:
        """Return the mean over n of the clipped cosine, times a Gaussian of the difference of lengths (in bigrams)."""
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
        current = [0]
        for column, (before, above) in enumerate(pairwise(row)):
            current.append(before + 1 if word == other[column] else max(current[-1], above))
        row = current
    return row[-1]
