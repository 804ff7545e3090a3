"""How the head of a checkpoint is asked: questions and labels, pairs, masked words, captions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from dualfuse.data.loader import Row
from dualfuse.data.sample import Sample
from dualfuse.engine.ahead import to_device
from dualfuse.hub import Loaded
from dualfuse.tasks.base import Prep
from dualfuse.tasks.captioning import Captioning
from dualfuse.tasks.classification import Classification, PairClassification
from dualfuse.tasks.masked_text import MaskedText
from dualfuse.tasks.pairs import Pairs
from dualfuse.tasks.segmentation import Segmentation
from dualfuse.use.blanks import BlankBatch, Blanks, fill, read_blanks
from dualfuse.use.prediction import Guess, Prediction


class Head(Protocol):
    """Reads what is asked, in any thread, and answers many at once."""

    def read(self, sample: Sample) -> Any:  # Any: each head has its own
        """Turns picture and text into a row; ``ValueError`` says why this head cannot answer them."""
        ...

    def answer(self, rows: Sequence[Any], top: int) -> list[Prediction]:  # Any: what read gives
        """Gives a prediction for each row of :meth:`read`."""
        ...


def head_of(model: Loaded) -> Head:
    """Gives what asks the head of a model; ``ValueError`` for one that answers nothing."""
    match model.task:
        case Classification() as task:
            return Answers(task, model.prep)
        case Pairs() as task:
            return PairAnswers(task, model.prep)
        case MaskedText() as task:
            return Words(task, model.prep)
        case Captioning() as task:
            return Captions(task, model.prep)
    if isinstance(model.task, Segmentation):
        raise ValueError(
            "this model names the class of every pixel, which is no line of text: dualfuse evaluate MODEL SHARDS "
            "--sheet maps.png draws it beside the first pictures of SHARDS"
        )
    raise ValueError(
        f"a {type(model.task).__name__} model answers nothing about a picture and a text; give one trained for "
        "questions, labels (entailment, NLVR2), pairs, masked words, or captions"
    )


class Answers:
    """Asks a head that answers with one of several names: of a picture, a picture and a text, or two and a text."""

    def __init__(self, task: Classification, prep: Prep) -> None:
        """``task`` is in evaluation mode."""
        self.task, self.prep = task, prep

    def read(self, sample: Sample) -> Row:
        """Reads as many pictures as the head compares, and the text if it looks at one."""
        _refuse_no_picture(sample)
        if isinstance(self.task, PairClassification):
            text_of(sample)
        row = self.task.cfg.ask(sample, self.prep, np.random.default_rng(0))
        _refuse_more(sample, len(row["images"]) if "images" in row else 1)
        if sample.texts and "ids" not in row:
            raise ValueError("this model looks at the picture alone; leave out the text")
        return row

    @torch.inference_mode()
    def answer(self, rows: Sequence[Row], top: int) -> list[Prediction]:
        """Gives the likeliest names."""
        batch = to_device(self.task.cfg.collate(rows), next(self.task.parameters()).device)
        best = self.task.predict(batch).topk(min(top, len(self.task.names)), dim=1)
        return [
            Prediction(
                tuple(Guess(self.task.names[n], p) for p, n in zip(values, numbers, strict=True)),
                is_cut="ids" in row and self.prep.text.encode(row["asked"].text).truncated,
            )
            for row, values, numbers in zip(rows, best.values.tolist(), best.indices.tolist(), strict=True)
        ]


@dataclass(frozen=True, eq=False)
class PairRow:
    """One picture (3, H, W), and a text that may have masks."""

    image: Tensor
    text: Blanks


class PairAnswers:
    """Asks whether picture and text belong together; or, of a text with masks, which words are hidden."""

    def __init__(self, task: Pairs, prep: Prep) -> None:
        """``task`` is in evaluation mode."""
        self.task, self.prep = task, prep

    def read(self, sample: Sample) -> PairRow:
        """Reads one picture and one text."""
        _refuse_no_picture(sample)
        _refuse_more(sample, 1)
        text = read_blanks(text_of(sample), self.prep.text)
        if len(text.places) and not self.task.cfg.words:
            raise ValueError("this model was trained without masked words; give a text without a mask")
        if not (len(text.places) or self.task.can_match or self.task.can_search):
            raise ValueError("this model only fills in words: put [MASK] where one is hidden")
        return PairRow(self.prep.image(sample.image, np.random.default_rng(0)), text)

    @torch.inference_mode()
    def answer(self, rows: Sequence[PairRow], top: int) -> list[Prediction]:
        """Answers texts with masks together, and those without."""
        said: dict[int, Prediction] = {}
        with_masks = [number for number, row in enumerate(rows) if len(row.text.places)]
        without = [number for number, row in enumerate(rows) if not len(row.text.places)]
        if with_masks:
            said |= zip(with_masks, self._fill([rows[number] for number in with_masks], top), strict=True)
        if without:
            said |= zip(without, self._compare([rows[number] for number in without]), strict=True)
        return [said[number] for number in range(len(rows))]

    def _fill(self, rows: Sequence[PairRow], top: int) -> list[Prediction]:
        images, texts = self._batch(rows)
        model = self.task.model
        fused = model.fuse(model.embed_image(images), model.embed_text(texts.ids, texts.mask), rows=texts.places)
        return fill([row.text for row in rows], self.task.word_head(fused.text), self.prep.text, top)

    def _compare(self, rows: Sequence[PairRow]) -> list[Prediction]:
        images, texts = self._batch(rows)
        image, text = self.task.model.embed_image(images), self.task.model.embed_text(texts.ids, texts.mask)
        match, cosine = [None] * len(rows), [None] * len(rows)
        if self.task.can_match:
            match = self.task.match_score(image, text).sigmoid().tolist()
        if self.task.can_search:
            cosine = (self.task.image_features(image) * self.task.text_features(text)).sum(1).tolist()
        return [
            Prediction(match=belongs, cosine=near, is_cut=row.text.is_cut)
            for row, belongs, near in zip(rows, match, cosine, strict=True)
        ]

    def _batch(self, rows: Sequence[PairRow]) -> tuple[Tensor, BlankBatch]:
        device = next(self.task.parameters()).device
        return torch.stack([row.image for row in rows]).to(device), BlankBatch.of([row.text for row in rows], device)


class Words:
    """Asks a model of text alone which words are hidden."""

    def __init__(self, task: MaskedText, prep: Prep) -> None:
        """``task`` is in evaluation mode."""
        self.task, self.prep = task, prep

    def read(self, sample: Sample) -> Blanks:
        """Reads a text with masks."""
        if sample.image:
            raise ValueError("this model learnt from text alone and looks at no picture; leave it out")
        text = read_blanks(text_of(sample), self.prep.text)
        if not len(text.places):
            raise ValueError("this model only fills in words: put [MASK] where one is hidden")
        return text

    @torch.inference_mode()
    def answer(self, rows: Sequence[Blanks], top: int) -> list[Prediction]:
        """Gives the likeliest word pieces."""
        batch = BlankBatch.of(rows, next(self.task.parameters()).device)
        states = self.task.model.states(self.task.model.embed_text(batch.ids, batch.mask), batch.places)
        return fill(rows, self.task.word_head(states), self.prep.text, top)


class Captions:
    """Asks what is on a picture."""

    def __init__(self, task: Captioning, prep: Prep) -> None:
        """``task`` is in evaluation mode."""
        self.task, self.prep = task, prep

    def read(self, sample: Sample) -> Tensor:
        """Reads one picture (3, H, W)."""
        _refuse_no_picture(sample)
        _refuse_more(sample, 1)
        if sample.texts:
            raise ValueError("this model writes captions and reads none; leave out the text")
        return self.prep.image(sample.image, np.random.default_rng(0))

    def answer(self, rows: Sequence[Tensor], top: int) -> list[Prediction]:
        """Gives the best captions, at most as many as the beam keeps."""
        images = torch.stack(list(rows)).to(next(self.task.parameters()).device)
        return [
            Prediction(tuple(Guess(each.text, each.probability) for each in captions[:top]))
            for captions in self.task.write(images, self.prep.text)
        ]


def text_of(sample: Sample) -> str:
    """Gives the text; ``ValueError`` if there is none."""
    if not sample.texts:
        raise ValueError("there is no text; give a question, a sentence, or one with [MASK]")
    return sample.texts[0]


def _refuse_no_picture(sample: Sample) -> None:
    if not sample.image:
        raise ValueError("there is no picture; this model looks at one")


def _refuse_more(sample: Sample, wanted: int) -> None:
    given = 1 + len(sample.others)
    if given > wanted:
        raise ValueError(f"{given} pictures are given, and this model looks at {wanted}")
