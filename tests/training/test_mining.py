"""Batches of neighbors: the search against a naive one, the order by hand, and a run that resumes."""

from __future__ import annotations

from dataclasses import replace
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch

from dualfuse.data.neighbors import Neighbors
from dualfuse.data.sampler import MixtureSampler
from dualfuse.errors import DualfuseError
from dualfuse.recipe import Mining
from dualfuse.training import loop, mining
from dualfuse.training.dataloader import keys_at
from tests import tiny


def test_groups_are_filled_with_the_nearest_that_are_left() -> None:
    table = np.array([[1, 2, 3], [0, 2, -1], [4, 3, 0], [2, 0, 1], [3, 0, 1]])
    order = Neighbors(table, 2).regroup(np.array([2, 0, 3, 1, 4]), np.random.default_rng(0))
    assert sorted(order.tolist()) == [0, 1, 2, 3, 4]
    text = "".join(map(str, order))
    assert "24" in text and "01" in text  # 2 takes 4, 0 takes 1, and 3 is left alone


def test_every_epoch_has_all_samples_and_is_a_function_of_seed_and_step() -> None:
    table = np.array([[number ^ 1] for number in range(20)])
    sampler = MixtureSampler((12, 8), batch_size=4, seed=3, neighbors=Neighbors(table, 2))
    steps = [[12 * draw.source + draw.index for draw in sampler.draws(step)] for step in range(10)]
    assert all(sorted(chain(*epoch)) == list(range(20)) for epoch in (steps[:5], steps[5:]))
    assert all(number ^ 1 in step for step in steps for number in step)
    again = MixtureSampler((12, 8), batch_size=4, seed=3, neighbors=Neighbors(table, 2))
    assert [12 * draw.source + draw.index for draw in again.draws(7)] == steps[7]


def test_neighbors_are_those_of_a_naive_search_without_the_same_image_or_text() -> None:
    torch.manual_seed(0)
    image, text = (torch.nn.functional.normalize(torch.randn(8, 3), dim=1) for _ in range(2))
    image[5], text[6] = image[0], text[1]
    table = mining._table(image, text, np.array([0, 1, 2, 3, 4, 5, 6, 8]), 10, 3)
    numbers = [0, 1, 2, 3, 4, 5, 6, 8]
    for row, number in enumerate(numbers):
        same = {row} | ({0, 5} if row in (0, 5) else set()) | ({1, 6} if row in (1, 6) else set())
        score = {o: float(text[row] @ image[o] + image[row] @ text[o]) for o in range(8) if o not in same}
        assert table[number].tolist() == [numbers[o] for o in sorted(score, key=score.__getitem__, reverse=True)[:3]]
    assert table[7].tolist() == table[9].tolist() == [-1, -1, -1]


def test_a_run_resumes_with_the_same_batches(tmp_path: Path) -> None:
    recipe = tiny.changed(tiny.recipe(tmp_path), steps=6, save_every=3)
    recipe = replace(recipe, mining=Mining(group=2, neighbors=4, refresh_epochs=0.4))  # of five steps each
    loop.train([recipe], tmp_path / "whole")
    tiny.stopped(recipe, tmp_path / "parts", step=3)
    loop.train([recipe], tmp_path / "parts")
    files = [sorted((tmp_path / name / mining.FOLDER).glob("*.npy")) for name in ("whole", "parts")]
    assert [file.stem for file in files[0]] == [file.stem for file in files[1]]
    assert [file.stem for file in files[0]] == ["step-00000000", "step-00000002", "step-00000004"]
    assert all(one.read_bytes() == other.read_bytes() for one, other in zip(*files, strict=True))
    whole, parts = (tiny.weights(tmp_path / name) for name in ("whole", "parts"))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    table = Neighbors(np.load(files[0][2]), 2)
    assert mining.keys_of_step(recipe, tmp_path / "whole", 5) == keys_at(recipe, 5, table) != keys_at(recipe, 5)


@pytest.mark.parametrize("changes", [{"weights": (1.0,)}, {"sample_by": "caption"}, {"batch_size": 1}])
def test_data_that_cannot_be_grouped_is_refused(tmp_path: Path, changes: dict) -> None:
    recipe = tiny.recipe(tmp_path)
    recipe = replace(recipe, data=replace(recipe.data, **changes), mining=Mining(group=2))
    with pytest.raises(DualfuseError, match=r"mining\.group"):
        mining.check_mining(recipe)
