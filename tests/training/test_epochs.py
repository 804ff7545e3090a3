"""A length in epochs follows the data, is the same when a run resumes, and gives way to steps from the command line."""

from __future__ import annotations

import logging
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from tiny import changed, recipe, samples

from dualfuse import hub
from dualfuse.cli.train import override
from dualfuse.errors import DualfuseError
from dualfuse.prepare.shard_writer import write_shards
from dualfuse.recipe import Recipe
from dualfuse.training.epochs import with_steps
from dualfuse.training.loop import train


def test_steps_follow_the_data(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    made = recipe(tmp_path, images=20)
    other = write_shards(samples(9), tmp_path / "other", "other")
    one = changed(made, epochs=2.5, eval_epochs=1, batch_size=8)
    both = changed(one, train=(*made.data.train, str(other[0])))
    with caplog.at_level(logging.INFO, logger="dualfuse"):
        lengths = [with_steps(each, tmp_path / "run").run for each in (one, both, changed(made, steps=6))]
    assert [run.steps for run in lengths] == [7, 10, 6]  # 50 of 8 and 72.5 of 8, rounded up
    assert [run.eval_every for run in lengths[:2]] == [2, 4]  # 20 of 8 and 29 of 8, rounded
    captions = changed(made, epochs=1, sample_by="caption", batch_size=8)
    texts = sum(len(sample.texts) for sample in samples(20))
    assert with_steps(captions, tmp_path / "run").run.steps == -(-texts // 8)
    assert "2.5 epochs of 29 samples in batches of 8 are 10 steps" in caplog.text


def test_a_finished_run_needs_no_data_and_more_epochs_continue_it(tmp_path: Path) -> None:
    made = changed(recipe(tmp_path, images=20), epochs=1, batch_size=10, num_workers=0)
    final = train((made,), tmp_path / "run")
    assert (hub.read_recipe(final).run.steps, hub.read_recipe(final).run.epochs) == (2, 1)
    longer = changed(made, epochs=1.5)
    assert hub.read_recipe(train((longer,), tmp_path / "run")).run.steps == 3
    with pytest.raises(DualfuseError, match=r"finished with run\.steps 3"):
        train((made,), tmp_path / "run")
    shutil.rmtree(tmp_path / "data")
    assert train((longer,), tmp_path / "run") == final


def test_flags_of_steps_replace_epochs(tmp_path: Path) -> None:
    made = changed(recipe(tmp_path, images=2), epochs=3, eval_epochs=1)

    def parsed(recipes: tuple[Recipe, ...], *flags: str) -> list[tuple[int, float, float]]:
        return [(each.run.steps, each.run.epochs, each.run.eval_epochs) for each in override(recipes, flags, prog="x")]

    same = made.run.steps
    assert parsed((made,), "--optim.lr", "1") == [(same, 3, 1)]
    assert parsed((made,), "--run.steps", str(same)) == [(same, 0, 1)]
    assert parsed((made,), "--run.eval-every=2", "--run.epochs", "4") == [(same, 4, 0)]
    stages = (replace(made, name="a"), replace(made, name="b"))
    assert parsed(stages, "--b.run.steps", "7") == [(same, 3, 1), (7, 0, 1)]
    with pytest.raises(DualfuseError, match=r"--run.steps and --run.epochs are both given"):
        parsed((made,), "--run.steps", "7", "--run.epochs", "2")
