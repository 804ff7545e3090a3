"""How the head of a checkpoint is asked: questions and labels, pairs, masked words, captions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from dualfuse.data.loader import Example
from dualfuse.data.sample import Sample
from dualfuse.errors import DualfuseError
from dualfuse.hub import LoadedModel
from dualfuse.inference.fill_mask import MaskedQuery, MaskedQueryBatch, fill_masks, read_masked
from dualfuse.inference.prediction import Prediction, ScoredAnswer
from dualfuse.tasks.base import Processor
from dualfuse.tasks.finetune.captioning import Captioning
from dualfuse.tasks.finetune.classification import Classification, PairClassification
from dualfuse.tasks.finetune.segmentation import Segmentation
from dualfuse.tasks.pretrain.masked_text import MaskedText
from dualfuse.tasks.pretrain.pairs import Pairs
from dualfuse.training.prefetch import to_device


class Head(Protocol):
    """Reads what is asked, in any thread, and answers many at once."""

    def read(self, sample: Sample) -> Any:  # Any: each head has its own
        """Turn image and text into a row; ``DualfuseError`` says why this head cannot answer them."""
        ...

    def answer(self, rows: Sequence[Any], top: int) -> list[Prediction]:  # Any: what read gives
        """Return a prediction for each row of :meth:`read`."""
        ...


def head_of(model: LoadedModel) -> Head:
    """Return what asks the head of a model; ``DualfuseError`` for one that answers nothing."""
    match model.task:
        case Classification() as task:
            return Answers(task, model.processor)
        case Pairs() as task:
            return PairAnswers(task, model.processor)
        case MaskedText() as task:
            return Words(task, model.processor)
        case Captioning() as task:
            return Captions(task, model.processor)
    if isinstance(model.task, Segmentation):
        raise DualfuseError(
            "this model names the class of every pixel, which is no line of text: dualfuse evaluate MODEL SHARDS "
            "--save-image maps.png draws it beside the first images of SHARDS"
        )
    raise DualfuseError(
        f"a {type(model.task).__name__} model answers nothing about an image and a text; give one trained for "
        "questions, labels (entailment, NLVR2), pairs, masked words, or captions"
    )


class Answers:
    """Asks a head that answers with one of several names: of an image, an image and a text, or two and a text."""

    def __init__(self, task: Classification, processor: Processor) -> None:
        """``task`` is in evaluation mode."""
        self.task, self.processor = task, processor

    def read(self, sample: Sample) -> Example:
        """Read as many images as the head compares, and the text if it looks at one."""
        _refuse_no_image(sample)
        if isinstance(self.task, PairClassification):
            text_of(sample)
        row = self.task.cfg.read_question(sample, self.processor, np.random.default_rng(0))
        _refuse_more(sample, len(row["images"]) if "images" in row else 1)
        if sample.texts and "ids" not in row:
            raise DualfuseError("this model looks at the image alone; leave out the text")
        return row

    @torch.inference_mode()
    def answer(self, rows: Sequence[Example], top: int) -> list[Prediction]:
        """Return the likeliest names."""
        batch = to_device(self.task.cfg.collate(rows), next(self.task.parameters()).device)
        best = self.task.probabilities(batch).topk(min(top, len(self.task.names)), dim=1)
        return [
            Prediction(
                tuple(ScoredAnswer(self.task.names[n], p) for p, n in zip(values, numbers, strict=True)),
                is_cut="ids" in row and self.processor.text.encode(row["asked"].text).truncated,
            )
            for row, values, numbers in zip(rows, best.values.tolist(), best.indices.tolist(), strict=True)
        ]


@dataclass(frozen=True, eq=False)
class PairRow:
    """One image (3, H, W), and a text that may have masks."""

    image: Tensor
    text: MaskedQuery


class PairAnswers:
    """Asks whether image and text belong together; or, of a text with masks, which words are hidden."""

    def __init__(self, task: Pairs, processor: Processor) -> None:
        """``task`` is in evaluation mode."""
        self.task, self.processor = task, processor

    def read(self, sample: Sample) -> PairRow:
        """Read one image and one text."""
        _refuse_no_image(sample)
        _refuse_more(sample, 1)
        text = read_masked(text_of(sample), self.processor.text)
        if len(text.places) and not self.task.cfg.mlm_weight:
            raise DualfuseError("this model was trained without masked words; give a text without a mask")
        if not (len(text.places) or self.task.can_match or self.task.can_search):
            raise DualfuseError("this model only fills in words: put [MASK] where one is hidden")
        return PairRow(self.processor.image(sample.image, np.random.default_rng(0)), text)

    @torch.inference_mode()
    def answer(self, rows: Sequence[PairRow], top: int) -> list[Prediction]:
        """Answer texts with masks together, and those without."""
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
        fused = model.fuse(model.embed_image(images), model.embed_text(texts.ids, texts.mask), positions=texts.places)
        return fill_masks([row.text for row in rows], self.task.mlm_head(fused.text), self.processor.text, top)

    def _compare(self, rows: Sequence[PairRow]) -> list[Prediction]:
        images, texts = self._batch(rows)
        image, text = self.task.model.embed_image(images), self.task.model.embed_text(texts.ids, texts.mask)
        match, cosine = [None] * len(rows), [None] * len(rows)
        if self.task.can_match:
            match = self.task.match_logit(image, text).sigmoid().tolist()
        if self.task.can_search:
            cosine = (self.task.image_features(image) * self.task.text_features(text)).sum(1).tolist()
        return [
            Prediction(match=belongs, cosine=near, is_cut=row.text.is_cut)
            for row, belongs, near in zip(rows, match, cosine, strict=True)
        ]

    def _batch(self, rows: Sequence[PairRow]) -> tuple[Tensor, MaskedQueryBatch]:
        device = next(self.task.parameters()).device
        return torch.stack([row.image for row in rows]).to(device), MaskedQueryBatch.of(
            [row.text for row in rows], device
        )


class Words:
    """Asks a model of text alone which words are hidden."""

    def __init__(self, task: MaskedText, processor: Processor) -> None:
        """``task`` is in evaluation mode."""
        self.task, self.processor = task, processor

    def read(self, sample: Sample) -> MaskedQuery:
        """Read a text with masks."""
        if sample.image:
            raise DualfuseError("this model trained from text alone and looks at no image; leave it out")
        text = read_masked(text_of(sample), self.processor.text)
        if not len(text.places):
            raise DualfuseError("this model only fills in words: put [MASK] where one is hidden")
        return text

    @torch.inference_mode()
    def answer(self, rows: Sequence[MaskedQuery], top: int) -> list[Prediction]:
        """Return the likeliest tokens."""
        batch = MaskedQueryBatch.of(rows, next(self.task.parameters()).device)
        states = self.task.model.token_states(self.task.model.embed_text(batch.ids, batch.mask), batch.places)
        return fill_masks(rows, self.task.mlm_head(states), self.processor.text, top)


class Captions:
    """Asks what is on an image."""

    def __init__(self, task: Captioning, processor: Processor) -> None:
        """``task`` is in evaluation mode."""
        self.task, self.processor = task, processor

    def read(self, sample: Sample) -> Tensor:
        """Read one image (3, H, W)."""
        _refuse_no_image(sample)
        _refuse_more(sample, 1)
        if sample.texts:
            raise DualfuseError("this model writes captions and reads none; leave out the text")
        return self.processor.image(sample.image, np.random.default_rng(0))

    def answer(self, rows: Sequence[Tensor], top: int) -> list[Prediction]:
        """Return the best captions, at most as many as the beam keeps."""
        images = torch.stack(list(rows)).to(next(self.task.parameters()).device)
        return [
            Prediction(tuple(ScoredAnswer(each.text, each.probability) for each in captions[:top]))
            for captions in self.task.generate(images, self.processor.text)
        ]


def text_of(sample: Sample) -> str:
    """Return the text; ``DualfuseError`` if there is none."""
    if not sample.texts:
        raise DualfuseError("there is no text; give a question, a sentence, or one with [MASK]")
    return sample.texts[0]


def _refuse_no_image(sample: Sample) -> None:
    if not sample.image:
        raise DualfuseError("there is no image; this model looks at one")


def _refuse_more(sample: Sample, wanted: int) -> None:
    given = 1 + len(sample.other_images)
    if given > wanted:
        raise DualfuseError(f"{given} images are given, and this model looks at {wanted}")
