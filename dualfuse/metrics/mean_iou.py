"""How often which class was taken for which, pixel by pixel, and what is told by that: mean IoU and accuracies."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from dualfuse.data.image.joint_crop import IGNORE_LABEL


class ConfusionMatrix:
    """Counts pixels of many images; those without a class are not judged."""

    def __init__(self, classes: int) -> None:
        """Nothing is counted yet."""
        self.counts = torch.zeros(classes, classes, dtype=torch.int64)
        """(C, C): pixels of the class of the row that were taken for the class of the column."""

    def add(self, predicted: Tensor, truth: Tensor) -> None:
        """Count one image: ``predicted`` and ``truth`` (H, W) are numbers of classes."""
        known, classes = truth != IGNORE_LABEL, len(self.counts)
        pairs = truth[known].long() * classes + predicted[known].long()
        self.counts += torch.bincount(pairs, minlength=classes**2).view(classes, classes).cpu()

    @property
    def pixels(self) -> int:
        """The number of pixels that were judged."""
        return int(self.counts.sum())

    def result(self) -> dict[str, float]:
        """Return "mean_iou", "pixel_accuracy", "class_accuracy" (a mean over classes), shares of one.

        As mmsegmentation has it: what was neither there nor predicted anywhere is left out of the mean IoU, what was
        not there of the mean accuracy. A class that was predicted, but never there, has an IoU of 0, and counts. None
        of these numbers if no pixel was judged.
        """
        if not self.pixels:
            return {}
        right, there = self.counts.diagonal().double(), self.counts.sum(1).double()
        return {
            "mean_iou": float(self._iou().nanmean()),
            "pixel_accuracy": float(right.sum() / there.sum()),
            "class_accuracy": float((right / there).nanmean()),
        }

    def by_class(self, names: Sequence[str]) -> dict[str, float]:
        """Return "iou/NAME" of every class that was there or predicted."""
        values = zip(names, self._iou().tolist(), strict=True)
        return {f"iou/{name}": value for name, value in values if not math.isnan(value)}

    def _iou(self) -> Tensor:
        """Return (C,), nan where a class was neither there nor predicted."""
        right = self.counts.diagonal().double()
        return right / (self.counts.sum(1) + self.counts.sum(0) - right)
