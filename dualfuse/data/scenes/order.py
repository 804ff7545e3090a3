"""Shuffled word order, in the four ways of ARO (Yuksekgonul et al. 2023, section 3)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from dualfuse.data.scenes.shapes import COLORS, FORMS, RADII, Scene
from dualfuse.data.scenes.statements import parse

NOUNS_AND_ADJECTIVES = frozenset((*RADII, *COLORS, *FORMS))
TRIES = 1000

Words = list[str]
Shuffle = Callable[[Words, np.random.Generator], list[str]]


def _nouns_and_adjectives(words: Words, rng: np.random.Generator) -> list[str]:
    return _permute_at(words, [n for n, word in enumerate(words) if word in NOUNS_AND_ADJECTIVES], rng)


def _other_words(words: Words, rng: np.random.Generator) -> list[str]:
    return _permute_at(words, [n for n, word in enumerate(words) if word not in NOUNS_AND_ADJECTIVES], rng)


def _within_trigrams(words: Words, rng: np.random.Generator) -> list[str]:
    return [word for trigram in _trigrams(words) for word in rng.permutation(trigram).tolist()]


def _trigrams_shuffled(words: Words, rng: np.random.Generator) -> list[str]:
    trigrams = _trigrams(words)
    return [word for number in rng.permutation(len(trigrams)) for word in trigrams[number]]


WAYS: tuple[Shuffle, ...] = (_nouns_and_adjectives, _other_words, _within_trigrams, _trigrams_shuffled)


def shuffles(caption: str, scene: Scene, rng: np.random.Generator) -> tuple[str, ...]:
    """Return four different shuffles of a caption, none of which is true of the scene."""
    found: list[str] = []
    for way in WAYS:
        tries = (" ".join(way(caption.split(), rng)) for _ in range(TRIES))
        found.append(next(text for text in tries if text not in (caption, *found) and _is_foil(text, scene)))
    return tuple(found)


def _is_foil(text: str, scene: Scene) -> bool:
    statement = parse(text)
    return statement is None or statement.fails(scene)


def _permute_at(words: Words, places: Sequence[int], rng: np.random.Generator) -> list[str]:
    """Return the words with those at ``places`` exchanged among these."""
    result = words.copy()
    for place, source in zip(places, rng.permutation(places), strict=True):
        result[place] = words[int(source)]
    return result


def _trigrams(words: Words) -> list[list[str]]:
    return [list(words[first : first + 3]) for first in range(0, len(words), 3)]
