"""Semantic segmentation with UPerNet on a model that encodes images alone (BEiT, section 3.2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar, Literal, TypedDict

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from dualfuse import distributed as dist
from dualfuse.data.image.decode import decode, decoding
from dualfuse.data.image.image_grid import save_drawing
from dualfuse.data.image.joint_crop import IGNORE_LABEL, JointCrop, pad_to_size, resized_shape
from dualfuse.data.image.label_map import decode_labels
from dualfuse.data.image.resize import resize
from dualfuse.data.loader import Batch
from dualfuse.data.processor import Processor
from dualfuse.data.sample import BrokenSample, Sample
from dualfuse.errors import DualfuseError
from dualfuse.evaluation.predictions import SampleLoss
from dualfuse.evaluation.runner import Evaluation, EvaluationData, EvaluationResult, Plan
from dualfuse.layers.upernet import AuxiliaryHead, FourStrides, UPerNet, enlarge
from dualfuse.metrics.base import MetricInfo, shares
from dualfuse.metrics.mean_iou import ConfusionMatrix
from dualfuse.models.base import VisionLanguageModel
from dualfuse.tasks.base import Task, TaskOutput, detached
from dualfuse.tasks.finetune.questions import ClassesConfig, Names, check_names
from dualfuse.tasks.finetune.segmentation_grid import SegmentedImage, segmentation_grid
from dualfuse.tasks.finetune.sliding_window import best_class, sliding_window, whole_image

WHOLE_MULTIPLE = 32
"""Sides of whole images are padded to a multiple of it, as in the official code: two patches of 16."""
DRAWN = 12
"""Images in a grid."""


class Crops(TypedDict):
    """A crop (3, H, W) and the class indices (H, W) of its pixels, or a batch of them."""

    image: Tensor
    target: Tensor


class WholeExample(Crops):
    """A resized image (3, h, w), and the class indices (H, W), the file and the key of the original."""

    file: bytes
    key: str
    scaled: tuple[Tensor, ...]
    """The image at each of the scales of the evaluation; empty without scales."""


@dataclass(frozen=True)
class SegmentationConfig(ClassesConfig):
    """Classes, layers, and augmentation of training images.

    A sample has a label map, ``KEY.labels.png`` in its shard. ``data.image_size`` is the size of crops in training and
    of windows in evaluation. Images and label maps are augmented together by ``augment``; ``data.augment`` and the
    resize mode of ``data.preprocess`` have no effect.
    """

    reads_text: ClassVar[bool] = False
    pipeline_tag: ClassVar[str] = "image-segmentation"

    num_classes: int = 150
    """Number of classes if ``labels`` is empty: they are named 0, 1, 2, ..."""
    labels: Names = ()
    """Names of the classes, in the order of their indices."""
    ignore_zero: bool = False
    """Whether 0 in a label map means no class, and 1 the first one, as in ADE20K."""
    ignore_index: int = 255
    """Another value of label maps that means no class."""
    feature_layers: tuple[int, int, int, int] = (4, 6, 8, 12)
    """Layers whose states the decoder reads, counted from 1."""
    auxiliary_weight: float = 0.4
    """Weight of the loss of the auxiliary head on the third of these layers."""
    dropout: float = 0.1
    """Probability that a channel is dropped before the classifier."""
    augment: JointCrop = field(default_factory=JointCrop)
    """Augmentation of training images and their label maps."""
    test: Literal["slide", "whole"] = "slide"
    """Evaluation mode. slide: windows as large as the crops; whole: the image at once, with resized positions."""
    stride: float = 2 / 3
    """Distance of windows as a share of their size, above 0 to 1: 341 of 512 pixels, 426 of 640."""

    def __post_init__(self) -> None:
        """Validate the classes and shares."""
        check_names(self.names)
        if not (self.auxiliary_weight >= 0 and 0 <= self.dropout < 1 and 0 < self.stride <= 1):
            raise DualfuseError(
                f"auxiliary_weight is {self.auxiliary_weight}, dropout {self.dropout}, stride {self.stride}; they "
                "should be at least 0, at least 0 and below 1, above 0 and at most 1"
            )

    @decoding()
    def read(self, sample: Sample, processor: Processor, rng: np.random.Generator) -> Crops:
        """Read a random crop; ``BrokenSample`` without a label map that fits."""
        image, labels = self._image_and_labels(sample)
        preprocess, size = processor.image.preprocess, processor.image.size
        image, labels = self.augment(image, labels, size, preprocess.resampling, rng)
        return {
            "image": pad_to_size(preprocess.normalize(image), size, 0.0),
            "target": pad_to_size(labels, size, IGNORE_LABEL),
        }

    def collate(self, examples: Sequence[Crops]) -> Crops:
        """Stack the crops."""
        return {
            "image": torch.stack([example["image"] for example in examples]),
            "target": torch.stack([example["target"] for example in examples]),
        }

    @decoding()
    def read_whole(
        self, sample: Sample, processor: Processor, rng: np.random.Generator, scales: tuple[float, ...] = ()
    ) -> WholeExample:
        """Read an image for evaluation: the shorter side is that of a window, the longer one up to four times that.

        With ``scales`` the image is also resized to each of them; below 1 it stays as large as a window, as in the
        official code.
        """
        image, labels = self._image_and_labels(sample)
        preprocess, side = processor.image.preprocess, min(processor.image.size)

        def resized(side: int) -> Tensor:
            return preprocess.normalize(resize(image, resized_shape(image.shape[1:], side), preprocess.resampling))

        scaled = tuple(resized(max(side, int(scale * side))) for scale in scales)
        return {"image": resized(side), "target": labels, "file": sample.image, "key": sample.key, "scaled": scaled}

    def metrics(self, plan: Plan) -> tuple[MetricInfo, ...]:
        """Declare mean IoU, accuracies and the IoU per class."""
        return shares("mean_iou", "pixel_accuracy", "class_accuracy", "iou/*", whole_set=True)

    def build(self, model: VisionLanguageModel) -> Segmentation:
        """Return the task with a fresh decoder."""
        return Segmentation(self, model)

    def _image_and_labels(self, sample: Sample) -> tuple[Tensor, Tensor]:
        """Return the image, and its class indices (H, W), ``IGNORE_LABEL`` for pixels without a class."""
        if not sample.label_map:
            raise BrokenSample(sample.key, "it has no label map (a member KEY.labels.png)")
        image, labels = decode(sample.image), decode_labels(sample.label_map)
        if image.shape[1:] != labels.shape:
            sizes = (" x ".join(map(str, shape)) for shape in (labels.shape, image.shape[1:]))
            raise BrokenSample(sample.key, "its label map has {} pixels, its image {}".format(*sizes))
        ignored = labels == self.ignore_index
        if self.ignore_zero:
            ignored, labels = ignored | (labels == 0), labels - 1
        labels = labels.masked_fill(ignored, IGNORE_LABEL)
        if (most := int(labels.max())) >= len(self.names):
            raise BrokenSample(
                sample.key,
                f"its label map has the number {most + self.ignore_zero}; the task has {len(self.names)} classes, "
                f"numbered from {int(self.ignore_zero)} on, and {self.ignore_index} for none",
            )
        return image, labels


class Segmentation(Task):
    """UPerNet on the states of four layers, with an auxiliary head on the third."""

    cfg: SegmentationConfig
    can_draw = True
    averages_views = True

    def __init__(self, cfg: SegmentationConfig, model: VisionLanguageModel) -> None:
        """Build a decoder as wide as the model."""
        super().__init__()
        self.cfg, self.model, self.names = cfg, model, cfg.names
        self.strides = FourStrides(model.width)
        self.decoder = UPerNet(model.width, len(cfg.names), dropout=cfg.dropout)
        self.auxiliary = AuxiliaryHead(model.width, len(cfg.names), dropout=cfg.dropout)

    def maps(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return the four feature maps of images (B, 3, H, W), the finest first."""
        return self.strides(self.model.patch_maps(self.model.embed_image(images), self.cfg.feature_layers))

    def forward(self, batch: Crops) -> TaskOutput:
        """Return the loss of both heads, averaged over labelled pixels."""
        images, target = batch["image"], batch["target"].long()
        if self.training and len(images) * dist.world_size() == 1:
            raise DualfuseError("batch normalization needs two crops or more; give --run.micro-batch 2 or more")
        maps = self.maps(images)
        main, auxiliary = (
            enlarge(scores.float(), target.shape[1:]) for scores in (self.decoder(maps), self.auxiliary(maps[2]))
        )
        is_labelled = target != IGNORE_LABEL
        number = is_labelled.sum().clamp(min=1)
        main_loss, auxiliary_loss = (
            F.cross_entropy(scores, target, ignore_index=IGNORE_LABEL, reduction="sum") / number
            for scores in (main, auxiliary)
        )
        loss = main_loss + self.cfg.auxiliary_weight * auxiliary_loss
        accuracy = ((main.argmax(1) == target) & is_labelled).sum() / number
        return TaskOutput(loss, detached({"loss": loss, "loss/auxiliary": auxiliary_loss, "accuracy": accuracy}))

    def scores(self, images: Tensor) -> Tensor:
        """Return scores (B, C, H, W) in float32 of images (B, 3, H, W)."""
        return enlarge(self.decoder(self.maps(images)).float(), images.shape[-2:])

    def segment(self, image: Tensor, window: tuple[int, int], size: tuple[int, int]) -> Tensor:
        """Return class indices (H, W) at ``size`` of one image (3, h, w) of any size, in evaluation mode.

        ``window`` is the size of crops in training.
        """
        return best_class(self._image_scores(image, window), size)

    def _probabilities(self, image: Tensor, window: tuple[int, int], size: tuple[int, int]) -> Tensor:
        """Return the probabilities (C, H, W) of the classes at ``size``, as mmsegmentation averages them."""
        return enlarge(self._image_scores(image, window)[None], size)[0].softmax(0).cpu()

    def _image_scores(self, image: Tensor, window: tuple[int, int]) -> Tensor:
        if self.cfg.test == "whole":
            return whole_image(self.scores, image, WHOLE_MULTIPLE)
        strides = (max(1, int(side * self.cfg.stride)) for side in window)
        return sliding_window(self.scores, image, window, (next(strides), next(strides)))

    @property
    def has_sample_results(self) -> bool:
        """Whether :meth:`evaluate` returns the loss of each image."""
        return True

    @torch.inference_mode()
    def evaluate(self, data: EvaluationData, plan: Plan) -> EvaluationResult:
        """Return mean IoU and accuracies at the original size of images; with ``plan.all_metrics`` the IoU per class.

        Images differ in size, so that they are evaluated one by one, whatever ``plan.batch_size``. With ``plan.scales``
        and ``plan.flip`` the probabilities of several sizes of an image, and of their mirror images, are averaged. With
        ``plan.answers`` the mean cross-entropy of the labelled pixels of each image is returned, too.
        """
        run, confusion, losses = Evaluation(self, data, plan), ConfusionMatrix(len(self.names)), list[SampleLoss]()
        images = 0
        read = partial(self.cfg.read_whole, scales=plan.scales)
        for example in run.batches(read, _single, what="images", batch_size=1):
            target = example["target"].cpu()
            if plan.answers or plan.scales or plan.flip:
                probabilities = self._averaged(example, data, plan)
                losses += [SampleLoss(example["key"], _pixel_loss(probabilities, target))] if plan.answers else []
                confusion.add(probabilities.argmax(0), target)
            else:
                confusion.add(self._predicted(example, data), target)
            images += 1
        metrics = confusion.result() | (confusion.by_class(self.names) if plan.all_metrics else {})
        return run.result(metrics, f"{images} images, {confusion.pixels:,} pixels", losses)

    @torch.inference_mode()
    def draw(self, data: EvaluationData, path: Path) -> None:
        """Draw the first images of a set beside their target and predicted classes."""
        run = Evaluation(self, data, Plan(num_workers=0, exclude_broken=True))
        drawn = [
            SegmentedImage(example["file"], example["target"].cpu(), self._predicted(example, data))
            for example in islice(run.batches(self.cfg.read_whole, _single, batch_size=1), DRAWN)
        ]
        heading = f"the first {len(drawn)} of {len(data.samples):,} images"
        save_drawing(segmentation_grid(drawn, self.names, heading), path)

    def read_input(self, sample: Sample, processor: Processor) -> Any:  # Any: it never returns
        """Raise DualfuseError: label maps are drawn."""
        raise DualfuseError(
            "this model predicts the class of every pixel; dualfuse evaluate MODEL SHARDS --save-image maps.png draws "
            "it beside the first images of SHARDS"
        )

    def _predicted(self, example: Batch, data: EvaluationData) -> Tensor:
        """Return the predicted classes of one :class:`WholeExample`."""
        height, width = example["target"].shape
        return self.segment(example["image"], data.processor.image.size, (height, width)).cpu()

    def _averaged(self, example: Batch, data: EvaluationData, plan: Plan) -> Tensor:
        """Return the probabilities (C, H, W) of one image, averaged over its sizes and mirror images."""
        window, (height, width) = data.processor.image.size, example["target"].shape
        total, views = torch.zeros(()), example["scaled"] or (example["image"],)
        for view in views:
            total = total + self._probabilities(view.to(self.device), window, (height, width))
            if plan.flip:
                total = total + self._probabilities(view.to(self.device).flip(-1), window, (height, width)).flip(-1)
        return total / (len(views) * (1 + plan.flip))


def _pixel_loss(probabilities: Tensor, target: Tensor) -> float:
    """Return the mean of -log p over the labelled pixels of one image; NaN without any."""
    return float(F.nll_loss(probabilities.log()[None], target.long()[None], ignore_index=IGNORE_LABEL))


def _single(examples: Sequence[Any]) -> Any:  # Any: the one WholeExample
    return examples[0]
