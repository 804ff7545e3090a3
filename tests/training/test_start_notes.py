"""Differences that a run would otherwise pass over in silence, and longer texts than the start was trained on."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny import BRIDGETOWER, changed, shards
from torch import Tensor

from dualfuse import hub
from dualfuse.errors import DualfuseError
from dualfuse.recipe import Recipe
from dualfuse.tasks.base import Task
from dualfuse.training import loop, start_notes
from dualfuse.training.init_from import init_from
from dualfuse.training.start_notes import note_differences
from dualfuse.training.text_positions import text_length, with_long_texts


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


def saved(recipe: Recipe, folder: Path) -> Task:
    torch.manual_seed(3)
    task = recipe.build().eval()
    for parameter in task.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    hub.save(folder, task, recipe)
    return task


def test_a_recipe_like_its_start_needs_no_warning(
    tiny: Recipe, whole: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    loop.train((changed(tiny, start_from=str(whole / "final"), steps=1),), tmp_path)
    assert warnings(caplog) == []


def test_another_normalization_than_the_start_is_one_warning(
    tiny: Recipe, whole: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    other = replace(tiny.data.preprocess, mean=(0.4, 0.5, 0.6), resize_mode="crop")
    recipe = changed(tiny, image_size=(24, 24))
    recipe = replace(recipe, data=replace(recipe.data, preprocess=other, image_size=(24, 24)))
    init_from(recipe.build(), recipe, str(whole / "final"), tmp_path)
    [said] = warnings(caplog)
    for part in ("mean was (0.5, 0.5, 0.5), is (0.4, 0.5, 0.6)", "resize_mode was squash, is crop", "was (32, 32), is"):
        assert part in said
    assert "std" not in said


def test_few_pairs_from_random_weights_are_answered_by_what_to_type(
    tiny: Recipe, whole: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO)
    note_differences(changed(tiny, start_from=str(whole / "final")))
    note_differences(changed(tiny, itc_weight=0.0, itm_weight=0.0))
    assert "dualfuse train starter" not in caplog.text
    note_differences(tiny)
    assert "random weights and 40 pairs" in caplog.text and "dualfuse train starter --data.train" in caplog.text
    caplog.clear()
    monkeypatch.setattr(start_notes, "FEW_PAIRS", 40)
    note_differences(tiny)
    assert not caplog.text


def test_validation_on_training_data(tiny: Recipe, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    copy = shards(tmp_path / "copy", 40, name="other")
    note_differences(changed(tiny, validation=tiny.data.train[0]))
    note_differences(changed(tiny, validation=copy))
    note_differences(changed(tiny, validation=shards(tmp_path / "val", 7)))
    first, second = warnings(caplog)
    assert "the contents of train-00000 are" in first and "the contents of other-00000 are" in second


def test_fewer_tokens_than_the_tokenizer_are_an_error(tiny: Recipe, tmp_path: Path) -> None:
    size = tiny.model.vocab_size
    recipe = changed(tiny, vocab_size=size - 1)
    with pytest.raises(DualfuseError, match=rf"embeds {size - 1} tokens, but the tokenizer .* has {size};"):
        loop.train((recipe,), tmp_path / "out")
    assert not (tmp_path / "out" / "log.jsonl").exists()
    towers = replace(tiny, model=replace(BRIDGETOWER, text=replace(BRIDGETOWER.text, vocab_size=size - 1)))
    with pytest.raises(DualfuseError, match=f"embeds {size - 1} tokens"):
        note_differences(towers)
    note_differences(changed(tiny, vocab_size=size + 9))


def test_longer_texts_than_positions_are_said(tiny: Recipe, caplog: pytest.LogCaptureFixture) -> None:
    note_differences(replace(tiny, model=replace(tiny.model, text_length=9)))
    [said] = warnings(caplog)
    assert (
        "data.text_length is 12, but the model takes texts of at most 9" in said and "--extend-text-positions" in said
    )


def states(task: Task, length: int) -> Tensor:
    ids = 5 + torch.arange(2 * length).view(2, length) % 14
    with torch.no_grad():
        return task.model.encode(task.model.embed_text(ids, torch.ones_like(ids, dtype=torch.bool)))


@pytest.mark.parametrize("model", ["relative", "absolute", "bridgetower"])
def test_text_positions_are_extended(tiny: Recipe, tmp_path: Path, model: str) -> None:
    """Texts of the old length have the states of the start, bit by bit."""
    start = replace(tiny, model=BRIDGETOWER) if model == "bridgetower" else changed(tiny, positions=model)
    given = saved(start, tmp_path / "start")
    data = replace(start.data, text_length=20)
    recipe = with_long_texts(replace(start, data=data, start_from=str(tmp_path / "start")))
    assert recipe.model == start.model  # not without the option
    recipe = with_long_texts(replace(recipe, extend_text_positions=True))
    assert text_length(recipe.model) == 20
    task = recipe.build().eval()
    init_from(task, recipe, str(tmp_path / "start"), tmp_path / "out")
    assert torch.equal(states(task, 12), states(given, 12))
    assert states(task, 20).isfinite().all()
    if model == "relative":
        old, new = given.model.relative_bias.table, task.model.relative_bias.table
        first, count = (2 * 4 - 1) ** 2 + 3 + 2, 2 * 12 - 3  # by hand: the distances -10 ... 10 of twelve tokens
        distances = torch.arange(-18, 19).clamp(-10, 10) + 10 + first
        assert torch.equal(new[first : first + 37], old[distances]) and len(new) == len(old) + 16
        assert torch.equal(new[first + 37 :], old[first + count :])
    else:
        name = "words.position" if model == "absolute" else "text_tower.words.position"
        unused = 0 if model == "absolute" else 1
        old, new = (each.model.get_submodule(name).weight[unused:].detach().numpy() for each in (given, task))
        place = 15 * 11 / 19  # of row 15 of 0 ... 19 on a table of rows 0 ... 11
        share = place - int(place)
        expected = (1 - share) * old[int(place)] + share * old[int(place) + 1]
        assert new[15] == pytest.approx(expected, abs=1e-6) and (new[19] == old[11]).all() and len(new) == 20


def test_training_with_longer_texts(tiny: Recipe, whole: Path, tmp_path: Path) -> None:
    """The option is all that a command adds."""
    recipe = replace(
        tiny, start_from=str(whole / "final"), extend_text_positions=True, data=replace(tiny.data, text_length=16)
    )
    recipe = changed(recipe, steps=1)
    loop.train((recipe,), tmp_path)
    assert hub.load(tmp_path / "final").recipe.model.text_length == 16
    loop.train((recipe,), tmp_path)  # finished, with the same recipe
