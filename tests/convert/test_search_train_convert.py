"""Search with a Hugging Face model, train it on other images, and convert it back to their format."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny import png_image, shards
from transformers import BridgeTowerForContrastiveLearning

from dualfuse import load
from dualfuse.cli.main import main
from dualfuse.recipes import find_recipe


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


def test_search_train_and_convert(contrastive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for number in range(4):
        (images / f"{number}.png").write_bytes(png_image(number))
    assert run("search", contrastive, images, "a red cat", "--top", 2, "--save-image", tmp_path / "found.png") == 0
    assert capsys.readouterr().out.splitlines()[0].split() == ["rank", "cosine", "image"]

    ours, trained, theirs = tmp_path / "ours", tmp_path / "trained", tmp_path / "back"
    assert run("convert", contrastive, ours) == 0
    recipe = find_recipe(str(ours))[0]
    assert (recipe.start_from, recipe.optim.head_lr_mult) == (str(ours), 5.0)
    data = shards(tmp_path / "data", 12)
    flags = (
        "--data.train",
        data,
        "--data.batch-size",
        4,
        "--data.num-workers",
        0,
        "--run.steps",
        2,
        "--optim.warmup",
        0,
    )
    assert run("train", ours, "--out", trained, *flags, "--task.itm-weight", 1) == 0  # its head comes on top
    assert run("evaluate", trained / "final", data, "--rerank", 2) == 0
    assert "text_to_image/reranked/R@1" in capsys.readouterr().out

    assert run("convert", trained / "final", theirs, "--to", "huggingface") == 0
    model, info = BridgeTowerForContrastiveLearning.from_pretrained(theirs, output_loading_info=True)
    assert not info["missing_keys"] and not info["mismatched_keys"]
    task, before = load(trained / "final").task, load(ours).task
    name = "itc_heads.0.text.weight"
    assert torch.equal(model.itc_text_head.fc.weight, task.state_dict()[name])
    assert not torch.equal(task.state_dict()[name], before.state_dict()[name])
