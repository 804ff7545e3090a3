"""What a model says of an image and a text."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ScoredAnswer:
    """One answer, label or token, and its probability."""

    answer: str
    probability: float


@dataclass(frozen=True)
class Prediction:
    """What a model says of its image and text; what its head does not say is empty."""

    answers: tuple[ScoredAnswer, ...] = ()
    """The likeliest answers or labels, best first. Those to a question need not add up to one."""
    match: float | None = None
    """Probability that image and text belong together, by the match head; as it trained it, among hard negatives."""
    cosine: float | None = None
    """Of the vectors that search compares."""
    words: tuple[tuple[ScoredAnswer, ...], ...] = ()
    """For each mask of the text, in its order, the likeliest tokens, best first."""
    filled: str = ""
    """The text with the likeliest token in each mask."""
    is_cut: bool = False
    """Whether the text is longer than what the model reads, so that its end was not seen."""

    def lines(self) -> list[str]:
        """Return what a person should see."""
        shown = _ranked(self.answers)
        if self.match is not None:
            shown.append(f"{100 * self.match:6.1f} %  that image and text belong together")
        if self.cosine is not None:
            shown.append(f"{self.cosine:8.4f}  cosine of their vectors")
        for number, guesses in enumerate(self.words, start=1):
            shown += [f"mask {number}:" if len(self.words) > 1 else "mask:", *_ranked(guesses)]
        return [*shown, self.filled] if self.filled else shown

    def record(self) -> dict[str, object]:
        """Return what is not empty, as JSON values."""
        said: dict[str, object] = {}
        if self.answers:
            said["answers"] = [vars(guess) for guess in self.answers]
        said |= {name: value for name, value in (("match", self.match), ("cosine", self.cosine)) if value is not None}
        if self.words:
            said |= {"words": [[vars(guess) for guess in guesses] for guesses in self.words], "filled": self.filled}
        return said | ({"is_cut": True} if self.is_cut else {})


def _ranked(guesses: tuple[ScoredAnswer, ...]) -> list[str]:
    return [f"{100 * guess.probability:6.1f} %  {guess.answer}" for guess in guesses]
