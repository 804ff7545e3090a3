"""Mean IoU and accuracies of semantic segmentation, from a confusion matrix over pixels."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from dualfuse.data.image.joint_crop import IGNORE_LABEL


class ConfusionMatrix:
    """Pixel counts by target and predicted class; pixels without a class are ignored."""

    def __init__(self, classes: int) -> None:
        """Start with zero counts."""
        self.counts = torch.zeros(classes, classes, dtype=torch.int64)
        """(C, C): rows are target classes, columns predicted classes."""

    def add(self, predicted: Tensor, target: Tensor) -> None:
        """Count one image; ``predicted`` and ``target`` (H, W) are class indices."""
        is_labelled, classes = target != IGNORE_LABEL, len(self.counts)
        pairs = target[is_labelled].long() * classes + predicted[is_labelled].long()
        self.counts += torch.bincount(pairs, minlength=classes**2).view(classes, classes).cpu()

    @property
    def pixels(self) -> int:
        """The number of labelled pixels."""
        return int(self.counts.sum())

    def result(self) -> dict[str, float]:
        """Return "mean_iou", "pixel_accuracy" and "class_accuracy" (the mean over classes), shares of one.

        As in mmsegmentation, the mean IoU ignores classes that are neither labelled nor predicted anywhere, and the
        class accuracy those that are not labelled. A class that is predicted but never labelled has an IoU of 0.
        Empty if no pixel is labelled.
        """
        if not self.pixels:
            return {}
        correct, labelled = self.counts.diagonal().double(), self.counts.sum(1).double()
        return {
            "mean_iou": float(self._iou().nanmean()),
            "pixel_accuracy": float(correct.sum() / labelled.sum()),
            "class_accuracy": float((correct / labelled).nanmean()),
        }

    def by_class(self, names: Sequence[str]) -> dict[str, float]:
        """Return "iou/NAME" of every class that is labelled or predicted."""
        values = zip(names, self._iou().tolist(), strict=True)
        return {f"iou/{name}": value for name, value in values if not math.isnan(value)}

    def _iou(self) -> Tensor:
        """Return the IoU (C,), NaN for classes that are neither labelled nor predicted."""
        correct = self.counts.diagonal().double()
        return correct / (self.counts.sum(1) + self.counts.sum(0) - correct)
