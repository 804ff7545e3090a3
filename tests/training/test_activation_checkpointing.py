"""Computing again in the backward pass changes nothing but the memory."""

from __future__ import annotations

from pathlib import Path

import torch
from tiny import changed, weights

from dualfuse.models.vlmo import VLMoConfig
from dualfuse.recipe import Recipe
from dualfuse.training import loop
from dualfuse.training.memory import checkpoint_activations


def test_a_run_ends_with_the_same_weights(tiny: Recipe, whole: Path, tmp_path: Path) -> None:
    """Dropout and drop-path included."""
    loop.train((changed(tiny, activation_checkpointing=True),), tmp_path / "again")
    again, once = weights(tmp_path / "again"), weights(whole)
    assert again.keys() == once.keys()
    assert all(torch.equal(again[name], once[name]) for name in once)


def test_checkpointed_blocks_run_twice_and_keep_little() -> None:
    def kept(again: bool) -> tuple[int, int]:
        torch.manual_seed(0)
        model = VLMoConfig(width=16, depth=4, heads=2, patch_size=8, image_size=(16, 16), vocab_size=20).build()
        calls: list[int] = []
        for block in model.blocks:
            block.norm.register_forward_hook(lambda *_: calls.append(1))
        if again:
            checkpoint_activations(model.fsdp_blocks())
        size = 0

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            nonlocal size
            size += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = model.encode(model.embed_image(torch.randn(2, 3, 16, 16))).square().sum()
        loss.backward()
        return len(calls), size

    (once, much), (twice, little) = kept(again=False), kept(again=True)
    assert (once, twice) == (4, 8)
    assert little < much / 3
