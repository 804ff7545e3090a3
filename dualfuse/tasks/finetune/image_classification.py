"""Image classification: ImageNet, and any other set of named classes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dualfuse.data.image.mixup import Mixup
from dualfuse.data.image.random_erasing import erase
from dualfuse.data.loader import Batch, Example
from dualfuse.data.processor import Processor
from dualfuse.data.sample import Sample
from dualfuse.errors import DualfuseError
from dualfuse.metrics.accuracy import TopAccuracy
from dualfuse.models.base import VisionLanguageModel
from dualfuse.tasks.base import TaskOutput
from dualfuse.tasks.finetune.classification import Classification
from dualfuse.tasks.finetune.questions import ImageClassesConfig

STD = 0.02


@dataclass(frozen=True)
class ImageClassificationConfig(ImageClassesConfig):
    """Classes, head, and augmentation beyond that of ``data``.

    A sample has in its json a "label", by name or index; texts are ignored. With ``train_only`` ("head.*",) this is a
    linear probe of a frozen model.
    """

    features: Literal["patches", "first"] = "patches"
    """Input of the head. patches: the mean over patches, before the model's last norm and through one of its own
    (BEiT); first: the state of the first token. Models without states of patches alone use the latter for both."""
    head_scale: float = 0.001
    """Factor of the initial weights of the head."""
    label_smoothing: float = 0.0
    """Share of the target, 0 to below 1, that is spread over all classes."""
    random_erasing: float = 0.0
    """Probability, 0 to 1, that a rectangle of an augmented image is replaced by noise."""
    mixup: Mixup = field(default_factory=Mixup)
    """Mixup and CutMix of training images and their targets."""

    def __post_init__(self) -> None:
        """Validate the classes and probabilities."""
        super().__post_init__()
        if not (0 <= self.label_smoothing < 1 and 0 <= self.random_erasing <= 1):
            raise DualfuseError(
                f"label_smoothing is {self.label_smoothing} and random_erasing {self.random_erasing}; the first should "
                "be at least 0 and below 1, the second from 0 to 1"
            )

    def read(self, sample: Sample, processor: Processor, rng: np.random.Generator) -> Example:
        """Read image and label; ``BrokenSample`` without a label."""
        example = super().read(sample, processor, rng)
        if processor.image.augment is not None and rng.random() < self.random_erasing:
            return {**example, "image": erase(example["image"], rng)}
        return example

    def build(self, model: VisionLanguageModel) -> ImageClassification:
        """Return the task with a fresh head."""
        return ImageClassification(self, model)


class ImageClassification(Classification):
    """One linear layer on the image encoder (BEiT, section 2.6)."""

    top_k = 5
    metric = TopAccuracy

    def __init__(self, cfg: ImageClassificationConfig, model: VisionLanguageModel) -> None:
        """Initialise the head with a truncated normal of 0.02, multiplied by ``head_scale``."""
        super().__init__(cfg, model, cfg.names)
        self.features, self.smoothing, self.mix = cfg.features, cfg.label_smoothing, cfg.mixup
        self.norm = nn.LayerNorm(model.width, eps=1e-6) if cfg.features == "patches" else nn.Identity()
        self.head = nn.Linear(model.width, len(cfg.names))
        nn.init.trunc_normal_(self.head.weight, std=STD)
        nn.init.zeros_(self.head.bias)
        self.head.weight.data *= cfg.head_scale

    def logits(self, batch: Batch) -> Tensor:
        """Return logits (B, C) in float32."""
        image = self.model.embed_image(batch["image"])
        state = self.model.average_patches(image) if self.features == "patches" else self.model.encode(image)
        return self.head(self.norm(state)).float()

    def forward(self, batch: Batch) -> TaskOutput:
        """Return the loss of a batch with targets; in training mode with Mixup and CutMix."""
        assert "target" in batch, "a batch of read_question() has no targets"
        target = F.one_hot(batch["target"], len(self.names)).float()
        if self.training and self.mix.mixes:
            images, share = self.mix(batch["image"])
            batch = {"image": images}
            target = torch.lerp(target.flip(0), target, share)
        return self.loss(self.logits(batch), target)

    def loss(self, logits: Tensor, target: Tensor) -> TaskOutput:
        """Return the cross-entropy of logits and target shares (B, C); the accuracy is that of the greatest share."""
        loss = F.cross_entropy(logits, target, label_smoothing=self.smoothing)
        accuracy = (logits.argmax(1) == target.argmax(1)).float().mean()
        return TaskOutput(loss, {"loss": loss.detach(), "accuracy": accuracy})
