"""Training on a mixture that is sampled by caption: exact on resuming, and on any number of processes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from many import start
from tiny import changed, lines, recipe, samples, shards, stopped, weights

from dualfuse.config import from_json, to_json
from dualfuse.data.sample import Sample
from dualfuse.recipe import Data, Recipe
from dualfuse.training import loop
from dualfuse.training.dataloader import check_data, keys_at, training_dataloader, training_sets


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    """Ten images with 20 captions, and four images with 6 captions each, one of them without an image."""
    folder = tmp_path_factory.mktemp("mixed")
    made = recipe(folder, images=10)
    many = [replace(sample, texts=tuple(f"a {k} cat" for k in range(6))) for sample in samples(4)]
    many[2] = Sample("002", many[2].image, ())
    shards(folder / "many", many, "genome")
    sources = (*made.data.train, str(folder / "many" / "genome-*.tar"))
    return changed(made, sample_by="caption", train=sources, num_workers=0)


def test_lengths_and_the_line_about_data(mixed: Recipe, caplog: pytest.LogCaptureFixture) -> None:
    assert list(map(len, training_sets(mixed))) == [19, 18]
    assert list(map(len, training_sets(changed(mixed, sample_by="image")))) == [10, 4]
    check_data(mixed)
    assert "train-*.tar: 19 captions of 10 images, 51.4 % of each batch" in caplog.text
    assert (
        "genome-*.tar: 18 captions of 3 images, 48.6 % of each batch; 1 without captions are not drawn" in caplog.text
    )
    keys = [key for step in range(37) for key in keys_at(changed(mixed, batch_size=1), step)]
    assert len(set(keys)) == 37 and sum(key.startswith("genome") for key in keys) == 18
    sources = next(training_dataloader(changed(mixed, batch_size=20, weights=(1.0, 3.0)), start=4)).batch["source"]
    assert sources.bincount().tolist() == [5, 15]


def test_old_recipes_are_sampled_by_image(mixed: Recipe) -> None:
    content = to_json(mixed.data)
    assert isinstance(content, dict) and content.pop("sample_by") == "caption"
    old = from_json(content)
    assert isinstance(old, Data) and old.sample_by == "image"


@pytest.mark.parametrize("workers", [0, 2])
def test_resumed_run_is_the_same(mixed: Recipe, tmp_path: Path, workers: int) -> None:
    loop.train((mixed,), tmp_path / "whole")
    torch.manual_seed(7)
    loop.train((changed(mixed, num_workers=workers),), stopped(mixed, tmp_path / "stopped"))
    assert lines(tmp_path / "stopped") == lines(tmp_path / "whole")
    expected = weights(tmp_path / "whole")
    assert all(torch.equal(tensor, expected[name]) for name, tensor in weights(tmp_path / "stopped").items())
    with pytest.raises(ValueError, match="sample_by was 'caption', is 'image'"):
        loop.train((changed(mixed, sample_by="image"),), tmp_path / "whole")


def test_two_processes_draw_what_one_draws(mixed: Recipe, tmp_path: Path) -> None:
    steady = changed(mixed, drop_path=0.0, steps=3, eps=1e-3)
    loop.train((steady,), tmp_path / "alone")
    for index in Path(steady.data.train[0]).parent.glob("*.npz"):
        index.unlink()  # so that the first process counts for both
    assert start(2, lambda: print(loop.train((steady,), tmp_path / "together"))) == [0, 0]
    expected = weights(tmp_path / "alone")
    for name, tensor in weights(tmp_path / "together").items():
        torch.testing.assert_close(tensor, expected[name], atol=1e-5, rtol=0)
