"""What an image shows, without any text: ImageNet, and any other classification of images into named classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal, NotRequired, TypedDict

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tyro.constructors import PrimitiveConstructorSpec

from dualfuse.data.image.mixup import Mixup
from dualfuse.data.image.random_erasing import erase
from dualfuse.data.sample import BrokenSample, Sample
from dualfuse.errors import DualfuseError
from dualfuse.metrics.accuracy import Metric, Question, TopAccuracy
from dualfuse.metrics.vqa import read_vocabulary
from dualfuse.models.base import VisionLanguageModel
from dualfuse.tasks.base import Processor, TaskOutput
from dualfuse.tasks.finetune.classification import Classification, label_of, question_of

STD = 0.02

Labels = Annotated[
    tuple[str, ...],
    PrimitiveConstructorSpec(
        nargs=1,
        metavar="FILE",
        instance_from_str=lambda words: read_vocabulary(Path(words[0])),
        is_instance=lambda value: isinstance(value, tuple),
        str_from_instance=lambda labels: [f"{len(labels)} labels"],
    ),
]
"""Names of classes, on the command line the file that holds them, one a line: they travel in a model's config.json."""


class ImageExample(TypedDict):
    """One image (3, H, W), who asked; and to be trained the number of its class."""

    image: Tensor
    asked: Question
    target: NotRequired[int]


class ImageBatch(TypedDict):
    """B images (B, 3, H, W); to be trained with ``target`` (B,), to be answered with who ``asked``."""

    image: Tensor
    target: NotRequired[Tensor]
    asked: NotRequired[tuple[Question, ...]]


@dataclass(frozen=True)
class ImageClassificationConfig:
    """Which classes are told apart, by what of the model, and how training images are varied beyond ``data``.

    A sample has in its json a "label", by name or number; texts are not looked at. With ``train_only`` ("head.*",) a
    linear probe: the model is frozen.
    """

    num_classes: int = 1000
    """Number of classes where there are no names, as in converted checkpoints: they are called 0, 1, 2, ..."""
    labels: Labels = ()
    """Names of the classes in the order of their numbers."""
    features: Literal["patches", "first"] = "patches"
    """What is classified: the mean over patches, before the last norm and through one of its own (BEiT); or the state
    of the first token. A model that keeps no states of patches alone has the latter only."""
    head_scale: float = 0.001
    """What the first weights of the head are multiplied by."""
    label_smoothing: float = 0.0
    """Share of the target that goes to all classes alike."""
    random_erasing: float = 0.0
    """Probability that a rectangle of an augmented image becomes noise."""
    mixup: Mixup = field(default_factory=Mixup)
    """How training images are mixed with each other, and their targets with them."""

    def __post_init__(self) -> None:
        """Refuse classes that cannot be told apart, and shares that are none."""
        if len(self.names) < 2 or len(set(self.names)) < len(self.names):
            raise DualfuseError(
                f"{len(self.names)} classes, {len(set(self.names))} of them different; give two or more"
            )
        if not (0 <= self.label_smoothing < 1 and 0 <= self.random_erasing <= 1):
            raise DualfuseError(
                f"smoothing is {self.label_smoothing} and erase {self.random_erasing}; both are shares, from 0 to 1"
            )

    @cached_property
    def names(self) -> tuple[str, ...]:
        """What the classes are called."""
        return self.labels or tuple(map(str, range(self.num_classes)))

    def read_question(self, sample: Sample, processor: Processor, rng: np.random.Generator) -> ImageExample:
        """Read the image, and the label if there is one."""
        truth = label_of(sample, self.names)
        return {"image": processor.image(sample.image, rng), "asked": question_of(sample, truth)}

    def read(self, sample: Sample, processor: Processor, rng: np.random.Generator) -> ImageExample:
        """Read image and label; ``BrokenSample`` if the label is not known."""
        truth = label_of(sample, self.names)
        if not truth:
            raise BrokenSample(sample.key, 'it has no "label" in its json')
        image = processor.image(sample.image, rng)
        if processor.image.augment is not None and rng.random() < self.random_erasing:
            image = erase(image, rng)
        return {"image": image, "asked": question_of(sample, truth), "target": self.names.index(truth[0])}

    def collate(self, rows: Sequence[ImageExample]) -> ImageBatch:
        """Make a batch of rows that are all to be trained or all to be answered."""
        batch: ImageBatch = {"image": torch.stack([row["image"] for row in rows])}
        targets = [row["target"] for row in rows if "target" in row]
        if targets:
            batch["target"] = torch.tensor(targets)
        else:
            batch["asked"] = tuple(row["asked"] for row in rows)
        return batch

    def build(self, model: VisionLanguageModel) -> ImageClassification:
        """Return the task with a fresh head."""
        return ImageClassification(self, model)


class ImageClassification(Classification):
    """One linear layer on what stands for an image alone (BEiT, section 2.6)."""

    top_k = 5

    def __init__(self, cfg: ImageClassificationConfig, model: VisionLanguageModel) -> None:
        """The head starts from a truncated normal of 0.02, multiplied by ``head_scale``."""
        super().__init__(cfg, model, cfg.names)
        self.features, self.smoothing, self.mix = cfg.features, cfg.label_smoothing, cfg.mixup
        self.norm = nn.LayerNorm(model.width, eps=1e-6) if cfg.features == "patches" else nn.Identity()
        self.head = nn.Linear(model.width, len(cfg.names))
        nn.init.trunc_normal_(self.head.weight, std=STD)
        nn.init.zeros_(self.head.bias)
        self.head.weight.data *= cfg.head_scale

    def logits(self, batch: ImageBatch) -> Tensor:
        """Return (B, C) float32."""
        image = self.model.embed_image(batch["image"])
        vector = self.model.average_patches(image) if self.features == "patches" else self.model.encode(image)
        return self.head(self.norm(vector)).float()

    def forward(self, batch: ImageBatch) -> TaskOutput:
        """Learn from targets, in training of images that are mixed."""
        assert "target" in batch, "a batch of ask() has no targets to learn from"
        target = F.one_hot(batch["target"], len(self.names)).float()
        if self.training and self.mix.mixes:
            images, share = self.mix(batch["image"])
            batch = {"image": images}
            target = torch.lerp(target.flip(0), target, share)
        return self.loss(self.logits(batch), target)

    def loss(self, logits: Tensor, target: Tensor) -> TaskOutput:
        """Return the cross-entropy of logits (B, C) against shares (B, C); right is what has the greatest share."""
        loss = F.cross_entropy(logits, target, label_smoothing=self.smoothing)
        right = (logits.argmax(1) == target.argmax(1)).float().mean()
        return TaskOutput(loss, {"loss": loss.detach(), "accuracy": right})

    def metric(self) -> Metric:
        """Return a fresh counter of what is right, at once and within five."""
        return TopAccuracy()
