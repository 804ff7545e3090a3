"""Sliding windows: averages by hand, and pointwise scores equal to those of the whole image."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.testing import assert_close

from dualfuse.tasks.finetune.sliding_window import best_class, sliding_window, starts, whole_image


def test_starts_of_windows() -> None:
    assert starts(512, 512, 341) == [0]
    assert starts(513, 512, 341) == [0, 1]
    assert starts(853, 512, 341) == [0, 341]
    assert starts(854, 512, 341) == [0, 341, 342]


def test_average_of_overlapping_windows_by_hand() -> None:
    """Five pixels in a row, windows of three with stride two; the score of a window is its number."""
    seen: list[Tensor] = []

    def look(windows: Tensor) -> Tensor:
        numbers = torch.arange(len(seen), len(seen) + len(windows)).float()
        seen.extend(windows)
        return numbers.view(-1, 1, 1, 1).expand(-1, 1, 1, 3)

    row = torch.arange(5.0).view(1, 1, 5).expand(3, 1, 5)
    assert sliding_window(look, row, (1, 3), (1, 2)).tolist() == [[[0, 0, 0.5, 1, 1]]]
    assert [window[0, 0].tolist() for window in seen] == [[0, 1, 2], [2, 3, 4]]


@pytest.mark.parametrize("size", [(8, 8), (13, 9), (5, 20), (3, 2)])
def test_pointwise_scores_do_not_depend_on_windows(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    weight, image = torch.randn(4, 3, 1, 1), torch.randn(3, *size)
    windows = sliding_window(lambda part: F.conv2d(part, weight), image, (8, 8), (5, 5))
    whole = whole_image(lambda part: F.conv2d(part, weight), image, 8)
    assert_close(windows, F.conv2d(image[None], weight)[0])
    assert_close(whole, windows)


def test_many_windows_run_in_several_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    image, sizes = torch.randn(3, 20, 30), list[int]()

    def look(part: Tensor) -> Tensor:
        sizes.append(len(part))
        return part

    together = sliding_window(look, image, (8, 8), (5, 5))
    monkeypatch.setattr("dualfuse.tasks.finetune.sliding_window.AT_ONCE", 3)
    assert_close(sliding_window(look, image, (8, 8), (5, 5)), together)
    assert_close(together, image)
    assert max(sizes[-5:]) == 3


def test_best_class_in_parts_equals_argmax(monkeypatch: pytest.MonkeyPatch) -> None:
    scores = torch.randn(7, 6, 5, generator=torch.Generator().manual_seed(0))
    at_once = F.interpolate(scores[None], (20, 31), mode="bilinear")[0].argmax(0)
    assert torch.equal(best_class(scores, (20, 31)), at_once) and len(at_once.unique()) == 7
    monkeypatch.setattr("dualfuse.tasks.finetune.sliding_window.MOST_VALUES", 2 * 20 * 31)
    assert torch.equal(best_class(scores, (20, 31)), at_once)
