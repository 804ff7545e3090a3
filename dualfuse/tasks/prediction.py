"""The prediction of a task for one image, one text, or both."""

from __future__ import annotations

from dataclasses import dataclass

from dualfuse.data.sample import Sample
from dualfuse.errors import DualfuseError


@dataclass(frozen=True)
class ScoredAnswer:
    """An answer, label, caption or token, and its probability."""

    answer: str
    probability: float


@dataclass(frozen=True)
class Prediction:
    """The outputs of a task's heads; empty for heads that the task lacks."""

    answers: tuple[ScoredAnswer, ...] = ()
    """The most probable answers, labels or captions, best first. Those of VQA need not add up to one."""
    match: float | None = None
    """Probability that image and text match: calibrated, if the model is, else that of the ITM head as trained."""
    cosine: float | None = None
    """Cosine of the embeddings of image and text."""
    words: tuple[tuple[ScoredAnswer, ...], ...] = ()
    """The most probable tokens of each mask of the text, best first."""
    filled: str = ""
    """The text with the most probable token in each mask."""
    is_cut: bool = False
    """Whether the text was truncated to the length that the model reads."""

    def lines(self) -> list[str]:
        """Return the prediction as lines of text."""
        lines = _ranked(self.answers)
        if self.match is not None:
            lines.append(f"{100 * self.match:6.1f} %  that image and text belong together")
        if self.cosine is not None:
            lines.append(f"{self.cosine:8.4f}  cosine of their embeddings")
        for number, tokens in enumerate(self.words, start=1):
            lines += [f"mask {number}:" if len(self.words) > 1 else "mask:", *_ranked(tokens)]
        return [*lines, self.filled] if self.filled else lines

    def record(self) -> dict[str, object]:
        """Return the fields that are not empty, as JSON values."""
        record: dict[str, object] = {}
        if self.answers:
            record["answers"] = [vars(answer) for answer in self.answers]
        record |= {name: value for name, value in (("match", self.match), ("cosine", self.cosine)) if value is not None}
        if self.words:
            record |= {"words": [[vars(token) for token in tokens] for tokens in self.words], "filled": self.filled}
        return record | ({"is_cut": True} if self.is_cut else {})


def _ranked(answers: tuple[ScoredAnswer, ...]) -> list[str]:
    return [f"{100 * answer.probability:6.1f} %  {answer.answer}" for answer in answers]


def text_of(sample: Sample) -> str:
    """Return the text of an input; DualfuseError if there is none."""
    if not sample.texts:
        raise DualfuseError("there is no text; give a question, a sentence, or one with [MASK]")
    return sample.texts[0]


def check_images(sample: Sample, number: int = 1) -> None:
    """Raise DualfuseError for an input without an image, or with more than ``number``."""
    if not sample.image:
        raise DualfuseError("there is no image; this model takes one")
    images = 1 + len(sample.other_images)
    if images > number:
        raise DualfuseError(f"{images} images are given, but this model takes {number}")
