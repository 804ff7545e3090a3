"""A batch a few rows at a time: the same loss and gradient as all at once, dropout included, in less memory."""

from __future__ import annotations

import torch
from torch.testing import assert_close

from dualfuse.models.vlmo import VLMoConfig
from dualfuse.tasks.chunks import in_chunks
from dualfuse.tasks.pairs import Pairs, PairsConfig

TINY = VLMoConfig(
    width=32, depth=3, heads=2, both_from=2, patch=8, image_size=(16, 16), vocabulary=50, text_length=8, drop_path=0.0
)


def batch() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    ids = torch.randint(5, 50, (6, 8))
    return {
        "image": torch.randn(6, 3, 16, 16),
        "ids": ids,
        "mask": torch.arange(8) < torch.tensor([8, 3, 5, 8, 4, 6])[:, None],
        "masked_ids": ids.clone().index_fill_(1, torch.tensor([2]), 4),
        "rows": torch.full((6, 1), 2),
        "targets": ids[:, 2:3],
        "image_id": torch.arange(6),
        "text_id": torch.arange(6),
    }


def step(rows_at_once: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    torch.manual_seed(1)
    task: Pairs = PairsConfig(rows_at_once=rows_at_once).build(TINY.build())
    torch.manual_seed(2)  # the same negatives are drawn
    loss = task(batch()).loss
    loss.backward()
    return loss, {name: parameter.grad for name, parameter in task.named_parameters()}


def test_same_gradient_as_all_at_once() -> None:
    loss, gradients = step(0)
    for rows in (1, 4):
        chunked, others = step(rows)
        assert_close(chunked, loss)
        for name, gradient in gradients.items():
            assert_close(others[name], gradient, atol=1e-6, rtol=1e-4)


def test_dropout_is_the_same_when_computed_again() -> None:
    x = torch.ones(4, 1000, requires_grad=True)
    (dropped,) = in_chunks(lambda part: (torch.dropout(part, 0.5, train=True),), 2, x)
    dropped.sum().backward()
    assert_close(x.grad, dropped.detach())  # each kept number is 2, and so is its gradient


def test_less_is_kept() -> None:
    kept: list[int] = []

    def count(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor.numel())
        return tensor

    def work(part: torch.Tensor) -> tuple[torch.Tensor]:
        for _ in range(10):
            part = part.exp().sin()
        return (part,)

    sizes = []
    for rows in (0, 2):
        kept.clear()
        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            in_chunks(work, rows, torch.ones(8, 100, requires_grad=True))
        sizes.append(sum(kept))
    assert sizes[1] < sizes[0] / 5
