"""Packing: consecutive sentences of one document, as many as fit into one row of tokens."""

from __future__ import annotations

import mmap
import re
from collections.abc import Iterator
from itertools import pairwise

from dualfuse.data.text.documents import Documents
from dualfuse.data.text.tokenizer import TextTransform, load_tokenizer

BROKEN = -1
"""In the place of a row's end: the line that begins there, or its record, cannot be read."""

Word = tuple[int, int, int]
"""First byte, last byte + 1, tokens."""

REMEMBERED = 1 << 20  # different words whose tokens are known; beyond it all are forgotten
MARK = "\ufeff".encode()
WORD = re.compile(rb"\S+")
INITIAL = re.compile(rb"[A-Z]\.")
END = re.compile("(?:[.!?]|…|。|！|？)(?:[\"')\\]]|”|’|»)*\\Z".encode())  # noqa: RUF001 - as Chinese has them


def pack(documents: Documents, text: TextTransform) -> Iterator[tuple[int, int, int]]:
    """Return the rows of a file as (place of the record, first byte, last byte + 1) inside the record.

    A row takes the sentences that follow as long as all of them fit into ``text.length`` tokens, the two special ones
    included. It ends with its document, and at a word where one sentence alone is too long. Nothing is left out:
    every word is in one row. What cannot be read has a row of its own, which ends at ``BROKEN``.

    Sentences end with a line, and at ". ", "! ", "? " before anything but a small letter: "Dr. No" makes two, which
    matters only to where a row may end. Exact for tokenizers that see words apart, as those of BERT and RoBERTa.
    """
    counter, budget = _Counter(text), text.length - 2
    for place in documents.places():
        try:
            record = documents.record(place)
        except ValueError:
            yield place, 0, BROKEN
            continue
        for start, stop in _rows(_sentences(record, counter, documents.blank_ends), budget):
            yield place, start, stop


def _rows(sentences: Iterator[list[Word]], budget: int) -> Iterator[tuple[int, int]]:
    first, last, used = 0, 0, 0
    for sentence in sentences:
        is_broken = sentence[:1] and sentence[0][1] == BROKEN
        if used and (not sentence or is_broken or used + sum(tokens for *_, tokens in sentence) > budget):
            yield first, last
            used = 0
        if is_broken:
            yield sentence[0][0], BROKEN
            continue
        for start, stop, tokens in sentence:
            if used and used + tokens > budget:  # a sentence that is too long alone
                yield first, last
                used = 0
            first, last, used = first if used else start, stop, used + tokens
    if used:
        yield first, last


def _sentences(record: bytes | mmap.mmap, counter: _Counter, blank_ends: bool) -> Iterator[list[Word]]:
    """Return the words of each sentence; none where a document ends, one that ends at ``BROKEN`` for a broken line."""
    for start, line in _lines(record):
        try:
            line.decode()
        except UnicodeDecodeError:
            yield [(start, BROKEN, 0)]
            continue
        words = [(start + found.start(), found.group()) for found in WORD.finditer(line)]
        if not words and blank_ends:
            yield []
        sentence: list[Word] = []
        for number, (place, word) in enumerate(words):
            sentence += counter.pieces(place, word)
            following = words[number + 1][1] if number + 1 < len(words) else b""
            if not following or (counter.ends(word) and not following[:1].islower()):
                yield sentence
                sentence = []


def _lines(record: bytes | mmap.mmap) -> Iterator[tuple[int, bytes]]:
    start = len(MARK) if record[: len(MARK)] == MARK else 0
    while start < len(record):
        stop = record.find(b"\n", start) + 1 or len(record)
        yield start, record[start:stop]
        start = stop


class _Counter:
    """Counts the tokens of words, each different one once."""

    def __init__(self, text: TextTransform) -> None:
        self._tokenizer, self._budget = load_tokenizer(text.tokenizer).tokenizer, text.length - 2
        self._known: dict[bytes, tuple[int, bool]] = {}

    def pieces(self, start: int, word: bytes) -> list[Word]:
        """Return a word, in parts if it is longer than a row (Chinese has no spaces)."""
        tokens, _ = self._about(word)
        if tokens <= self._budget:
            return [(start, start + len(word), tokens)]
        spelled = word.decode()
        offsets = self._tokenizer.encode(spelled, add_special_tokens=False).offsets
        cuts = [0, *(offsets[token][0] for token in range(self._budget, tokens, self._budget)), len(spelled)]
        parts: list[Word] = []
        for first, last in pairwise(cuts):
            size = len(spelled[first:last].encode())
            parts.append((start, start + size, min(tokens, self._budget)))
            start, tokens = start + size, tokens - self._budget
        return parts

    def ends(self, word: bytes) -> bool:
        """Whether a sentence may end with a word."""
        return self._about(word)[1]

    def _about(self, word: bytes) -> tuple[int, bool]:
        known = self._known.get(word)
        if known is None:
            if len(self._known) >= REMEMBERED:
                self._known.clear()
            # words follow a space: byte-level tokenizers spell it
            tokens = len(self._tokenizer.encode(" " + word.decode(), add_special_tokens=False))
            known = self._known[word] = tokens, bool(END.search(word)) and not INITIAL.fullmatch(word)
        return known
