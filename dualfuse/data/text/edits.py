"""Minimal edits of captions: false ones as hard negatives (NegCLIP, arXiv 2210.01936), and ones that keep the meaning.

Edits follow rules on the short word lists of :mod:`dualfuse.data.text.word_classes`. A false edit is a caption that the
image does not have: it differs from all its captions and from what says the same (SugarCrepe++, arXiv 2406.11171).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

import numpy as np

from dualfuse.data.text.word_classes import (
    ADJECTIVES,
    BOUNDARIES,
    COLORS,
    CONVERSE,
    DIRECTED,
    INVERSES,
    NOUNS,
    NUMBERS,
    SAME_COLORS,
    SYMMETRIC,
    SYNONYMS,
)

EditKind = Literal["noun", "adjective", "color", "number", "relation", "order", "negation"]
EDIT_KINDS: tuple[EditKind, ...] = ("noun", "adjective", "color", "number", "relation", "order", "negation")

_WORD = re.compile(r"[^\W_]+(?:['\u2019-][^\W_]+)*")
_MAX_WORDS = 60  # longer captions are not edited: pairs of words grow with the square
_MAX_CHARACTERS = 1000


@dataclass(frozen=True)
class Caption:
    """A caption as words, and the characters around them: gap, word, gap, ..., word, gap."""

    words: tuple[str, ...]
    gaps: tuple[str, ...]

    @staticmethod
    def parse(text: str) -> Caption:
        """Split a text; :attr:`text` is the same text again."""
        return Caption(tuple(_WORD.findall(text)), tuple(_WORD.split(text)))

    @property
    def text(self) -> str:
        """The caption as one text."""
        return "".join(gap + word for gap, word in zip(self.gaps, (*self.words, ""), strict=True))

    @property
    def lower(self) -> tuple[str, ...]:
        """The words in lower case."""
        return tuple(word.lower() for word in self.words)

    def replace(self, first: int, last: int, phrase: str) -> Caption:
        """Replace the words ``first`` to ``last`` (exclusive) by those of ``phrase``; a/an before them follows."""
        new = phrase.split()
        if new and self.words[first][:1].isupper():
            new[0] = new[0][:1].upper() + new[0][1:]
        words = [*self.words[:first], *new, *self.words[last:]]
        gaps = [*self.gaps[: first + 1], *[" "] * (len(new) - 1), *self.gaps[last:]]
        if not new:
            gaps = [*self.gaps[:first], self.gaps[first], *self.gaps[last + 1 :]]
        following = words[first] if first < len(words) else ""
        if first and following and words[first - 1].lower() in ("a", "an"):
            words[first - 1] = _cased(_article(following), words[first - 1])
        return Caption(tuple(words), tuple(gaps))

    def exchange(self, one: range, other: range) -> Caption:
        """Exchange two runs of words, of which ``one`` is the earlier."""
        spans = [self.words[run.start : run.stop] for run in (one, other)]
        inner = [self.gaps[run.start + 1 : run.stop] for run in (one, other)]
        if one.start == 0 and spans[0][0][:1].isupper() and spans[0][0].lower() in ("a", "an", "the", "two"):
            spans = [(spans[0][0].lower(), *spans[0][1:]), (spans[1][0].capitalize(), *spans[1][1:])]
        between = self.words[one.stop : other.start]
        words = (*self.words[: one.start], *spans[1], *between, *spans[0], *self.words[other.stop :])
        gaps = (
            *self.gaps[: one.start + 1],
            *inner[1],
            *self.gaps[one.stop : other.start + 1],
            *inner[0],
            *self.gaps[other.stop :],
        )
        return Caption(words, gaps)


@dataclass(frozen=True)
class Edit:
    """An edited caption, and the word that it brings in, if any."""

    caption: Caption
    new: str = ""


def false_edits(
    caption: str,
    captions: Sequence[str],
    rng: np.random.Generator,
    number: int,
    kinds: Sequence[EditKind] = EDIT_KINDS,
) -> tuple[str, ...]:
    """Return up to ``number`` different edits of ``caption`` that are false of its image.

    ``captions`` are all captions of the image. An edit is not used if it equals one of them, or what says the same, or
    if the word that it brings in is in one of them. Each edit is of a kind drawn from those of ``kinds`` that apply.
    """
    parsed = Caption.parse(caption)
    if len(caption) > _MAX_CHARACTERS or not 0 < len(parsed.words) <= _MAX_WORDS:
        return ()
    kept = [text for text in (caption, *captions) if len(text) <= _MAX_CHARACTERS]
    true = {key for text in kept for key in _meanings(Caption.parse(text))}
    mentioned = {word for text in kept for word in Caption.parse(text).lower}
    pools = [list(_FALSE[kind](parsed, rng)) for kind in kinds]
    found = dict[str, None]()
    while len(found) < number and (pools := [pool for pool in pools if pool]):
        pool = pools[rng.integers(len(pools))]
        edit = pool.pop(rng.integers(len(pool)))
        if edit.new not in mentioned and not _meanings(edit.caption) & true:
            found.setdefault(edit.caption.text)
    return tuple(found)


def same_meaning(caption: str, rng: np.random.Generator) -> str:
    """Return an edit of ``caption`` with the same meaning, or the caption itself if no rule applies."""
    parsed = Caption.parse(caption)
    if len(caption) > _MAX_CHARACTERS or not 0 < len(parsed.words) <= _MAX_WORDS:
        return caption
    edits = [*_turned(parsed), *_synonyms(parsed), *_framed(parsed)]
    return edits[rng.integers(len(edits))].text if edits else caption


def _key(caption: Caption) -> str:
    words = caption.lower
    framed = words[2:] if words[:2] in (("there", "is"), ("there", "are")) else words
    text = f" {' '.join(framed)} "
    for one, other in SYNONYMS.items():
        text = text.replace(f" {max(one, other)} ", f" {min(one, other)} ")
    return text


def _meanings(caption: Caption) -> set[str]:
    """Return the keys of a caption and of what says the same."""
    return {_key(caption), *(_key(each) for each in _turned(caption))}


def _runs(words: Sequence[str], phrases: Sequence[str]) -> Iterator[tuple[range, str]]:
    """Yield where ``phrases`` occur, the longest at each place."""
    longest = sorted((phrase.split() for phrase in phrases), key=len, reverse=True)
    first = 0
    while first < len(words):
        found = next((phrase for phrase in longest if list(words[first : first + len(phrase)]) == phrase), None)
        if found:
            yield range(first, first + len(found)), " ".join(found)
        first += len(found) if found else 1


def _ends(caption: Caption, relation: range) -> tuple[range, range] | None:
    """Return the noun phrases before and after a relation; None without one of them."""
    words, gaps = caption.lower, caption.gaps
    stop = relation.start
    while stop and (words[stop - 1] in ("is", "are", "to", "the") or words[stop - 1].endswith("ing")):
        stop -= 1
    start = stop
    while start and words[start - 1] not in BOUNDARIES and (start == stop or gaps[start] == " "):
        start -= 1
    last = relation.stop
    while last < len(words) and words[last] not in BOUNDARIES and gaps[last] == " " and words[last][-3:] != "ing":
        last += 1
    before, after = range(start, stop), range(relation.stop, last)
    return (before, after) if before and after and caption.gaps[relation.start].isspace() else None


def _turned(caption: Caption) -> Iterator[Caption]:
    """Yield what says the same from the other end: B below A for A above B."""
    for run, relation in _runs(caption.lower, (*CONVERSE, *SYMMETRIC)):
        ends = _ends(caption, run)
        if ends is not None and _can_turn(caption, ends, relation):
            inverse = relation if relation in SYMMETRIC else INVERSES[relation]
            yield caption.replace(run.start, run.stop, inverse).exchange(*_moved(ends, run, inverse))


def _can_turn(caption: Caption, ends: tuple[range, range], relation: str) -> bool:
    """Whether exchanging the ends of a relation keeps the meaning: both are whole, and neither is denied."""
    words, (one, other) = caption.lower, ends
    first, last = (set(words[end.start : end.stop]) for end in ends)
    determined = [words[end.start] in _DETERMINERS for end in ends]
    if determined != [True, True] and not (determined == [False, False] and len(one) == len(other) == 1):
        return False
    if relation == "and":
        return True
    starts = one.start == 0 or words[one.start - 1] in ("is", "are") or not caption.gaps[one.start].isspace()
    stops = other.stop == len(words) or not caption.gaps[other.stop].isspace()
    return starts and stops and "no" not in first | last


def _moved(ends: tuple[range, range], run: range, phrase: str) -> tuple[range, range]:
    """Return the ends after the relation at ``run`` was replaced by ``phrase``."""
    shift = len(phrase.split()) - len(run)
    return ends[0], range(ends[1].start + shift, ends[1].stop + shift)


def _synonyms(caption: Caption) -> Iterator[Caption]:
    for run, phrase in _runs(caption.lower, tuple(SYNONYMS)):
        yield caption.replace(run.start, run.stop, SYNONYMS[phrase])


def _framed(caption: Caption) -> Iterator[Caption]:
    """Yield the caption with "there is" before it, or without."""
    words = list(caption.lower)
    if words[:2] == ["there", "is"] and len(words) > 3 and caption.gaps[2] == " ":
        yield Caption((_cased(words[2], caption.words[0]), *caption.words[3:]), (caption.gaps[0], *caption.gaps[3:]))
    elif words[0] in ("a", "an") and not {"is", "are", "has"} & set(words):
        first = _cased("there", caption.words[0])
        yield Caption((first, "is", words[0], *caption.words[1:]), (caption.gaps[0], " ", " ", *caption.gaps[1:]))


def _replaced(caption: Caption, groups: Sequence[Sequence[str]], rng: np.random.Generator) -> Iterator[Edit]:
    """Yield each word of one of ``groups`` replaced by one word of its group, and each two exchanged."""
    words = caption.lower
    for group in groups:
        places = [place for place, word in enumerate(words) if word in group]
        for place in places:
            others = [word for word in group if word != words[place] and {word, words[place]} not in _SAME]
            new = others[rng.integers(len(others))]
            yield Edit(caption.replace(place, place + 1, new), new)
        for one, other in combinations(places, 2):
            if words[one] != words[other]:
                exchanged = caption.replace(one, one + 1, words[other])
                yield Edit(exchanged.replace(other, other + 1, words[one]))


def _relations(caption: Caption, rng: np.random.Generator) -> Iterator[Edit]:
    for run, relation in _runs(caption.lower, tuple(INVERSES)):
        if run.start and run.stop < len(caption.words):
            yield Edit(caption.replace(run.start, run.stop, INVERSES[relation]))


def _orders(caption: Caption, rng: np.random.Generator) -> Iterator[Edit]:
    for run, _ in _runs(caption.lower, (*INVERSES, *DIRECTED)):
        if (ends := _ends(caption, run)) is not None:
            yield Edit(caption.exchange(*ends))


def _negations(caption: Caption, rng: np.random.Generator) -> Iterator[Edit]:
    words = caption.lower
    for place, word in enumerate(words):
        following = words[place + 1] if place + 1 < len(words) else ""
        if word in ("with", "without") and following:
            yield Edit(caption.replace(place, place + 1, "without" if word == "with" else "with"))
        elif word == "no" and following:
            new = "some" if following.endswith("s") else _article(following)
            yield Edit(caption.replace(place, place + 1, new))
        elif word == "not" and place and words[place - 1] in ("is", "are"):
            yield Edit(caption.replace(place, place + 1, ""))
        elif word in ("is", "are") and following not in ("", "no", "not") and place and words[place - 1] != "there":
            yield Edit(caption.replace(place, place + 1, f"{word} not"))
        elif word in ("a", "an") and following and (not place or words[place - 1] in ("is", "and")):
            yield Edit(caption.replace(place, place + 1, "no"))


def _article(following: str) -> str:
    return "an" if following[:1].lower() in "aeiou" else "a"


def _cased(word: str, like: str) -> str:
    return word.capitalize() if like[:1].isupper() else word


_DETERMINERS = frozenset(("a", "an", "the", "no", "one", *NUMBERS))
_SAME = tuple(map(set, SAME_COLORS))
_FALSE: dict[EditKind, Callable[[Caption, np.random.Generator], Iterator[Edit]]] = {
    "noun": lambda caption, rng: _replaced(caption, NOUNS, rng),
    "adjective": lambda caption, rng: _replaced(caption, ADJECTIVES, rng),
    "color": lambda caption, rng: _replaced(caption, (COLORS,), rng),
    "number": lambda caption, rng: _replaced(caption, (NUMBERS,), rng),
    "relation": _relations,
    "order": _orders,
    "negation": _negations,
}
