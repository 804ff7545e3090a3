"""Tasks that answer with one of several names, and those that read a text beside one or more images."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self, TypedDict

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tyro.constructors import PrimitiveConstructorSpec

from dualfuse.data.loader import Batch, Example, to_device
from dualfuse.data.processor import Processor
from dualfuse.data.sample import BrokenSample, Sample
from dualfuse.data.text.padding import pad_texts
from dualfuse.errors import DualfuseError
from dualfuse.evaluation.predictions import PredictedAnswer
from dualfuse.evaluation.runner import Evaluation, EvaluationData, EvaluationResult, Plan
from dualfuse.io import listing
from dualfuse.layers.heads import ClassificationHead
from dualfuse.metrics.accuracy import Accuracy, Metric, Question
from dualfuse.metrics.base import MetricInfo, shares
from dualfuse.metrics.vqa import read_vocabulary
from dualfuse.models.base import Fused, VisionLanguageModel, check_fusion
from dualfuse.tasks.base import Task, TaskConfig, TaskOutput
from dualfuse.tasks.prediction import Prediction, ScoredAnswer, check_images, text_of

Names = Annotated[
    tuple[str, ...],
    PrimitiveConstructorSpec(
        nargs=1,
        metavar="FILE",
        instance_from_str=lambda words: read_vocabulary(Path(words[0])),
        is_instance=lambda value: isinstance(value, tuple),
        str_from_instance=lambda names: [f"{len(names)} names"],
    ),
]
"""Names of classes or answers; on the command line a file with one name per line, in config.json the names."""

STACKED = ("image", "images", "target")


@dataclass(frozen=True)
class ClassesConfig(TaskConfig):
    """A number of classes and, if they are known, their names."""

    num_classes: int = 2
    labels: Names = ()

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Names of the classes."""
        return self.labels or tuple(map(str, range(self.num_classes)))

    def with_labels(self, labels: tuple[str, ...]) -> Self:
        """Return the config with ``labels``, unless it has its own or they are numbers below ``num_classes``.

        Raises DualfuseError if ``num_classes`` was set to another number.
        """
        if self.labels or set(labels) <= set(self.names):
            return self
        if self.num_classes not in (type(self).num_classes, len(labels)):
            raise DualfuseError(
                f"task.num_classes is {self.num_classes}, but the data has a labels.txt with {len(labels)} names; give "
                "the names with --task.labels FILE, or remove that file"
            )
        return replace(self, labels=labels)


class QuestionExample(TypedDict):
    """Images (P, 3, H, W), one text (T,), and the question; in training also a target: an index, or scores (C,)."""

    images: Tensor
    ids: np.ndarray
    question: Question


class QuestionConfig(TaskConfig):
    """A config that also reads unlabelled samples."""

    def metrics(self, plan: Plan) -> tuple[MetricInfo, ...]:
        """Declare the accuracy, and accuracies per label, type or number of answers."""
        return shares("accuracy", "accuracy/*")

    @abstractmethod
    def read_question(self, sample: Sample, processor: Processor, rng: np.random.Generator) -> Example:
        """Return an example with its "question" and without target, whether or not the sample is labelled."""

    def collate(self, examples: Sequence[Any]) -> Batch:  # Any: what read and read_question return
        """Return a batch of examples that all have a target, or all have none; texts are padded to the longest one.

        In training it has the "target": class indices (B,) or scores (B, C); otherwise it has the "questions".
        """
        columns = {name: [example[name] for example in examples] for name in examples[0]}
        batch: dict[str, Any] = {name: torch.stack(columns[name]) for name in STACKED if name in columns}
        if "ids" in columns:
            batch["ids"], batch["mask"] = pad_texts(columns["ids"])
        return batch if "target" in columns else batch | {"questions": tuple(columns["question"])}


class PairQuestionConfig(QuestionConfig):
    """Reads ``num_images`` images, one text, and a label; a base class of frozen dataclasses."""

    labels: tuple[str, ...]
    num_images: ClassVar[int] = 1

    def __post_init__(self) -> None:
        """Validate the labels."""
        check_names(self.labels)

    def read_question(self, sample: Sample, processor: Processor, rng: np.random.Generator) -> QuestionExample:
        """Read images and text, and the label if there is one."""
        return read_question(sample, label_of(sample, self.labels), processor, rng, self.num_images)

    def read(self, sample: Sample, processor: Processor, rng: np.random.Generator) -> Example:
        """Read images, text and label; every image is augmented independently."""
        return with_label(self.read_question(sample, processor, rng), self.labels)


def check_names(names: Sequence[str]) -> None:
    """Raise DualfuseError for fewer than two names, and for duplicates."""
    if len(set(names)) < max(2, len(names)):
        raise DualfuseError(
            f"{len(names)} names of classes, {len(set(names))} of them different; give two or more, one per line of a "
            "file, with --task.labels FILE"
        )


def read_question(
    sample: Sample, target: tuple[str, ...], processor: Processor, rng: np.random.Generator, num_images: int = 1
) -> QuestionExample:
    """Return the first ``num_images`` images and the text; ``BrokenSample`` if one is missing."""
    if len(sample.texts) != 1:
        raise BrokenSample(sample.key, f"it has {len(sample.texts)} texts; one is needed, so write a sample for each")
    if 1 + len(sample.other_images) < num_images:
        raise BrokenSample(sample.key, f"it has {1 + len(sample.other_images)} images of the {num_images} needed")
    images = [processor.image(image, rng) for image in (sample.image, *sample.other_images)[:num_images]]
    return {
        "images": torch.stack(images),
        "ids": processor.text.encode(sample.texts[0]).ids,
        "question": question_of(sample, target),
    }


def question_of(sample: Sample, target: tuple[str, ...]) -> Question:
    """Return the question of a sample, whose text may be missing."""
    name = sample.meta.get("id", sample.key)
    if not isinstance(name, str | int):
        raise BrokenSample(sample.key, f'its "id" is a {type(name).__name__}; a string or a number is needed')
    return Question(sample.key, name, "".join(sample.texts[:1]), target, str(sample.meta.get("answer_type", "")))


def label_of(sample: Sample, labels: Sequence[str]) -> tuple[str, ...]:
    """Return the "label" of a sample, by name or index; empty if it has none, ``BrokenSample`` if it is unknown."""
    label = sample.meta.get("label")
    if label is None:
        return ()
    if str(label) in labels:
        return (str(label),)
    if isinstance(label, int) and 0 <= label < len(labels):
        return (labels[label],)
    raise BrokenSample(
        sample.key,
        f"its label is {label!r}; the labels of the task are {listing(labels, 20)}; "
        "give all of them, one per line, with --task.labels FILE",
    )


def with_label(example: Example, labels: Sequence[str]) -> dict[str, Any]:  # Any: see Example
    """Return a training example, whose target is the index of its label; ``BrokenSample`` without a label."""
    question: Question = example["question"]
    if not question.target:
        raise BrokenSample(question.key, 'it has no "label" in its json')
    return {**example, "target": torch.tensor(labels.index(question.target[0]))}


class Classification(Task):
    """Answers with one of ``names``."""

    cfg: QuestionConfig
    writes_predictions = True
    top_k = 1
    """The number of best names that ``metric`` needs."""
    metric: ClassVar[type[Metric]] = Accuracy

    def __init__(self, cfg: QuestionConfig, model: VisionLanguageModel, names: tuple[str, ...]) -> None:
        """Store the parts; subclasses build the head."""
        super().__init__()
        self.cfg, self.model, self.names = cfg, model, names

    @abstractmethod
    def logits(self, batch: Any) -> Tensor:  # Any: what its config's collate returns
        """Return logits (B, C) in float32."""

    def forward(self, batch: Any) -> TaskOutput:  # Any: what its config's collate returns
        """Return the loss of a batch with targets."""
        assert "target" in batch, "a batch of read_question() has no targets"
        return self.loss(self.logits(batch), batch["target"])

    def loss(self, logits: Tensor, target: Tensor) -> TaskOutput:
        """Return the cross-entropy of logits (B, C) and class indices (B,)."""
        loss = F.cross_entropy(logits, target)
        accuracy = (logits.argmax(1) == target).float().mean()
        return TaskOutput(loss, {"loss": loss.detach(), "accuracy": accuracy})

    def new_metric(self) -> Metric:
        """Return the numbers of an evaluation, before the first question."""
        return self.metric()

    def probabilities(self, batch: Any) -> Tensor:  # Any: what its config's collate returns
        """Return the probability (B, C) of each name."""
        return self.logits(batch).softmax(1)

    @torch.inference_mode()
    def evaluate(self, data: EvaluationData, plan: Plan) -> EvaluationResult:
        """Answer every sample, and compute the numbers of ``metric`` over labelled ones.

        An unlabelled set, such as a test set, gives predictions and no metrics. Annotators' answers beyond the task's
        vocabulary count: no prediction can match them.
        """
        run = Evaluation(self, data, plan)
        metric, predictions, labelled = self.new_metric(), list[PredictedAnswer](), 0
        for batch in run.batches(self.cfg.read_question, self.cfg.collate, what="questions"):
            probabilities = self.probabilities(batch)
            best = self._best(probabilities, self.top_k)
            for question, answers, row in zip(batch["questions"], best, probabilities, strict=True):
                predictions.append(self._predicted(question, answers, row if plan.answers else None))
                if question.target:
                    metric.add(question, [each.answer for each in answers])
                    labelled += 1
        size = f"{len(predictions)} questions, {labelled} of them labelled"
        return run.result(metric.result(), size, predictions)

    def read_input(self, sample: Sample, processor: Processor) -> Example:
        """Read an image, and no text."""
        check_images(sample)
        if sample.texts:
            raise DualfuseError("this model takes an image alone; omit the text")
        return self.cfg.read_question(sample, processor, np.random.default_rng(0))

    def predict(self, inputs: Sequence[Any], processor: Processor, top: int) -> list[Prediction]:
        """Return the most probable names."""
        batch = to_device(self.cfg.collate(inputs), self.device)
        return [
            Prediction(answers, is_cut=processor.text.encode(example["question"].text).truncated)
            for example, answers in zip(inputs, self._best(self.probabilities(batch), top), strict=True)
        ]

    def sample_loss(self, probabilities: Tensor, target: Sequence[str]) -> float | None:
        """Return the cross-entropy, in nats, of the target of one sample; None if it is not among the names.

        ``probabilities`` (C,) are those of :meth:`probabilities`.
        """
        [name] = target
        smallest = torch.finfo(torch.float32).tiny
        return -float(probabilities[self.names.index(name)].clamp(min=smallest).log()) if name in self.names else None

    def sample_accuracy(self, answer: str, target: Sequence[str]) -> float | None:
        """Return the accuracy, from 0 to 1, of an answer to one sample."""
        return float(answer == target[0])

    def _predicted(
        self, question: Question, answers: Sequence[ScoredAnswer], probabilities: Tensor | None
    ) -> PredictedAnswer:
        """Return the best answer; with ``probabilities`` (C,) also its accuracy and the loss."""
        best = PredictedAnswer(question.key, question.id, answers[0].answer, answers[0].probability)
        if probabilities is None or not question.target:
            return best
        correct = self.sample_accuracy(best.answer, question.target)
        loss = self.sample_loss(probabilities, question.target)
        return replace(best, target=question.target, correct=correct, loss=loss)

    def _best(self, probabilities: Tensor, top: int) -> list[tuple[ScoredAnswer, ...]]:
        best = probabilities.topk(min(top, len(self.names)), dim=1)
        return [
            tuple(ScoredAnswer(self.names[index], value) for value, index in zip(values, indices, strict=True))
            for values, indices in zip(best.values.tolist(), best.indices.tolist(), strict=True)
        ]


class PairClassification(Classification):
    """Fuses each image with the text, and classifies the concatenated pooled states."""

    def __init__(
        self,
        cfg: QuestionConfig,
        model: VisionLanguageModel,
        names: tuple[str, ...],
        *,
        hidden_scale: float,
        images: int = 1,
        dropout: float = 0.0,
    ) -> None:
        """The hidden layer of the head has ``hidden_scale`` times the width of one pooled state."""
        super().__init__(cfg, model, names)
        check_fusion(model)
        self.images, width = images, model.fused_width
        self.dropout = nn.Dropout(dropout)
        self.classifier = ClassificationHead(images * width, round(width * hidden_scale), len(names))

    def logits(self, batch: Batch) -> Tensor:
        """Return logits (B, C) in float32 of images (B, P, 3, H, W) and ids, mask (B, T), which are embedded once."""
        text = self.model.embed_text(batch["ids"], batch["mask"])
        no_states = batch["ids"].new_zeros(len(text), 0)
        pairs = [
            self.model.fuse(self.model.embed_image(images, slot), text, positions=no_states).pooled
            for slot, images in enumerate(batch["images"].unbind(1))
        ]
        return self.classifier(self.dropout(torch.cat(pairs, dim=1))).float()

    def read_input(self, sample: Sample, processor: Processor) -> Example:
        """Read the images and the text."""
        check_images(sample, self.images)
        text_of(sample)
        return self.cfg.read_question(sample, processor, np.random.default_rng(0))

    def explained_logit(self, fused: Sequence[Fused]) -> tuple[str, Tensor]:
        """Return the best answer and its logit."""
        logits = self.classifier(torch.cat([each.pooled for each in fused], dim=1))[0]
        best = int(logits.argmax())
        return self.names[best], logits[best]
