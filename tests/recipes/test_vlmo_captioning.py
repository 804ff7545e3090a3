"""BEiT-3's published numbers, and a laptop's recipe that goes on from pairs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from tiny import changed, lines, recipe

from dualfuse.recipes import NAMES, find_recipe
from dualfuse.tasks.finetune.captioning import CaptioningConfig
from dualfuse.training.loop import train


@pytest.mark.parametrize(("name", "lr", "width"), [("base", 4e-5, 768), ("large", 8e-6, 1024)])
def test_the_published_command(name: str, lr: float, width: int) -> None:
    [made] = find_recipe(f"caption-vlmo-{name}")
    assert (made.optim.lr, made.model.width) == (lr, width)
    assert made.data.image_size == made.model.image_size == (480, 480)
    assert (made.data.batch_size, made.data.text_length, made.run.steps) == (256, 32, 22_138)  # 10 epochs of 566,747
    assert (made.task.mask_probability, made.task.label_smoothing) == (0.7, 0.1)
    assert (made.task.beam, made.task.length_penalty) == (3, 0.6)


def test_captioning_starts_from_pairs(tmp_path: Path) -> None:
    """All weights are taken over, and learning goes on; validation gives captions' numbers."""
    pairs = changed(recipe(tmp_path, images=12), steps=2, save_every=2)
    start = train((pairs,), tmp_path / "pairs")
    data = replace(pairs.data, validation=pairs.data.train[0])
    captions = replace(pairs, task=CaptioningConfig(), data=data, start_from=str(start))
    train((captions,), tmp_path / "captions")
    assert '"new": {}' in (tmp_path / "captions" / "start.json").read_text()
    assert "validation/CIDEr-D" in lines(tmp_path / "captions")[-1]
    assert "vlmo-nano-captions" in NAMES and find_recipe("vlmo-nano-captions")[0].task.init_std == 0.125
