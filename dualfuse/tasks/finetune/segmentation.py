"""Which class every pixel of an image is of: UPerNet on a model that sees images alone (BEiT, section 3.2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, TypedDict

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from dualfuse import distributed as dist
from dualfuse.data.image.joint_crop import IGNORE_LABEL, JointCrop, pad_to_size, resized_shape
from dualfuse.data.image.label_map import decode_labels
from dualfuse.data.image.resize import resize
from dualfuse.data.image.transform import ImageTransform, decode
from dualfuse.data.sample import BrokenSample, Sample
from dualfuse.errors import DualfuseError
from dualfuse.layers.upernet import AuxiliaryHead, FourStrides, UPerNet, enlarge
from dualfuse.models.base import VisionLanguageModel
from dualfuse.tasks.base import Processor, Task, TaskOutput, detached
from dualfuse.tasks.finetune.image_classification import Labels
from dualfuse.tasks.finetune.sliding_window import best_class, sliding_window, whole_image

WHOLE_MULTIPLE = 32
"""Sides of whole images are multiples of it (as in the official code): of two patches of 16."""


class CropExample(TypedDict):
    """A crop (3, H, W), and the numbers (H, W) of the classes of its pixels."""

    image: Tensor
    target: Tensor


class WholeExample(TypedDict):
    """An image (3, h, w) as it is looked at, and its key, file and classes (H, W), as they are."""

    image: Tensor
    truth: Tensor
    key: str
    file: bytes


class CropBatch(TypedDict):
    """B crops (B, 3, H, W) and their classes (B, H, W)."""

    image: Tensor
    target: Tensor


@dataclass(frozen=True)
class SegmentationConfig:
    """Which classes are told apart, from which layers, and how training images are varied.

    A sample has a label map, ``KEY.labels.png`` in its shard. ``data.image_size`` is the size of crops in training and
    of windows in evaluation. Images and label maps are varied together, by ``vary``: ``data.augment`` and the fit of
    ``data.looks`` say nothing here.
    """

    num_classes: int = 150
    """Number of classes where there are no names: they are called 0, 1, 2, ..."""
    labels: Labels = ()
    """Names of the classes in the order of their numbers."""
    ignore_zero: bool = False
    """Whether 0 in a label map means no class, and 1 the first one, as in ADE20K."""
    ignore_index: int = 255
    """Another number that means no class."""
    feature_layers: tuple[int, int, int, int] = (4, 6, 8, 12)
    """Layers whose states are looked at, counted from 1."""
    auxiliary_weight: float = 0.4
    """Weight of what the third of them tells alone."""
    dropout: float = 0.1
    """Share of channels that are left out before classifying."""
    augment: JointCrop = field(default_factory=JointCrop)
    """How training images are varied."""
    test: Literal["slide", "whole"] = "slide"
    """Whether an image is judged by windows as large as the crops, or at once, with resized positions."""
    stride: float = 2 / 3
    """From one window to the next, in parts of a window: 341 of 512 pixels, 426 of 640."""

    def __post_init__(self) -> None:
        """Refuse classes that cannot be told apart, and shares that are none."""
        if len(self.names) < 2 or len(set(self.names)) < len(self.names):
            raise DualfuseError(
                f"{len(self.names)} classes, {len(set(self.names))} of them different; give two or more"
            )
        if not (self.auxiliary_weight >= 0 and 0 <= self.dropout < 1 and 0 < self.stride <= 1):
            raise DualfuseError(
                f"auxiliary is {self.auxiliary_weight}, dropout {self.dropout}, stride {self.stride}; give a weight from 0, a "
                "share below 1, and a part of a window above 0"
            )

    @cached_property
    def names(self) -> tuple[str, ...]:
        """What the classes are called."""
        return self.labels or tuple(map(str, range(self.num_classes)))

    def read(self, sample: Sample, processor: Processor, rng: np.random.Generator) -> CropExample:
        """Read a random crop to be trained; ``BrokenSample`` without a label map that fits."""
        image, labels = self._pair(sample)
        preprocess, size = processor.image.preprocess, processor.image.size
        image, labels = self.augment(image, labels, size, preprocess.resampling, rng)
        return {
            "image": pad_to_size(preprocess.normalize(image), size, 0.0),
            "target": pad_to_size(labels, size, IGNORE_LABEL),
        }

    def collate(self, rows: Sequence[CropExample]) -> CropBatch:
        """Make a batch of crops."""
        return {
            "image": torch.stack([row["image"] for row in rows]),
            "target": torch.stack([row["target"] for row in rows]),
        }

    def read_whole(self, sample: Sample, processor: Processor) -> WholeExample:
        """Read an image to be judged, its shorter side as long as a window's."""
        image, labels = self._pair(sample)
        return {"image": at_size(image, processor.image), "truth": labels, "key": sample.key, "file": sample.image}

    def build(self, model: VisionLanguageModel) -> Segmentation:
        """Return the task with a fresh decoder."""
        return Segmentation(self, model)

    def _pair(self, sample: Sample) -> tuple[Tensor, Tensor]:
        """Return the image, and the numbers of classes (H, W) with ``IGNORE_LABEL`` where there is none."""
        if not sample.label_map:
            raise BrokenSample(sample.key, "it has no label map (a member KEY.labels.png)")
        image, found = decode(sample.image), decode_labels(sample.label_map)
        if image.shape[1:] != found.shape:
            sizes = (" x ".join(map(str, shape)) for shape in (found.shape, image.shape[1:]))
            raise BrokenSample(sample.key, "its label map has {} pixels, its image {}".format(*sizes))
        nothing = found == self.ignore_index
        if self.ignore_zero:
            nothing, found = nothing | (found == 0), found - 1
        labels = found.masked_fill(nothing, IGNORE_LABEL)
        if (most := int(labels.max())) >= len(self.names):
            raise BrokenSample(
                sample.key,
                f"its label map has the number {most + self.ignore_zero}; the task has {len(self.names)} classes, "
                f"numbered from {int(self.ignore_zero)} on, and {self.ignore_index} for none",
            )
        return image, labels


def at_size(image: Tensor, transform: ImageTransform) -> Tensor:
    """Return an image (3, H, W) uint8 as it is looked at: the shorter side a window's, the longer up to four."""
    shape = resized_shape(image.shape[1:], min(transform.size))
    return transform.preprocess.normalize(resize(image, shape, transform.preprocess.resampling))


class Segmentation(Task):
    """UPerNet on the states of four layers, with an auxiliary head on the third."""

    def __init__(self, cfg: SegmentationConfig, model: VisionLanguageModel) -> None:
        """The decoder is as wide as the model."""
        super().__init__()
        self.cfg, self.model, self.names = cfg, model, cfg.names
        self.strides = FourStrides(model.width)
        self.decoder = UPerNet(model.width, len(cfg.names), dropout=cfg.dropout)
        self.auxiliary = AuxiliaryHead(model.width, len(cfg.names), dropout=cfg.dropout)

    def maps(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return the four maps of features of images (B, 3, H, W), the finest first."""
        return self.strides(self.model.patch_maps(self.model.embed_image(images), self.cfg.feature_layers))

    def forward(self, batch: CropBatch) -> TaskOutput:
        """Learn from crops: the mean over pixels that have a class, of both heads."""
        images, target = batch["image"], batch["target"].long()
        if self.training and len(images) * dist.world_size() == 1:
            raise DualfuseError(
                "one crop at a time has no statistics to normalise by; give --run.micro-batch 2 or more"
            )
        maps = self.maps(images)
        main, auxiliary = (
            enlarge(scores.float(), target.shape[1:]) for scores in (self.decoder(maps), self.auxiliary(maps[2]))
        )
        known = target != IGNORE_LABEL
        number = known.sum().clamp(min=1)
        by_both, by_one = (
            F.cross_entropy(scores, target, ignore_index=IGNORE_LABEL, reduction="sum") / number
            for scores in (main, auxiliary)
        )
        loss = by_both + self.cfg.auxiliary_weight * by_one
        right = ((main.argmax(1) == target) & known).sum() / number
        return TaskOutput(loss, detached({"loss": loss, "loss/auxiliary": by_one, "accuracy": right}))

    def scores(self, images: Tensor) -> Tensor:
        """Return scores (B, C, H, W) float32 of images (B, 3, H, W) of one size."""
        return enlarge(self.decoder(self.maps(images)).float(), images.shape[-2:])

    def segment(self, image: Tensor, window: tuple[int, int], size: tuple[int, int]) -> Tensor:
        """Return the numbers of classes (H, W) at ``size`` of one image (3, h, w) of any size, in evaluation.

        ``window`` is the size of crops in training.
        """
        if self.cfg.test == "whole":
            return best_class(whole_image(self.scores, image, WHOLE_MULTIPLE), size)
        rows, columns = (max(1, int(side * self.cfg.stride)) for side in window)
        return best_class(sliding_window(self.scores, image, window, (rows, columns)), size)
