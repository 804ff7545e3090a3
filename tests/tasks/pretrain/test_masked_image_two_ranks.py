"""Two gloo processes against one: the loss of hidden patches, and the codebook."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as td
from torch import Tensor, multiprocessing
from torch.nn import functional as F
from torch.testing import assert_close

from dualfuse import distributed as dist
from dualfuse.layers.vq.codebook import Codebook
from dualfuse.layers.vq.visual_tokenizer import VisualTokenizer
from dualfuse.models.vlmo import VLMoConfig
from dualfuse.tasks.pretrain import masked_image
from dualfuse.tasks.pretrain.masked_image import MaskedImageConfig

TINY = VLMoConfig(
    width=16,
    depth=2,
    heads=2,
    vl_expert_start=2,
    patch_size=8,
    image_size=(16, 16),
    vocab_size=9,
    text_length=4,
    drop_path=0.0,
)


class Darkness(VisualTokenizer):
    """Assigns codes by brightness."""

    codes, stride = 5, 4

    def forward(self, images: Tensor) -> Tensor:
        return (F.avg_pool2d(images.mean(1), 4).flatten(1) * 5).long().clamp(max=4)


def gradients(rows: slice) -> tuple[Tensor, dict[str, Tensor]]:
    """Return loss and gradients for some of six images, with 1, 3, 0, 2, 2 and 3 hidden patches."""
    torch.manual_seed(0)
    masked_image.open_tokenizer = lambda *_: Darkness()  # type: ignore[assignment]  # this process is a test's own
    task = MaskedImageConfig(codes=5, patch=8, stride=4).build(TINY.build()).double()
    drawn = torch.Generator().manual_seed(1)
    hidden = np.array([[1, 0, 0, 0], [1, 1, 0, 1], [0] * 4, [0, 1, 1, 0], [0, 0, 1, 1], [0, 1, 1, 1]], dtype=bool)
    images = torch.randn(6, 3, 16, 16, dtype=torch.float64, generator=drawn)
    views = torch.randint(256, (6, 3, 8, 8), dtype=torch.uint8, generator=drawn)
    chosen = [
        {"image": image, "view": view, "hidden": mask}
        for image, view, mask in zip(images[rows], views[rows], hidden[rows], strict=True)
    ]
    output = task(task.cfg.collate(chosen))  # type: ignore[arg-type]
    output.loss.backward()
    return output.loss, {name: weight.grad for name, weight in task.named_parameters() if weight.grad is not None}


def check(rank: int, meeting: Path, wanted: tuple[Tensor, dict[str, Tensor]]) -> None:
    torch.set_num_threads(1)
    td.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
    try:
        loss, found = gradients(slice(3 * rank, 3 * rank + 3))
        assert_close(dist.all_reduce_mean(loss), wanted[0])
        assert found.keys() == wanted[1].keys()
        for name, gradient in found.items():
            assert_close(dist.all_reduce_mean(gradient), wanted[1][name], atol=1e-7, rtol=1e-6)
        check_codebook(rank)
    finally:
        td.destroy_process_group()


def check_codebook(rank: int) -> None:
    """Both processes keep the same codebook for different inputs and draws."""
    torch.manual_seed(0)
    book = Codebook(8, 3)
    torch.manual_seed(rank)
    for _ in range(20):
        book(F.normalize(torch.randn(50, 3), dim=1))
    everyone = dist.all_gather(book.embeddings[None])
    assert torch.equal(everyone[0], everyone[1])
    assert len(book.embeddings.unique(dim=0)) == 8


def test_two_processes_match_one(tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(masked_image, "open_tokenizer", masked_image.open_tokenizer)  # put back afterwards
        loss, whole = gradients(slice(None))
    arguments = (tmp_path / "meeting", (loss.detach(), whole))
    multiprocessing.start_processes(check, args=arguments, nprocs=2, start_method="fork")
