"""Removed and swapped words, and maps by occlusion, against scores that are computed pair by pair."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from torch import Tensor

from dualfuse import hub
from dualfuse.cli import explain as explain_command
from dualfuse.hub import LoadedModel
from dualfuse.inference import occlusion
from dualfuse.inference.occlusion import CELLS, occlusion_maps
from dualfuse.inference.word_changes import explain_words, removals, swaps

TEXT = "a small red cat"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    recipe = tiny.recipe(path, images=4)
    torch.manual_seed(0)
    task = recipe.task.build(recipe.model.build()).requires_grad_(False)
    for weight in task.parameters():
        weight += 0.1 * torch.randn_like(weight)
    return hub.save(path / "model", task, recipe)


def test_content_words_are_removed_and_classes_swapped() -> None:
    assert removals("There is a red, small cat!") == [
        ("red", "There is a , small cat!"),
        ("small", "There is a red, cat!"),
        ("cat", "There is a red, small !"),
    ]
    assert removals("cat") == []
    swapped = swaps(TEXT, 0)
    assert swapped == swaps(TEXT, 0)
    assert any("red" not in each and each.endswith("cat") for each in swapped)


def test_changes_equal_matches_of_single_pairs(folder: Path) -> None:
    model = hub.load(folder)
    image = tiny.png_image(3)
    pixels = model.processor.image(image, np.random.default_rng(0))
    explained = explain_words(model, pixels, TEXT)
    assert explained.probability == pytest.approx(model.match(image, TEXT)[0], abs=1e-5)
    assert [each.word for each in explained.changes][:3] == ["small", "red", "cat"]
    for change in explained.changes:
        assert change.probability == pytest.approx(model.match(image, change.text)[0], abs=1e-5)
    assert explained.lines()[1].startswith("without small: ")


def test_occlusion_finds_the_pixels_that_a_word_reads(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A score that adds, for "red" alone, what one corner of the image shows."""
    model = hub.load(folder)

    def scores(_: LoadedModel, images: Tensor, texts: list[str]) -> tuple[Tensor, None]:
        corner, whole = images[:, 0, 24:, :8].mean((1, 2)), images.mean((1, 2, 3))
        return torch.stack([whole + ("red" in text) * corner for text in texts], dim=1).flatten(), None

    monkeypatch.setattr(occlusion, "pair_scores", scores)
    monkeypatch.setattr(occlusion, "scores_of", lambda _, cosine, match: cosine)
    pixels = torch.zeros(3, 32, 32)
    pixels[:, 24:, :8] = 5.0
    words, heat = occlusion_maps(model, pixels, TEXT)
    assert words == ("small", "red", "cat") and heat.shape == (4, CELLS, CELLS)
    red = heat[2]
    assert red[6:, :2].sum() > 0.7 * red.sum() and divmod(int(red.argmax()), CELLS) in {(7, 0), (6, 0), (7, 1), (6, 1)}
    assert heat[1].sum() == 0


def test_the_command_prints_json_and_draws(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.png").write_bytes(tiny.png_image(1))
    explain_command.run(str(folder), (tmp_path / "a.png",), TEXT, json=True)
    record = json.loads(capsys.readouterr().out)
    assert [each["word"] for each in record["changes"]][:3] == ["small", "red", "cat"]
    explain_command.run(str(folder), (tmp_path / "a.png",), TEXT, tmp_path / "out.png")
    assert "without red: " in capsys.readouterr().out and (tmp_path / "out.png").stat().st_size > 1000
