"""An image classifier is written as a BEiT: with the same tensors, or with trained ones."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.testing import assert_close

from dualfuse.convert.checkpoint import Converted, build
from dualfuse.convert.convert import convert, open_checkpoint, write_checkpoint
from dualfuse.convert.load import read_checkpoint
from dualfuse.convert.report import Report
from dualfuse.models.vlmo import VLMoConfig
from dualfuse.recipe import Recipe
from dualfuse.tasks.finetune.image_classification import ImageClassificationConfig

STATE = {
    name.removeprefix("beit_ft."): tensor
    for name, tensor in load_file(
        Path(__file__).parent.parent / "golden" / "vlmo" / "beit_stage2_state.safetensors"
    ).items()
    if name.startswith("beit_ft.")
}
MODEL = VLMoConfig(
    width=32,
    depth=2,
    heads=2,
    vl_expert_start=1,
    patch_size=8,
    image_size=(32, 32),
    text_length=12,
    vocab_size=50,
    drop_path=0.0,
)


def test_there_and_back_is_bit_identical(tmp_path: Path) -> None:
    torch.save({"model": STATE}, tmp_path / "beit.pth")
    written = write_checkpoint(open_checkpoint(tmp_path / "beit.pth"), "official")
    assert written.tensors.keys() == STATE.keys()
    assert all(torch.equal(tensor, STATE[name]) for name, tensor in written.tensors.items())
    convert(tmp_path / "beit.pth", tmp_path / "ours")
    convert(tmp_path / "ours", tmp_path / "theirs", to="official")
    again = torch.load(tmp_path / "theirs" / "beit.pth", weights_only=True)["model"]
    assert again.keys() == STATE.keys() and all(torch.equal(tensor, STATE[name]) for name, tensor in again.items())
    assert {"model.words.word.weight", "model.norm.weight", "model.pooler.bias"} <= written.report.dropped.keys()


@pytest.mark.parametrize("changes", [{}, {"positions": "absolute"}, {"image_slots": 2}])
@pytest.mark.parametrize("features", ["patches", "first"])
@torch.no_grad()
def test_trained_model_computes_the_same_after_the_round_trip(
    features: str, changes: dict[str, object], tmp_path: Path
) -> None:
    """The type embedding of images is not zero."""
    torch.manual_seed(0)
    recipe = Recipe("x", replace(MODEL, **changes), ImageClassificationConfig(num_classes=5, features=features))
    task = recipe.build().eval()
    for parameter in task.parameters():
        nn.init.normal_(parameter, std=0.3)
    written = write_checkpoint(Converted(task, recipe, {}, Report("x", {})), "official")
    torch.save({"model": written.tensors}, tmp_path / "beit.pth")
    checkpoint = read_checkpoint(tmp_path / "beit.pth")
    checkpoint = replace(checkpoint, recipe=replace(checkpoint.recipe, model=replace(checkpoint.recipe.model, heads=2)))
    again = build(checkpoint).task
    assert not checkpoint.report.unexpected and checkpoint.recipe.task == recipe.task
    images = torch.randn(3, 3, 32, 32)
    assert_close(again.logits({"image": images}), task.logits({"image": images}), atol=1e-4, rtol=1e-4)
    listed = {*written.report.used, *written.report.dropped}
    assert listed == set(task.state_dict())


def test_unsupported_models_are_refused() -> None:
    recipe = Recipe(
        "x", replace(MODEL, stem="convolution", share_relative_bias=True), ImageClassificationConfig(num_classes=5)
    )
    task = recipe.build()
    with pytest.raises(ValueError, match="no convolutional stem, no mean bias for all layers: this model"):
        write_checkpoint(Converted(task, recipe, {}, Report("x", {})), "official")
