"""From 224 pixels and 196 words to the published sizes of fine-tuning: what became of every tensor, key by key."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny import MODEL, changed

from dualfuse import hub
from dualfuse.models.vlmo import InitConfig
from dualfuse.recipe import Recipe
from dualfuse.tasks.finetune.entailment import EntailmentConfig
from dualfuse.training.init_from import init_from

TABLE, HEADS = "model.relative_bias.table", ("classifier.",)
PAIRS_ALONE = ("itc_heads.", "itm_head.", "mlm_head.")
START = replace(
    MODEL,
    patch_size=16,
    image_size=(224, 224),
    text_length=196,
    drop_path=0.0,
    init=InitConfig(std=0.3, layer_scale=0.0),
)


@pytest.mark.parametrize(
    ("size", "rows"),
    [
        ((384, 384), 47 * 47),  # 2 * 24 - 1 offsets each way
        ((480, 480), 59 * 59),
        ((384, 224), 47 * 27),
        ((224, 224), 27 * 27),
    ],
)
def test_every_key_is_accounted_for(tiny: Recipe, tmp_path: Path, size: tuple[int, int], rows: int) -> None:
    start = replace(tiny, model=START)
    torch.manual_seed(0)
    given = start.task.build(START.build()).eval()
    torch.nn.init.normal_(given.model.relative_bias.table, std=0.3)
    hub.save(tmp_path / "start", given, start)
    end = changed(replace(start, task=EntailmentConfig(labels=("a", "b"))), image_size=size, text_length=40)
    task = end.build().eval()
    init_from(task, end, str(tmp_path / "start"), tmp_path)
    report = json.loads((tmp_path / "start.json").read_text())

    kinds = {name: kind for kind in ("copied", "resized", "new") for name in report[kind]}
    assert kinds.keys() == task.state_dict().keys()
    assert sum(len(report[kind]) for kind in set(kinds.values())) == len(kinds)  # in one list each
    for name, tensor in task.state_dict().items():
        wanted = "resized" if name == TABLE else "new" if name.startswith(HEADS) else "copied"
        assert kinds[name] == wanted, name
        if wanted == "copied":
            assert torch.equal(tensor, given.state_dict()[name]) and report["copied"][name] == list(tensor.shape)
    assert all(name.startswith(PAIRS_ALONE) for name in report["unused"])
    assert len(report["unused"]) == sum(name.startswith(PAIRS_ALONE) for name in given.state_dict())

    grid = tuple(side // 16 for side in size)
    others = 3 + 2  # rows of the class token, and between words and patches
    said = report["resized"][TABLE]
    assert said["rule"] == f"patches 14 x 14 to {grid[0]} x {grid[1]}, texts 196 to 40"
    assert said["before"] == [27 * 27 + others + 2 * 196, 4] and said["after"] == [rows + others + 2 * 40, 4]
    ids = torch.arange(40)[None] % START.vocab_size
    mask, images = torch.ones_like(ids), torch.randn(1, 3, *size)
    with torch.no_grad():
        for one, other in zip(read(given, ids, mask, images), read(task, ids, mask, images), strict=True):
            torch.testing.assert_close(other, one, atol=1e-4, rtol=1e-3)


def read(task: torch.nn.Module, ids: torch.Tensor, mask: torch.Tensor, images: torch.Tensor) -> list[torch.Tensor]:
    """Both ways of a model: it reads other sizes by resizing on the fly."""
    model = task.model
    image, text = model.embed_image(images), model.embed_text(ids, mask)
    return [model.encode(image), model.encode(text), model.fuse(image, text).pooled]
