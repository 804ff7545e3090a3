"""NLVR2: is a sentence true of two pictures?"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dualfuse.data.sample import Sample
from dualfuse.models.base import VisionLanguageModel
from dualfuse.tasks.answered import Accuracy, Asked
from dualfuse.tasks.base import Prep
from dualfuse.tasks.classification import (
    PairClassification,
    QuestionBatch,
    QuestionRow,
    label_of,
    question,
    together,
    with_label,
)

IDENTIFIER = re.compile(r"(?P<split>[^-]+)-(?P<set>\d+)-(?P<pair>\d+)-(?P<sentence>\d+)")


@dataclass(frozen=True)
class NLVR2Config:
    """What is told apart of two pictures and a text; the defaults are those of NLVR2 in VLMo.

    A sample has two pictures (KEY.jpg and KEY.1.jpg), one text, and in its json a "label", by name or number; "id" is
    NLVR2's identifier. The model needs a type for each picture: ``image_slots=2``.
    """

    labels: tuple[str, ...] = ("False", "True")
    """Names of the classes, in the order of their numbers."""
    hidden_scale: float = 2.0
    """Width inside the head, in parts of one fused vector's; BridgeTower's is 1.5."""
    dropout: float = 0.0
    """Before the head; BridgeTower's is 0.1."""

    def __post_init__(self) -> None:
        """Refuses labels that cannot be told apart."""
        if len(set(self.labels)) < max(2, len(self.labels)):
            raise ValueError(f"labels are {self.labels}; give two or more different names")

    def ask(self, sample: Sample, prep: Prep, rng: np.random.Generator) -> QuestionRow:
        """Reads both pictures and the text, and the label if there is one."""
        return question(sample, label_of(sample, self.labels), prep, rng, pictures=2)

    def read(self, sample: Sample, prep: Prep, rng: np.random.Generator) -> QuestionRow:
        """Reads both pictures, text and label; a flip of one picture is none of the other, as published."""
        return with_label(self.ask(sample, prep, rng), self.labels)

    def collate(self, rows: Sequence[QuestionRow]) -> QuestionBatch:
        """Pads the texts to the longest of them."""
        return together(rows)

    def build(self, model: VisionLanguageModel) -> NLVR2:
        """Gives the task with a fresh head."""
        return NLVR2(self, model)


class NLVR2(PairClassification):
    """The text with the first picture, the text with the second one, and a head on both vectors side by side."""

    def __init__(self, cfg: NLVR2Config, model: VisionLanguageModel) -> None:
        """Builds the head for two fused vectors."""
        super().__init__(cfg, model, cfg.labels, hidden_scale=cfg.hidden_scale, pictures=2, dropout=cfg.dropout)

    def metric(self) -> Consistency:
        """Gives a counter of what is right, and of sentences that are right with all their pictures."""
        return Consistency()


class Consistency(Accuracy):
    """Accuracy, and the share of sentences that were judged right with every pair of pictures they were asked of."""

    def __init__(self) -> None:
        """Nothing is counted yet."""
        super().__init__()
        self._always: dict[tuple[str, ...], bool] = {}

    def add(self, asked: Asked, answers: Sequence[str]) -> None:
        """Counts the best answer."""
        super().add(asked, answers)
        sentence = sentence_of(asked)
        self._always[sentence] = self._always.get(sentence, True) and (answers[0],) == asked.truth

    def result(self) -> dict[str, float]:
        """Gives what accuracy gives, and "consistency"."""
        always = {"consistency": sum(self._always.values()) / len(self._always)} if self._always else {}
        return super().result() | always


def sentence_of(asked: Asked) -> tuple[str, ...]:
    """Gives what all questions with one sentence share: NLVR2's identifier without the number of the pair.

    Its identifiers are SPLIT-SET-PAIR-SENTENCE; where they look otherwise, the sentence itself.
    """
    match = IDENTIFIER.fullmatch(str(asked.id))
    return match.group("split", "set", "sentence") if match else (asked.text,)
