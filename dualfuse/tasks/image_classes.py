"""What a picture shows, without any text: ImageNet, and any other classification of pictures into named classes."""

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

from dualfuse.data.erasing import erase
from dualfuse.data.mixing import Mix
from dualfuse.data.sample import BrokenSample, Sample
from dualfuse.models.base import VisionLanguageModel
from dualfuse.tasks.answered import Asked, Metric, TopAccuracy
from dualfuse.tasks.answers import read_vocabulary
from dualfuse.tasks.base import Output, Prep
from dualfuse.tasks.classification import Classification, label_of, who_asked

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


class ImageRow(TypedDict):
    """One picture (3, H, W), who asked; and to be learnt the number of its class."""

    image: Tensor
    asked: Asked
    target: NotRequired[int]


class ImageBatch(TypedDict):
    """B pictures (B, 3, H, W); to be learnt with ``target`` (B,), to be answered with who ``asked``."""

    image: Tensor
    target: NotRequired[Tensor]
    asked: NotRequired[tuple[Asked, ...]]


@dataclass(frozen=True)
class ImageClassesConfig:
    """Which classes are told apart, by what of the model, and how training pictures are varied beyond ``data``.

    A sample has in its json a "label", by name or number; texts are not looked at. With ``train_only`` ("head.*",) a
    linear probe: the model is frozen.
    """

    classes: int = 1000
    """Number of classes where there are no names, as in converted checkpoints: they are called 0, 1, 2, ..."""
    labels: Labels = ()
    """Names of the classes in the order of their numbers."""
    features: Literal["patches", "first"] = "patches"
    """What is classified: the mean over patches, before the last norm and through one of its own (BEiT); or the state
    of the first token. A model that keeps no states of patches alone has the latter only."""
    head_scale: float = 0.001
    """What the first weights of the head are multiplied by."""
    smoothing: float = 0.0
    """Share of the target that goes to all classes alike."""
    erase: float = 0.0
    """Probability that a rectangle of an augmented picture becomes noise."""
    mix: Mix = field(default_factory=Mix)
    """How training pictures are mixed with each other, and their targets with them."""

    def __post_init__(self) -> None:
        """Refuses classes that cannot be told apart, and shares that are none."""
        if len(self.names) < 2 or len(set(self.names)) < len(self.names):
            raise ValueError(f"{len(self.names)} classes, {len(set(self.names))} of them different; give two or more")
        if not (0 <= self.smoothing < 1 and 0 <= self.erase <= 1):
            raise ValueError(f"smoothing is {self.smoothing} and erase {self.erase}; both are shares, from 0 to 1")

    @cached_property
    def names(self) -> tuple[str, ...]:
        """What the classes are called."""
        return self.labels or tuple(map(str, range(self.classes)))

    def ask(self, sample: Sample, prep: Prep, rng: np.random.Generator) -> ImageRow:
        """Reads the picture, and the label if there is one."""
        truth = label_of(sample, self.names)
        return {"image": prep.image(sample.image, rng), "asked": who_asked(sample, truth)}

    def read(self, sample: Sample, prep: Prep, rng: np.random.Generator) -> ImageRow:
        """Reads picture and label; ``BrokenSample`` if the label is not known."""
        truth = label_of(sample, self.names)
        if not truth:
            raise BrokenSample(sample.key, 'it has no "label" in its json')
        image = prep.image(sample.image, rng)
        if prep.image.augment is not None and rng.random() < self.erase:
            image = erase(image, rng)
        return {"image": image, "asked": who_asked(sample, truth), "target": self.names.index(truth[0])}

    def collate(self, rows: Sequence[ImageRow]) -> ImageBatch:
        """Makes a batch of rows that are all to be learnt or all to be answered."""
        batch: ImageBatch = {"image": torch.stack([row["image"] for row in rows])}
        targets = [row["target"] for row in rows if "target" in row]
        if targets:
            batch["target"] = torch.tensor(targets)
        else:
            batch["asked"] = tuple(row["asked"] for row in rows)
        return batch

    def build(self, model: VisionLanguageModel) -> ImageClasses:
        """Gives the task with a fresh head."""
        return ImageClasses(self, model)


class ImageClasses(Classification):
    """One linear layer on what stands for a picture alone (BEiT, section 2.6)."""

    ranked = 5

    def __init__(self, cfg: ImageClassesConfig, model: VisionLanguageModel) -> None:
        """The head starts from a truncated normal of 0.02, multiplied by ``head_scale``."""
        super().__init__(cfg, model, cfg.names)
        self.features, self.smoothing, self.mix = cfg.features, cfg.smoothing, cfg.mix
        self.norm = nn.LayerNorm(model.width, eps=1e-6) if cfg.features == "patches" else nn.Identity()
        self.head = nn.Linear(model.width, len(cfg.names))
        nn.init.trunc_normal_(self.head.weight, std=STD)
        nn.init.zeros_(self.head.bias)
        self.head.weight.data *= cfg.head_scale

    def logits(self, batch: ImageBatch) -> Tensor:
        """Gives (B, C) float32."""
        image = self.model.embed_image(batch["image"])
        vector = self.model.average_patches(image) if self.features == "patches" else self.model.encode(image)
        return self.head(self.norm(vector)).float()

    def forward(self, batch: ImageBatch) -> Output:
        """Learns from targets, in training of pictures that are mixed."""
        assert "target" in batch, "a batch of ask() has no targets to learn from"
        target = F.one_hot(batch["target"], len(self.names)).float()
        if self.training and self.mix.mixes:
            images, share = self.mix(batch["image"])
            batch = {"image": images}
            target = torch.lerp(target.flip(0), target, share)
        return self.learn(self.logits(batch), target)

    def learn(self, logits: Tensor, target: Tensor) -> Output:
        """Gives the cross-entropy of logits (B, C) against shares (B, C); right is what has the greatest share."""
        loss = F.cross_entropy(logits, target, label_smoothing=self.smoothing)
        right = (logits.argmax(1) == target.argmax(1)).float().mean()
        return Output(loss, {"loss": loss.detach(), "accuracy": right})

    def metric(self) -> Metric:
        """Gives a fresh counter of what is right, at once and within five."""
        return TopAccuracy()
