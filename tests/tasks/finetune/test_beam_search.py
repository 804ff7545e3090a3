"""Beam search against enumeration of all texts, and against a search with lists."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from torch import Tensor

from dualfuse.tasks.finetune.beam_search import Beam, Hypothesis, beam_search

START, END, WORDS = 3, 0, (1, 2)
ALL = Beam(width=64, length_penalty=0.0, longest=6, start=START, end=END)


def next_word(image: int, text: tuple[int, ...]) -> np.ndarray:
    """Return a distribution over the end and two words that depends on the whole text; the start is impossible."""
    logits = np.random.default_rng([image, *text]).normal(size=3) * 2
    return np.append(logits - np.log(np.exp(logits).sum()), -np.inf)


class Steps:
    """Track by ``origin`` the image of each text, as a decoder does with its cache."""

    def __init__(self, images: int) -> None:
        self.about, self.calls = torch.arange(images), 0

    def __call__(self, ids: Tensor, origin: Tensor) -> Tensor:
        self.about, self.calls = self.about[origin], self.calls + 1
        pairs = zip(self.about.tolist(), ids.tolist(), strict=True)
        return torch.from_numpy(np.stack([next_word(image, tuple(text)) for image, text in pairs]))


def log_probability(image: int, text: tuple[int, ...]) -> float:
    return float(sum(next_word(image, (START, *text[:n]))[word] for n, word in enumerate(text)))


def every_text(image: int, beam: Beam) -> list[Hypothesis]:
    """Return all texts that end, and those of maximum length."""
    texts: list[Hypothesis] = []
    for length in range(beam.longest):
        for words in product(WORDS, repeat=length):
            tokens = (*words, END) if length < beam.longest - 1 else words
            value = log_probability(image, tokens)
            texts.append(Hypothesis(words, value, value / len(tokens) ** beam.length_penalty))
    return sorted(texts, key=lambda each: -each.score)


def same(found: list[Hypothesis], expected: list[Hypothesis]) -> None:
    assert [each.ids for each in found] == [each.ids for each in expected]
    assert [each.score for each in found] == pytest.approx([each.score for each in expected], abs=1e-5)
    assert [each.log_probability for each in found] == pytest.approx([e.log_probability for e in expected], abs=1e-5)


@pytest.mark.parametrize("penalty", [0.0, 0.6, 2.0])
def test_wide_beam_finds_the_best_text(penalty: float) -> None:
    beam = replace(ALL, length_penalty=penalty)
    for image, found in enumerate(beam_search(Steps(5), 5, beam)):
        same(found, every_text(image, beam)[: beam.width])


def by_lists(image: int, beam: Beam) -> list[Hypothesis]:
    """Run the search with lists for one image, without stopping early."""
    live, found = [((), 0.0)], []
    for length in range(1, beam.longest):
        longer = [
            ((*text, word), value + next_word(image, (START, *text))[word])
            for text, value in live
            for word in (END, *WORDS)
        ]
        longer.sort(key=lambda each: -each[1])
        found += [
            Hypothesis(text[:-1], value, value / length**beam.length_penalty)
            for text, value in longer[: beam.width]
            if text[-1] == END
        ]
        live = [each for each in longer if each[0][-1] != END][: beam.width]
    found += [Hypothesis(text, value, value / (beam.longest - 1) ** beam.length_penalty) for text, value in live]
    return sorted(found, key=lambda each: -each.score)[: beam.width]


@pytest.mark.parametrize("width", [1, 2, 3, 5])
@pytest.mark.parametrize("penalty", [0.0, 0.6, 1.5])
def test_narrow_beam_equals_a_search_with_lists(width: int, penalty: float) -> None:
    beam = replace(ALL, width=width, length_penalty=penalty, longest=9)
    for image, found in enumerate(beam_search(Steps(12), 12, beam)):
        same(found, by_lists(image, beam))


def test_beam_of_one_is_greedy() -> None:
    beam = replace(ALL, width=1, longest=9)
    for image, [found] in enumerate(beam_search(Steps(8), 8, beam)):
        text: list[int] = []
        while len(text) < 8 and (word := int(next_word(image, (START, *text)).argmax())) != END:
            text.append(word)
        assert found.ids == tuple(text)


def test_search_stops_when_no_hypothesis_can_improve() -> None:
    def ends(ids: Tensor, origin: Tensor) -> Tensor:
        calls.append(len(ids))
        return torch.tensor([0.98, 0.01, 0.01, 0.0]).log().expand(len(ids), -1)

    calls: list[int] = []
    best = beam_search(ends, 1, replace(ALL, width=1, longest=30))[0][0]
    assert best.ids == () and best.log_probability == pytest.approx(np.log(0.98), abs=1e-6) and calls == [1]


@pytest.mark.parametrize("wrong", [{"width": 0}, {"length_penalty": -1.0}, {"longest": 1}])
def test_invalid_options_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"beam is .* give at least 1, at least 0, and at least 2"):
        replace(ALL, **wrong)
