"""Mean IoU and accuracies against sets of pixels, class by class."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dualfuse.data.image.joint_crop import IGNORE_LABEL
from dualfuse.metrics.mean_iou import ConfusionMatrix

NAMES = ("wall", "sky", "tree", "car", "boat")


def naive(predicted: list[np.ndarray], truth: list[np.ndarray]) -> dict[str, float]:
    """Every pixel is a thing of its own; per class a set of those that are, and a set of those said to be."""
    pixels = [
        (image, place, int(said[place]), int(label[place]))
        for image, (said, label) in enumerate(zip(predicted, truth, strict=True))
        for place in np.ndindex(label.shape)
        if label[place] != IGNORE_LABEL
    ]
    iou, accuracy = {}, []
    for number, name in enumerate(NAMES):
        said = {pixel[:2] for pixel in pixels if pixel[2] == number}
        there = {pixel[:2] for pixel in pixels if pixel[3] == number}
        if said | there:
            iou[f"iou/{name}"] = len(said & there) / len(said | there)
        if there:
            accuracy.append(len(said & there) / len(there))
    return {
        "mean_iou": float(np.mean(list(iou.values()))),
        "pixel_accuracy": sum(said == label for *_, said, label in pixels) / len(pixels),
        "class_accuracy": float(np.mean(accuracy)),
    } | iou


@pytest.mark.parametrize("seed", range(5))
def test_against_sets_of_pixels(seed: int) -> None:
    """No tree anywhere; cars are only predicted, boats only there, some pixels of no class."""
    rng = np.random.default_rng(seed)
    truth = [rng.choice([IGNORE_LABEL, 0, 1, 4], shape) for shape in ((7, 5), (3, 9), (1, 1))]
    predicted = [np.where(rng.random(one.shape) < 0.5, one.clip(0), rng.choice([0, 1, 3], one.shape)) for one in truth]
    predicted = [np.where(one == 4, 0, one) for one in predicted]
    counted = ConfusionMatrix(len(NAMES))
    for said, label in zip(predicted, truth, strict=True):
        counted.add(torch.from_numpy(said), torch.from_numpy(label))
    wanted = naive(predicted, truth)
    found = counted.result() | counted.by_class(NAMES)
    assert found == pytest.approx(wanted) and found.keys() == wanted.keys()
    assert "iou/tree" not in wanted and wanted["iou/car"] == 0 == wanted["iou/boat"]
    assert counted.pixels == sum(int((one != IGNORE_LABEL).sum()) for one in truth)


def test_by_hand() -> None:
    """Of four walls one was called sky; of four skies all were found."""
    counted = ConfusionMatrix(2)
    counted.add(torch.tensor([[0, 0, 0, 1], [1, 1, 1, 1]]), torch.tensor([[0, 0, 0, 0], [1, 1, 1, 1]]))
    found = counted.result() | counted.by_class(("wall", "sky"))
    assert found["iou/wall"] == pytest.approx(3 / 4) and found["iou/sky"] == pytest.approx(4 / 5)
    assert found["mean_iou"] == pytest.approx(0.775) and found["pixel_accuracy"] == pytest.approx(7 / 8)


def test_nothing_judged() -> None:
    counted = ConfusionMatrix(2)
    counted.add(torch.zeros(2, 2), torch.full((2, 2), IGNORE_LABEL))
    assert counted.result() == {} == counted.by_class(("a", "b"))
