"""Mean IoU and accuracies against sets of pixels, class by class."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dualfuse.data.image.joint_crop import IGNORE_LABEL
from dualfuse.metrics.mean_iou import ConfusionMatrix

NAMES = ("wall", "sky", "tree", "car", "boat")


def naive(predicted: list[np.ndarray], truth: list[np.ndarray]) -> dict[str, float]:
    """Compare sets of pixels per class: those labelled and those predicted."""
    pixels = [
        (image, place, int(guess[place]), int(label[place]))
        for image, (guess, label) in enumerate(zip(predicted, truth, strict=True))
        for place in np.ndindex(label.shape)
        if label[place] != IGNORE_LABEL
    ]
    iou, accuracy = {}, []
    for number, name in enumerate(NAMES):
        guess = {pixel[:2] for pixel in pixels if pixel[2] == number}
        labelled = {pixel[:2] for pixel in pixels if pixel[3] == number}
        if guess | labelled:
            iou[f"iou/{name}"] = len(guess & labelled) / len(guess | labelled)
        if labelled:
            accuracy.append(len(guess & labelled) / len(labelled))
    return {
        "mean_iou": float(np.mean(list(iou.values()))),
        "pixel_accuracy": sum(guess == label for *_, guess, label in pixels) / len(pixels),
        "class_accuracy": float(np.mean(accuracy)),
    } | iou


@pytest.mark.parametrize("seed", range(5))
def test_metrics_equal_those_of_pixel_sets(seed: int) -> None:
    """Trees are absent, cars only predicted, boats only labelled, and some pixels have no class."""
    rng = np.random.default_rng(seed)
    truth = [rng.choice([IGNORE_LABEL, 0, 1, 4], shape) for shape in ((7, 5), (3, 9), (1, 1))]
    predicted = [np.where(rng.random(one.shape) < 0.5, one.clip(0), rng.choice([0, 1, 3], one.shape)) for one in truth]
    predicted = [np.where(one == 4, 0, one) for one in predicted]
    counted = ConfusionMatrix(len(NAMES))
    for guess, label in zip(predicted, truth, strict=True):
        counted.add(torch.from_numpy(guess), torch.from_numpy(label))
    expected = naive(predicted, truth)
    found = counted.result() | counted.by_class(NAMES)
    assert found == pytest.approx(expected) and found.keys() == expected.keys()
    assert "iou/tree" not in expected and expected["iou/car"] == 0 == expected["iou/boat"]
    assert counted.pixels == sum(int((one != IGNORE_LABEL).sum()) for one in truth)


def test_metrics_by_hand() -> None:
    """One of four walls is predicted as sky; all four skies are correct."""
    counted = ConfusionMatrix(2)
    counted.add(torch.tensor([[0, 0, 0, 1], [1, 1, 1, 1]]), torch.tensor([[0, 0, 0, 0], [1, 1, 1, 1]]))
    found = counted.result() | counted.by_class(("wall", "sky"))
    assert found["iou/wall"] == pytest.approx(3 / 4) and found["iou/sky"] == pytest.approx(4 / 5)
    assert found["mean_iou"] == pytest.approx(0.775) and found["pixel_accuracy"] == pytest.approx(7 / 8)


def test_unlabelled_images_have_no_metrics() -> None:
    counted = ConfusionMatrix(2)
    counted.add(torch.zeros(2, 2), torch.full((2, 2), IGNORE_LABEL))
    assert counted.result() == {} == counted.by_class(("a", "b"))
