"""The contract of tasks: what a task is trained on, evaluated by, and predicts."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor, nn

from dualfuse.data.loader import Batch, Collate, Example
from dualfuse.data.map_dataset import MapDataset
from dualfuse.data.processor import Processor
from dualfuse.data.sample import Sample
from dualfuse.data.shards.shards import Shards
from dualfuse.data.text.tokenizer import TextTransform
from dualfuse.errors import DualfuseError
from dualfuse.evaluation.notes import Reranking
from dualfuse.evaluation.predictions import SampleLoss
from dualfuse.evaluation.runner import Evaluation, EvaluationData, EvaluationResult, Plan, Read
from dualfuse.metrics.base import LOSS, MetricInfo, find_metric
from dualfuse.metrics.calibration import Calibration
from dualfuse.models.base import Fused, Tokens, VisionLanguageModel
from dualfuse.tasks.prediction import Prediction


@dataclass(frozen=True)
class TaskOutput:
    """The loss of one batch, and detached scalars for the log."""

    loss: Tensor
    log: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])


KEYS = "keys of samples"
"""Key in a batch of :func:`keyed_batches`."""


def keyed_batches(cfg: TaskConfig, run: Evaluation, what: str) -> Iterator[tuple[Batch, Sequence[str]]]:
    """Yield batches of training examples with the keys of their samples; of one sample each with ``plan.answers``."""
    size = 1 if run.plan.answers else 0
    read, collate = partial(_keyed, cfg.read), partial(_with_keys, cfg.collate)
    for batch in run.batches(read, collate, what=what, batch_size=size):
        yield {name: value for name, value in batch.items() if name != KEYS}, batch[KEYS]


def _keyed(read: Read, sample: Sample, processor: Processor, rng: np.random.Generator) -> Example:
    return {KEYS: sample.key, "example": read(sample, processor, rng)}


def _with_keys(collate: Collate, examples: Sequence[Any]) -> Batch:  # Any: results of _keyed
    keys = tuple(example[KEYS] for example in examples)
    return {**collate([example["example"] for example in examples]), KEYS: keys}


def detached(log: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the values without their gradient, for :attr:`TaskOutput.log`."""
    return {name: value.detach() for name, value in log.items()}


class TaskConfig(ABC):
    """A frozen dataclass that reads samples in loader workers and builds its task."""

    training_data: ClassVar[str] = "SHARDS (dualfuse prepare makes them)"
    """What ``data.train`` names, for error messages."""
    reads_text: ClassVar[bool] = True
    """Whether the text embedding of the model is trained."""
    trains_tokenizer: ClassVar[bool] = False
    """Whether the model becomes a visual tokenizer, which a later recipe of the same run can name."""
    pipeline_tag: ClassVar[str] = ""
    """Name of the task on the Hugging Face hub; empty: none."""
    example: ClassVar[str] = ""
    """A line of Python that uses a model of this task, for model cards."""

    @abstractmethod
    def read(self, sample: Sample, processor: Processor, rng: np.random.Generator) -> Example:
        """Return one training example; raise ``BrokenSample`` for a sample that cannot be used."""

    @abstractmethod
    def collate(self, examples: Sequence[Any]) -> Batch:  # Any: what read returns
        """Return a batch of examples, padded to the longest."""

    def metrics(self, plan: Plan) -> tuple[MetricInfo, ...]:
        """Declare the metrics that the task's evaluation returns with ``plan``.

        Only declared metrics can select the best model of a run; others are printed as plain numbers.
        """
        return (LOSS,)

    @abstractmethod
    def build(self, model: Any) -> Task:  # Any: what the model's config builds
        """Return the task with freshly initialised heads on ``model``."""

    @property
    def visual_tokenizer(self) -> tuple[str, int, int] | None:
        """Path or recipe of the visual tokenizer that the task predicts, its codes and its stride; None: none."""
        return None

    def with_labels(self, labels: tuple[str, ...]) -> Self:
        """Return the config for data of which labels.txt names the classes; by default they make no difference."""
        return self

    def open_data(self, sources: Sequence[str], text: TextTransform) -> tuple[MapDataset, ...]:
        """Open sets of training or validation data; every process calls this with the same ``sources``."""
        return tuple(Shards.open(source) for source in sources)


class Task(nn.Module, ABC):
    """A model with the heads and the loss of one task.

    A subclass sets ``cfg`` and ``model`` and implements :meth:`forward`. By default it is evaluated by the mean of
    what it logs in training, predicts nothing, and cannot retrieve; it overrides the methods for what it can do.
    """

    calibration: Calibration | None = None
    """How scores become probabilities, from the model folder; None: not calibrated."""
    reranking: Reranking | None = None
    """Recall on a validation set with and without re-ranking, from the model folder; None: not measured."""
    cfg: Any  # Any: the TaskConfig that built it; subclasses declare its type
    model: VisionLanguageModel
    writes_predictions: bool = False
    """Whether :meth:`evaluate` returns predictions."""
    averages_views: bool = False
    """Whether :meth:`evaluate` averages over the ``scales`` and the ``flip`` of its plan."""
    can_draw: bool = False
    """Whether :meth:`draw` is implemented."""

    @abstractmethod
    def forward(self, batch: Any) -> TaskOutput:  # Any: what cfg.collate returns
        """Return the loss of one batch."""

    @property
    def has_sample_results(self) -> bool:
        """Whether :meth:`evaluate` returns a result of each sample with ``plan.answers``, as the default one does."""
        return type(self).evaluate is Task.evaluate

    @property
    def device(self) -> torch.device:
        """The device of the parameters."""
        return next(self.parameters()).device

    @torch.inference_mode()
    def evaluate(self, data: EvaluationData, plan: Plan) -> EvaluationResult:
        """Return named numbers for a set; by default the means over samples of the values logged in training.

        A value of a batch counts once per sample. Metrics declared with ``whole_set`` are omitted, because a mean of
        batches is not their value. Random draws of ``cfg.read`` depend on the number of the sample alone.
        """
        run, sums, samples = Evaluation(self, data, plan), dict[str, float](), 0
        losses: list[SampleLoss] = []
        for batch, keys in keyed_batches(self.cfg, run, "samples"):
            output = self(batch)
            for name, value in output.log.items():
                sums[name] = sums.get(name, 0.0) + float(value) * len(keys)
            samples += len(keys)
            losses += [SampleLoss(keys[0], float(output.loss))] if plan.answers else []
        infos = {name: find_metric(self.cfg.metrics(plan), name) for name in sums}
        averaged = {name: sums[name] / samples for name, info in infos.items() if not (info and info.whole_set)}
        return run.result(averaged, f"{len(data.samples)} samples", losses)

    def draw(self, data: EvaluationData, path: Path) -> None:
        """Draw predictions for the first images of a set into an image file."""
        raise DualfuseError(f"a {type(self).__name__} model draws nothing")

    def read_input(self, sample: Sample, processor: Processor) -> Any:  # Any: what predict takes
        """Turn an image, a text or both into an input of :meth:`predict`, in any thread.

        Raises DualfuseError with the reason if the task cannot take them.
        """
        raise DualfuseError(
            f"a {type(self).__name__} model predicts nothing for an image and a text; use one trained for questions, "
            "labels (entailment, NLVR2), pairs, masked words, or captions"
        )

    def predict(self, inputs: Sequence[Any], processor: Processor, top: int) -> list[Prediction]:
        """Return a prediction with at most ``top`` answers for each result of :meth:`read_input`; runs without grad."""
        raise NotImplementedError(f"{type(self).__name__} implements read_input without predict")

    def explained_logit(self, fused: Sequence[Fused]) -> tuple[str, Tensor]:
        """Return the answer for one text fused with each of its images, and the logit it has; used by ``explain``."""
        raise DualfuseError(
            f"the answers of a {type(self).__name__} model do not come from a fused image and text; use one trained "
            "for questions, labels (entailment, NLVR2), or pairs with ITM"
        )

    @property
    def initial_copies(self) -> Mapping[str, str]:
        """Names of tensors that start as copies of others, if the initial weights lack them; by default none."""
        return {}

    @property
    def can_search(self) -> bool:
        """Whether the embeddings of :meth:`image_features` and :meth:`text_features` were trained (by ITC)."""
        return False

    @property
    def can_match(self) -> bool:
        """Whether :meth:`match_logit` was trained, so that pairs can be scored and candidates re-ranked."""
        return False

    def check_search(self) -> None:
        """Raise DualfuseError if the task has no trained embeddings."""
        if not self.can_search:
            raise DualfuseError(
                f"this {type(self).__name__} model was trained without ITC and cannot search: it has no embeddings to "
                "compare; use one trained on pairs with ITC"
            )

    def image_features(self, image: Tokens) -> Tensor:
        """Return unit embeddings (B, D), comparable with :meth:`text_features`; DualfuseError if untrained."""
        self.check_search()
        raise NotImplementedError

    def text_features(self, text: Tokens) -> Tensor:
        """Return unit embeddings (B, D), comparable with :meth:`image_features`; DualfuseError if untrained."""
        self.check_search()
        raise NotImplementedError

    def match_logit(self, image: Tokens, text: Tokens) -> Tensor:
        """Return the log-odds (B,) that image and text match; DualfuseError if they are untrained."""
        raise DualfuseError(f"this {type(self).__name__} model was trained without ITM and cannot re-rank")

    def cosine_logit(self, cosine: Tensor) -> Tensor:
        """Return the logit of cosines of image and text features, as the contrastive loss scales them."""
        return self.rerank_score(cosine, torch.zeros_like(cosine))

    def fused_score(self, cosine: Tensor, match: Tensor) -> Tensor:
        """Return what the fusion encoder alone says of pairs, from their cosines and match logits of the same shape."""
        return match

    def rerank_score(self, cosine: Tensor, match: Tensor) -> Tensor:
        """Return the score that orders candidates, from their cosines and match logits of the same shape."""
        return match

    def pair_probability(self, cosine: Tensor, match: Tensor | None = None) -> Tensor | None:
        """Return the probability that an image and a text match, from their cosine and match logit of the same shape.

        Calibrated for pairs of which half are right (:class:`~dualfuse.metrics.calibration.Mix`). Without calibration
        it is the sigmoid of ``match``, as ITM trained it, or None without ``match``.
        """
        if self.calibration is None:
            return None if match is None else match.sigmoid()
        if match is None or self.calibration.match is None:
            return self.calibration.cosine.pair.probability(cosine)
        return self.calibration.match.pair.probability(self.rerank_score(cosine, match))

    def hit_probability(self, cosine: Tensor, match: Tensor | None = None) -> Tensor | None:
        """Return the probability that a hit of a search shows what the text describes; None without calibration.

        ``match`` is the match logit of a re-ranked hit. Of the hits that were calibrated on, a few in a hundred are
        right, so the probability is lower than that of a pair with the same scores.
        """
        if self.calibration is None:
            return None
        if match is None or self.calibration.match is None:
            return self.calibration.cosine.hit.probability(cosine)
        return self.calibration.match.hit.probability(self.rerank_score(cosine, match))
