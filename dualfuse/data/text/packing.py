"""Packing: consecutive sentences of one document, as many as fit into one row of tokens."""

from __future__ import annotations

import mmap
import re
from collections.abc import Iterator
from itertools import pairwise

from dualfuse.data.text.documents import Documents
from dualfuse.data.text.tokenizer import TextTransform, load_tokenizer

BROKEN = -1
"""The end of a row whose line, or record, cannot be read."""

Word = tuple[int, int, int]
"""First byte, end (exclusive), number of tokens."""

MAX_CACHED_WORDS = 1 << 20  # the cache is cleared when it is full
BOM = "\ufeff".encode()
WORD = re.compile(rb"\S+")
INITIAL = re.compile(rb"[A-Z]\.")
SENTENCE_END = re.compile("(?:[.!?]|…|。|！|？)(?:[\"')\\]]|”|’|»)*\\Z".encode())  # noqa: RUF001 - Chinese punctuation


def pack(documents: Documents, text: TextTransform) -> Iterator[tuple[int, int, int]]:
    """Yield the rows of a file: (location of the record, first byte, end), the last two inside the record.

    A row is filled with consecutive sentences as long as they fit into ``text.length`` tokens, the two special ones
    included. It ends with its document; a sentence that is too long alone is split between words. Every word is in
    exactly one row. An unreadable line or record is a row of its own, which ends at ``BROKEN``.

    Sentences end with a line, and at ". ", "! ", "? " unless a lower-case letter follows: "Dr. No" is two sentences,
    which only affects where a row may end. Token counts are exact for tokenizers that split text into words first, as
    those of BERT and RoBERTa do.
    """
    counter, budget = _TokenCounter(text), text.length - 2
    for location in documents.locations():
        try:
            record = documents.record(location)
        except ValueError:
            yield location, 0, BROKEN
            continue
        for start, stop in _rows(_sentences(record, counter, documents.blank_ends), budget):
            yield location, start, stop


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
            if used and used + tokens > budget:  # this sentence alone is too long
                yield first, last
                used = 0
            first, last, used = first if used else start, stop, used + tokens
    if used:
        yield first, last


def _sentences(record: bytes | mmap.mmap, counter: _TokenCounter, blank_ends: bool) -> Iterator[list[Word]]:
    """Yield the words of each sentence; [] ends a document, a word ending at ``BROKEN`` is a broken line."""
    for start, line in _lines(record):
        try:
            is_text = "\0" not in line.decode()  # UTF-16
        except UnicodeDecodeError:
            is_text = False
        if not is_text:
            yield [(start, BROKEN, 0)]
            continue
        words = [(start + match.start(), match.group()) for match in WORD.finditer(line)]
        if not words and blank_ends:
            yield []
        sentence: list[Word] = []
        for number, (first, word) in enumerate(words):
            sentence += counter.split(first, word)
            following = words[number + 1][1] if number + 1 < len(words) else b""
            if not following or (counter.may_end_sentence(word) and not following[:1].islower()):
                yield sentence
                sentence = []


def _lines(record: bytes | mmap.mmap) -> Iterator[tuple[int, bytes]]:
    start = len(BOM) if record[: len(BOM)] == BOM else 0
    while start < len(record):
        stop = record.find(b"\n", start) + 1 or len(record)
        yield start, record[start:stop]
        start = stop


class _TokenCounter:
    """Token counts of words, cached."""

    def __init__(self, text: TextTransform) -> None:
        self._tokenizer, self._budget = load_tokenizer(text.tokenizer), text.length - 2
        self._cache: dict[bytes, tuple[int, bool]] = {}

    def split(self, start: int, word: bytes) -> list[Word]:
        """Return a word, in parts if it is longer than a row (Chinese has no spaces)."""
        tokens, _ = self._describe(word)
        if tokens <= self._budget:
            return [(start, start + len(word), tokens)]
        decoded = word.decode()
        offsets = self._tokenizer.encode(decoded).offsets
        cuts = [0, *(offsets[token][0] for token in range(self._budget, tokens, self._budget)), len(decoded)]
        parts: list[Word] = []
        for first, last in pairwise(cuts):
            size = len(decoded[first:last].encode())
            parts.append((start, start + size, min(tokens, self._budget)))
            start, tokens = start + size, tokens - self._budget
        return parts

    def may_end_sentence(self, word: bytes) -> bool:
        """Return whether a sentence may end with a word."""
        return self._describe(word)[1]

    def _describe(self, word: bytes) -> tuple[int, bool]:
        """Return the number of tokens, and whether a sentence may end with the word."""
        cached = self._cache.get(word)
        if cached is None:
            if len(self._cache) >= MAX_CACHED_WORDS:
                self._cache.clear()
            # words follow a space, which byte-level tokenizers encode
            tokens = len(self._tokenizer.encode(" " + word.decode()))
            cached = self._cache[word] = tokens, bool(SENTENCE_END.search(word)) and not INITIAL.fullmatch(word)
        return cached
