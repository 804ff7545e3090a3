"""What each content word of a text contributes to a match: its probability without the word, or with another one."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from dualfuse.data.text.edits import EditKind, false_edits
from dualfuse.data.text.padding import pad_texts
from dualfuse.errors import DualfuseError
from dualfuse.inference.predict import ImageFile, read_inputs
from dualfuse.models.base import Tokens
from dualfuse.printable import brief, percent
from dualfuse.tasks.prediction import text_of

if TYPE_CHECKING:
    from dualfuse.hub import LoadedModel

STOP_WORDS = frozenset(
    [
        "a",
        "an",
        "the",
        "of",
        "in",
        "on",
        "at",
        "to",
        "and",
        "or",
        "with",
        "is",
        "are",
        "was",
        "were",
        "be",
        "by",
        "for",
        "from",
        "as",
        "it",
        "its",
        "this",
        "that",
        "there",
        "some",
    ]
)
WORD = re.compile(r"[^\W_]+(?:['\u2019-][^\W_]+)*")
SWAPPED: tuple[EditKind, ...] = ("adjective", "color", "number", "noun", "relation")
"""Kinds of edits that replace words of a text."""


@dataclass(frozen=True)
class WordChange:
    """A text that differs from the explained one by one word, and the probability that the image matches it."""

    word: str
    """The word that was removed; empty: a word was swapped."""
    text: str
    probability: float
    score: float
    """The score that the probability comes from, before calibration."""

    def line(self, before: float) -> str:
        """Return the change as text, such as "without red: 91 % to 34 %"."""
        name = f"without {self.word}" if self.word else brief(self.text)
        return f"{name}: {percent(before)} to {percent(self.probability)}"


@dataclass(frozen=True)
class MatchExplanation:
    """The probability of an image and a text, and its changes with the words of the text."""

    probability: float
    score: float
    changes: tuple[WordChange, ...]

    def lines(self) -> list[str]:
        """Return the probability and the changes as text."""
        return [f"match {percent(self.probability)}", *(each.line(self.probability) for each in self.changes)]

    def record(self) -> dict[str, object]:
        """Return the probability and the changes as JSON values."""
        return {"probability": self.probability, "changes": [vars(each) for each in self.changes]}


@torch.inference_mode()
def explain_words(model: LoadedModel, pixels: Tensor, text: str, seed: int = 0) -> MatchExplanation:
    """Return how the match of an image (3, H, W) and a text changes if words are removed or swapped.

    Every word but function words is removed once; words of known classes (colors, sizes, numbers, relations, nouns) are
    swapped as :func:`~dualfuse.data.text.edits.false_edits` does, at most once per class. Without calibration the
    probability is that of the ITM head. Raises DualfuseError for a model that scores no pairs.
    """
    changed = [*removals(text), *(("", edit) for edit in swaps(text, seed))]
    cosine, match = pair_scores(model, pixels[None], [text, *(each for _, each in changed)])
    chances = model.task.pair_probability(cosine, match)
    if chances is None:
        raise DualfuseError(
            "this model is a dual encoder without calibration, so it has no probability; calibrate it with "
            "dualfuse evaluate MODEL SHARDS --calibrate"
        )
    scores = scores_of(model, cosine, match)
    columns = zip(changed, chances[1:].tolist(), scores[1:].tolist(), strict=True)
    changes = tuple(WordChange(word, other, chance, score) for (word, other), chance, score in columns)
    return MatchExplanation(float(chances[0]), float(scores[0]), changes)


def removals(text: str) -> list[tuple[str, str]]:
    """Return each content word of a text with the text without it; a text of one word has none."""
    words = list(WORD.finditer(text))
    if len(words) < 2:
        return []
    return [
        (each.group(), " ".join(f"{text[: each.start()]} {text[each.end() :]}".split()))
        for each in words
        if each.group().lower() not in STOP_WORDS
    ]


def swaps(text: str, seed: int) -> list[str]:
    """Return the text with words swapped for others of their class, one text per class that occurs in it."""
    edits = (false_edits(text, (), np.random.default_rng(seed), 1, (kind,)) for kind in SWAPPED)
    return list(dict.fromkeys(each for some in edits for each in some))


def pair_scores(model: LoadedModel, images: Tensor, texts: Sequence[str]) -> tuple[Tensor, Tensor | None]:
    """Return cosines and match logits (B * M,) of images (B, 3, H, W) with each text, images first; no logits: None."""
    task = model.task
    if not (task.can_match or task.can_search):
        raise DualfuseError(f"this {type(task).__name__} model scores no pairs of image and text")
    ids, mask = pad_texts([model.processor.text.encode(each).ids for each in texts])
    image = task.model.embed_image(images.to(task.device))
    text = task.model.embed_text(ids.to(task.device), mask.to(task.device))
    pairs = torch.cartesian_prod(*(torch.arange(len(side), device=task.device) for side in (image, text)))
    cosine = torch.zeros(len(pairs), device=task.device)
    if task.can_search:
        cosine = (task.image_features(image) @ task.text_features(text).T).flatten().float()
    if not task.can_match:
        return cosine, None
    parts = [_match(model, image, text, some) for some in pairs.split(64)]
    return cosine, torch.cat(parts)


def _match(model: LoadedModel, image: Tokens, text: Tokens, pairs: Tensor) -> Tensor:
    return model.task.match_logit(image.take(pairs[:, 0]), text.take(pairs[:, 1]))


def scores_of(model: LoadedModel, cosine: Tensor, match: Tensor | None) -> Tensor:
    """Return the logit that ranks pairs, from their cosines and, if there are any, match logits."""
    return model.task.cosine_logit(cosine) if match is None else model.task.rerank_score(cosine, match)


def has_probability(model: LoadedModel) -> bool:
    """Whether a model has a match probability: ITM was trained with ITC or calibrated, or cosines are calibrated."""
    return model.task.can_search and (model.task.can_match or model.task.calibration is not None)


def explain_file(model: LoadedModel, image: ImageFile | Sequence[ImageFile], text: str) -> MatchExplanation:
    """Return :func:`explain_words` of an image file; raises ``DualfuseError`` and ``OSError`` as ``predict`` does."""
    sample = read_inputs(image, text)
    model.task.read_input(sample, model.processor)  # raises the errors of predict
    return explain_words(model, model.processor.image(sample.image, np.random.default_rng(0)), text_of(sample))
