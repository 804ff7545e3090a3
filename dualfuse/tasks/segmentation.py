"""Which class every pixel of a picture is of: UPerNet on a model that sees pictures alone (BEiT, section 3.2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, TypedDict

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from dualfuse import dist
from dualfuse.data.images import ImageTransform, decode
from dualfuse.data.joint_crop import NOTHING, JointCrop, fitted_shape, padded
from dualfuse.data.label_map import decode_labels
from dualfuse.data.resize import resize
from dualfuse.data.sample import BrokenSample, Sample
from dualfuse.layers.upernet import AuxiliaryHead, FourStrides, UPerNet, enlarge
from dualfuse.models.base import VisionLanguageModel
from dualfuse.tasks.base import Output, Prep, Task, detached
from dualfuse.tasks.image_classes import Labels
from dualfuse.tasks.sliding import best_class, look_at_all, slide

WHOLE_MULTIPLE = 32
"""Sides of whole pictures are multiples of it (as in the released code): of two patches of 16."""


class CropRow(TypedDict):
    """A crop (3, H, W), and the numbers (H, W) of the classes of its pixels."""

    image: Tensor
    target: Tensor


class WholeRow(TypedDict):
    """A picture (3, h, w) as it is looked at, and its key, file and classes (H, W), as they are."""

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
    """Which classes are told apart, from which layers, and how training pictures are varied.

    A sample has a label map, ``KEY.labels.png`` in its shard. ``data.image_size`` is the size of crops in training and
    of windows in evaluation. Pictures and label maps are varied together, by ``vary``: ``data.augment`` and the fit of
    ``data.looks`` say nothing here.
    """

    classes: int = 150
    """Number of classes where there are no names: they are called 0, 1, 2, ..."""
    labels: Labels = ()
    """Names of the classes in the order of their numbers."""
    ignore_zero: bool = False
    """Whether 0 in a label map means no class, and 1 the first one, as in ADE20K."""
    ignored: int = 255
    """Another number that means no class."""
    after: tuple[int, int, int, int] = (4, 6, 8, 12)
    """Layers whose states are looked at, counted from 1."""
    auxiliary: float = 0.4
    """Weight of what the third of them tells alone."""
    dropout: float = 0.1
    """Share of channels that are left out before classifying."""
    vary: JointCrop = field(default_factory=JointCrop)
    """How training pictures are varied."""
    test: Literal["slide", "whole"] = "slide"
    """Whether a picture is judged by windows as large as the crops, or at once, with resized positions."""
    stride: float = 2 / 3
    """From one window to the next, in parts of a window: 341 of 512 pixels, 426 of 640."""

    def __post_init__(self) -> None:
        """Refuses classes that cannot be told apart, and shares that are none."""
        if len(self.names) < 2 or len(set(self.names)) < len(self.names):
            raise ValueError(f"{len(self.names)} classes, {len(set(self.names))} of them different; give two or more")
        if not (self.auxiliary >= 0 and 0 <= self.dropout < 1 and 0 < self.stride <= 1):
            raise ValueError(
                f"auxiliary is {self.auxiliary}, dropout {self.dropout}, stride {self.stride}; give a weight from 0, a "
                "share below 1, and a part of a window above 0"
            )

    @cached_property
    def names(self) -> tuple[str, ...]:
        """What the classes are called."""
        return self.labels or tuple(map(str, range(self.classes)))

    def read(self, sample: Sample, prep: Prep, rng: np.random.Generator) -> CropRow:
        """Reads a random crop to be learnt; ``BrokenSample`` without a label map that fits."""
        image, labels = self._pair(sample)
        looks, size = prep.image.looks, prep.image.size
        image, labels = self.vary(image, labels, size, looks.resampling, rng)
        return {"image": padded(looks.normalised(image), size, 0.0), "target": padded(labels, size, NOTHING)}

    def collate(self, rows: Sequence[CropRow]) -> CropBatch:
        """Makes a batch of crops."""
        return {
            "image": torch.stack([row["image"] for row in rows]),
            "target": torch.stack([row["target"] for row in rows]),
        }

    def whole(self, sample: Sample, prep: Prep) -> WholeRow:
        """Reads a picture to be judged, its shorter side as long as a window's."""
        image, labels = self._pair(sample)
        return {"image": at_size(image, prep.image), "truth": labels, "key": sample.key, "file": sample.image}

    def build(self, model: VisionLanguageModel) -> Segmentation:
        """Gives the task with a fresh decoder."""
        return Segmentation(self, model)

    def _pair(self, sample: Sample) -> tuple[Tensor, Tensor]:
        """Gives the picture, and the numbers of classes (H, W) with ``NOTHING`` where there is none."""
        if not sample.label_map:
            raise BrokenSample(sample.key, "it has no label map (a member KEY.labels.png)")
        image, found = decode(sample.image), decode_labels(sample.label_map)
        if image.shape[1:] != found.shape:
            sizes = (" x ".join(map(str, shape)) for shape in (found.shape, image.shape[1:]))
            raise BrokenSample(sample.key, "its label map has {} pixels, its picture {}".format(*sizes))
        nothing = found == self.ignored
        if self.ignore_zero:
            nothing, found = nothing | (found == 0), found - 1
        labels = found.masked_fill(nothing, NOTHING)
        if (most := int(labels.max())) >= len(self.names):
            raise BrokenSample(
                sample.key,
                f"its label map has the number {most + self.ignore_zero}; the task has {len(self.names)} classes, "
                f"numbered from {int(self.ignore_zero)} on, and {self.ignored} for none",
            )
        return image, labels


def at_size(image: Tensor, transform: ImageTransform) -> Tensor:
    """Gives a picture (3, H, W) uint8 as it is looked at: the shorter side a window's, the longer up to four."""
    shape = fitted_shape(image.shape[1:], min(transform.size))
    return transform.looks.normalised(resize(image, shape, transform.looks.resampling))


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
        """Gives the four maps of features of pictures (B, 3, H, W), the finest first."""
        return self.strides(self.model.patch_maps(self.model.embed_image(images), self.cfg.after))

    def forward(self, batch: CropBatch) -> Output:
        """Learns from crops: the mean over pixels that have a class, of both heads."""
        images, target = batch["image"], batch["target"].long()
        if self.training and len(images) * dist.world() == 1:
            raise ValueError("one crop at a time has no statistics to normalise by; give --run.micro-batch 2 or more")
        maps = self.maps(images)
        main, auxiliary = (
            enlarge(scores.float(), target.shape[1:]) for scores in (self.decoder(maps), self.auxiliary(maps[2]))
        )
        known = target != NOTHING
        number = known.sum().clamp(min=1)
        by_both, by_one = (
            F.cross_entropy(scores, target, ignore_index=NOTHING, reduction="sum") / number
            for scores in (main, auxiliary)
        )
        loss = by_both + self.cfg.auxiliary * by_one
        right = ((main.argmax(1) == target) & known).sum() / number
        return Output(loss, detached({"loss": loss, "loss/auxiliary": by_one, "accuracy": right}))

    def scores(self, images: Tensor) -> Tensor:
        """Gives scores (B, C, H, W) float32 of pictures (B, 3, H, W) of one size."""
        return enlarge(self.decoder(self.maps(images)).float(), images.shape[-2:])

    def segment(self, image: Tensor, window: tuple[int, int], size: tuple[int, int]) -> Tensor:
        """Gives the numbers of classes (H, W) at ``size`` of one picture (3, h, w) of any size, in evaluation.

        ``window`` is the size of crops in training.
        """
        if self.cfg.test == "whole":
            return best_class(look_at_all(self.scores, image, WHOLE_MULTIPLE), size)
        rows, columns = (max(1, int(side * self.cfg.stride)) for side in window)
        return best_class(slide(self.scores, image, window, (rows, columns)), size)
